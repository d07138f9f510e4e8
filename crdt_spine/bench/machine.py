"""What the figures were measured on; without it they mean nothing to anybody else."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

PACKAGES = ("crdt-spine", "nats-py", "uvloop", "msgspec", "apsw")


class Machine(msgspec.Struct, frozen=True):
    """Processor, cores, memory, operating system, file system of the data, versions, and when it was."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    file_system: str
    python: str
    nats_server: str
    packages: dict[str, str]
    measured_at: str

    def sentence(self) -> str:
        """All of it in one line of text."""
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_gib:.1f} GiB, {self.system}, data on "
            f"{self.file_system}; Python {self.python}, nats-server {self.nats_server}, {packages}; {self.measured_at}"
        )


def describe_machine(data: Path | None = None, nats_server: str | None = None) -> Machine:
    """Describe this machine. `data` is where the measured systems keep theirs; `nats_server` the program they ran."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=_memory_bytes() / 2**30,
        system=f"{platform.system()} {platform.release()}",
        file_system=file_system(data or Path(tempfile.gettempdir())),
        python=platform.python_version(),
        nats_server=_version_of(nats_server) if nats_server else "unknown",
        packages={name: found for name in PACKAGES if (found := _package(name)) is not None},
        measured_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as /proc/mounts names it. On "tmpfs" an fsync costs nothing."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return "unknown"
    absolute = path.resolve()
    mounts = [(Path(fields[1]), fields[2]) for fields in (line.split() for line in lines) if len(fields) > 2]
    holding = [(point, kind) for point, kind in mounts if absolute.is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0].parts))[1] if holding else "unknown"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _version_of(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5.0, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().rpartition(" ")[2]
