"""A process that ends with the process that started it, even when that one is killed.

A broker or node left behind would keep its port and its folder's lock, and the next start would fail for a reason that
nobody sees. A handler can't help, because nothing of ours runs when we are killed with SIGKILL; so the child is tied to
us by the kernel, before it becomes the program (`launcher.py`).

On Linux the tie is to the *thread* that started the child: call this in a thread that lives as long as the child may,
which the thread of an event loop does. The child gets a session of its own, so that a Ctrl-C in the terminal reaches
the parent alone, and the parent ends its children in the right order.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

from crdt_spine.errors import ConfigError, ConnectionFailed

Tie = Literal["pdeathsig", "watchdog"]

DEFAULT_TIE: Tie = "pdeathsig" if sys.platform == "linux" else "watchdog"
LAUNCHER = Path(__file__).with_name("launcher.py")

_lifelines: dict[int, tuple[int, int]] = {}


def _lifeline() -> int:
    """The reading end of this process's pipe that is written to by nobody and ends with this process."""
    # Keyed by process: a forked copy of us must not keep our children alive, nor we the copy's.
    if os.getpid() not in _lifelines:
        _lifelines[os.getpid()] = os.pipe()
    return _lifelines[os.getpid()][0]


class BoundProcess:
    """A running child. `exited` is set once it has ended and `returncode` (negative: a signal) is known.

    `output` is what it prints, if that was asked for.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid: int = process.pid
        self.exited = asyncio.Event()
        self.output: asyncio.StreamReader | None = process.stdout
        self._reaper = asyncio.get_running_loop().create_task(self._reap(), name=f"reap-{process.pid}")

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it (SIGKILL)."""
        self._signal(signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end; kill it after `grace_seconds`. Returns once it is gone; may be called again."""
        self.terminate()
        try:
            async with asyncio.timeout(grace_seconds):
                await self.exited.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()  # also when we are cancelled while we wait
        await self.exited.wait()

    def _signal(self, number: signal.Signals) -> None:
        # asyncio never signals an id that it has already reaped, so a stranger with the same id is safe.
        if self._process.returncode is None:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                pass

    async def _reap(self) -> None:
        try:
            await self._process.wait()
        except asyncio.CancelledError:
            self.kill()  # the loop is being closed over a child that nobody stopped
            await self._process.wait()
            raise
        finally:
            self.exited.set()


async def spawn_bound_to_parent(
    command: Sequence[str | os.PathLike[str]],
    *,
    output: int | IO[bytes] = asyncio.subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
    tie: Tie = DEFAULT_TIE,
) -> BoundProcess:
    """Start `command` as a child that is killed when this process (on Linux: this thread) ends.

    `output` takes what it prints on stdout and stderr; `environment` is added to ours; the file descriptors in
    `keep_open` stay open in it. A program that can't be executed is a child that ends with 127 and says why. Raises
    ConnectionFailed: the system has no room for another process.
    """
    if os.name != "posix":
        raise ConfigError("starting brokers and nodes needs Linux or macOS: here, connect to a broker elsewhere")
    lifeline = _lifeline() if tie == "watchdog" else -1
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # the launcher alone; the program gets the whole environment
            "-S",
            str(LAUNCHER),
            tie,
            str(os.getpid()),
            str(lifeline),
            *(os.fspath(word) for word in command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            pass_fds=(*keep_open, lifeline) if tie == "watchdog" else tuple(keep_open),
            start_new_session=True,
        )
    )
    try:
        return BoundProcess(await asyncio.shield(starting))
    except asyncio.CancelledError:
        await BoundProcess(await starting).stop(0)
        raise
    except OSError as error:
        raise ConnectionFailed(f"{os.fspath(command[0])} could not be started: {error}") from error
