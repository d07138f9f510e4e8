"""What a write waits for is acknowledged at once; the rest goes with it, or a little later, and is never forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from records import Records

from crdt_spine.core.actors import actor_name
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Ack
from crdt_spine.core.replica import Replica
from crdt_spine.core.subjects import Subjects
from crdt_spine.node.acknowledgements import Acknowledgements
from crdt_spine.transport.base import Message
from crdt_spine.transport.local import LocalTransport

NAMES = ("a", "b", "c")
PEERS = {0: ("a", "b"), 1: ("a", "b"), 2: ("a", "d"), 3: ("a", "d"), 4: ("b", "bb")}
LATER, FIRST = (0, 1), (2, 3)  # partitions in which changes of `a` wait for another one, and in which for `c`
LATER_OF_B = 4
A, B = (actor_name("r", name, "1") for name in ("a", "b"))
decode = msgspec.json.Decoder(Ack).decode


class Saying:
    """The acknowledgements of node `c`, and what `a` and `b` have heard of them."""

    def __init__(self) -> None:
        self.replica = Replica("c", actor_name("r", "c", "1"), Records(), HybridClock(), PEERS, 2)
        self.transport = LocalTransport()
        self.subjects = Subjects("test")
        self.acknowledgements = Acknowledgements("c", "r", self.replica, self.transport, self.subjects)
        self.heard: list[tuple[str, dict[int, int]]] = []

    async def listen(self) -> None:
        for node in NAMES:
            await self.transport.subscribe(self.subjects.ack(node), self._take)

    def _take(self, message: Message) -> None:
        ack = decode(message.payload)
        assert message.subject == self.subjects.ack({A: "a", B: "b"}[ack.actor])
        self.heard.append((ack.actor, ack.reached))

    async def hears(self, count: int) -> list[tuple[str, dict[int, int]]]:
        async with asyncio.timeout(5):
            while len(self.heard) < count:
                await asyncio.sleep(0.002)
        await asyncio.sleep(0.01)
        assert len(self.heard) == count
        return self.heard


@pytest_asyncio.fixture
async def saying() -> AsyncIterator[Saying]:
    saying = Saying()
    await saying.listen()
    yield saying
    saying.acknowledgements.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt_spine.node.acknowledgements.PATIENCE_SECONDS", 60.0)


async def test_what_a_write_waits_for_is_said_at_once(saying: Saying, patient: None) -> None:
    saying.acknowledgements.take({A: {FIRST[0]: 7}})
    assert await saying.hears(1) == [(A, {FIRST[0]: 7})]


async def test_what_nobody_waits_for_goes_with_what_somebody_does_to_the_same_node(
    saying: Saying, patient: None
) -> None:
    saying.acknowledgements.take({A: {LATER[0]: 3}})
    saying.acknowledgements.take({A: {LATER[0]: 4, LATER[1]: 1}})
    await saying.hears(0)
    saying.acknowledgements.take({A: {FIRST[0]: 7}})
    assert await saying.hears(1) == [(A, {LATER[0]: 4, LATER[1]: 1, FIRST[0]: 7})]
    saying.acknowledgements.take({A: {FIRST[0]: 8}})
    assert (await saying.hears(2))[1] == (A, {FIRST[0]: 8}), "it was said"


async def test_what_nobody_waits_for_is_said_soon_all_the_same(saying: Saying) -> None:
    for n in range(1, 4):
        saying.acknowledgements.take({A: {LATER[0]: n}, B: {LATER_OF_B: n}})
    assert sorted(await saying.hears(2)) == [(A, {LATER[0]: 3}), (B, {LATER_OF_B: 3})]
    saying.acknowledgements.take({A: {LATER[0]: 4}})
    assert (await saying.hears(3))[2] == (A, {LATER[0]: 4})


async def test_whose_stand_in_this_is_waits_for_it(saying: Saying, patient: None) -> None:
    saying.acknowledgements.take({A: {LATER[0]: 1}})
    saying.replica.miss(frozenset({"b"}))
    saying.acknowledgements.take({A: {LATER[0]: 2}})
    assert await saying.hears(1) == [(A, {LATER[0]: 2})]
    saying.replica.miss(frozenset())
    saying.acknowledgements.take({A: {LATER[0]: 3}})
    await saying.hears(1)
    saying.replica.change_peers(PEERS, dict.fromkeys(PEERS, frozenset({"b"})))
    saying.acknowledgements.take({A: {LATER[0]: 4}})
    assert (await saying.hears(2))[1] == (A, {LATER[0]: 4}), "b counts for no quorum"


async def test_what_was_put_off_of_a_partition_that_has_gone_since_ended_the_node(
    saying: Saying, patient: None
) -> None:
    saying.acknowledgements.take({A: {LATER[0]: 1, LATER[1]: 2}, B: {LATER_OF_B: 3}})
    saying.replica.close([LATER[0], LATER_OF_B])
    left = {number: others for number, others in PEERS.items() if number not in (LATER[0], LATER_OF_B)}
    saying.replica.change_peers(left, {})
    saying.acknowledgements.take({A: {FIRST[0]: 7}, B: {LATER_OF_B: 4}})
    assert await saying.hears(1) == [(A, {LATER[1]: 2, FIRST[0]: 7})]
    saying.acknowledgements._say_all()
    await saying.hears(1)


async def test_neither_the_own_changes_nor_another_regions_are_acknowledged(saying: Saying, patient: None) -> None:
    own, foreign = actor_name("r", "c", "1"), actor_name("elsewhere", "a", "1")
    saying.acknowledgements.take({own: {FIRST[0]: 1}, foreign: {FIRST[0]: 1}})
    await saying.hears(0)
