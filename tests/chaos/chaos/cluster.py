"""The cluster under test: `spine up`'s supervisor, with every node behind a link of its own, and what is done to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from chaos.link import Link
from chaos.newcomers import Newcomer
from crdt_spine.core.messages import Query, Status
from crdt_spine.core.selection import Selection
from crdt_spine.errors import SpineError
from crdt_spine.memory import Memory
from crdt_spine.spine import Spine
from crdt_spine.supervisor import ServiceSpec, Supervisor
from crdt_spine.supervisor.supervisor import node_command

LIMITED_NODE = Path(__file__).with_name("limited_node.py")
ASK_SECONDS = 5.0


class Cluster:
    """Use `start` and `stop`. `links` are those of the nodes and, made by `link_for`, of the agents, by name.
    `services` run beside the nodes, behind no link."""

    def __init__(self, folder: Path, nodes: int, services: Sequence[ServiceSpec] = ()) -> None:
        self.folder = folder
        self.links: dict[str, Link] = {}
        self.copies: dict[str, Path] = {}  # a node's data as it once was
        self._supervisor = Supervisor(
            folder, nodes=nodes, nats_port=0, http_port=0, node_command=self._command, services=services
        )
        self._count = nodes
        self._down = 0  # nodes that are being kept down
        self.newcomers: dict[str, Newcomer] = {}  # all that ever came, by id
        self.left: set[str] = set()  # those of them that are no members any more
        self._observer: Spine | None = None

    async def start(self) -> None:
        for number in range(1, self._count + 1):
            self.links[f"spine-{number}"] = await Link.open(f"spine-{number}")
        await self._supervisor.start()
        self._supervisor.set_node_restart(True, delay_seconds=0.3)
        self._observer = await Spine.connect(self.url, agent="observer", timeout=ASK_SECONDS).__aenter__()

    async def stop(self) -> None:
        if self._observer is not None:
            await self._observer.close()
        for newcomer in self.newcomers.values():
            await newcomer.stop()
        for link in self.links.values():
            await link.close()
        await self._supervisor.stop()

    @property
    def url(self) -> str:
        """The broker's own address, behind no link."""
        return self._supervisor.url

    @property
    def nodes(self) -> list[str]:
        """Those that belong to the cluster, or are about to."""
        return [*[node.id for node in self._supervisor.nodes], *[id for id in self.newcomers if id not in self.left]]

    @property
    def observer(self) -> Spine:
        assert self._observer is not None, "the cluster was not started"
        return self._observer

    def _command(self, id: str, config: Path, folder: Path, url: str) -> list[str]:
        link = self.links[id]
        link.port = _port(url)
        return [sys.executable, str(LIMITED_NODE), *node_command(id, config, folder, link.url)[3:]]

    async def link_for(self, name: str) -> Link:
        """A new link to the broker."""
        link = self.links[name] = await Link.open(name, _port(self.url))
        return link

    # -- what is done to it ------------------------------------------------------------------------------------------

    def pid(self, id: str) -> int | None:
        if id in self.newcomers:
            return self.newcomers[id].status.pid
        return next(child.pid for child in self._supervisor.children if child.id == id)

    def signal(self, id: str, number: signal.Signals) -> int | None:
        """Send a signal to a node or to "broker"; its process, None: it does not run."""
        pid = self.pid(id)
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return None
        return pid

    async def kill(self, id: str, seconds: float, *, copy: bool = False, roll_back: bool = False) -> None:
        """Kill a node with SIGKILL and start it again. Meanwhile its data is remembered, or becomes what was
        remembered."""
        newcomer = self.newcomers.get(id)
        if newcomer is not None:
            newcomer.keep_down(True)
            await newcomer.kill()
            await asyncio.sleep(seconds)
            newcomer.keep_down(id in self.left)
            return
        self._down += 1
        self._supervisor.set_node_restart(False)
        try:
            await self._supervisor.kill_node(id)
            data, kept = self.folder / id, self.folder / "copies" / id
            if roll_back:
                await asyncio.to_thread(_replace, data, kept)
            elif copy:
                await asyncio.to_thread(_replace, kept, data)
                self.copies[id] = kept
            await asyncio.sleep(seconds)
        finally:
            self._down -= 1
            self._supervisor.start_node(id)
            if not self._down:
                self._supervisor.set_node_restart(True, delay_seconds=0.3)

    # -- nodes that come and go --------------------------------------------------------------------------------------

    async def newcomer(self) -> Newcomer:
        """A new node, started; it serves once the cluster has taken it in."""
        id = f"spine-{self._count + len(self.newcomers) + 1}"
        await self.link_for(id)
        newcomer = self.newcomers[id] = Newcomer(id, self.folder, self.url, self._command)
        newcomer.start()
        return newcomer

    async def lose(self, id: str) -> None:
        """A newcomer dies for good."""
        self.left.add(id)
        await self.newcomers[id].stop()

    async def dismiss(self, id: str) -> None:
        """A newcomer has left the cluster: end it."""
        await self.lose(id)

    def fill(self, id: str, full: bool) -> None:
        """The disk of a node is full, or has room again."""
        mark = self.folder / id / "full"
        if full and mark.parent.exists():
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

    # -- asking it ---------------------------------------------------------------------------------------------

    def holders(self) -> dict[int, tuple[str, ...]]:
        """Each partition's replicas."""
        return dict(self.observer._live.layout.replicas)

    async def _ask(self, node: str, operation: type[Any], **fields: Any) -> Any:
        session = self.observer._live
        return await session.run(
            operation(i=session.number(), **fields), (node,), use_token=False, timeout=ASK_SECONDS
        )  # fmt: skip

    async def status(self, node: str) -> dict[str, Any]:
        """One node's report, or {"state": "down"}."""
        try:
            report: dict[str, Any] = msgspec.json.decode((await self._ask(node, Status)).status)
        except SpineError:
            return {"state": "down"}
        return report

    async def memories(self, node: str) -> dict[str, tuple[Memory, bytes]]:
        """Everything that one node has, as it says it. Raises SpineError."""
        held = tuple(number for number, nodes in self.holders().items() if node in nodes)
        everything = {"selection": Selection(), "order": "oldest", "limit": 1000, "partitions": held}
        found: dict[str, tuple[Memory, bytes]] = {}
        after: tuple[int, str] | None = None
        while True:
            page = await self._ask(node, Query, after=after, **everything)
            for hit in page.hits:
                raw = bytes(hit.memory)
                memory = msgspec.json.decode(raw, type=Memory)
                found[memory.id] = memory, raw
            if not page.more:
                return found
            after = (page.hits[-1].created, page.hits[-1].id)


def _replace(target: Path, source: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
