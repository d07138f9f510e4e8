"""A session and nodes that answer as the test says, over the transport that embedded nodes use: when a read is hedged,
what is moved, and how a change of who holds what is followed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from crdt_spine.call import Demanded
from crdt_spine.core.messages import (
    Edit,
    FeedBatch,
    FeedClose,
    FeedCredit,
    FeedOpen,
    Get,
    Hello,
    NodeInfo,
    Operation,
    Query,
    Reach,
    Request,
    Response,
    Result,
    Store,
    encode,
)
from crdt_spine.core.placement import partition_of
from crdt_spine.core.selection import Selection
from crdt_spine.core.subjects import DISCOVERY_SUBJECT, Subjects
from crdt_spine.dispatch import SILENT_SECONDS, STRONG_SILENT_SECONDS
from crdt_spine.errors import ConnectionFailed, QuorumFailed, StaleToken, VersionConflict
from crdt_spine.health import PATIENCE_UNKNOWN_SECONDS, READ
from crdt_spine.hedging import HEDGES_SAVED_MAX
from crdt_spine.session import Session
from crdt_spine.subscription import SILENT_SECONDS_MAX, Updates
from crdt_spine.transport.base import Message
from crdt_spine.transport.local import LocalTransport

pytestmark = pytest.mark.timeout(30)

PARTITIONS = 8
PAUSES_MAX = 5  # of this process, on a busy machine, each just long enough for a hedge more
ID = "memory"
NUMBER = partition_of(ID, PARTITIONS)
_decode = msgspec.json.Decoder(Request).decode

Say = Callable[[Operation], Result | None]


def does(operation: Operation) -> Result | None:
    """What a node that is well says."""
    if isinstance(operation, Query):
        return Result(i=operation.i, hits=[], cut={number: {} for number in operation.partitions or ()})
    return Result(i=operation.i)


def refuses(error: str, **fields: Any) -> Say:
    return lambda operation: Result(i=operation.i, error=error, **fields)


class Node:
    """Answers each request after `delay` seconds with what `say` says, if anything; what it was sent is in `taken`."""

    def __init__(self, stage: Stage, id: str) -> None:
        self.stage = stage
        self.id = id
        self.delay = 0.0
        self.say: Say = does
        self.stopped = False
        self.taken: list[Operation] = []
        self.retries: list[bool] = []  # whether each request said that it may have been applied before
        self.down: tuple[str, ...] = ()
        self.held: list[Message] = []

    def take(self, message: Message) -> None:
        if self.stopped:
            self.held.append(message)
            return
        request = _decode(message.payload)
        self.retries.append(request.retry)
        self.taken += [operation for operation in request.operations if not isinstance(operation, Reach)]
        results = [result for operation in request.operations if (result := self.say(operation)) is not None]
        inbox = message.reply.rpartition(".")[0]
        answer = Response(node=self.id, results=results, epoch=self.stage.hello.epoch, down=self.down)
        if results:
            asyncio.get_running_loop().call_later(self.delay, self.stage.transport.send, inbox, encode(answer))

    def go_on(self) -> None:
        self.stopped = False
        held, self.held = self.held, []
        for message in held:
            self.take(message)


class Stage:
    """Nodes on a transport."""

    def __init__(self) -> None:
        self.transport = LocalTransport()
        self.nodes: dict[str, Node] = {}
        self.hello = Hello(
            cluster="stage", region="r", node="a", state="up", nodes=[], partitions=PARTITIONS, factor=3,
            write_quorum=2,
        )  # fmt: skip
        self.session: Session
        self.asked = 0  # how often somebody wanted to know who holds what
        self._subscriptions: dict[str, Any] = {}

    async def start(self, names: str = "abc") -> None:
        await self.transport.subscribe(DISCOVERY_SUBJECT, self._introduce)
        await self.change(dict.fromkeys(range(PARTITIONS), tuple(names)), epoch=0)
        self.session = await Session.discover(self.transport, "agent")
        self.session.timeout = 5.0

    async def change(self, replicas: dict[int, tuple[str, ...]], epoch: int) -> None:
        """These hold it now; who holds nothing is gone."""
        names = sorted({node for nodes in replicas.values() for node in nodes})
        for name in names:
            if name not in self.nodes:
                node = self.nodes[name] = Node(self, name)
                subject = Subjects("stage").rpc(name)
                self._subscriptions[name] = await self.transport.subscribe(subject, node.take)
        for name in self.nodes.keys() - set(names):
            await self.leave(name)
        self.hello = msgspec.structs.replace(
            self.hello, nodes=[NodeInfo(id=name) for name in names], epoch=epoch, replicas=replicas if epoch else {}
        )

    async def leave(self, name: str) -> None:
        """Nobody listens there any more."""
        del self.nodes[name]
        await self._subscriptions.pop(name).cancel()

    def _introduce(self, message: Message) -> None:
        self.asked += 1
        self.transport.send(message.reply, encode(self.hello))

    # -- what an agent does -------------------------------------------------------------------------------------------

    @property
    def first(self) -> Node:
        """The node to which operations on the memory go."""
        return self.nodes[self.session.routing.replicas[NUMBER][0]]

    @property
    def others(self) -> list[Node]:
        return [node for node in self.nodes.values() if node is not self.first]

    async def get(self) -> Result:
        return await self.session.on_memory(Get(i=self.session.number(), id=ID), ID)

    async def store(self) -> Result:
        return await self.session.on_memory(Store(i=self.session.number(), id=ID, content="x"), ID)

    async def query(self) -> list[Result]:
        return await self.session.query(Query(i=0, selection=Selection()))

    async def warm(self) -> None:
        """So that the session knows how long a read takes at the first node."""
        for _ in range(40):
            await self.get()

    async def close(self) -> None:
        await self.session.close()
        await self.transport.close()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    one = Stage()
    await one.start()
    yield one
    await one.close()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    """That a node says nothing is no evidence within a call's time: without other evidence the call fails. So what is
    answered was moved by that, however slow this machine is."""
    monkeypatch.setattr("crdt_spine.dispatch.SILENT_SECONDS", 60.0)
    monkeypatch.setattr("crdt_spine.dispatch.RESEND_SECONDS", 60.0)
    stage.session.timeout = 15.0


# -- hedges ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("silence")
async def test_a_stopped_node_costs_one_hedged_read_and_is_left_at_once(stage: Stage) -> None:
    await stage.warm()
    first = stage.first
    first.stopped = True
    for _ in range(200):
        await stage.get()
    counts = stage.session.counts
    assert counts["hedges_won"] >= 1
    assert counts["hedges"] <= 1 + PAUSES_MAX

    first.go_on()
    assert len(first.taken) <= 40 + 1 + PAUSES_MAX, "it was left after the one read that was hedged"
    await until(lambda: stage.session.health.all_well)
    before = len(first.taken)
    await stage.get()
    assert len(first.taken) == before + 1


@pytest.mark.usefixtures("silence")
async def test_many_reads_under_way_at_a_stopped_node_move_together(stage: Stage) -> None:
    await stage.warm()
    stage.first.stopped = True
    await asyncio.gather(*[stage.get() for _ in range(500)])
    assert stage.session.counts["hedges"] <= HEDGES_SAVED_MAX, "the others were moved, once it was known"


@pytest.mark.usefixtures("silence")
async def test_a_new_session_waits_a_little_longer(stage: Stage) -> None:
    stage.first.stopped = True
    started = time.monotonic()
    await stage.get()
    assert time.monotonic() - started >= PATIENCE_UNKNOWN_SECONDS[READ]


async def test_hedges_have_a_budget(stage: Stage) -> None:
    """A cluster that has become slow as a whole does not get twice the reads."""
    await stage.warm()
    for node in stage.nodes.values():
        node.delay = 0.2
    await asyncio.gather(*[stage.get() for _ in range(400)])
    reads = sum(len(node.taken) for node in stage.nodes.values()) - 40
    assert 400 <= reads <= 400 * 1.05 + HEDGES_SAVED_MAX + 2
    assert stage.session.counts["hedges"] >= HEDGES_SAVED_MAX, "as many as it may"


@pytest.mark.usefixtures("silence")
async def test_a_write_is_not_hedged_and_moves_with_its_number(stage: Stage) -> None:
    await stage.warm()
    first = stage.first
    first.stopped = True
    writing = asyncio.create_task(stage.store())
    await stage.get()  # says that the node hangs
    await writing
    first.go_on()
    await asyncio.sleep(0)
    stores = [op.i for node in stage.nodes.values() for op in node.taken if isinstance(op, Store)]
    assert len(stores) == 2
    assert len(set(stores)) == 1, "the same operation at both"


async def test_without_other_evidence_a_write_waits_for_a_second(stage: Stage) -> None:
    await stage.warm()
    stage.first.delay = SILENT_SECONDS / 2
    await stage.store()
    assert sum(isinstance(op, Store) for node in stage.nodes.values() for op in node.taken) == 1


async def test_a_hedge_that_is_behind_does_not_fail_the_read(stage: Stage) -> None:
    await stage.warm()
    stage.first.delay = 0.6
    for other in stage.others:
        other.say = refuses("Behind", message="not yet")
    assert (await stage.get()).error is None
    assert stage.session.counts["hedges"] == 2, "each of the others once"
    assert stage.session.counts["hedges_won"] == 0


async def test_where_the_first_is_behind_the_hedge_is_waited_for(stage: Stage) -> None:
    await stage.warm()
    first = stage.first
    first.delay, first.say = 0.15, refuses("Behind")
    for other in stage.others:
        other.delay = 0.3
    await stage.get()
    assert sum(len(other.taken) for other in stage.others) <= 2


@pytest.mark.usefixtures("silence")
async def test_when_the_hedged_node_hangs_too_the_third_is_asked(stage: Stage) -> None:
    await stage.warm()
    stage.first.stopped = True
    stage.others[0].stopped = stage.others[1].stopped = True
    reading = asyncio.create_task(stage.get())
    await until(lambda: stage.session.counts["hedges"] == 1)
    hedged = next(call.hedge for call in stage.session.calls.values())
    next(other for other in stage.others if other.id != hedged).go_on()
    await reading


@pytest.mark.usefixtures("silence")
async def test_a_query_is_hedged_with_the_same_partitions(stage: Stage) -> None:
    for _ in range(40):
        await stage.query()
    asked = next(node for node in stage.nodes.values() if node.taken)
    asked.stopped = True
    assert len(await stage.query()) == 1
    assert stage.session.counts["hedges_won"] == 1


async def test_a_session_that_was_busy_itself_blames_nobody(stage: Stage) -> None:
    await stage.warm()
    stage.first.delay = 0.01  # so that the answer comes while this process sleeps
    for _ in range(5):
        reading = asyncio.create_task(stage.get())
        await asyncio.sleep(0.002)
        time.sleep(0.3)  # noqa: ASYNC251
        await reading
    assert stage.session.counts["hedges"] == 0
    assert stage.session.health.all_well


# -- slow nodes, hints ------------------------------------------------------------------------------------------------


async def test_a_slow_node_is_left_before_it_fails_and_used_again(stage: Stage) -> None:
    await stage.warm()
    first = stage.first
    first.delay = 0.25
    deadline = time.monotonic() + 15
    while first.id not in stage.session.health.trouble:
        await stage.get()
        assert time.monotonic() < deadline
    before = len(first.taken)
    for _ in range(20):
        await stage.get()
        await stage.store()
    assert len(first.taken) == before
    first.delay = 0.0
    await until(lambda: stage.session.health.well(first.id))


async def test_a_node_that_is_said_to_be_down_is_tried_before_it_is_believed(stage: Stage) -> None:
    await stage.warm()
    session, first = stage.session, stage.first
    for other in stage.others:
        other.down = (first.id,)
    asked = (stage.others[0].id,)
    await session.run(Get(i=session.number(), id=ID), asked)
    assert session.health.all_well, "it has just answered"
    session.health.heard[first.id] -= 10
    await session.run(Get(i=session.number(), id=ID), asked)
    assert not session.health.well(first.id)
    await until(lambda: session.health.all_well)


async def test_a_session_without_work_pings_nobody(stage: Stage) -> None:
    first = stage.first
    await stage.leave(first.id)
    await stage.get()
    session = stage.session
    assert not session.health.well(first.id)
    session.pings.active_at -= 100
    number = session.number()
    await asyncio.sleep(0.4)
    assert session.number() == number + 1


# -- who holds what ----------------------------------------------------------------------------------------------------


async def moved(stage: Stage, epoch: int, **nodes: str) -> None:
    """`a="bcd"`: what a held, these hold."""
    replicas = dict.fromkeys(range(PARTITIONS), tuple(nodes["all"]))
    for name, numbers in nodes.items():
        if name != "all":
            replicas |= {int(n): tuple(name) for n in numbers}
    await stage.change(replicas, epoch)


async def test_a_newer_epoch_is_asked_for_once_in_the_background(stage: Stage) -> None:
    asked = stage.asked
    await moved(stage, 3, all="bcd")
    await asyncio.gather(*[stage.get() for _ in range(50)])
    await until(lambda: stage.session.hello.epoch == 3)
    assert stage.asked - asked <= 2
    assert {node.id for node in stage.session.hello.nodes} == set("bcd")
    assert set(stage.session.routing.replicas[NUMBER]) == set("bcd")
    for _ in range(20):
        await stage.get()
    assert stage.asked - asked <= 2


async def test_an_operation_whose_replicas_have_all_left_finds_the_new_ones(stage: Stage) -> None:
    for node in stage.nodes.values():
        node.say = refuses("NotHere")
    running = [asyncio.create_task(stage.get()), asyncio.create_task(stage.store())]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in running)
    await moved(stage, 2, all="def")
    await asyncio.gather(*running)
    assert stage.session.hello.epoch == 2


async def test_nodes_that_left_for_good_are_not_waited_for(stage: Stage) -> None:
    await moved(stage, 2, all="def")  # a, b and c are gone: nobody tells of the epoch
    started = time.monotonic()
    with pytest.raises(ConnectionFailed):
        async with asyncio.timeout(10):
            stage.session.timeout = 0.3
            await stage.get()
    stage.session.timeout = 5.0
    assert time.monotonic() - started < 8


async def test_a_query_asks_each_partition_once_whatever_moves(stage: Stage) -> None:
    def holding(*numbers: int) -> Say:
        def say(operation: Operation) -> Result | None:
            if isinstance(operation, Query):
                asked = set(range(PARTITIONS) if operation.partitions is None else operation.partitions)
                if not asked <= set(numbers):
                    return Result(i=operation.i, error="NotHere")
            return does(operation)

        return say

    await moved(stage, 1, all="abc")
    await stage.get()
    await until(lambda: stage.session.hello.epoch == 1)
    for node in stage.nodes.values():
        node.say = refuses("NotHere")
    asking = asyncio.create_task(stage.query())
    await asyncio.sleep(0.1)
    await moved(stage, 2, ab="0123", bc="45", cd="67", all="abcd")
    held = {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3, 4, 5), "c": (4, 5, 6, 7), "d": (6, 7)}
    for name, numbers in held.items():
        stage.nodes[name].say = holding(*numbers)
    results = await asking
    assert Counter(number for result in results for number in result.cut) == Counter(range(PARTITIONS))
    assert len(results) == 2


async def test_waiting_for_a_token_follows_too(stage: Stage) -> None:
    vectors = {number: {"x": 1} for number in range(PARTITIONS)}
    for node in stage.nodes.values():
        node.say = refuses("NotHere")
    waiting = asyncio.create_task(stage.session.reach(vectors, 5.0))
    await asyncio.sleep(0.1)
    await moved(stage, 2, all="def")
    await waiting


async def test_a_question_to_one_node_that_has_it_no_more_ends_at_once(stage: Stage) -> None:
    stage.nodes["a"].say = refuses("NotHere")
    session = stage.session
    started = time.monotonic()
    with pytest.raises(Exception, match="node a does not hold"):
        await session.run(Get(i=session.number(), id=ID), ("a",))
    assert time.monotonic() - started < 4, "the call's timeout is five seconds"


# -- what went wrong ---------------------------------------------------------------------------------------------------


async def test_a_failed_quorum_names_who_is_missing(stage: Stage) -> None:
    stage.first.say = refuses(
        "QuorumFailed", message="1 of 2", outcome="unknown", acks_seen=1, acks_needed=2, missing=("b", "c")
    )
    with pytest.raises(QuorumFailed) as failed:
        await stage.store()
    error = failed.value
    assert (error.acks, error.needed, error.missing, error.outcome) == (1, 2, ("b", "c"), "unknown")


async def test_so_does_one_that_the_sessions_own_time_ends(stage: Stage) -> None:
    stage.session.timeout = 0.3
    for node in stage.nodes.values():
        node.say = lambda operation: None
    with pytest.raises(QuorumFailed, match=r"0 of the 2 replicas needed .* [abc], [abc], [abc] are not") as failed:
        await stage.store()
    assert failed.value.outcome == "unknown"
    assert (failed.value.acks, failed.value.needed, sorted(failed.value.missing)) == (0, 2, ["a", "b", "c"])

    for node in stage.nodes.values():
        node.say = refuses("Busy", message="1 of 2 reached", acks_seen=1, missing=("b",))
    with pytest.raises(QuorumFailed) as failed:
        await stage.store()
    assert (failed.value.outcome, failed.value.acks, failed.value.missing) == ("not applied", 1, ("b",))


async def test_a_token_that_nobody_has_is_said(stage: Stage) -> None:
    stage.session.timeout = 0.3
    for node in stage.nodes.values():
        node.say = refuses("Behind", message="not yet")
    with pytest.raises(StaleToken):
        await stage.get()


# -- feeds -------------------------------------------------------------------------------------------------------------


async def test_feeds_move_with_their_partitions_and_go_on_from_where_they_were(stage: Stage) -> None:
    opened: list[tuple[str, FeedOpen]] = []
    closed: list[str] = []
    decode = msgspec.json.Decoder(FeedOpen | FeedCredit | FeedClose).decode

    def serve(name: str) -> Callable[[Message], None]:
        def take(message: Message) -> None:
            command = decode(message.payload)
            if isinstance(command, FeedOpen):
                opened.append((name, command))
                positions = {n: {"x": n + 1} for n in command.partitions} if command.token is None else {}
                stage.transport.send(command.inbox, encode(FeedBatch(feed=command.feed, number=0, positions=positions)))
            elif isinstance(command, FeedClose):
                closed.append(command.feed)

        return take

    for name in "abcd":
        await stage.transport.subscribe(Subjects("stage").feed(name), serve(name))
    updates = Updates(stage.session, Selection(), None)
    async with updates:
        ((first, before),) = opened
        assert before.token is None
        rest = tuple(name for name in "abcd" if name != first)
        replicas = {n: ("a", "b", "c") if n % 2 else rest for n in range(PARTITIONS)}
        await stage.change(replicas, 2)
        await stage.get()
        await until(lambda: sum(len(open.partitions) for _, open in opened) == 2 * PARTITIONS, SILENT_SECONDS_MAX - 0.5)
        assert closed == [before.feed]
        for name, open in opened[1:]:
            assert open.token == {number: {"x": number + 1} for number in open.partitions}, "from there on"
            assert all(name in replicas[number] for number in open.partitions)
        assert sorted(n for _, open in opened[1:] for n in open.partitions) == list(range(PARTITIONS))
        await asyncio.sleep(0.3)
        assert len(closed) == 1, "the others stay where they are"


async def test_a_subscriber_that_does_nothing_else_finds_the_nodes_that_are_back(stage: Stage) -> None:
    """All nodes have been in trouble, and the one that holds most is gone for good: nobody but the subscriber asks, and
    it must not ask that one for ever."""
    opened: Counter[str] = Counter()
    decode = msgspec.json.Decoder(FeedOpen | FeedCredit | FeedClose).decode
    subscribed = {}

    def serve(name: str) -> Callable[[Message], None]:
        def take(message: Message) -> None:
            command = decode(message.payload)
            if isinstance(command, FeedOpen):
                opened[name] += 1
                positions = {n: {"x": n + 1} for n in command.partitions} if command.token is None else {}
                stage.transport.send(command.inbox, encode(FeedBatch(feed=command.feed, number=0, positions=positions)))

        return take

    async def listen(names: str) -> None:
        for name in names:
            subscribed[name] = await stage.transport.subscribe(Subjects("stage").feed(name), serve(name))

    # a has every partition, b and c half of them each.
    await stage.change({n: ("a", "b" if n % 2 else "c") for n in range(PARTITIONS)}, 2)
    await stage.get()
    session = stage.session
    await until(lambda: session.hello.epoch == 2)
    await listen("abc")
    updates = Updates(session, Selection(), None)
    async with updates:
        assert opened == {"a": 1}
        for name in "abc":
            await subscribed[name].cancel()
            session.health.fail(name, "gone", session.health.clock())
        await stage.leave("a")
        await listen("bc")
        session.pings.active_at -= 100
        await until(lambda: opened["b"] and opened["c"])
        await until(lambda: session.health.well("b") and session.health.well("c"))
        assert not session.health.well("a")


# -- a write that is tried more than once -----------------------------------------------------------------------------


def edits(stage: Stage, *, strong: bool = True) -> asyncio.Task[Result]:
    operation = Edit(i=stage.session.number(), id=ID, content="x", strong=strong)
    return asyncio.create_task(stage.session.on_memory(operation, ID))


def held_by_the_first(stage: Stage) -> asyncio.Event:
    """Its first node takes a write and says nothing; the session goes on elsewhere, or there again."""
    taken = asyncio.Event()

    def say(operation: Operation) -> Result | None:
        if isinstance(operation, Reach):
            return Result(i=operation.i)
        taken.set()
        return None

    stage.first.say = say
    return taken


LACKS = refuses("QuorumFailed", outcome="not applied", message="1 of the 2 take part (not applied)", acks_needed=2)
CONFLICT = refuses("VersionConflict", outcome="not applied", message="it is at another version")


async def answer(stage: Stage, node: Node, result: Result) -> None:
    """A node says this of something that it was asked long ago."""
    inbox = f"{stage.session.requests.inbox}.{node.id}"
    stage.transport.send(inbox, encode(Response(node=node.id, results=[result], epoch=stage.hello.epoch)))


async def stuck(stage: Stage, task: asyncio.Task[Result]) -> int:
    """The write is under way at its first node and, once that is silent, at another one, which says nothing yet; its
    number."""
    held_by_the_first(stage)
    first = stage.first
    for node in stage.others:
        node.say = lambda operation: None if isinstance(operation, Edit) else does(operation)
    first.stopped = True
    await until(lambda: any(isinstance(one, Edit) for node in stage.others for one in node.taken))
    return next(one.i for node in stage.others for one in node.taken if isinstance(one, Edit))


def second(stage: Stage) -> Node:
    return next(node for node in stage.others if any(isinstance(one, Edit) for one in node.taken))


@pytest.mark.parametrize("strong", [True, False])
async def test_a_write_is_not_said_to_be_not_applied_while_another_attempt_of_it_is_open(
    stage: Stage, strong: bool
) -> None:
    """The second node could not do it; the first, which was silent, did."""
    task = edits(stage, strong=strong)
    number = await stuck(stage, task)
    await answer(stage, second(stage), LACKS(Edit(i=number, id=ID)))
    with pytest.raises(QuorumFailed) as failed:
        await task
    assert failed.value.outcome == "unknown" and "not applied" not in str(failed.value)


async def test_a_strong_refusal_that_may_not_hold_for_the_other_attempt_is_not_believed(stage: Stage) -> None:
    task = edits(stage)
    number = await stuck(stage, task)
    await answer(stage, stage.first, CONFLICT(Edit(i=number, id=ID)))
    await asyncio.sleep(0.05)
    assert not task.done(), "the second attempt may be done yet"
    await answer(stage, second(stage), Result(i=number))
    assert (await task).error is None


async def test_a_strong_refusal_that_the_memory_remembers_ends_a_write_whatever_is_open(stage: Stage) -> None:
    task = edits(stage)
    number = await stuck(stage, task)
    refused = msgspec.structs.replace(CONFLICT(Edit(i=number, id=ID)) or Result(i=number), final=True)
    await answer(stage, second(stage), refused)
    with pytest.raises(VersionConflict):
        await task


async def test_what_all_attempts_say_was_not_applied_was_not(stage: Stage) -> None:
    task = edits(stage)
    number = await stuck(stage, task)
    await answer(stage, stage.first, LACKS(Edit(i=number, id=ID)))
    await answer(stage, second(stage), LACKS(Edit(i=number, id=ID)))
    with pytest.raises(QuorumFailed) as failed:
        await task
    assert failed.value.outcome == "not applied"


async def test_a_memory_that_another_node_does_not_find_may_be_written_by_the_first_one(stage: Stage) -> None:
    task = edits(stage, strong=False)
    number = await stuck(stage, task)
    absent = Result(i=number, error="NotFound", message="there is no memory", outcome="not applied")
    await answer(stage, second(stage), absent)
    with pytest.raises(QuorumFailed) as failed:
        await task
    assert failed.value.outcome == "unknown"


async def test_attempts_that_are_open_are_not_forgotten_where_a_stricter_level_is_demanded(stage: Stage) -> None:
    task = edits(stage, strong=False)
    number = await stuck(stage, task)
    await answer(stage, second(stage), Result(i=number, error="Level", level="strong", outcome="not applied"))
    with pytest.raises(Demanded) as demanded:
        await task
    assert demanded.value.open_attempts == 1
    for node in stage.others:
        node.say = LACKS
    strong = Edit(i=number, id=ID, content="x", strong=True)
    with pytest.raises(QuorumFailed) as failed:
        await stage.session.on_memory(strong, ID, open_attempts=1)
    assert failed.value.outcome == "unknown"


# -- strong operations and nodes that stand still --------------------------------------------------------------------


def held_edits(node: Node) -> int:
    """How often a node that is stopped was sent a write."""
    return sum(isinstance(one, Edit) for held in node.held for one in _decode(held.payload).operations)


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("read", [True, False])
async def test_a_sessions_first_strong_operation_waited_for_each_node_that_stands_still(
    stage: Stage, read: bool
) -> None:
    """A second for each, though the one that is left would have said at once that it is there."""
    still, well = stage.others
    stage.first.stopped = still.stopped = True
    operation: Operation
    if read:
        operation = Get(i=stage.session.number(), id=ID, strong=True)
        await stage.session.on_memory(operation, ID)
    else:
        await edits(stage)
        assert (held_edits(stage.first), held_edits(still)) == (1, 0), "where nobody answers nobody is asked"
    assert len(well.taken) == 1


@pytest.mark.usefixtures("silence")
async def test_who_was_left_as_it_said_nothing_is_not_gone_back_to_for_being_named_the_primary(stage: Stage) -> None:
    still, well = stage.others
    stage.first.stopped = still.stopped = True
    named = [stage.first.id, still.id, stage.first.id, ""]

    def say(operation: Operation) -> Result | None:
        if isinstance(operation, Edit) and named:
            return Result(i=operation.i, error="Elsewhere", primary=named.pop(0), outcome="not applied")
        return does(operation)

    well.say = say
    await edits(stage)
    assert not named and len(well.taken) == 5
    assert (held_edits(stage.first), held_edits(still)) == (1, 0)


@pytest.mark.usefixtures("silence")
async def test_who_says_something_again_is_gone_back_to_as_the_primary(stage: Stage) -> None:
    for node in stage.others:
        node.say = lambda operation: (
            Result(i=operation.i, error="Elsewhere", primary=stage.first.id, outcome="not applied")
            if isinstance(operation, Edit) else does(operation)
        )  # fmt: skip
    stage.first.stopped = True
    task = edits(stage)
    await until(lambda: any(isinstance(one, Edit) for node in stage.others for one in node.taken))
    stage.first.go_on()
    assert (await task).error is None


@pytest.mark.usefixtures("silence")
async def test_a_primary_that_answers_pings_keeps_a_strong_operation_however_long_it_takes(stage: Stage) -> None:
    taken = held_by_the_first(stage)
    task = edits(stage)
    await taken.wait()
    await asyncio.sleep(3 * STRONG_SILENT_SECONDS)
    assert not task.done() and not any(node.taken for node in stage.others)
    number = next(one.i for one in stage.first.taken)
    await answer(stage, stage.first, Result(i=number))
    await task


@pytest.mark.usefixtures("silence")
async def test_a_write_that_is_not_strong_is_not_repeated_for_a_moments_silence(stage: Stage) -> None:
    stage.first.stopped = True
    task = edits(stage, strong=False)
    await asyncio.sleep(3 * STRONG_SILENT_SECONDS)
    assert not any(node.taken for node in stage.others)
    stage.first.go_on()
    await task


@pytest.mark.parametrize("error", ["NotHere", "Busy"])
async def test_what_a_node_has_turned_away_is_no_retry_elsewhere(stage: Stage, error: str) -> None:
    """It once said so, and a primary that did not remember all operations on a memory refused what had never been
    done: strong writes failed while partitions moved."""
    stage.first.say = refuses(error, message="not now", outcome="not applied")
    await stage.store()
    assert stage.first.retries == [False]
    assert [retry for node in stage.others for retry in node.retries] == [False]


async def test_what_a_node_may_have_done_is_a_retry_elsewhere(stage: Stage) -> None:
    first = stage.first
    first.say = lambda operation: None
    await stage.store()
    assert first.retries[0] is False
    assert [retry for node in stage.others for retry in node.retries] == [True]
