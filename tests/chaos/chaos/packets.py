"""Packets that are lost: a run in a network namespace of its own, on whose loopback the kernel drops what it is told.

Links (link.py) hold back or reset what has arrived; here TCP itself loses segments, sends them again, and backs off,
and a process may hear without being heard. Each process has a link with a port of its own, so a classic BPF program
that looks at one port of a segment is a process's one direction (McCanne, Jacobson, 1993; tc-bpf(8)).

A namespace without a name belongs to its processes: when the last of them has ended, however it did, it is gone with
all filters. It needs `unshare`, `ip` and `tc`, a kernel with `clsact` and `cls_bpf`, and root or user namespaces.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, Literal, NoReturn

Direction = Literal["in", "out"]  # as the process sees it that is behind the link

INSIDE: Final = "SPINE_CHAOS_NAMESPACE"
TOOL_SECONDS_MAX: Final = 10.0
_FIRST_PRIORITY: Final = 10
_PORT_AT: Final = {"in": 34, "out": 36}  # of a TCP segment on loopback: what comes in is from the link's port
_DROP, _PASS, _RANDOM = 2, 0xFFFFFFFF, 0xFFFFF038  # TC_ACT_SHOT, TC_ACT_UNSPEC, SKF_AD_OFF + SKF_AD_RANDOM


def inside() -> bool:
    """Is this process in such a namespace?"""
    return os.environ.get(INSIDE) == "1"


def why_not() -> str:
    """What stands in the way of a namespace here, in words; empty: nothing does."""
    missing = [tool for tool in ("unshare", "ip", "tc") if shutil.which(tool) is None]
    if sys.platform != "linux" or missing:
        return (
            f"packets can't be lost here: it takes Linux, and there is no {' and no '.join(missing) or 'such kernel'}"
        )
    trial = f"ip link set lo up && tc qdisc add dev lo clsact && {shlex.join(_filter(1, 'in', 0.5))}"
    try:
        done = subprocess.run(
            [*_namespace(), "sh", "-c", trial], capture_output=True, text=True, timeout=TOOL_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"packets can't be lost here: {error}"
    return "" if done.returncode == 0 else f"packets can't be lost here: {done.stderr.strip() or 'it is not allowed'}"


def enter(command: Sequence[str]) -> NoReturn:
    """Run this program anew as `command` in a namespace: the same process, with a loopback of its own."""
    words = [*_namespace(), "sh", "-c", 'ip link set lo up && tc qdisc add dev lo clsact && exec "$@"', "sh", *command]
    os.execvpe(words[0], words, {**os.environ, INSIDE: "1"})


def lose(port: int, direction: Direction, share: float) -> None:
    """From now on this share of the segments in one direction of the link with this port is lost. Raises
    CalledProcessError."""
    _run(_filter(port, direction, share))


def lose_nothing(port: int, direction: Direction) -> None:
    """All of them arrive again. Raises CalledProcessError."""
    _run(["tc", "filter", "del", "dev", "lo", "ingress", "pref", str(_priority(port, direction))])


def _namespace() -> list[str]:
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]


def _priority(port: int, direction: Direction) -> int:
    """The filter's name among others; ports that are given away are 28,000 in a row, and priorities have 16 bits."""
    return _FIRST_PRIORITY + (port % 30_000) * 2 + (direction == "out")


def _filter(port: int, direction: Direction, share: float) -> list[str]:
    priority = str(_priority(port, direction))
    words = ["tc", "filter", "add", "dev", "lo", "ingress", "pref", priority, "protocol", "ip", "bpf", "da", "bytecode"]
    return [*words, _program(port, direction, share)]


def _program(port: int, direction: Direction, share: float) -> str:
    """The program as tc reads it: how many instructions, then code, jump if true, jump if false, operand of each."""
    steps = [
        (40, 0, 0, 12), (21, 0, 7, 0x0800),  # a half-word of the frame: is it IPv4?
        (48, 0, 0, 23), (21, 0, 5, 6),  # a byte: TCP?
        (40, 0, 0, _PORT_AT[direction]), (21, 0, 3, port),
        (32, 0, 0, _RANDOM), (53, 1, 0, min(int(share * (1 << 32)), 0xFFFFFFFF)),  # not below the share: it arrives
        (6, 0, 0, _DROP), (6, 0, 0, _PASS),
    ]  # fmt: skip
    return f"{len(steps)}," + ",".join(" ".join(map(str, step)) for step in steps)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=TOOL_SECONDS_MAX)
