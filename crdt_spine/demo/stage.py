"""The processes of the demo: a broker and three nodes, one of which is killed and comes back.

The supervisor is the one that `spine up` uses. Kept here is what the facts need of it: when the killed node's process
was gone, started again and serving, and every process that was ever started.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from crdt_spine.demo.scene import NodeState, NodeView, Scene, Tone
from crdt_spine.supervisor import ChildDied, ChildFailed, ChildReady, ChildStarted, Event, Supervisor

NODES: Final = 3


class Outage(msgspec.Struct):
    """A node's absence. Times are monotonic seconds, 0.0 where it did not come to that."""

    node: str
    pid: int
    ending: str = ""  # how the process ended, as the system said
    gone: float = 0.0
    new_pid: int = 0
    started: float = 0.0
    ready: float = 0.0
    level: float = 0.0  # set by who looks: the node has everything that the others have


class Stage:
    """`async with`; then `url`. On leaving, every process is ended."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.outage: Outage | None = None
        self.returned = asyncio.Event()
        self._scene = scene
        self._pids: list[int] = []
        self._supervisor = Supervisor(folder, nodes=NODES, nats_port=0, http_port=0, on_event=self._take)

    @property
    def url(self) -> str:
        return self._supervisor.url

    async def __aenter__(self) -> Self:
        await self._supervisor.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._supervisor.stop()

    @property
    def started(self) -> int:
        """How many processes were started, restarts included."""
        return len(self._pids)

    def running(self) -> list[int]:
        """Those that still run."""
        return [pid for pid in self._pids if _runs(pid)]

    async def kill(self, node: str, away_seconds: float) -> None:
        """Kill a node with SIGKILL; it is started again after `away_seconds`."""
        pid = next(one.pid for one in self._supervisor.nodes if one.id == node)
        self.outage = Outage(node, pid or 0)
        self._supervisor.set_node_restart(True, away_seconds)
        await self._supervisor.kill_node(node)

    def _take(self, event: Event) -> None:
        """The supervisor tells what happened to a process."""
        match event:
            case ChildStarted():
                self._pids.append(event.pid)
            case ChildDied():
                self._scene.say(f"{event.name} is gone: {event.ending}, process {event.pid}", Tone.BAD)
            case ChildFailed():
                self._scene.say(f"{event.name} did not start: {event.reason}", Tone.BAD)
            case _:
                pass
        if isinstance(event, ChildStarted | ChildReady | ChildDied) and event.kind == "node":
            self._view(event)
            if self.outage is not None and event.name == self.outage.node:
                self._record(self.outage, event)

    def _view(self, event: ChildStarted | ChildReady | ChildDied) -> None:
        view = self._scene.nodes.setdefault(event.name, NodeView(event.name))
        match event:
            case ChildStarted():
                view.state, view.pid = NodeState.STARTING, event.pid
            case ChildReady():
                view.state = NodeState.CATCHING_UP if event.restarts else NodeState.UP
            case ChildDied():
                view.state, view.pid, view.feeds = NodeState.KILLED, None, 0

    def _record(self, outage: Outage, event: ChildStarted | ChildReady | ChildDied) -> None:
        match event:
            case ChildDied() if not outage.gone:
                outage.gone, outage.ending = time.monotonic(), event.ending
            case ChildStarted():
                outage.started, outage.new_pid = time.monotonic(), event.pid
                self._scene.say(f"{event.name} is started again as process {event.pid}")
            case ChildReady():
                outage.ready = time.monotonic()
                self.returned.set()
            case _:
                pass


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # the number belongs to somebody else by now
    return True
