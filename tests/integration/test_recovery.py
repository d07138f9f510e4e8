"""What was acknowledged survives: kill -9 of one node and of all, a lost disk, a disk that was rolled back."""

from __future__ import annotations

import asyncio
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from crdt_spine import Spine, SpineError
from crdt_spine.supervisor.supervisor import node_command

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("recovery")]

Cluster = Any


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex}"


class Writer:
    """Stores, updates and deletes on and on; `expected` is what every acknowledged operation left behind."""

    def __init__(self, spine: Spine, mark: str) -> None:
        self.spine = spine
        self.mark = mark
        self.expected: dict[str, str | None] = {}
        self.failures: list[SpineError] = []
        self._stop = False
        self._tasks = [asyncio.create_task(self._run(lane)) for lane in range(8)]

    async def _run(self, lane: int) -> None:
        n = 0
        while not self._stop:
            n += 1
            id = f"{self.mark}-{lane}-{n}"
            try:
                await self.spine.store(f"{id} stored", id=id, tags=[self.mark])
                self.expected[id] = f"{id} stored"
                if n % 3 == 0:
                    await self.spine.update(id, content=f"{id} updated")
                    self.expected[id] = f"{id} updated"
                if n % 7 == 0:
                    assert await self.spine.delete(id), "it was there"
                    self.expected[id] = None
            except SpineError as error:
                self.expected.pop(id, None)  # nobody promised anything about its last operation
                self.failures.append(error)

    async def stop(self) -> dict[str, str | None]:
        self._stop = True
        await asyncio.gather(*self._tasks)
        return self.expected


async def written(writer: Writer, count: int) -> None:
    """Wait until so many more memories are acknowledged."""
    target = len(writer.expected) + count
    async with asyncio.timeout(60):
        while len(writer.expected) < target:
            await asyncio.sleep(0.01)


async def has_all(cluster: Cluster, node: str, expected: dict[str, str | None], seconds: float = 40.0) -> None:
    """Wait until a node, asked alone, has exactly what is expected."""
    wrong: dict[str, Any] = {}
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = await cluster.contents_at(node, expected)
                wrong = {id: found[id] for id, content in expected.items() if found[id] != content}
                if not wrong:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        id = next(iter(wrong))
        pytest.fail(f"{node}: {len(wrong)} of {len(expected)} are wrong: {id} is {wrong[id]!r}, not {expected[id]!r}")


@pytest.mark.parametrize("node", ["spine-1", "spine-2", "spine-3"])
async def test_a_node_killed_in_the_middle_catches_up_and_nothing_is_lost(
    cluster: Cluster, mark: str, node: str
) -> None:
    async with cluster.spine(timeout=30.0) as spine:
        writer = Writer(spine, mark)
        await written(writer, 200)
        await cluster.kill(node)
        await written(writer, 200)
        await cluster.bring_back(node)
        await written(writer, 200)
        expected = await writer.stop()
        assert writer.failures == [], "two of three replicas were there all the time"
        for one in cluster.ids:
            await has_all(cluster, one, expected)


async def test_all_nodes_killed_at_once_have_everything_acknowledged(cluster: Cluster, mark: str) -> None:
    async with cluster.spine(timeout=2.0) as spine:
        expected: dict[str, str | None] = {}
        for round in range(2):
            writer = Writer(spine, f"{mark}-{round}")
            await written(writer, 300)
            await cluster.kill(*cluster.ids)
            await asyncio.sleep(0.1)
            stopping = asyncio.create_task(writer.stop())
            await cluster.bring_back(*cluster.ids)
            expected |= await stopping
        for node in cluster.ids:
            await has_all(cluster, node, expected)
        spine._live.timeout = 30.0
        await spine.store("and it goes on", id=mark)
        assert (await spine.query(tags=[f"{mark}-0"])).memories


async def test_a_cluster_started_anew_in_its_folder_has_everything(start_cluster: Any, mark: str) -> None:
    cluster = await start_cluster()
    async with cluster.spine() as spine:
        stored = await spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(500))
        await spine.delete(stored[0].id)
        token = spine.token
    await cluster.close()
    again = await start_cluster(folder=cluster.folder)
    async with again.spine(token=token) as spine:
        page = await spine.query(tags=[mark], limit=1000)
        assert {memory.id for memory in page.memories} == {memory.id for memory in stored[1:]}
        assert all(memory in page.memories for memory in stored[1:])
        async with spine.subscribe(tags=[mark], token=token) as updates:
            new = await spine.store("new", tags=[mark])
            assert (await anext(updates)).memory == new


async def test_a_node_that_lost_its_disk_is_filled_again(start_cluster: Any, mark: str) -> None:
    cluster = await start_cluster()
    async with cluster.spine(timeout=30.0) as spine:
        writer = Writer(spine, mark)
        await written(writer, 300)
        await cluster.kill("spine-2")
        shutil.rmtree(cluster.folder / "spine-2")
        await written(writer, 100)
        await cluster.bring_back("spine-2")
        await written(writer, 100)
        expected = await writer.stop()
        assert writer.failures == []
        for node in cluster.ids:
            await has_all(cluster, node, expected)
        alive = sum(content is not None for content in expected.values())
        assert (await cluster.status("spine-2"))["memories"] == alive


async def test_a_node_whose_disk_was_rolled_back_takes_a_new_name_and_loses_nothing(
    start_cluster: Any, mark: str, tmp_path: Path
) -> None:
    """With its old name it would give dots a second time that its peers have already: they would drop the changes."""
    cluster = await start_cluster()
    async with cluster.spine() as spine:
        writer = Writer(spine, mark)
        await written(writer, 100)
        await cluster.kill("spine-1")
        shutil.copytree(cluster.folder / "spine-1", tmp_path / "old")
        await cluster.bring_back("spine-1")
        before = (await cluster.status("spine-1"))["actor"]
        while not (await cluster.status("spine-1"))["counts"].get("writes"):
            await written(writer, 100)  # until it gave dots that the old copy does not have
        await written(writer, 100)
        await cluster.kill("spine-1")
        shutil.rmtree(cluster.folder / "spine-1")
        shutil.copytree(tmp_path / "old", cluster.folder / "spine-1")
        await cluster.bring_back("spine-1")
        await written(writer, 300)
        expected = await writer.stop()
        assert (await cluster.status("spine-1"))["actor"] != before
        for node in cluster.ids:
            await has_all(cluster, node, expected)


async def test_concurrent_updates_at_different_coordinators_converge(cluster: Cluster, mark: str) -> None:
    """Two agents, each sent to another node: the same fields, different fields, tags added and taken away."""
    async with cluster.spine("ada") as ada, cluster.spine("bert") as bert:
        for number, replicas in ada._live.layout.replicas.items():
            ada._live.layout.replicas[number] = ("spine-1", *[node for node in replicas if node != "spine-1"])
            bert._live.layout.replicas[number] = ("spine-2", *[node for node in replicas if node != "spine-2"])
        ids = [f"{mark}-{n}" for n in range(100)]
        await ada.store_many({"content": "start", "id": id, "tags": [mark, "old"]} for id in ids)
        await bert.wait_for(ada.token)
        await asyncio.gather(
            *[ada.update(id, content="by ada", add_tags=["a", "both"], metadata={"a": 1, "x": "a"}) for id in ids],
            *[
                bert.update(id, content="by bert", add_tags=["b", "both"], remove_tags=["old"], metadata={"x": "b"})
                for id in ids
            ],
        )
        await ada.wait_for(bert.token)
        for id in ids:
            async with asyncio.timeout(40):
                while True:
                    memories = [await cluster.get_at(node, id) for node in cluster.ids]
                    if all(memory == memories[0] for memory in memories) and len(memories[0].version.split(",")) > 1:
                        break
                    await asyncio.sleep(0.05)
            memory = memories[0]
            assert memory.tags == {mark, "a", "b", "both"}
            assert memory.content in ("by ada", "by bert")
            assert memory.metadata == {"a": 1, "x": memory.metadata["x"]}
            assert memory.metadata["x"] in ("a", "b")


def forgetful_node(id: str, config: Path, folder: Path, url: str) -> list[str]:
    """A node that may forget a deletion as soon as every other one has it."""
    program = (
        "import sys; from crdt_spine import config; from crdt_spine.node import flusher, replication;"
        "flusher.FLUSH_SECONDS = 0.5; config.TOMBSTONE_SECONDS_MIN = 0; replication.COLLECT_SECONDS = 0.5;"
        "from crdt_spine.cli.main import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program, *node_command(id, config, folder, url)[3:]]


async def test_what_was_deleted_stays_away_whoever_was_away(start_cluster: Any, mark: str) -> None:
    """Also after the tombstones are dropped, which they are once every node has them."""
    cluster = await start_cluster(node_command=forgetful_node)
    async with cluster.spine() as spine:
        stored = await spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(200))
        await cluster.kill("spine-3")
        assert all(await asyncio.gather(*[spine.delete(memory.id) for memory in stored]))
        assert (await cluster.status("spine-1"))["tombstones"] >= 200, "spine-3 does not have them yet"
        await cluster.bring_back("spine-3")
        nothing = {memory.id: None for memory in stored}
        for node in cluster.ids:
            await has_all(cluster, node, nothing)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            while any([(await cluster.status(node))["tombstones"] for node in cluster.ids]):
                await asyncio.sleep(0.1)
        await cluster.kill(*cluster.ids)
        await cluster.bring_back(*cluster.ids)
        for node in cluster.ids:
            await has_all(cluster, node, nothing)  # type: ignore[arg-type]
        assert (await spine.query(tags=[mark])).memories == []


async def test_a_rolled_back_node_does_not_bring_back_what_was_deleted_and_forgotten(
    start_cluster: Any, mark: str, tmp_path: Path
) -> None:
    """Nobody can tell it of the deletions any more: it has to see what its peers do not have."""
    cluster = await start_cluster(node_command=forgetful_node)
    async with cluster.spine() as spine:
        stored = await spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(200))
        gone, stays = stored[:100], stored[100:]
        for node in cluster.ids:
            await has_all(cluster, node, {memory.id: memory.content for memory in stored})
        await cluster.kill("spine-1")
        shutil.copytree(cluster.folder / "spine-1", tmp_path / "old")
        await cluster.bring_back("spine-1")
        assert all(await asyncio.gather(*[spine.delete(memory.id) for memory in gone]))
        async with asyncio.timeout(60):
            while any([(await cluster.status(node)).get("tombstones", 1) for node in cluster.ids]):
                await asyncio.sleep(0.1)
        await cluster.kill("spine-1")
        shutil.rmtree(cluster.folder / "spine-1")
        shutil.copytree(tmp_path / "old", cluster.folder / "spine-1")
        await cluster.bring_back("spine-1")
        expected = {memory.id: None for memory in gone} | {memory.id: memory.content for memory in stays}
        for node in cluster.ids:
            await has_all(cluster, node, expected)
        status = await cluster.status("spine-1")
        assert (status["state"], status["partitions_to_compare"], status["problem"]) == ("up", 0, None)
        assert status["counts"]["whole_syncs"] >= 64
        assert {memory.id for memory in (await spine.query(tags=[mark], limit=1000)).memories} == {
            memory.id for memory in stays
        }
