"""The register of the membership: who reads, founds, restores and changes it, and who is not let in."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from crdt_spine.core.membership import Member, Membership, from_json, to_json
from crdt_spine.core.membership_changes import proposed
from crdt_spine.core.messages import Hello, NodeInfo, encode
from crdt_spine.core.subjects import DISCOVERY_SUBJECT
from crdt_spine.errors import ConfigError
from crdt_spine.node.register import Register, beginning, entered, new_cluster_id
from crdt_spine.transport.base import Disconnected, Kept, Message
from crdt_spine.transport.local import LocalCell, LocalTransport

HELLO = Hello(
    cluster="c", region="local", node="a", state="up", nodes=[NodeInfo(id=id, host=id, port=1) for id in "abc"],
    partitions=8, factor=3, write_quorum=2,
)  # fmt: skip
FIRST = beginning(HELLO)


def added(membership: Membership, node: str, by: str = "") -> Membership:
    return proposed(membership, "add", node, Member(host=node, port=1), by=by)


async def enter(register: Register, saved: Membership | None = None, blank: bool = True, node: str = "a") -> Membership:
    transport = LocalTransport()
    try:
        return await entered(register, transport, FIRST, saved, blank, node)
    finally:
        await transport.close()


async def test_of_two_who_change_it_at_once_one_wins_and_the_other_sees_what_won() -> None:
    cell = LocalCell(to_json(FIRST))
    one, other = Register(cell), Register(cell)
    assert await one.look() == await other.look() == FIRST
    mine, theirs = added(FIRST, "d", "one"), added(FIRST, "e", "other")
    assert await one.replace(FIRST, mine)
    assert not await other.replace(FIRST, theirs)
    assert await other.look() == mine
    assert await one.replace(FIRST, mine), "what is there already was written, whoever asks again"
    assert await one.look() is await one.look()


async def test_it_is_founded_once_and_then_everybody_goes_by_it() -> None:
    cell = LocalCell()
    assert await enter(Register(cell)) == FIRST
    assert cell.kept is not None and from_json(cell.kept.value) == FIRST
    grown = added(FIRST, "d")
    assert await Register(cell).replace(FIRST, grown)
    assert await enter(Register(cell), node="b") == grown


def with_id(cluster_id: str, epoch: int = 1) -> Membership:
    return msgspec.structs.replace(beginning(msgspec.structs.replace(HELLO, cluster_id=cluster_id)), epoch=epoch)


async def test_of_several_founders_one_gives_the_cluster_its_id() -> None:
    cell, transport = LocalCell(), LocalTransport()
    founders = [with_id(new_cluster_id()) for _ in range(3)]
    found = await asyncio.gather(*[
        entered(Register(cell), transport, first, None, True, node)
        for first, node in zip(founders, "abc", strict=True)
    ])  # fmt: skip
    later = await entered(Register(cell), transport, with_id(new_cluster_id()), None, True, "d")
    assert len({membership.settings.cluster_id for membership in (*found, later)}) == 1
    assert len({founder.settings.cluster_id for founder in founders}) == 3
    await transport.close()


async def test_a_cluster_that_lost_its_register_stays_the_one_that_it_was() -> None:
    cell, transport = LocalCell(), LocalTransport()
    made = await entered(Register(cell), transport, with_id("new"), with_id("old", 3), False, "a")
    assert (made.settings.cluster_id, made.epoch) == ("old", 3)
    await transport.close()


async def test_a_folder_of_another_cluster_of_the_same_name_is_refused() -> None:
    cell = LocalCell(to_json(with_id("this")))
    for epoch in (1, 5):
        with pytest.raises(ConfigError, match=r"another cluster that is called 'c'.*'other'.*'this'.*its own folder"):
            await enter(Register(cell), saved=with_id("other", epoch), blank=False)
    assert from_json(cell.kept.value if cell.kept else b"") == with_id("this"), "and nothing was made again of it"


async def test_a_node_does_not_follow_the_register_of_another_cluster() -> None:
    """Its broker was exchanged for that of another cluster of the same name."""
    cell = LocalCell(to_json(with_id("this")))
    register = Register(cell)
    await enter(register)
    mine, theirs = with_id("this"), with_id("other", 9)
    assert await Register(cell).replace(mine, theirs)
    for act in (register.look, register.look, lambda: register.replace(theirs, added(mine, "d"))):
        with pytest.raises(Disconnected, match="another cluster of the same name"):
            await act()
    assert await Register(cell).replace(theirs, mine)
    assert await register.look() == mine


async def test_one_that_was_lost_is_made_again_of_what_a_node_has() -> None:
    cell, grown = LocalCell(), added(FIRST, "d")
    assert await enter(Register(cell), saved=grown, blank=False) == grown
    assert await enter(Register(cell), saved=FIRST, blank=False, node="b") == grown
    older = LocalCell(to_json(FIRST))  # an old copy of the broker's disk
    assert await enter(Register(older), saved=grown, blank=False) == grown


async def test_a_new_node_does_not_found_what_a_running_cluster_has_lost() -> None:
    cell, transport, grown = LocalCell(), LocalTransport(), added(FIRST, "d")

    def introduce(message: Message) -> None:
        transport.send(message.reply, encode(Hello(**{**_fields(HELLO), "epoch": grown.epoch})))

    await transport.subscribe(DISCOVERY_SUBJECT, introduce)
    entering = asyncio.create_task(entered(Register(cell), transport, FIRST, None, True, "d"))
    await asyncio.sleep(0.3)
    assert cell.kept is None
    assert await Register(cell).replace(None, grown)
    assert await asyncio.wait_for(entering, 10) == grown
    await transport.close()


def _fields(hello: Hello) -> dict[str, object]:
    return {name: getattr(hello, name) for name in hello.__struct_fields__}


async def test_who_was_taken_out_is_told_and_comes_back_with_a_new_folder_only() -> None:
    left = Membership(
        9, FIRST.seats, {id: FIRST.members[id] for id in "ab"}, FIRST.settings, gone={"c": 7, "d": 8}, dead=("d",)
    )
    register = Register(LocalCell(to_json(left)))
    with pytest.raises(ConfigError, match=r"c was taken out of the cluster in epoch 7.*new, empty data folder"):
        await enter(register, saved=FIRST, blank=False, node="c")
    assert await enter(register, blank=True, node="c") == left
    for blank in (True, False):
        with pytest.raises(ConfigError, match=r"d was given up as dead, in epoch 8.*another id"):
            await enter(register, blank=blank, node="d")
    assert await enter(register, blank=False, node="e") == left, "it has never been in"


async def test_a_register_that_does_not_answer_is_waited_for() -> None:
    class Slow(LocalCell):
        failures = 2

        async def read(self) -> Kept | None:
            self.failures -= 1
            if self.failures >= 0:
                raise Disconnected("the broker")
            return await super().read()

    assert await enter(Register(Slow(to_json(FIRST)))) == FIRST


async def test_what_a_newer_program_wrote_is_refused_with_a_reason() -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        await enter(Register(LocalCell(b'{"epoch": 3}')))


def test_what_an_earlier_program_has_placed_stays_where_it_is() -> None:
    from crdt_spine.core.placement import replicas_of
    from crdt_spine.core.ring import ConsistentHashRing

    hello = Hello(**{**_fields(HELLO), "nodes": [NodeInfo(id=f"n{i}") for i in range(7)], "partitions": 64})
    ring = ConsistentHashRing([node.id for node in hello.nodes])
    former = beginning(hello, former=True)
    assert all(set(seats) == set(replicas_of(number, ring, 3, {})) for number, seats in former.seats.items())
    assert former != beginning(hello)
