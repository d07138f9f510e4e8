"""What a supervisor tells: a closed union of frozen facts, in the order in which they happened.

`name` is the child's ("broker", "spine-1"), `kind` what it is ("broker", "node", …). Times are seconds.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import msgspec


class ChildStarted(msgspec.Struct, frozen=True, tag=True):
    """A process was started. `restarts` is how many times it was started before."""

    name: str
    kind: str
    pid: int
    restarts: int


class ChildReady(msgspec.Struct, frozen=True, tag=True):
    """It serves."""

    name: str
    kind: str
    pid: int
    restarts: int


class ChildDied(msgspec.Struct, frozen=True, tag=True):
    """A process that was not asked to end has ended. `restart_seconds` None: it stays down until told to start, as a
    service does that ended with 0."""

    name: str
    kind: str
    pid: int
    returncode: int  # negative: by that signal
    restart_seconds: float | None

    @property
    def ending(self) -> str:
        """How it ended, for people: "SIGKILL" or "exit code 1"."""
        return _ending(self.returncode)


class ChildFailed(msgspec.Struct, frozen=True, tag=True):
    """A restart came to nothing; it is tried again after `restart_seconds` (None: when it is told to)."""

    name: str
    kind: str
    reason: str
    restart_seconds: float | None


class SpineReady(msgspec.Struct, frozen=True, tag=True):
    """Everything serves for the first time; agents connect to `url`. `http`: the nodes' HTTP listeners, by id."""

    url: str
    http: dict[str, str]


Event = ChildStarted | ChildReady | ChildDied | ChildFailed | SpineReady
Listener = Callable[[Event], None]


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
