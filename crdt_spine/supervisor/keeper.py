"""Keeps one child running: started, watched, restarted after a pause that doubles, stopped.

    starting ──ready──▶ ready ──died──▶ down ──pause──▶ starting      any ──stop──▶ stopped
       └────────────ended, too slow───────▲

A child that dies at once, over and over, must not eat the machine: the pause doubles up to a maximum, and begins anew
after a child has served for a while. The first start is not repeated: its failure is the caller's to see.

A service that ends with 0 is done (a node that was removed from its cluster): it stays down until it is told to start.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum

import msgspec

from crdt_spine.errors import ConnectionFailed, SpineError
from crdt_spine.limits import RESTART_CALM_SECONDS, RESTART_SECONDS_MAX, RESTART_SECONDS_MIN
from crdt_spine.supervisor.events import ChildDied, ChildFailed, ChildReady, ChildStarted, Listener
from crdt_spine.supervisor.service import Launcher, Running


class ChildState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    STOPPED = "stopped"


class ChildStatus(msgspec.Struct, frozen=True):
    """A child as it is now; `pid` is None while it does not run."""

    id: str
    kind: str
    pid: int | None
    state: ChildState
    restarts: int


class RestartPolicy(msgspec.Struct):
    """Whether a child that died is started again by itself, and after how long (None: the doubling pause)."""

    automatic: bool = True
    delay_seconds: float | None = None

    def pause_seconds(self, failures: int) -> float | None:
        """The pause after so many deaths in a row; None: until it is told to start."""
        if not self.automatic:
            return None
        if self.delay_seconds is not None:
            return self.delay_seconds
        return float(min(RESTART_SECONDS_MIN * 2 ** min(failures - 1, 16), RESTART_SECONDS_MAX))


class Keeper:
    """One child. `start` once, then `keep` as a task; `stop` at the end."""

    def __init__(self, launcher: Launcher, policy: RestartPolicy, tell: Listener) -> None:
        self.name = launcher.name
        self.kind = launcher.kind
        self._launcher = launcher
        self._policy = policy
        self._tell = tell
        self._running: Running | None = None
        self._state = ChildState.DOWN
        self._starts = 0
        self._failures = 0  # deaths in a row
        self._ready_at = 0.0
        self._start_asked = False
        self._done = False  # it has ended with 0, and is one of those that may
        self._look_again = asyncio.Event()

    @property
    def status(self) -> ChildStatus:
        alive = self._running is not None and not self._running.exited.is_set()
        pid = self._running.pid if alive and self._running is not None else None
        return ChildStatus(self.name, self.kind, pid, self._state, max(0, self._starts - 1))

    async def start(self) -> None:
        """Start it and wait until it serves, or is done. Raises SpineError; then it does not run."""
        self._state = ChildState.STARTING
        self._start_asked = self._done = False
        try:
            self._running = await self._launcher.launch()
            restarts, self._starts = self._starts, self._starts + 1
            self._tell(ChildStarted(self.name, self.kind, self._running.pid, restarts))
            try:
                await self._running.wait_ready()
            except ConnectionFailed:
                if not self._is_done(self._running):
                    raise
                self._state = ChildState.DOWN
                return
        except BaseException:
            self._state = ChildState.DOWN
            if self._running is not None:
                await self._running.stop(0)
            raise
        self._state = ChildState.READY
        self._ready_at = asyncio.get_running_loop().time()
        self._tell(ChildReady(self.name, self.kind, self._running.pid, restarts))

    async def keep(self) -> None:
        """Watch it and start it again whenever it died, until cancelled."""
        while True:
            running = self._running
            assert running is not None, "kept before it was started"
            await running.exited.wait()
            self._state = ChildState.DOWN
            if asyncio.get_running_loop().time() - self._ready_at >= RESTART_CALM_SECONDS:
                self._failures = 0
            self._failures += 1
            self._done = self._is_done(running)
            pause = self._pause_seconds()
            assert running.returncode is not None
            self._tell(ChildDied(self.name, self.kind, running.pid, running.returncode, pause))
            await self._restart()

    async def _restart(self) -> None:
        while True:
            await self._until_due()
            try:
                await self.start()
                return
            except SpineError as error:
                self._failures += 1
                pause = self._pause_seconds()
                self._tell(ChildFailed(self.name, self.kind, str(error), pause))

    async def _until_due(self) -> None:
        """Wait out the pause; the policy may change, and a start be asked for, meanwhile."""
        now = asyncio.get_running_loop().time
        down_since = now()
        while not self._start_asked:
            pause = self._pause_seconds()
            if pause is not None and now() >= down_since + pause:
                return
            self._look_again.clear()
            try:
                async with asyncio.timeout_at(None if pause is None else down_since + pause):
                    await self._look_again.wait()
            except TimeoutError:
                pass

    def _is_done(self, running: Running) -> bool:
        return self._launcher.may_be_done and running.returncode == 0

    def _pause_seconds(self) -> float | None:
        return None if self._done else self._policy.pause_seconds(self._failures)

    def policy_changed(self) -> None:
        """Apply the policy's new values to a pause that is under way."""
        self._look_again.set()

    def start_now(self) -> None:
        """End the pause of a child that is down; nothing for one that runs."""
        if self._state is ChildState.DOWN:
            self._start_asked = True
            self._look_again.set()

    async def kill(self) -> int | None:
        """End its process with SIGKILL; its id, once it is gone; None where there was none."""
        running = self._running
        if running is None or running.exited.is_set():
            return None
        running.kill()
        await running.exited.wait()
        return running.pid

    async def stop(self) -> None:
        """Ask it to end, kill it if it does not; returns once it is gone. No `keep` may run any more."""
        if self._running is not None:
            await self._running.stop(self._launcher.stop_seconds)
        self._state = ChildState.STOPPED
