"""A node acts on a membership: what it drops is gone for good, what it is given begins empty, and a crash at any moment
in between changes nothing of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from crdt_spine.core.membership import Member, Membership, Seat, Settings
from crdt_spine.core.messages import Get, Hello, NodeInfo, Query, Request, Response, Result, Store, encode
from crdt_spine.core.placement import partition_of
from crdt_spine.core.selection import Selection
from crdt_spine.node.node import Node
from crdt_spine.node.register import Register
from crdt_spine.node.seats import RETRY_SECONDS, Removed, Seats
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.base import Message
from crdt_spine.transport.local import LocalCell, LocalTransport

PARTITIONS = 4
HELLO = Hello(
    cluster="test", region="local", node="a", state="up", nodes=[NodeInfo(id="a")], partitions=PARTITIONS, factor=1,
    write_quorum=1,
)  # fmt: skip
IDS = {
    number: next(f"id-{n}" for n in range(99) if partition_of(f"id-{n}", PARTITIONS) == number) for number in range(4)
}
_decode = msgspec.json.Decoder(Response).decode


def membership(epoch: int, since: dict[int, int], **more: Any) -> Membership:
    """Node a is a member of these partitions since those epochs, b of the others; nobody shares any."""
    seats = {
        number: {"a": Seat("member", since[number])} if number in since else {"b": Seat("member", 1)}
        for number in range(PARTITIONS)
    }
    given: dict[str, Any] = {"members": {"a": Member(), "b": Member()}, **more}
    return Membership(epoch, seats, settings=Settings(partitions=PARTITIONS, factor=1), **given)


ALL = membership(1, dict.fromkeys(range(PARTITIONS), 1))
WITHOUT_0 = membership(2, {1: 1, 2: 1, 3: 1})
ANEW_0 = membership(3, {0: 3, 1: 1, 2: 1, 3: 1})


class Home:
    """A node that is started on its folder again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.transport = LocalTransport()
        self.node: Node | None = None
        self.answers: asyncio.Queue[Result] = asyncio.Queue()
        self.numbers = iter(range(1, 10_000))

    async def start(self, newest: Membership) -> Node:
        engine = SqliteEngine.open(self.folder)
        register = Register(LocalCell())
        self.node = Node("a", HELLO, engine, self.transport, register=register, membership=newest)
        await self.node.start()
        return self.node

    async def die(self) -> None:
        """Nothing that is in memory gets to the disk any more."""
        node, self.node = self.node, None
        assert node is not None
        for task in node._tasks:
            task.cancel()
        await asyncio.gather(*node._tasks, return_exceptions=True)
        await node.deltas.close()
        for subscription in list(self.transport.subscriptions):
            await subscription.cancel()
        node.queries.close()
        node.past.close()
        node.flusher.close()
        node.committer.close()
        node.engine.close()

    async def ask(self, *operations: Any) -> list[Result]:
        """The answers of the node, in order."""
        assert self.node is not None
        got: asyncio.Queue[Result] = asyncio.Queue()

        def take(message: Message) -> None:
            for result in _decode(message.payload).results:
                got.put_nowait(result)

        subscription = await self.transport.subscribe("inbox.me.>", take)
        numbered = [msgspec.structs.replace(operation, i=next(self.numbers)) for operation in operations]
        request = Request(session="s", agent="tester", operations=numbered)
        self.transport.send(self.node.subjects.rpc("a"), encode(request), "inbox.me.a.1")
        try:
            async with asyncio.timeout(10):
                results = [await got.get() for _ in operations]
        finally:
            await subscription.cancel()
        return sorted(results, key=lambda result: result.i)

    async def store(self) -> None:
        """A memory in each partition."""
        results = await self.ask(*[Store(i=0, id=id, content="words") for id in IDS.values()])
        assert not [result for result in results if result.error]

    async def seen(self) -> dict[int, str]:
        """By partition: "there", "none", or the error."""
        results = await self.ask(*[Get(i=0, id=id) for id in IDS.values()])
        return {
            number: result.error or ("there" if result.memory else "none")
            for number, result in zip(IDS, results, strict=True)
        }


@pytest_asyncio.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(tmp_path / "a")
    yield home
    if home.node is not None:
        await home.die()
    await home.transport.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_dropped_partition_is_answered_for_elsewhere_and_wiped(home: Home) -> None:
    node = await home.start(ALL)
    await home.store()
    await node.seats.adopt(WITHOUT_0)
    assert await home.seen() == {0: "NotHere", 1: "there", 2: "there", 3: "there"}
    some, everything = await home.ask(
        Query(i=0, selection=Selection(), partitions=(1, 2, 3)), Query(i=0, selection=Selection())
    )
    assert len(some.hits or ()) == 3
    assert everything.error == "NotHere"
    (refused,) = await home.ask(Store(i=0, id=IDS[0], content="no"))
    assert (refused.error, refused.outcome) == ("NotHere", "not applied")
    assert node.replication.epoch == 2
    await until(lambda: not node.seats.wiping)
    assert node.engine.get(IDS[0]) is None and node.engine.get(IDS[1]) is not None


async def test_what_was_dropped_does_not_come_back_with_a_restart(home: Home) -> None:
    node = await home.start(ALL)
    await home.store()
    await node.seats.adopt(WITHOUT_0)
    await home.die()
    node = await home.start(WITHOUT_0)
    assert node.seats.epoch == 2 and sorted(node.replica.partitions) == [1, 2, 3]
    assert await home.seen() == {0: "NotHere", 1: "there", 2: "there", 3: "there"}
    await until(lambda: not node.seats.wiping)
    assert node.engine.get(IDS[0]) is None


async def test_a_partition_that_is_given_anew_begins_empty_under_a_new_name(home: Home) -> None:
    node = await home.start(ALL)
    await home.store()
    before = node.replica.actor
    await node.seats.adopt(WITHOUT_0)
    assert node.replica.actor == before
    await node.seats.adopt(ANEW_0)
    assert node.replica.actor != before
    assert await home.seen() == {0: "none", 1: "there", 2: "there", 3: "there"}
    assert node.replica.durable[0] == {}
    await home.die()
    node = await home.start(ANEW_0)  # neither the tables nor the journal have anything of the old copy
    assert await home.seen() == {0: "none", 1: "there", 2: "there", 3: "there"}
    assert node.replica.durable[0] == {}
    await home.store()
    assert await home.seen() == dict.fromkeys(range(4), "there")
    await home.die()
    await home.start(ANEW_0)
    assert await home.seen() == dict.fromkeys(range(4), "there")


async def test_what_is_not_wiped_yet_is_not_seen_and_takes_nothing_new_with_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: Seats) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Seats, "wipe", never)
    node = await home.start(ALL)
    await home.store()
    await node.flusher.flush()
    await node.seats.adopt(WITHOUT_0)
    assert node.engine.get(IDS[0]) is not None, "the tables have it still"
    assert (await home.seen())[0] == "NotHere"  # and asking does not bring it into the cache
    await node.seats.adopt(ANEW_0)
    assert (await home.seen())[0] == "none"
    await home.die()
    node = await home.start(membership(5, {0: 5, 1: 1, 2: 1, 3: 1}))  # once more, while it slept
    await home.store()
    await node.flusher.flush()
    assert node.seats.wiping == set()
    await node.seats._wipe(range(PARTITIONS))
    await home.die()
    await home.start(membership(5, {0: 5, 1: 1, 2: 1, 3: 1}))
    assert await home.seen() == dict.fromkeys(range(4), "there")


async def test_a_node_that_slept_through_its_drop_and_the_next_gift_begins_that_partition_empty(home: Home) -> None:
    await home.start(ALL)
    await home.store()
    await home.die()
    node = await home.start(ANEW_0)
    assert await home.seen() == {0: "none", 1: "there", 2: "there", 3: "there"}
    assert node.seats.epoch == 3
    await home.store()  # and what is written there from now on is not taken for the old copy
    await node.flusher.flush()
    await asyncio.sleep(2 * RETRY_SECONDS)
    await home.die()
    node = await home.start(ANEW_0)
    assert await home.seen() == dict.fromkeys(range(4), "there")
    assert not node.seats.wiping


@pytest.mark.parametrize("next_is", ["still gone", "given anew"])
@pytest.mark.parametrize("moment", ["after it is forgotten", "after it is kept", "while it is wiped"])
async def test_a_crash_while_a_partition_is_dropped_leaves_nothing_of_it(
    home: Home, moment: str, next_is: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await home.start(ALL)
    await home.store()

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            original(*arguments)
            raise asyncio.CancelledError

        return call

    if moment == "after it is forgotten":
        monkeypatch.setattr(node.seats, "_forget", stopping(node.seats._forget))
    elif moment == "after it is kept":
        monkeypatch.setattr(node.seats, "_tell", stopping(node.seats._tell))
    else:
        monkeypatch.setattr(node.engine, "wipe", lambda *_: 1)  # it never ends
    adopting = asyncio.create_task(node.seats.adopt(WITHOUT_0))
    await asyncio.wait((adopting,), timeout=1.0)
    adopting.cancel()
    monkeypatch.undo()
    await home.die()
    if next_is == "still gone":
        node = await home.start(WITHOUT_0)
        assert await home.seen() == {0: "NotHere", 1: "there", 2: "there", 3: "there"}
        await node.seats.adopt(ANEW_0)
    else:
        await home.start(ANEW_0)
    assert await home.seen() == {0: "none", 1: "there", 2: "there", 3: "there"}


async def test_a_node_without_any_partition_serves(home: Home) -> None:
    node = await home.start(membership(1, {}, members={"b": Member()}))
    assert node.state == "up" and not node.seats.is_member
    assert await home.seen() == dict.fromkeys(range(4), "NotHere")
    await node.seats.adopt(membership(2, {0: 2}))
    assert await home.seen() == {0: "none", 1: "NotHere", 2: "NotHere", 3: "NotHere"}


async def test_who_was_given_up_as_dead_does_not_go_on_and_keeps_what_it_has(home: Home) -> None:
    node = await home.start(ALL)
    await home.store()
    with pytest.raises(Removed, match="given up as dead in epoch 2"):
        await node.seats.adopt(membership(3, {}, dead=("a",), gone={"a": 2}))
    assert node.seats.epoch == 1
    assert await home.seen() == dict.fromkeys(range(4), "there")


async def test_a_writer_that_waits_for_a_quorum_is_sent_elsewhere_when_the_partition_goes(home: Home) -> None:
    shared = {number: {"a": Seat("member", 1), "b": Seat("member", 1)} for number in range(PARTITIONS)}
    both = Membership(1, shared, {"a": Member(), "b": Member()}, Settings(partitions=PARTITIONS, factor=2))
    node = await home.start(both)  # b is not there
    ticket = _Ticket()
    node.coordinator.lost = ticket.take  # type: ignore[method-assign]
    node.replica.write(0, Store(i=1, id=IDS[0], content="x", acks=2), "tester", "s-1", 1_763_000_000_000, ticket)
    node.committer.touch()
    await node.committer.barrier()
    seats = {**shared, 0: {"b": Seat("member", 1)}}
    await node.seats.adopt(Membership(2, seats, both.members, both.settings))
    assert [waiting.ticket for waiting in ticket.lost] == [ticket]


class _Ticket:
    def __init__(self) -> None:
        self.lost: list[Any] = []

    def take(self, lost: list[Any]) -> None:
        self.lost += lost
