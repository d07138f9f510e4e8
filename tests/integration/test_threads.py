"""Threads, with a node in this process and with a cluster: causal order, no holes, clocks that agents can rely on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from crdt_spine import ConnectionFailed, InvalidInput, Memory, Spine, SpineError
from crdt_spine.core.messages import Query, Store, Vectors
from crdt_spine.core.placement import partition_of
from crdt_spine.core.selection import Selection
from crdt_spine.limits import CONTENT_BYTES_MAX, QUERY_LIMIT_MAX, THREAD_BYTES_MAX
from crdt_spine.node.queries import Queries

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("threads")]

Agents = Callable[[str], Spine]


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """Where the cluster is; empty for a node in this process."""
    return str(request.getfixturevalue("cluster").url) if request.param == "cluster" else ""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agents(url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Agents]:
    """`agents("ada")`: the spine of an agent. In a cluster each has a session, and asks another node first."""
    spines: dict[str, Spine] = {}
    names = ["ada", "ben", "cy"]
    async with contextlib.AsyncExitStack() as stack:
        if url:
            for number, name in enumerate(names):
                spines[name] = await stack.enter_async_context(Spine.connect(url, agent=name))
                turn_to(spines[name], f"spine-{number + 1}")
        else:
            path = tmp_path_factory.mktemp("embedded") / "memories.db"
            spines["ada"] = await stack.enter_async_context(Spine.open(path, agent="ada"))
            spines |= {name: spines["ada"].for_agent(name) for name in names[1:]}
        yield spines.__getitem__


@pytest.fixture
def name() -> str:
    """A thread that nobody else uses."""
    return f"thread-{uuid.uuid4().hex}"


def turn_to(spine: Spine, node: str) -> None:
    """Make a session ask this node first, for everything."""
    session = spine._live
    layout, routing = session.layout, session.routing
    layout.replicas = routing.replicas = {
        number: (node, *[other for other in nodes if other != node]) for number, nodes in layout.replicas.items()
    }
    routing.names.sort(key=lambda name: name != node)
    session.health.changes += 1  # plans are made anew


def contents(memories: list[Memory]) -> list[str]:
    return [memory.content for memory in memories]


def far_from(name: str, count: int = 1) -> list[str]:
    """Ids of one's own, each in a partition of its own, which is not the thread's."""
    found: dict[int, str] = {}
    while len(found) < count:
        id = f"own-{uuid.uuid4().hex}"
        if partition_of(id) != partition_of(name):
            found[partition_of(id)] = id
    return list(found.values())


# -- a conversation --------------------------------------------------------------------------------------------------


async def test_an_answer_comes_after_its_question_and_its_clock_says_so(agents: Agents, name: str) -> None:
    ada, ben, cy = (agents(agent).thread(name) for agent in ("ada", "ben", "cy"))
    question = await ada.append("Why is the build red?", tags=["ci"], metadata={"run": 7}, importance=0.9, ttl=3600)
    assert (question.agent, question.thread, question.clock) == ("ada", name, {"ada": 1})
    assert question.tags == {"ci"}
    assert (question.metadata, question.importance) == ({"run": 7}, 0.9)
    assert question.expires_at is not None
    assert partition_of(question.id) == partition_of(name)  # where all of the thread lies, so that it is in one place
    await agents("ben").wait_for(agents("ada").token)
    assert await ben.read() == [question]
    answer = await ben.append("The cache was cold.")
    aside = await cy.append("Lunch?")
    assert (answer.clock, aside.clock) == ({"ada": 1, "ben": 1}, {"cy": 1})
    await agents("ada").wait_for(agents("ben").token)
    await agents("ada").wait_for(agents("cy").token)
    read = await ada.read()
    assert contents(read) == ["Why is the build red?", "The cache was cold.", "Lunch?"]
    assert read == [await agents("ada").get(memory.id) for memory in read]
    thanks = await ada.append("Thanks to both.")
    assert thanks.clock == {"ada": 2, "ben": 1, "cy": 1}
    assert ada.relation(question, answer) == "before"
    assert ada.relation(answer.id, question.id) == "after"
    assert ada.relation(answer, aside.id) == "concurrent"
    assert ada.relation(aside, thanks.id) == "before"
    assert ada.relation(thanks, thanks) == ada.relation(thanks.id, thanks) == "concurrent"


async def test_a_thread_that_nobody_wrote_to_is_empty(agents: Agents, name: str) -> None:
    assert await agents("ada").thread(name).read() == []


async def test_appends_under_way_at_once_keep_the_order_of_their_calls(agents: Agents, name: str) -> None:
    ada = agents("ada").thread(name)
    entries = await asyncio.gather(*[ada.append(f"{number}") for number in range(200)])
    assert [entry.clock for entry in entries] == [{"ada": number + 1} for number in range(200)]
    assert contents(await ada.read()) == [f"{number}" for number in range(200)]
    assert await ada.read(consistency="causal") == entries


async def test_all_threads_of_an_id_know_what_its_spine_has_read(agents: Agents, name: str) -> None:
    await agents("ben").thread(name).append("one")
    await agents("ada").wait_for(agents("ben").token)
    await agents("ada").thread(name).read()
    entry = await agents("ada").thread(name).append("two")
    again = await agents("ada").for_agent("ada").thread(name).append("three")
    assert (entry.clock, again.clock) == ({"ada": 1, "ben": 1}, {"ada": 2, "ben": 1})


async def test_an_agent_that_comes_back_goes_on_from_its_own_past(agents: Agents, name: str) -> None:
    """It has not read anything since, but what it wrote then it wrote after what it had read."""
    await agents("ben").thread(name).append("one")
    await agents("ada").wait_for(agents("ben").token)
    ada = agents("ada").thread(name)
    await ada.read()
    await ada.append("two", id=far_from(name)[0])
    await agents("ben").wait_for(agents("ada").token)
    await agents("ben").thread(name).append("three")
    agents("ada")._contexts.__init__()  # type: ignore[misc]  # as if it had been started anew
    entry = await agents("ada").thread(name).append("four")
    assert entry.clock == {"ada": 2, "ben": 1}
    await agents("ada").wait_for(agents("ben").token)
    assert contents(await ada.read()) == ["one", "two", "three", "four"]


async def test_deleted_and_expired_entries_are_no_holes_and_their_numbers_are_not_given_again(
    agents: Agents, name: str
) -> None:
    ada, ben = agents("ada").thread(name), agents("ben").thread(name)
    first, second = await ada.append("first", id=far_from(name)[0]), await ada.append("second", ttl=0.4)
    third = await ada.append("third")
    await agents("ben").wait_for(agents("ada").token)
    assert contents(await ben.read()) == ["first", "second", "third"]
    fourth = await ben.append("fourth")
    await agents("ben").delete(first.id)
    await agents("ben").delete(third.id)
    while await agents("ben").get(second.id) is not None:
        await asyncio.sleep(0.05)
    await agents("ada").wait_for(agents("ben").token)
    agents("ada")._contexts.__init__()  # type: ignore[misc]
    fifth = await agents("ada").thread(name).append("fifth")
    assert fifth.clock["ada"] == 4
    assert contents(await ada.read()) == ["fourth", "fifth"]
    assert ada.relation(fifth, fourth) == "concurrent"
    assert (await ada.append("sixth")).clock == {"ada": 5, "ben": 1}


async def test_entries_with_ids_of_their_own_are_in_order_wherever_they_lie(agents: Agents, name: str) -> None:
    spines = [agents(agent) for agent in ("ada", "ben", "cy")]
    expected = []
    for turn, id in enumerate(far_from(name, 9)):
        spine, previous = spines[turn % 3], spines[turn % 3 - 1]
        await spine.wait_for(previous.token)
        await spine.thread(name).read()
        entry = await spine.thread(name).append(f"{turn}", id=id if turn % 2 else None)
        assert sum(entry.clock.values()) == turn + 1
        expected.append(f"{turn}")
    for spine in spines:
        await spine.wait_for(spines[2].token)
        assert contents(await spine.thread(name).read()) == expected


async def test_an_entry_is_changed_and_replaced_like_any_memory(agents: Agents, name: str) -> None:
    ada = agents("ada").thread(name)
    question, answer = await ada.append("question"), await ada.append("answer")
    updated = await agents("ada").update(question.id, content="question, in better words")
    assert updated.clock == question.clock
    assert contents(await ada.read()) == ["question, in better words", "answer"]
    await agents("ada").store("question, stored anew", id=question.id, thread=name)
    assert contents(await ada.read()) == ["question, stored anew", "answer"]
    await ada.append("answer, appended anew", id=answer.id)
    assert [entry.clock for entry in await ada.read()] == [{}, {"ada": 3}]


async def test_what_was_stored_with_a_thread_is_read_by_creation_time(agents: Agents, name: str) -> None:
    """An import: ids all over the partitions, no clocks, times of long ago."""
    ada, ben = agents("ada"), agents("ben")
    start = datetime(2024, 5, 1, tzinfo=UTC)
    count = QUERY_LIMIT_MAX + 300  # two pages
    order = list(range(count))
    random.Random(7).shuffle(order)
    await ada.store_many(
        {"content": f"{n}", "thread": name, "created_at": start + timedelta(seconds=n), "tags": ["import"]}
        for n in order
    )
    assert contents(await ada.thread(name).read()) == [f"{n}" for n in range(count)]
    answer = await ada.thread(name).append("what they all said")
    assert answer.clock == {"ada": 1}
    await ben.wait_for(ada.token)
    read = await ben.thread(name).read()
    assert contents(read) == [*[f"{n}" for n in range(count)], "what they all said"]
    assert read[0].clock == {}
    assert ben.thread(name).relation(read[0], read[-1]) == "concurrent"


async def test_a_subscription_to_a_thread_tells_of_its_entries(agents: Agents, name: str) -> None:
    async with agents("ben").subscribe(thread=name) as updates:
        await agents("ada").thread("another " + name).append("elsewhere")
        entry = await agents("ada").thread(name).append("hear, hear")
        async with asyncio.timeout(30):
            update = await anext(updates)
    assert (update.kind, update.memory) == ("stored", entry)
    answer = await agents("ben").thread(name).append("heard")
    assert answer.clock == {"ada": 1, "ben": 1}
    assert (await agents("ben").thread("another " + name).append("not heard")).clock == {"ben": 1}
    assert contents(await agents("ben").thread(name).read()) == ["hear, hear", "heard"]


async def test_what_a_subscription_tells_of_is_not_missing_before_the_answer(agents: Agents, name: str) -> None:
    """The question is not in the answer's partition, so the answer must name it."""
    async with agents("ben").subscribe(thread=name) as updates:
        await agents("ada").store("a question", thread=name, id=far_from(name)[0])
        async with asyncio.timeout(30):
            await anext(updates)
    answer = await agents("ben").thread(name).append("an answer")
    (result,) = await agents("ben")._live.query(
        Query(i=0, selection=Selection(agent="ben", thread=name), causal=True), use_token=True
    )
    assert result.hits is not None
    assert [hit.id for hit in result.hits] == [answer.id]
    assert len(result.hits[0].after) == 1


async def test_a_page_is_a_picture_of_a_moment_before_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the one in which it leaves the node: what came between the two may be missing on it."""
    found = Queries._found
    written: list[Memory] = []
    async with Spine.open(":memory:", agent="ada") as spine:
        await spine.store("early", id="here", thread="t")

        async def slow(self: Queries, *arguments: Any) -> Any:
            written.append(await spine.store("meanwhile", id="there", thread="t"))
            return await found(self, *arguments)

        monkeypatch.setattr(Queries, "_found", slow)
        (result,) = await spine._live.query(Query(i=0, selection=Selection(thread="t"), order="oldest", causal=True))
    assert [hit.id for hit in result.hits or ()] == ["here"]
    assert result.cut[partition_of("here")]
    assert not result.cut[partition_of("there")]
    assert written


async def test_agents_that_talk_all_at_once_never_see_an_answer_before_what_it_answers(
    agents: Agents, name: str
) -> None:
    """Each entry tells what its writer had read and written; on three nodes, in many partitions, some of it deleted."""
    gone: set[str] = set()

    def check(memories: list[Memory]) -> None:
        seen: set[str] = set()
        for memory in memories:
            assert set(memory.content.split()) - {"nothing"} <= seen | gone
            seen.add(memory.id)

    async def talk(agent: str, seed: int) -> None:
        dice, thread = random.Random(seed), agents(agent).thread(name)
        past: dict[str, None] = {}
        for _ in range(20):
            level = dice.choice(["eventual", "read-your-writes", "causal"])
            memories = await thread.read(consistency=level)
            check(memories)
            past |= dict.fromkeys(memory.id for memory in memories)
            if past and dice.random() < 0.15:
                gone.add(victim := dice.choice(list(past)))
                await agents(agent).delete(victim)
            entry = await thread.append(" ".join(past) or "nothing", id=dice.choice([None, *far_from(name)]))
            past[entry.id] = None
            for memory in memories:
                assert thread.relation(memory, entry) == "before"

    await asyncio.gather(*[talk(agent, seed) for seed, agent in enumerate(("ada", "ben", "cy"))])
    for one in ("ada", "ben", "cy"):
        for other in ("ada", "ben", "cy"):
            await agents(one).wait_for(agents(other).token)
    read = await agents("ada").thread(name).read()
    check(read)
    assert len(read) == 60 - len(gone)
    assert await agents("ben").thread(name).read() == await agents("cy").thread(name).read() == read


async def test_a_token_hands_a_thread_over(agents: Agents, name: str, url: str) -> None:
    await agents("ada").thread(name).append("over to you", id=far_from(name)[0])
    await agents("ada").thread(name).append("and this")
    if url:
        async with Spine.connect(url, agent="dee", token=agents("ada").token) as dee:
            thread = dee.thread(name)
            assert contents(await thread.read()) == ["over to you", "and this"]
            assert (await thread.append("thanks")).clock == {"ada": 2, "dee": 1}


# -- holes -----------------------------------------------------------------------------------------------------------


async def lacking(spine: Spine, name: str, content: str, clock: dict[str, int], after: Vectors) -> None:
    """An entry as another session's agent would append it, which had read what `after` says."""
    session = spine._live
    id = spine._new_id(0, name)
    operation = Store(i=session.number(), id=id, content=content, thread=name, clock=clock, after=after)
    await session.on_memory(msgspec.structs.replace(operation, agent=next(reversed(clock))), id)


async def next_dot(spine: Spine, id: str) -> tuple[int, str, int]:
    """The dot of the next change of a memory: who can say so has just had the one before."""
    await spine.store("so that its node is known", id=id)
    memory = await spine.get(id)
    assert memory is not None
    actor, _, n = memory.version.partition("~")[2].rpartition(":")
    return partition_of(id), actor, int(n) + 1


async def test_an_answer_waits_for_its_question(agents: Agents, name: str) -> None:
    """The question is on its way to the nodes that have the answer already."""
    ada, ben = agents("ada"), agents("ben")
    (id,) = far_from(name)
    partition, actor, n = await next_dot(ada, id)
    await ada.thread(name).append("before all that")
    await lacking(ada, name, "answer", {"dee": 1, "eve": 1}, {partition: {actor: n}})
    await lacking(ada, name, "thanks", {"eve": 1, "dee": 2}, {})
    await lacking(ada, name, "aside", {"flo": 1}, {})
    await ben.wait_for(ada.token)
    thread = ben.thread(name)
    assert contents(await thread.read(consistency="eventual")) == ["before all that", "aside"]
    assert (await thread.append("ben's")).clock == {"ada": 1, "ben": 1, "flo": 1}
    reading = asyncio.ensure_future(thread.read())
    await asyncio.sleep(0.3)
    assert not reading.done()
    await ada.delete(id)  # the change that was missing: that the question is deleted makes no hole
    assert contents(await reading) == ["before all that", "answer", "thanks", "aside", "ben's"]


async def test_an_agents_own_entry_is_in_its_past_also_while_it_is_hidden(agents: Agents, name: str) -> None:
    ada = agents("ada")
    (id,) = far_from(name)
    partition, actor, n = await next_dot(ada, id)
    await lacking(ada, name, "own", {"ada": 7}, {partition: {actor: n}})
    thread = ada.thread(name)
    assert await thread.read(consistency="eventual") == []
    assert (await thread.append("next")).clock == {"ada": 8}
    assert await thread.read(consistency="eventual") == []
    await ada.delete(id)
    assert contents(await thread.read()) == ["own", "next"]


async def test_what_no_replica_has_any_more_is_not_waited_for(
    agents: Agents, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = agents("ada")
    monkeypatch.setattr(ada._live, "timeout", 60.0)
    (id,) = far_from(name)
    partition, actor, _ = await next_dot(ada, id)
    region, _, _ = actor.partition("/")
    await lacking(ada, name, "answer", {"dee": 1}, {partition: {f"{region}/gone@1": 5}})
    thread = ada.thread(name)
    assert await thread.read(consistency="eventual") == []
    async with asyncio.timeout(30):  # of the sixty seconds that a call may take
        assert contents(await thread.read()) == ["answer"]
    monkeypatch.setattr("crdt_spine.thread.PATIENCE_SECONDS", 30.0)
    async with asyncio.timeout(15):
        assert contents(await thread.read()) == ["answer"]  # what is known is not asked again
    assert (await thread.append("thanks")).clock == {"dee": 1, "ada": 1}


async def test_what_is_in_no_partition_hides_an_entry_and_holds_nobody_up(agents: Agents, name: str) -> None:
    await lacking(agents("ada"), name, "odd", {"dee": 1}, {99_999: {"nobody": 1}})
    await agents("ada").thread(name).append("even")
    async with asyncio.timeout(1.5):
        assert contents(await agents("ada").thread(name).read()) == ["even"]


async def test_a_replica_that_lags_does_not_show_an_answer_alone(
    start_cluster: Callable[..., Awaitable[Any]], name: str
) -> None:
    """The question is on one node only, which hangs; the answer, in another partition, is on the two others. Then the
    same again, and the one node loses its disk: what nobody can see any more, nobody waits for."""
    cluster = await start_cluster(3)
    first, others = "spine-1", ("spine-2", "spine-3")
    async with cluster.spine("ada", timeout=20) as ada:
        thread, beside_name = ada.thread(name), f"beside {name}"

        async def only_here(spine: Spine, content: str) -> Memory:
            """Appended while the other nodes are down, so that nothing of it can be on its way to them."""
            before = [memory.id for memory in await thread.read()]
            while not all([None not in (await cluster.contents_at(node, before)).values() for node in cluster.ids]):
                await asyncio.sleep(0.05)
            await cluster.kill(*others)
            turn_to(spine, first)
            question: Memory = await thread.append(content, id=far_from(name)[0], consistency="eventual")
            return question

        await thread.append("opening")
        question = await only_here(ada, "question")
        await ada.thread(beside_name).append("question", consistency="eventual")
        pid = cluster.pid(first)
        os.kill(pid, signal.SIGSTOP)
        try:
            await cluster.bring_back(*others)
            turn_to(ada, others[0])
            answer = await thread.append("answer")
            assert thread.relation(question, answer) == "before"
            # In the partition of its question an answer needs a coordinator that has the question.
            ada._live.timeout = 1.5
            with pytest.raises(SpineError):
                await ada.thread(beside_name).append("answer", consistency="eventual")
            ada._live.timeout = 20
            async with cluster.spine("ben", timeout=3) as ben:
                assert contents(await ben.thread(name).read(consistency="eventual")) == ["opening"]
                assert contents(await ben.thread(name).read()) == ["opening"]
                ben._live.timeout = 20
                reading = asyncio.ensure_future(ben.thread(name).read())
                await asyncio.sleep(0.5)
                assert not reading.done()
                os.kill(pid, signal.SIGCONT)
                assert contents(await reading) == ["opening", "question", "answer"]
        finally:
            os.kill(pid, signal.SIGCONT)

        await only_here(ada, "second question")
        await cluster.kill(first)
        shutil.rmtree(cluster.folder / first)
        await cluster.bring_back(*others)
        turn_to(ada, others[0])
        await thread.append("second answer")
        async with cluster.spine("cy", timeout=20) as cy:
            assert contents(await cy.thread(name).read(consistency="eventual")) == ["opening", "question", "answer"]
            await cluster.bring_back(first)
            assert contents(await cy.thread(name).read()) == ["opening", "question", "answer", "second answer"]


# -- bad input -------------------------------------------------------------------------------------------------------


async def test_bad_input_is_refused_with_a_reason(agents: Agents, name: str) -> None:
    ada = agents("ada")
    for bad in ("", None, 7, b"x", "x" * (THREAD_BYTES_MAX + 1), "a\0b", "\ud800"):
        with pytest.raises(InvalidInput, match="id"):
            ada.thread(bad)  # type: ignore[arg-type]
    thread = ada.thread(name)
    bad_arguments: list[dict[str, Any]] = [
        {"content": ""}, {"content": None}, {"content": "x" * (CONTENT_BYTES_MAX + 1)}, {"id": ""}, {"id": 5},
        {"tags": "one"}, {"tags": [1]}, {"metadata": []}, {"metadata": {"a": object()}}, {"importance": 2},
        {"ttl": 0}, {"ttl": "soon"}, {"consistency": "sometimes"},
    ]  # fmt: skip
    for arguments in bad_arguments:
        with pytest.raises(InvalidInput):
            await thread.append(**{"content": "x", **arguments})
    with pytest.raises(InvalidInput, match="consistency"):
        await thread.read(consistency="sometimes")
    assert await thread.read() == []
    assert (await thread.append("x")).clock == {"ada": 1}  # what was refused took no number


async def test_relations_to_strangers_are_refused_with_a_reason(agents: Agents, name: str) -> None:
    ada = agents("ada")
    thread, other = ada.thread(name), ada.thread(f"other {name}")
    mine, stranger = await thread.append("mine"), await other.append("a stranger")
    unthreaded = await ada.store("in no thread")
    for bad, reason in (
        (stranger, "other thread"), (unthreaded, "None"), (stranger.id, "read"), ("never", "read"), ("", "read"),
        (None, "Memory"), (7, "Memory"), ({"id": mine.id}, "Memory"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=reason):
            thread.relation(mine, bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=reason):
            thread.relation(bad, mine.id)  # type: ignore[arg-type]
    again = ada.thread(name)
    with pytest.raises(InvalidInput, match="read"):
        again.relation(mine.id, mine)
    await again.read()
    assert again.relation(mine.id, mine) == "concurrent"


async def test_a_thread_of_a_closed_spine_says_so(tmp_path: Path) -> None:
    async with Spine.open(tmp_path / "m.db", agent="ada") as spine:
        thread = spine.thread("t")
        await thread.append("x")
    with pytest.raises(ConnectionFailed, match="async with"):
        await thread.append("y")
    with pytest.raises(ConnectionFailed, match="async with"):
        await thread.read()
    with pytest.raises(ConnectionFailed, match="async with"):
        spine.thread("t")
    async with spine:
        assert contents(await spine.thread("t").read()) == ["x"]
        assert (await spine.thread("t").append("y")).clock == {"ada": 2}
