"""Real nodes that stop, crawl and return, as agents feel it: nobody waits for them, and they are used again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from crdt_spine import QuorumFailed, Spine

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("routing"), pytest.mark.timeout(90),
]  # fmt: skip

Cluster = Any


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex}"


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
        spines = [await stack.enter_async_context(cluster.spine(f"reader-{n}")) for n in range(count)]
        stored = await spines[0].store_many({"content": f"{n}", "tags": [mark]} for n in range(60))
        for spine in spines:
            await spine.wait_for(spines[0].token)
        found = [Reader(spine, [memory.id for memory in stored]) for spine in spines]
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(reader.run()) for reader in found]
            async with asyncio.timeout(20):
                while any(len(reader.took) < 300 for reader in found):
                    await asyncio.sleep(0.02)
            yield found
            for task in running:
                task.cancel()


@contextlib.contextmanager
def stopped(cluster: Cluster, *nodes: str) -> Iterator[None]:
    pids = [cluster.pid(node) for node in nodes]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def used_by(found: list[Reader], node: str) -> None:
    """Wait until all of them read there."""
    async with asyncio.timeout(20):
        for reader in found:
            while not reader.session.health.well(node):
                await asyncio.sleep(0.02)
            heard = reader.session.health.heard[node]
            while reader.session.health.heard[node] == heard:
                await asyncio.sleep(0.02)


async def test_a_stopped_node_costs_each_reader_one_hedged_read_and_no_error(cluster: Cluster, mark: str) -> None:
    async with readers(cluster, mark) as found:
        with stopped(cluster, "spine-1"):
            for reader in found:
                reader.took.clear()
                reader.hedged_from.clear()
            await asyncio.sleep(3)
            for reader in found:
                assert reader.hedged_from.count("spine-1") <= 1
                assert not reader.session.health.well("spine-1")
                assert len(reader.took) > 50
                assert sorted(reader.took)[int(0.99 * len(reader.took))] < 0.5
                assert max(reader.took) < 3, "nobody waited for a timeout"
        await used_by(found, "spine-1")


async def test_writes_go_on_while_a_node_is_stopped_and_each_is_there_once(cluster: Cluster, mark: str) -> None:
    async with readers(cluster, mark, 1) as found, cluster.spine("writer") as writer:
        with stopped(cluster, "spine-2"):
            took = []
            stored = []
            for n in range(60):
                started = time.monotonic()
                stored.append(await writer.store(f"{n}", tags=[mark]))
                took.append(time.monotonic() - started)
            assert sum(seconds > 0.4 for seconds in took) <= 3, "it was found out once, not with each of them"
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
            async with asyncio.timeout(20):
                for reader in found:
                    while reader.session.health.well("spine-3", reads=False):
                        await asyncio.sleep(0.01)
            for reader in found:
                reader.took.clear()
            await asyncio.sleep(2)
            assert all(max(reader.took) < 3 for reader in found)
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
                stack.enter_context(stopped(cluster, "spine-1", "spine-2"))
            try:
                for level in ("read-your-writes", "eventual"):
                    for memory in stored[:10]:  # the first moment
                        assert await spine.get(memory.id, consistency=level) == memory
                took = []
                for level in ("read-your-writes", "eventual"):
                    for memory in stored:
                        started = time.monotonic()
                        assert await spine.get(memory.id, consistency=level) == memory
                        took.append(time.monotonic() - started)
                assert sorted(took)[len(took) // 2] < 0.1
                assert max(took) < 1.5
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
