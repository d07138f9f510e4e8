"""Nodes join and leave a running cluster of real processes: no operation fails, nothing that was acknowledged is lost,
and whoever dies in the middle, the change goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
import pytest_asyncio
import yaml

from crdt_spine import InvalidInput, Spine, SpineError
from crdt_spine.broker.binary import find_nats_server
from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import NodeInfo, Reshape, Status
from crdt_spine.discovery import discover
from crdt_spine.supervisor.supervisor import node_command
from crdt_spine.transport.nats import NatsTransport
from tests.conftest import free_port

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("growth"), pytest.mark.timeout(120),
]  # fmt: skip

Cluster = Any
CHANGE_SECONDS_MAX = 60.0


async def _show(output: asyncio.StreamReader, said: list[str]) -> None:
    while line := (await output.readline()).decode():
        said.append(line)
        print(line, end="")


class Newcomers:
    """Node processes beside those of the cluster's supervisor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, BoundProcess] = {}
        self._reading: list[asyncio.Task[None]] = []
        self._said: dict[str, list[str]] = {}

    async def start(self, cluster: Cluster, id: str, *, data: str = "", named: bool = True, **changed: Any) -> str:
        """Start `spine node` for a node that the cluster's file does not have, with a file that has it; what it printed
        until it was ready, or ended. `changed` are keys of the file."""
        document = yaml.safe_load((cluster.folder / "cluster.yaml").read_text())
        nodes = document["cluster"]["nodes"]
        if named and id not in [node["id"] for node in nodes]:
            nodes.append({"id": id, "host": "127.0.0.1", "port": free_port(), "zone": f"zone-of-{id}"})
        for node in nodes:
            node["port"] = free_port()  # another process's, where it runs already
        document["cluster"].update(changed)
        file = self.folder / f"{id}.yaml"
        file.write_text(yaml.safe_dump(document))
        process = await spawn_bound_to_parent(node_command(id, file, self.folder / (data or id), cluster.url))
        self.processes[id] = process
        said: list[str] = []
        assert process.output is not None
        async with asyncio.timeout(40):
            while line := (await process.output.readline()).decode():
                said.append(line)
                print(line, end="")
                if line.startswith("ready "):
                    break
        told = "".join(said)
        self._said[id] = said
        self._reading.append(asyncio.create_task(_show(process.output, said)))
        return told

    async def ended(self, id: str) -> tuple[int | None, str]:
        """Wait for a process to end by itself; its exit code, and all that it printed."""
        async with asyncio.timeout(30):
            await self.processes[id].exited.wait()
        await asyncio.wait(self._reading, timeout=1)
        return self.processes[id].returncode, "".join(self._said[id])

    async def kill(self, id: str) -> None:
        self.processes[id].kill()
        await self.processes[id].exited.wait()

    async def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        await asyncio.gather(*[process.exited.wait() for process in self.processes.values()])


@pytest_asyncio.fixture(loop_scope="module")
async def newcomers(tmp_path: Path) -> AsyncIterator[Newcomers]:
    started = Newcomers(tmp_path)
    yield started
    await started.stop()


class Load:
    """Agents that write and read until they are told to stop; what was acknowledged, and what failed."""

    def __init__(self, spine: Spine, agents: int = 6) -> None:
        self.spine = spine
        self.acknowledged: dict[str, str | None] = {}  # None: deleted
        self.failed: list[str] = []
        self._on = True
        self._tasks = [asyncio.create_task(self._run(agent)) for agent in range(agents)]

    async def _run(self, agent: int) -> None:
        number = 0
        while self._on:
            number += 1
            content = f"{agent}-{number}"
            try:
                memory = await self.spine.store(content, tags=["load"])
                self.acknowledged[memory.id] = content
                if number % 4 == 0:
                    changed = await self.spine.update(memory.id, content=f"{content} changed")
                    self.acknowledged[memory.id] = changed.content
                if number % 7 == 0:
                    await self.spine.delete(memory.id)
                    self.acknowledged[memory.id] = None
                read = await self.spine.get(memory.id)
                if (None if read is None else read.content) != self.acknowledged[memory.id]:
                    self.failed.append(f"{memory.id} reads as {read}")
                if number % 15 == 0 and not (await self.spine.query(tags=["load"], limit=3)).memories:
                    self.failed.append("a query found nothing")
            except SpineError as error:
                self.failed.append(repr(error))
            await asyncio.sleep(0.005)

    async def more(self, count: int) -> None:
        """Wait until so many more memories are acknowledged."""
        target = len(self.acknowledged) + count
        async with asyncio.timeout(CHANGE_SECONDS_MAX):
            while len(self.acknowledged) < target:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._on = False
        await asyncio.gather(*self._tasks)


async def shape(cluster: Cluster, node: str = "spine-1") -> dict[str, Any]:
    """The part "cluster" of a node's report."""
    async with asyncio.timeout(30):
        while "cluster" not in (status := await cluster.status(node)):
            await asyncio.sleep(0.05)
    found: dict[str, Any] = status["cluster"]
    return found


async def report(cluster: Cluster, node: str) -> dict[str, Any]:
    """The report of a node, also of one that is not the supervisor's."""
    found: dict[str, Any] = msgspec.json.decode((await cluster.run_at(node, Status)).status)
    return found


async def until(cluster: Cluster, reached: Callable[[dict[str, Any]], object], node: str = "spine-1") -> dict[str, Any]:
    """Wait until the cluster is as is wanted, as one node knows it."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(CHANGE_SECONDS_MAX):
            while not reached(found := await shape(cluster, node)):
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"the cluster stays as it is: {found}")
    return found


def settled(*members: str) -> Callable[[dict[str, Any]], bool]:
    """Are these the nodes, and is no change under way?"""
    return lambda cluster: cluster["change"] is None and sorted(cluster["members"]) == sorted(members)


async def reshape(cluster: Cluster, **wanted: Any) -> dict[str, Any]:
    """Ask for a change, of whichever node answers; the report. Raises InvalidInput."""
    session = cluster._observer._live
    nodes = tuple(cluster.ids)
    result = await session.run(Reshape(i=session.number(), **wanted), nodes, use_token=False, timeout=15.0)
    report: dict[str, Any] = msgspec.json.decode(result.status)
    return report


async def everywhere(cluster: Cluster, epoch: int, acknowledged: dict[str, str | None]) -> None:
    """Every replica of every memory has it, as it was acknowledged; who they are is asked of a node at that epoch."""
    transport = await NatsTransport.connect(cluster.url, "test")
    try:
        hello = await discover(transport, None, 5.0, epoch=epoch)
    finally:
        await transport.close()
    layout = Layout(hello)
    wanted: dict[str, dict[str, str | None]] = {}
    for id, content in acknowledged.items():
        for node in layout.replicas[layout.partition_of(id)]:
            wanted.setdefault(node, {})[id] = content
    async with asyncio.timeout(40):
        for node, contents in wanted.items():
            while (found := await cluster.contents_at(node, contents)) != contents:
                lost = {id: found[id] for id, content in contents.items() if found[id] != content}
                print(f"{node} has not yet {lost}")
                await asyncio.sleep(0.2)


async def memories(cluster: Cluster, nodes: list[str]) -> int:
    return sum([(await report(cluster, node))["memories"] for node in nodes])


# -- growing ----------------------------------------------------------------------------------------------------------


async def test_a_fourth_node_joins_while_agents_write(
    start_cluster: Callable[..., Awaitable[Cluster]], newcomers: Newcomers
) -> None:
    cluster = await start_cluster(3)
    async with cluster.spine() as spine, cluster.spine() as watcher:
        heard: set[str] = set()

        listens = asyncio.Event()

        async def listen() -> None:
            async with watcher.subscribe(tags=["load"]) as updates:
                listens.set()
                async for update in updates:
                    heard.add(update.memory.id)

        listening = asyncio.create_task(listen())
        await listens.wait()
        load = Load(spine)
        await load.more(50)
        assert (await newcomers.start(cluster, "spine-4")).endswith("ready spine-4\n")
        found = await until(cluster, settled("spine-1", "spine-2", "spine-3", "spine-4"))
        await load.more(1)
        await load.stop()
        assert load.failed == []
        assert found["members"]["spine-4"]["zone"] == "zone-of-spine-4"
        await everywhere(cluster, found["epoch"], load.acknowledged)
        nodes = ["spine-1", "spine-2", "spine-3", "spine-4"]
        assert [(await report(cluster, node))["partitions"] for node in nodes] == [48] * 4
        async with asyncio.timeout(30):
            while heard != load.acknowledged.keys() and not listening.done():
                await asyncio.sleep(0.05)
        assert not listening.done(), listening.exception()
        listening.cancel()
        # What went is wiped from the disks, too: each memory is there three times, no more.
        async with asyncio.timeout(30):
            while await memories(cluster, nodes) != 3 * len([one for one in load.acknowledged.values() if one]):
                await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "victim", ["spine-4", "spine-2", "spine-1", "broker"], ids=["newcomer", "old owner", "driver", "broker"]
)
async def test_whoever_dies_in_the_middle_the_change_goes_on(
    victim: str, start_cluster: Callable[..., Awaitable[Cluster]], newcomers: Newcomers
) -> None:
    cluster = await start_cluster(3)
    async with cluster.spine() as spine:
        load = Load(spine, 3)
        await newcomers.start(cluster, "spine-4")
        watching = "spine-3"
        await until(cluster, lambda found: found["change"] and found["change"]["moving"], watching)
        if victim == "spine-4":
            await newcomers.kill("spine-4")
        elif victim == "broker":
            cluster.kill_broker()
        else:
            await cluster.kill(victim)
        middle = await shape(cluster, watching)
        assert middle["change"] is not None, "it was over before anybody could die"
        await asyncio.sleep(1.0)
        if victim == "spine-4":
            await newcomers.start(cluster, "spine-4")
        elif victim != "broker":  # that is started again by itself
            await cluster.bring_back(victim)
        found = await until(cluster, settled("spine-1", "spine-2", "spine-3", "spine-4"), watching)
        await load.stop()
        assert load.failed == []
        await everywhere(cluster, found["epoch"], load.acknowledged)


# -- shrinking --------------------------------------------------------------------------------------------------------


async def test_a_node_leaves_and_may_only_come_back_with_a_new_folder(
    start_cluster: Callable[..., Awaitable[Cluster]], newcomers: Newcomers
) -> None:
    cluster = await start_cluster(3)
    async with cluster.spine() as spine:
        load = Load(spine, 3)
        await newcomers.start(cluster, "spine-0")  # it has the smallest id: it drives
        await until(cluster, settled("spine-0", "spine-1", "spine-2", "spine-3"))
        await reshape(cluster, kind="remove", goes="spine-0")
        await until(cluster, settled("spine-1", "spine-2", "spine-3"))
        code, said = await newcomers.ended("spine-0")
        assert code == 0 and "removed from the cluster; the folder can be deleted" in said
        said = await newcomers.start(cluster, "spine-0")
        assert "was taken out of the cluster" in said and "new, empty data folder" in said
        assert (await newcomers.ended("spine-0"))[0] == 0
        await newcomers.start(cluster, "spine-0", data="another")
        found = await until(cluster, settled("spine-0", "spine-1", "spine-2", "spine-3"))
        await load.stop()
        assert load.failed == []
        await everywhere(cluster, found["epoch"], load.acknowledged)


async def test_a_new_node_takes_the_place_of_a_dead_one(
    start_cluster: Callable[..., Awaitable[Cluster]], newcomers: Newcomers
) -> None:
    cluster = await start_cluster(3)
    async with cluster.spine() as spine:
        load = Load(spine, 3)
        await load.more(20)
        with pytest.raises(InvalidInput, match="spine-3 is up"):
            await reshape(cluster, kind="replace", node=NodeInfo(id="spine-4"), goes="spine-3", dead=True)
        await cluster.kill("spine-3")
        cluster.ids.remove("spine-3")
        node = NodeInfo(id="spine-4", host="127.0.0.1", port=1, zone="zone-of-spine-4")
        async with asyncio.timeout(30):
            while True:
                try:
                    await reshape(cluster, kind="replace", node=node, goes="spine-3", dead=True)
                    break
                except InvalidInput as refused:
                    assert "spine-3 is up" in str(refused)  # the others need a moment to miss it
                    await asyncio.sleep(0.2)
        await newcomers.start(cluster, "spine-4")
        found = await until(cluster, settled("spine-1", "spine-2", "spine-4"))
        await load.stop()
        assert load.failed == []
        await everywhere(cluster, found["epoch"], load.acknowledged)
        # The dead one stays out, with what it has.
        said = await newcomers.start(cluster, "spine-3", data=str(cluster.folder / "spine-3"))
        assert "given up as dead" in said and "ready" not in said


async def test_a_change_that_is_cancelled_is_turned_back_while_agents_write(
    start_cluster: Callable[..., Awaitable[Cluster]], newcomers: Newcomers
) -> None:
    cluster = await start_cluster(3)
    async with cluster.spine() as spine:
        load = Load(spine, 3)
        await newcomers.start(cluster, "spine-4")
        await until(cluster, lambda found: found["change"] and found["change"]["moving"])
        assert (await reshape(cluster, kind="cancel"))["change"]["kind"] == "cancel"
        found = await until(cluster, settled("spine-1", "spine-2", "spine-3"))
        await load.stop()
        assert load.failed == []
        assert [(await report(cluster, node))["partitions"] for node in cluster.ids] == [64] * 3
        await everywhere(cluster, found["epoch"], load.acknowledged)


# -- deciding ---------------------------------------------------------------------------------------------------------


async def test_of_two_proposals_one_wins_and_the_other_is_told_and_it_can_be_cancelled(
    start_cluster: Callable[..., Awaitable[Cluster]], newcomers: Newcomers
) -> None:
    cluster = await start_cluster(3)
    first, second = (NodeInfo(id=f"spine-{number}", host="127.0.0.1", port=number) for number in (4, 5))
    outcomes = await asyncio.gather(
        reshape(cluster, kind="add", node=first), reshape(cluster, kind="add", node=second), return_exceptions=True
    )
    told = [outcome for outcome in outcomes if isinstance(outcome, InvalidInput)]
    won = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    assert len(told) == len(won) == 1
    assert f"{won[0]['change']['comes']} is being added" in str(told[0])
    # It never came up, and has to confirm everything: it is turned away, and does not come any more.
    await reshape(cluster, kind="cancel", dead=True)
    await until(cluster, settled("spine-1", "spine-2", "spine-3"))
    with pytest.raises(InvalidInput, match="every partition is kept on 3"):
        await reshape(cluster, kind="remove", goes="spine-3")
    with pytest.raises(InvalidInput, match="nothing to cancel"):
        await reshape(cluster, kind="cancel")


async def test_a_register_that_is_lost_is_made_again(start_cluster: Callable[..., Awaitable[Cluster]]) -> None:
    cluster = await start_cluster(3)
    before = await shape(cluster)
    client = await nats.connect(cluster.url)
    try:
        await client.jetstream().delete_stream("KV_spine_spine")
        async with asyncio.timeout(30):
            while True:
                try:
                    kept = await client.jetstream().get_last_msg("KV_spine_spine", "$KV.spine_spine.membership")
                    break
                except nats.js.errors.NotFoundError:
                    await asyncio.sleep(0.1)
    finally:
        await client.close()
    assert msgspec.json.decode(kept.data or b"")["epoch"] == before["epoch"]
    assert await shape(cluster) == before


async def test_without_jetstream_a_node_says_what_to_do(newcomers: Newcomers, tmp_path: Path) -> None:
    port = free_port()
    broker = await spawn_bound_to_parent([find_nats_server(), "-a", "127.0.0.1", "-p", str(port)])
    try:
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"cluster": {"name": "plain", "nodes": []}}))

        class Plain:
            folder = tmp_path
            url = f"nats://127.0.0.1:{port}"

        said = await newcomers.start(Plain(), "spine-1", replication={"factor": 1, "write_quorum": 1, "read_quorum": 1})
        assert "has no JetStream" in said and "nats-server with -js" in said
        assert await asyncio.wait_for(newcomers.processes["spine-1"].exited.wait(), 30)
        assert newcomers.processes["spine-1"].returncode == 1
    finally:
        await broker.stop(1)
