"""Conflict receipts and history as agents see them: real nodes that could not hear each other, and an embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from crdt_spine import Conflict, ConnectionFailed, InvalidInput, Memory, Spine, past
from crdt_spine.core.causality import within
from crdt_spine.core.messages import Conflicts, Delete, Edit, Store
from crdt_spine.core.version import version_vector
from tests.conftest import RunningCluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("past")]


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 60.0) -> None:
    """Return once it is true."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"it did not come true within {seconds:g} s"
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def place(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("cluster") if request.param == "cluster" else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spine(place: RunningCluster | None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Spine]:
    path = tmp_path_factory.mktemp("past") / "memories.db"
    async with Spine.open(path, agent="ada") if place is None else place.spine("ada") as opened:
        yield opened


def contents(memories: list[Memory]) -> list[str]:
    return [memory.content for memory in memories]


# -- history ---------------------------------------------------------------------------------------------------------


async def test_history_has_every_version_newest_first_and_outlives_the_memory(spine: Spine) -> None:
    first = await spine.store("one", id="story", tags=["draft"], metadata={"k": 1})
    second = await spine.update("story", content="two", add_tags=["read"])
    third = await spine.update("story", importance=0.9, metadata={"k": None})
    assert await spine.history("story") == [third, second, first]
    assert await spine.get("story") == third
    await spine.delete("story")
    assert await spine.history("story") == [third, second, first]
    again = await spine.store("born again", id="story")
    assert await spine.history("story") == [again, third, second, first]
    assert await spine.conflicts("story") == []
    assert await spine.history("nobody stored this") == []


async def test_what_history_showed_was_not_in_the_token(spine: Spine, place: RunningCluster | None) -> None:
    """All other reads are: who read of a version in a memory's past, or that it is gone, could be shown what was
    before."""
    if place is None:
        pytest.skip("an embedded node has one session at a time")
    first = await spine.store("one", id="told")
    second = await spine.update("told", content="two")
    async with place.spine("ben") as ben:
        assert ben.session.vectors == {}
        assert await ben.history("told") == [second, first]
        (number,) = ben.session.vectors
        assert number == ben.session.layout.partition_of("told")
        for memory in (first, second):
            seen = version_vector(memory.version)
            assert seen and within(seen, ben.session.vectors[number])


async def test_a_history_larger_than_a_message_comes_whole(spine: Spine) -> None:
    texts = [f"{n} " + "\u0001" * 200_000 for n in range(6)]  # six bytes each in JSON
    for text in texts:
        await spine.store(text, id="large")
    assert contents(await spine.history("large")) == texts[::-1]


async def test_arguments_are_checked(spine: Spine) -> None:
    for wrong in ("", 7, None):
        with pytest.raises(InvalidInput):
            await spine.history(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        await spine.conflicts("")
    with pytest.raises(InvalidInput):
        await spine.conflicts(limit=0)


async def test_history_survives_a_restart_with_and_without_a_flush(tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        async with Spine.open(tmp_path / "m.db", agent="ada") as spine:  # closing it flushes
            await spine.store(content, id="m")
    async with Spine.open(tmp_path / "m.db", agent="ada") as spine:
        assert contents(await spine.history("m")) == ["three", "two", "one"]


# -- conflicts -------------------------------------------------------------------------------------------------------


async def test_writes_on_the_two_sides_of_a_cut_leave_receipts_that_survive_a_crash(cluster: RunningCluster) -> None:
    """Two nodes write without ever having been up at the same time; a sync brings it together."""
    one, two, three = cluster.ids
    ids = ("edit-edit", "delete-edit", "store-store", "different", "seen")
    async with cluster.spine("ada") as spine:
        await spine.store_many(
            {"id": id, "content": "birth", "metadata": {"k": 0}, "consistency": "read-your-writes"} for id in ids
        )
        for node in cluster.ids:
            for id in ids:  # they lie in several partitions, and two of three replicas are enough for each
                await until(lambda node=node, id=id: has(cluster, node, id, "birth"))  # type: ignore[misc]

        await cluster.kill(one, three)
        await write(cluster, two, Edit, "edit-edit", content="by two", agent="bob")
        await write(cluster, two, Delete, "delete-edit", agent="bob")
        await write(cluster, two, Store, "store-store", content="two's", metadata={"k": 2, "p": "lost"}, agent="bob")
        await write(cluster, two, Edit, "different", importance=0.9, agent="bob")
        await cluster.kill(two)
        await cluster.bring_back(one)
        await write(cluster, one, Edit, "edit-edit", content="by one", agent="eve")
        await write(cluster, one, Edit, "delete-edit", content="edited", agent="eve")
        await write(cluster, one, Store, "store-store", content="one's", metadata={"k": 1}, agent="eve")
        await write(cluster, one, Edit, "different", content="news", agent="eve")
        await write(cluster, one, Edit, "seen", content="overwritten", agent="eve")
        await cluster.bring_back(two, three)
        for node in cluster.ids:
            await until(lambda node=node: has(cluster, node, "edit-edit", "by one"))  # type: ignore[misc]
            await until(lambda node=node: has(cluster, node, "delete-edit", None))  # type: ignore[misc]
            await until(lambda node=node: has(cluster, node, "store-store", "one's"))  # type: ignore[misc]
        await until(lambda: level(cluster, "edit-edit"))

        async def check() -> None:
            found = await spine.conflicts()
            assert sorted(map(said, found)) == [
                ("delete-edit", "content", "edited", None, "eve", "bob"),
                ("edit-edit", "content", "by two", "by one", "bob", "eve"),
                ("store-store", "content", "two's", "one's", "bob", "eve"),
                ("store-store", "metadata.k", 2, 1, "bob", "eve"),
                ("store-store", "metadata.p", "lost", None, "bob", "eve"),
            ]
            assert found == sorted(found, key=lambda one: max(one.lost_at, one.kept_at), reverse=True)
            assert await spine.conflicts("different") == await spine.conflicts("seen") == []
            assert [said(one) for one in await spine.conflicts("edit-edit")] == [
                ("edit-edit", "content", "by two", "by one", "bob", "eve")
            ]
            assert len(await spine.conflicts(limit=2)) == 2
            async with cluster.spine("ben") as ben:  # what conflicts showed was not in the token
                await ben.conflicts()
                held = {ben.session.layout.partition_of(one.memory_id) for one in found}
                assert ben.session.vectors.keys() == held and all(ben.session.vectors.values())
            assert contents(await spine.history("edit-edit")) == ["by one", "by two", "birth"]
            assert "edited" in contents(await spine.history("delete-edit"))

        await check()
        await cluster.kill(*cluster.ids)  # most likely before a flush
        await cluster.bring_back(*cluster.ids)
        await check()


async def test_writes_that_cross_on_their_way_leave_receipts(cluster: RunningCluster) -> None:
    """A node that is stopped has a write in front of it when another one writes; both go on at once."""
    one, two, _ = cluster.ids
    process = cluster.pid(two)
    assert process is not None
    crossed = 0
    async with cluster.spine("ada") as spine:
        for attempt in range(10):
            id = f"crossing-{attempt}"
            await spine.store("birth", id=id)
            for node in cluster.ids:
                await until(lambda node=node, id=id: has(cluster, node, id, "birth"))  # type: ignore[misc]
            os.kill(process, signal.SIGSTOP)
            try:
                late = asyncio.ensure_future(write(cluster, two, Edit, id, content="by two", agent="bob"))
                await asyncio.sleep(0.05)
                await write(cluster, one, Edit, id, content="by one", agent="eve")
            finally:
                os.kill(process, signal.SIGCONT)
            await late
            final = (await cluster.contents_at(two, [id]))[id]
            for node in cluster.ids:
                await until(lambda node=node, id=id, final=final: has(cluster, node, id, final))  # type: ignore[misc]
            lost = [said(conflict) for conflict in await spine.conflicts(id)]
            if lost:  # else the stopped node heard of the other write before it looked at its own
                assert final == "by two"  # it is stamped later
                assert lost == [(id, "content", "by one", "by two", "eve", "bob")]
                crossed += 1
                break
    assert crossed, "no two writes crossed"


async def test_who_overwrites_what_they_have_seen_is_in_no_conflict(cluster: RunningCluster) -> None:
    async with cluster.spine("ada") as spine:
        await spine.store("0", id="turns")
        for n in range(1, 7):
            node = cluster.ids[n % 3]
            await until(lambda node=node, n=n: has(cluster, node, "turns", str(n - 1)))  # type: ignore[misc]
            kind = Store if n % 2 else Edit
            await write(cluster, node, kind, "turns", content=str(n), agent=f"agent {n}")
        assert await spine.conflicts("turns") == []
        assert contents(await spine.history("turns")) == ["6", "5", "4", "3", "2", "1", "0"]


async def test_agents_that_write_at_once_leave_receipts_also_at_one_coordinator(cluster: RunningCluster) -> None:
    async with cluster.spine("ada") as ada, cluster.spine("bob") as bob, cluster.spine("eve") as eve:
        agents = {"ada": ada, "bob": bob, "eve": eve}
        await ada.store("base", id="race", importance=0.1)
        for spine in agents.values():
            await spine.wait_for(ada.token)  # or a read that another replica answers, as the first is late, is too old
            assert await spine.get("race") is not None
        await asyncio.gather(*[spine.update("race", content=f"by {name}") for name, spine in agents.items()])
        for spine in agents.values():
            await ada.wait_for(spine.token)
        memory = await ada.get("race")
        assert memory is not None
        found = await ada.conflicts("race")
        assert {one.lost for one in found} == {f"by {name}" for name in agents} - {memory.content}
        assert {one.field for one in found} == {"content"}
        assert all(one.lost == f"by {one.lost_agent}" and one.kept == f"by {one.kept_agent}" for one in found)
        # Who has seen it, names its version, or writes over something of its own, is in no conflict; nor is a deletion.
        await bob.wait_for(ada.token)
        await bob.get("race")
        await bob.update("race", content="seen", importance=0.5)
        await eve.wait_for(bob.token)
        current = await eve.get("race")
        assert current is not None
        await ada.update("race", importance=0.7, if_version=current.version)
        await ada.update("race", importance=0.8)
        await until(lambda: level(cluster, "race"))
        async with cluster.spine("ada") as elsewhere:
            await elsewhere.store("base", id="race")  # bob's content, unseen here, and an importance of its own
        assert len(await ada.conflicts("race")) == len(found) + 1
        async with cluster.spine("mallory") as stranger:
            assert await stranger.delete("race")
        await cluster.kill(*cluster.ids)
        await cluster.bring_back(*cluster.ids)
        assert len(await ada.conflicts("race")) == len(found) + 1


async def test_what_only_one_replica_has_is_found_however_badly_that_one_does(
    cluster: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two concurrent writes the replicas at which they met have the receipt, and nobody else; so it is with the
    versions. A session that has left such a node, for it was slow, waits for its answer all the same."""
    monkeypatch.setattr(past, "PAST_SECONDS_MAX", 30.0)
    one, two, three = cluster.ids
    async with cluster.spine("ada", timeout=30.0) as spine:
        await spine.store("birth", id="lonely")
        for node in cluster.ids:
            await until(lambda node=node: has(cluster, node, "lonely", "birth"))  # type: ignore[misc]
        await cluster.kill(one, three)
        await write(cluster, two, Edit, "lonely", content="by two", agent="bob")
        await cluster.kill(two)
        await cluster.bring_back(one)
        await write(cluster, one, Edit, "lonely", content="by one", agent="eve")
        await cluster.bring_back(two)
        for node in (one, two):
            await until(lambda node=node: has(cluster, node, "lonely", "by one"))  # type: ignore[misc]
        await until(lambda: level(cluster, "lonely", one, two))
        await cluster.bring_back(three)  # to which both writes come merged
        await until(lambda: level(cluster, "lonely"))
        receipts = {node: await cluster.run_at(node, Conflicts, id="lonely") for node in cluster.ids}
        assert not receipts[three].receipts, "or this test shows nothing"
        expected = [("lonely", "content", "by two", "by one", "bob", "eve")]
        for answers in cluster.ids:
            others = [node for node in cluster.ids if node != answers]
            with cluster.stopped(*others):
                session = spine._live
                for node in others:
                    session.health.fail(node, "slow", asyncio.get_running_loop().time())
                asking = asyncio.gather(spine.conflicts("lonely"), spine.conflicts(), spine.history("lonely"))
                await asyncio.wait({asking}, timeout=0.5)  # the one that runs has answered by now, or will not be first
            of_it, of_all, versions = await asking
            assert [said(conflict) for conflict in of_it] == expected
            assert of_it == [conflict for conflict in of_all if conflict.memory_id == "lonely"]
            assert contents(versions) == ["by one", "by two", "birth"]
        await cluster.kill(three)
        async with asyncio.timeout(20):  # not thirty: where nobody listens, nobody will answer
            assert await spine.conflicts("lonely") == of_it
        await cluster.bring_back(three)
        monkeypatch.setattr(past, "PAST_SECONDS_MAX", 1.0)
        with cluster.stopped(three):
            assert await spine.conflicts("lonely") == of_it, "who answers in time is enough"


async def test_one_replica_is_enough_and_none_is_an_error(cluster: RunningCluster) -> None:
    async with cluster.spine("ada", timeout=2) as spine:
        await spine.store("one", id="alone")
        await write(cluster, cluster.ids[2], Store, "alone", content="two", agent="ada")  # and remembers "one"
        await cluster.kill(*cluster.ids[:2])
        assert contents(await spine.history("alone")) == ["two", "one"]
        assert await spine.conflicts("alone") == []
        await spine.conflicts()
        await cluster.kill(cluster.ids[2])
        questions = (spine.history("alone"), spine.conflicts("alone"), spine.conflicts())
        answers = await asyncio.gather(*questions, return_exceptions=True)
        assert [type(answer) for answer in answers] == [ConnectionFailed] * 3
        await cluster.bring_back(*cluster.ids)


async def write(cluster: RunningCluster, node: str, kind: type[Any], id: str, **fields: Any) -> None:
    """A write at this very node, done once that has it durably."""

    async def done() -> bool:
        with contextlib.suppress(ConnectionFailed):
            await cluster.run_at(node, kind, id=id, acks=1, **fields)
            return True
        return False

    await until(done)


async def level(cluster: RunningCluster, id: str, *nodes: str) -> bool:
    """Do these nodes, or all, have the same version?"""
    memories = [await cluster.get_at(node, id) for node in nodes or cluster.ids]
    return len({memory.version if memory is not None else None for memory in memories}) == 1


async def has(cluster: RunningCluster, node: str, id: str, content: str | None) -> bool:
    return (await cluster.contents_at(node, [id]))[id] == content


def said(conflict: Conflict) -> tuple[str, str, Any, Any, str, str]:
    return (
        conflict.memory_id, conflict.field, conflict.lost, conflict.kept, conflict.lost_agent, conflict.kept_agent
    )  # fmt: skip
