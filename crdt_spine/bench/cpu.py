"""CPU seconds by process: what an operation costs, whoever pays for it.

Throughput on a machine that runs clients and servers together says who was starved; CPU per operation says what the
work costs, and stays true on another machine with more cores. Source: utime and stime (all threads) of
/proc/<pid>/stat, see proc(5), in clock ticks, usually 10 ms: measure for seconds. Where there is no /proc, psutil is
asked if it is installed. What the kernel does on nobody's account (writing dirty pages back) is in no process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

PROC = Path("/proc")


class CpuUse(msgspec.Struct, frozen=True):
    """CPU seconds by process name, of those that could be read, and how many cores everybody else kept busy."""

    seconds: dict[str, float]
    others_cores: float | None


class CpuMeter:
    """Measures from `start` to `stop`. `processes` is name → pid; a name is what the report shows."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = dict(processes)
        self._before: dict[str, float | None] = {}
        self._machine_before: float | None = None
        self._started = 0.0

    def start(self) -> None:
        """Read all counters; what was used so far is not counted."""
        self._started = time.perf_counter()
        self._machine_before = machine_cpu_seconds()
        self._before = {name: cpu_seconds(pid) for name, pid in self._processes.items()}

    def stop(self) -> CpuUse:
        """What was used since `start`. A process that ended or was replaced meanwhile is left out."""
        used: dict[str, float] = {}
        for name, pid in self._processes.items():
            before, after = self._before.get(name), cpu_seconds(pid)
            if before is not None and after is not None and after >= before:
                used[name] = after - before
        elapsed, machine = time.perf_counter() - self._started, machine_cpu_seconds()
        others = None
        if self._machine_before is not None and machine is not None and elapsed > 0:
            others = max(0.0, (machine - self._machine_before - sum(used.values())) / elapsed)
        return CpuUse(used, others)


def cpu_seconds(pid: int) -> float | None:
    """User and system time of all threads of a process so far, in seconds; None if it can't be read."""
    if pid == os.getpid():
        return time.process_time()
    try:
        line = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None if PROC.joinpath("self").exists() else _cpu_seconds_elsewhere(pid)
    fields = line.rpartition(")")[2].split()  # the command before it may itself contain spaces and brackets
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_cpu_seconds() -> float | None:
    """Time that all cores were busy or taken away by the hypervisor; None where /proc/stat is missing."""
    try:
        with (PROC / "stat").open() as lines:
            fields = [int(field) for field in lines.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cpu_seconds_elsewhere(pid: int) -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)
