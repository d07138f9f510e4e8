"""A command that runs while a lock is held: it gets our signals, and does not outlive us.

**Signals.** What would end us (SIGINT, SIGTERM, SIGHUP, SIGQUIT) is passed on to the command while it runs, and it says
when it has ended. Before, it ends the waiting: our place in line, or the lock, is given back. A signal that is ignored,
as `nohup` has it, stays so. A Ctrl-C in the terminal reaches the command by itself, so it is not told twice.

**Our death.** A command that goes on after we were killed would write without the lock. On Linux the kernel kills it
with us (prctl(2), PR_SET_PDEATHSIG; broker/launcher.py does the same for what may not have our terminal). What the
command has started itself is its own affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

from crdt_spine.broker.launcher import PR_SET_PDEATHSIG
from crdt_spine.errors import SpineError

SIGNALS: Final = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")]
NOT_FOUND: Final = 127  # as shells say it
NOT_EXECUTABLE: Final = 126


class NotStarted(SpineError):
    """The command can't be run. `code`: what a shell would end with."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: {'command not found' if code == NOT_FOUND else os.strerror(errno.EACCES)}")
        self.code = code


class Signals:
    """What comes of our signals, from here to the end of the block: `number` is the one that ended the waiting."""

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._task = asyncio.current_task()
        self._process: asyncio.subprocess.Process | None = None
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> Signals:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                with contextlib.suppress(NotImplementedError):  # Windows
                    loop.add_signal_handler(number, self._take, number)
                    self._taken.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._taken:
            asyncio.get_running_loop().remove_signal_handler(number)

    def pass_on_to(self, process: asyncio.subprocess.Process) -> None:
        """Let it have them from now on. Once it has ended, nobody has: there is nothing left to be ended."""
        self._process = process

    def _take(self, number: signal.Signals) -> None:
        if self._process is not None:
            if number != signal.SIGINT or not _in_foreground():
                send(self._process, number)
        elif self._task is not None:
            self.number = number
            self._task.cancel()


def send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """A signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def check(command: str) -> None:
    """Raises NotStarted where there is no such command, before anybody waits for it."""
    if shutil.which(command) is None:
        found = os.sep in command and os.path.lexists(command)
        raise NotStarted(command, NOT_EXECUTABLE if found else NOT_FOUND)


async def start(command: tuple[str, ...], environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    """The command, with our standard streams and our terminal. Raises NotStarted, OSError."""
    try:
        return await asyncio.create_subprocess_exec(*command, env=environment, preexec_fn=_tie())
    except FileNotFoundError:
        raise NotStarted(command[0], NOT_FOUND) from None
    except PermissionError:
        raise NotStarted(command[0], NOT_EXECUTABLE) from None


def _tie() -> Callable[[], None] | None:
    """What a child of this thread does before it becomes the command, so that it ends with us."""
    if sys.platform != "linux":
        return None
    # All that it needs is found here: between fork and exec nothing should be imported or looked up.
    prctl, ours, parent_of, leave = ctypes.CDLL(None).prctl, os.getpid(), os.getppid, os._exit

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if parent_of() != ours:  # we have ended before the wish was spoken
            leave(NOT_FOUND)

    return tie


def _in_foreground() -> bool:
    """Are we what a terminal's Ctrl-C is for?"""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
