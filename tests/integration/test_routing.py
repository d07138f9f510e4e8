"""Real nodes that stop, crawl and return, as agents feel it: nobody waits for them, and they are used again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from crdt_spine import QuorumFailed, Spine

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("routing"), pytest.mark.timeout(90),
]  # fmt: skip

Cluster = Any
TIMEOUT_SECONDS = 30.0  # of a call: far more than a busy machine takes for one that waits for nothing


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex}"


def sends(spine: Spine) -> list[str]:
    """The nodes to which this spine sends its operations from now on, one for each message; pings are none."""
    sent: list[str] = []
    requests = spine._live.requests
    send = requests.send

    def watched(node: str, *arguments: Any, **options: Any) -> None:
        sent.append(node)
        send(node, *arguments, **options)

    requests.send = watched  # type: ignore[method-assign]
    return sent


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Reader:
    """An agent that reads one memory after the other; `took` has the seconds of each read."""

    def __init__(self, spine: Spine, ids: list[str]) -> None:
        self.spine = spine
        self.session = spine._live
        self.took: list[float] = []
        self.hedged_from: list[str] = []  # for each read that was hedged, the node that had not answered
        self._ids = ids
        hedge = self.session.hedging._hedge

        def watched(calls: Any) -> None:
            hedge(calls)
            self.hedged_from += [call.node for call in calls if call.hedge]

        self.session.hedging._hedge = watched  # type: ignore[method-assign]

    async def more(self, count: int) -> None:
        """Wait until it has read so many more."""
        target = len(self.took) + count
        await until(lambda: len(self.took) >= target)

    async def run(self) -> None:
        while True:
            for id in self._ids:
                started = time.monotonic()
                memory = await self.spine.get(id)
                assert memory is not None
                self.took.append(time.monotonic() - started)


@asynccontextmanager
async def readers(cluster: Cluster, mark: str, count: int = 3) -> AsyncIterator[list[Reader]]:
    """So many agents reading memories of all partitions; an error of any of them is raised at the end."""
    async with contextlib.AsyncExitStack() as stack:
        spines = [
            await stack.enter_async_context(cluster.spine(f"reader-{n}", timeout=TIMEOUT_SECONDS)) for n in range(count)
        ]
        stored = await spines[0].store_many({"content": f"{n}", "tags": [mark]} for n in range(60))
        for spine in spines:
            await spine.wait_for(spines[0].token)
        found = [Reader(spine, [memory.id for memory in stored]) for spine in spines]
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(reader.run()) for reader in found]
            for reader in found:
                await reader.more(300)
            yield found
            for task in running:
                task.cancel()


async def used_by(found: list[Reader], node: str) -> None:
    """Wait until all of them read there."""
    for reader in found:
        health = reader.session.health
        await until(lambda health=health: health.well(node))  # type: ignore[misc]
        heard = health.heard[node]
        await until(lambda health=health, heard=heard: health.heard[node] != heard)  # type: ignore[misc]


async def test_a_stopped_node_costs_each_reader_one_hedged_read_and_no_error(cluster: Cluster, mark: str) -> None:
    async with readers(cluster, mark) as found:
        won = [reader.session.counts["hedges_won"] for reader in found]
        with cluster.stopped("spine-1"):
            for reader in found:
                reader.took.clear()
                reader.hedged_from.clear()
            await until(lambda: not any(reader.session.health.well("spine-1") for reader in found))
            late = [reader.hedged_from.count("spine-1") for reader in found]
            # One each; on a busy machine there may be two, where the node's last words are on their way still, or none,
            # where a read was late already, or somebody else said first that the node is down.
            assert max(late) <= 2
            assert any(late), "nobody had to wait for it to be silent"
            hedged = zip(found, won, late, strict=True)
            assert all(reader.session.counts["hedges_won"] > before for reader, before, times in hedged if times)
            for reader in found:
                await reader.more(50)
        assert max(max(reader.took) for reader in found) < TIMEOUT_SECONDS / 2, "nobody waited for a timeout"
        await used_by(found, "spine-1")


async def test_writes_go_on_while_a_node_is_stopped_and_each_is_there_once(cluster: Cluster, mark: str) -> None:
    async with readers(cluster, mark, 1) as found, cluster.spine("writer", timeout=TIMEOUT_SECONDS) as writer:
        with cluster.stopped("spine-2"):
            sent = sends(writer)
            stored = [await writer.store(f"{n}", tags=[mark]) for n in range(60)]  # a third of them is at home there
            assert 1 <= sent.count("spine-2") <= 5, "it was found out once, not with each of them"
        await used_by(found, "spine-2")
        for memory in stored:
            assert [version.content for version in await writer.history(memory.id)] == [memory.content]


async def test_a_node_that_crawls_is_left_before_it_fails(cluster: Cluster, mark: str) -> None:
    """It is let run for a fifteenth of the time."""

    async def crawl(pid: int) -> None:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.15)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.01)

    async with readers(cluster, mark, 2) as found:
        pid = cluster.pid("spine-3")
        crawling = asyncio.create_task(crawl(pid))
        try:
            for reader in found:
                health = reader.session.health
                await until(lambda health=health: not health.well("spine-3", reads=False))  # type: ignore[misc]
            for reader in found:
                reader.took.clear()
                await reader.more(100)
            assert max(max(reader.took) for reader in found) < TIMEOUT_SECONDS / 2, "nobody waited for a timeout"
        finally:
            crawling.cancel()
            await asyncio.gather(crawling, return_exceptions=True)
            os.kill(pid, signal.SIGCONT)
        await used_by(found, "spine-3")


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_with_one_node_left_what_needs_no_quorum_goes_on_at_once(cluster: Cluster, mark: str, how: str) -> None:
    async with cluster.spine(timeout=4.0) as spine:
        stored = await spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(40))
        await spine.wait_for(spine.token)
        for _ in range(10):
            await asyncio.gather(*[spine.get(memory.id) for memory in stored])
        for node in cluster.ids:  # the one that is left has all of it
            for memory in stored:
                async with asyncio.timeout(10):
                    while await cluster.get_at(node, memory.id) is None:
                        await asyncio.sleep(0.02)
        with contextlib.ExitStack() as stack:
            if how == "killed":
                await cluster.kill("spine-1", "spine-2")
            else:
                stack.enter_context(cluster.stopped("spine-1", "spine-2"))
            try:
                for level in ("read-your-writes", "eventual"):
                    for memory in stored[:10]:  # the first moment
                        assert await spine.get(memory.id, consistency=level) == memory
                sent = sends(spine)
                for level in ("read-your-writes", "eventual"):
                    for memory in stored:
                        assert await spine.get(memory.id, consistency=level) == memory
                in_vain = sum(node != "spine-3" for node in sent)
                assert in_vain <= len(sent) / 4, "they go to the one that is left, and are not sent about"
                alone = await spine.store("alone", tags=[mark], consistency="eventual")
                assert await spine.get(alone.id, consistency="eventual") == alone
                with pytest.raises(QuorumFailed, match="of the 2") as failed:
                    await spine.store("refused", tags=[mark])
                assert failed.value.outcome in ("not applied", "unknown")
                assert {"spine-1", "spine-2"} <= set(failed.value.missing)
            finally:
                if how == "killed":
                    await cluster.bring_back("spine-1", "spine-2")
        async with asyncio.timeout(20):
            while not spine._live.health.all_well:
                await spine.get(stored[0].id)
                await asyncio.sleep(0.05)
