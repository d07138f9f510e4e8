"""Kinds of children: the broker, and services, which are commands that print `ready NAME` when they serve.

A node is a service; so is whatever else is to run beside the nodes: a `ServiceSpec` more, and it is started after the
broker, logged, watched, restarted and stopped as they are.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from crdt_spine.broker.folder_lock import prepare_folder
from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent
from crdt_spine.broker.server import EmbeddedBroker
from crdt_spine.errors import ConnectionFailed
from crdt_spine.limits import BROKER_STOP_SECONDS_MAX, NODE_READY_SECONDS_MAX, NODE_STOP_SECONDS_MAX
from crdt_spine.supervisor.output import BoundedLog, ChildOutput

LOCKS = "locks"  # the lock service's name, and its kind


class Running(Protocol):
    """A child process, started and not necessarily serving yet."""

    pid: int
    exited: asyncio.Event

    @property
    def returncode(self) -> int | None: ...
    def kill(self) -> None: ...
    async def stop(self, grace_seconds: float) -> None: ...
    async def wait_ready(self) -> None:
        """Return once it serves. Raises ConnectionFailed: it ended before, or took too long."""
        ...


class Launcher(Protocol):
    """How to start a child, again and again."""

    name: str
    kind: str
    stop_seconds: float  # between asking it to end and killing it
    may_be_done: bool  # does exit code 0 mean that it is not to be started again?

    async def launch(self) -> Running:
        """Start a process. Raises SpineError where that can't be done; then nothing runs."""
        ...


@dataclass(frozen=True)
class ServiceSpec:
    """A child process beside the broker.

    `command` gets the broker's URL and answers with the program and its arguments; `name` is unique among the children,
    and its folder (and log) below the data folder; it prints `ready NAME` on a line of its own when it serves.
    """

    name: str
    kind: str
    command: Callable[[str], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = NODE_READY_SECONDS_MAX


def lock_service(name: str = LOCKS) -> ServiceSpec:
    """An instance of the lock service beside the nodes: `spine locks` in this interpreter."""
    spine = [sys.executable, "-m", "crdt_spine.cli.main"]
    return ServiceSpec(name, LOCKS, lambda url: [*spine, "locks", "--server", url, "--name", name])


class RunningService:
    """A started service with its output."""

    def __init__(self, process: BoundProcess, output: ChildOutput, ready_seconds: float) -> None:
        self.pid = process.pid
        self.exited = process.exited
        self._process = process
        self._output = output
        self._ready_seconds = ready_seconds

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def kill(self) -> None:
        self._process.kill()

    async def stop(self, grace_seconds: float) -> None:
        await self._process.stop(grace_seconds)
        await self._output.ended()

    async def wait_ready(self) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._output.ready, self.exited)]
        try:
            await asyncio.wait(waits, timeout=self._ready_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        name, log = self._output.name, self._output.log.path
        if self.exited.is_set():
            await self._output.ended()
            said = " / ".join(self._output.last_lines) or "it said nothing"
            raise ConnectionFailed(f"{name} ended with {self.returncode} before it served: {said}; its log is {log}")
        if not self._output.ready.is_set():
            raise ConnectionFailed(f"{name} did not serve within {self._ready_seconds:g} s; its log is {log}")


class ServiceLauncher:
    """Starts a service against a broker."""

    stop_seconds = NODE_STOP_SECONDS_MAX
    may_be_done = True

    def __init__(self, spec: ServiceSpec, folder: Path, url: str, keep_open: Sequence[int]) -> None:
        self.name = spec.name
        self.kind = spec.kind
        self._spec = spec
        self._folder = folder
        self._url = url
        self._keep_open = keep_open

    async def launch(self) -> RunningService:
        folder = prepare_folder(self._folder)
        process = await spawn_bound_to_parent(
            self._spec.command(self._url),
            environment={"PYTHONUNBUFFERED": "1", **self._spec.environment},  # "ready" must not wait in a buffer
            keep_open=self._keep_open,
        )
        assert process.output is not None
        output = ChildOutput(self.name, process.output, BoundedLog(folder / f"{self.kind}.log"))
        return RunningService(process, output, self._spec.ready_seconds)


class _RunningBroker(EmbeddedBroker):
    async def wait_ready(self) -> None:
        """It was, when `start` returned."""


class BrokerLauncher:
    """Starts the broker, and on the same port again."""

    name = kind = "broker"
    stop_seconds = BROKER_STOP_SECONDS_MAX
    may_be_done = False

    def __init__(
        self, folder: Path, port: int, keep_open: Sequence[int], executable: str | os.PathLike[str] | None
    ) -> None:
        self.url = ""
        self._folder = folder
        self._port = port
        self._keep_open = keep_open
        self._executable = executable

    async def launch(self) -> _RunningBroker:
        broker = await _RunningBroker.start(
            self._folder, self._port, executable=self._executable, keep_open=self._keep_open
        )
        self._port = broker.port
        self.url = broker.url
        return broker
