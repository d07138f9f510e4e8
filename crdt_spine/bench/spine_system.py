"""crdt_spine as a system to measure: a cluster of its own, or one that is running already.

An own cluster is what `spine up --nodes 3` makes: broker and nodes as processes, durable, W=2, on loopback, in a
temporary folder. The client is one `Spine`, as an agent has one, with what `Spine.connect` does by itself.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from crdt_spine.bench.rounds import Running
from crdt_spine.bench.workload import Operation
from crdt_spine.memory import Consistency
from crdt_spine.spine import Spine
from crdt_spine.supervisor import Supervisor

AGENT = "bench"
DELETES_IN_FLIGHT = 256


class SpineTarget:
    """store and get. `prefix` is put before every id; the ids written are remembered where there is one."""

    def __init__(self, spine: Spine, prefix: str = "") -> None:
        self._spine = spine
        self._prefix = prefix
        self._written: set[str] = set()

    async def write(self, operation: Operation) -> None:
        identity = operation.id
        if self._prefix:
            identity = self._prefix + identity
            self._written.add(identity)
        await self._spine.store(operation.content, id=identity, tags=operation.tags)

    async def read(self, operation: Operation) -> None:
        identity = self._prefix + operation.id
        memory = await self._spine.get(identity)
        if memory is None or memory.id != identity:
            raise LookupError(f"asked for {identity}, got {'nothing' if memory is None else memory.id}")

    async def delete_all(self) -> None:
        """Delete every id that was written with a prefix. Raises SpineError: one could not be deleted."""

        async def deleter() -> None:
            while self._written:
                await self._spine.delete(self._written.pop())

        async with asyncio.TaskGroup() as deleters:
            for _ in range(DELETES_IN_FLIGHT):
                deleters.create_task(deleter())


class OwnCluster:
    """A cluster of `nodes` in a folder below `data`; it ends with this program, however that ends."""

    def __init__(self, data: Path | None = None, *, nodes: int = 3, consistency: Consistency | None = None) -> None:
        self.name = _name(f"crdt_spine, {nodes} nodes" if nodes != 3 else "crdt_spine", consistency)
        self._data = data
        self._nodes = nodes
        self._consistency = consistency

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """A fresh cluster and a session with it. Raises SpineError: it did not start."""
        with _temporary_folder(self._data) as folder:
            async with (
                Supervisor(folder, nodes=self._nodes, nats_port=0, http_port=0) as supervisor,
                Spine.connect(supervisor.url, agent=AGENT, consistency=self._consistency) as spine,
            ):
                pids = {child.id: child.pid for child in supervisor.children if child.pid is not None}
                yield Running(SpineTarget(spine), {"client": os.getpid(), **pids})


class RunningCluster:
    """A cluster behind `server`. Its memories are left alone: ours have ids of their own and are deleted afterwards.

    CPU is measured of the nodes that run on this machine; the broker is nobody's child here and is not measured.
    """

    def __init__(self, server: str, *, consistency: Consistency | None = None) -> None:
        self.name = _name("crdt_spine", consistency)
        self._server = server
        self._consistency = consistency

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """A session with it. Raises ConnectionFailed: there is none."""
        async with Spine.connect(self._server, agent=AGENT, consistency=self._consistency) as spine:
            pids = _pids_here(await spine.status())
            target = SpineTarget(spine, prefix=f"bench-{secrets.token_hex(4)}-")
            try:
                yield Running(target, {"client": os.getpid(), **pids})
            finally:
                await target.delete_all()


def _name(name: str, consistency: Consistency | None) -> str:
    return name if consistency is None else f"{name}, {consistency.value}"


@contextmanager
def _temporary_folder(data: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="spine-bench-", dir=data))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pids_here(status: dict[str, Any]) -> dict[str, int]:
    """The processes of those nodes that are on this machine: a process of that id whose arguments name the node."""
    here = {}
    for node in status["nodes"]:
        pid, name = node.get("pid"), node["id"]
        if pid is None:
            continue
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if name.encode() in words:
            here[name] = pid
    return here
