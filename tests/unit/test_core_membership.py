"""The register of who holds which partition moves in steps, and a replica acts on each of them."""

from __future__ import annotations

import pytest

from crdt_spine.core.causality import Vector
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.membership import Membership, advance, founded, goal, joining, leaving
from crdt_spine.core.messages import Ack, Announcement, Delta, Store, encode
from crdt_spine.core.partition import Partition
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica

NOW = 1_700_000_000_000
THREE = founded({0: ("a", "b", "c")})


def everybody(membership: Membership, but: str = "") -> dict[str, int]:
    return {node: membership.epoch for node in membership.nodes if node != but}


def step(
    membership: Membership,
    durable: dict[str, Vector],
    wanted: Vector | None = None,
    confirmed: dict[str, int] | None = None,
) -> Membership | None:
    confirmed = everybody(membership) if confirmed is None else confirmed
    return advance(membership, confirmed, goal(membership, durable) if wanted is None else wanted, durable, 2)


def moved(membership: Membership, durable: dict[str, Vector]) -> Membership:
    after = step(membership, durable)
    assert after is not None and after.epoch == membership.epoch + 1
    return after


LEVEL: dict[str, Vector] = {node: {"x": 3} for node in "abcd"}


def test_a_newcomer_is_named_then_pulls_then_counts() -> None:
    named = joining(THREE, 0, "d")
    assert named.peers_of("a") == {0: ("b", "c", "d")}
    assert named.peers_of("d") == {}
    assert named.muted() == {0: frozenset("d")}
    pulling = moved(named, LEVEL)
    assert pulling.peers_of("d") == {0: ("a", "b", "c")}
    assert pulling.muted() == {0: frozenset("d")}
    member = moved(pulling, LEVEL)
    assert member.muted() == {0: frozenset()}
    assert member.change is None


def test_a_newcomer_does_not_pull_before_every_node_has_confirmed_its_name() -> None:
    named = joining(THREE, 0, "d")
    assert step(named, LEVEL, confirmed=everybody(named, but="c")) is None
    assert step(named, LEVEL) is not None


def test_a_newcomer_counts_once_it_has_what_the_others_had() -> None:
    pulling = moved(joining(THREE, 0, "d"), LEVEL)
    durable: dict[str, Vector] = {"a": {"x": 3}, "b": {"x": 2, "y": 1}, "c": {}, "d": {"x": 3}}
    assert goal(pulling, durable) == {"x": 3, "y": 1}
    assert step(pulling, durable) is None
    assert step(pulling, {**durable, "d": {"x": 3, "y": 1}}, wanted=goal(pulling, durable)) is not None


def test_a_leaver_is_dropped_once_enough_others_have_what_it_had() -> None:
    going = leaving(founded({0: ("a", "b", "c", "d")}), 0, "d")
    assert going.muted() == {0: frozenset("d")}
    wanted = {"x": 3}
    assert step(going, {"a": {"x": 3}, "b": {"x": 2}, "c": {}, "d": {"x": 3}}, wanted) is None
    assert step(going, {"a": {"x": 3}, "b": {"x": 3}, "c": {}}, wanted, everybody(going, but="d")) is None
    dropped = step(going, {"a": {"x": 3}, "b": {"x": 3}, "c": {}}, wanted)
    assert dropped is not None
    assert dropped.peers_of("d") == {}
    assert dropped.peers_of("a") == {0: ("b", "c")}


def test_one_change_at_a_time() -> None:
    named = joining(THREE, 0, "d")
    with pytest.raises(ValueError, match="can't join"):
        joining(named, 0, "e")
    with pytest.raises(ValueError, match="can't leave"):
        leaving(named, 0, "a")
    with pytest.raises(ValueError, match="can't join"):
        joining(THREE, 0, "a")
    with pytest.raises(ValueError, match="can't leave"):
        leaving(THREE, 0, "d")


def test_what_a_node_said_before_it_was_dropped_does_not_count_once_it_is_named_again() -> None:
    going = leaving(founded({0: ("a", "b", "c", "d")}), 0, "d")
    again = joining(moved(going, LEVEL), 0, "d")
    assert again.counted("d", going.epoch, {0: {"x": 3}}) == {}
    assert again.counted("d", again.epoch, {0: {"x": 3}}) == {0: {"x": 3}}
    assert again.counted("a", 1, {0: {"x": 3}, 7: {}}) == {0: {"x": 3}}


class Shelf:
    """Records in a dictionary."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def get(self, id: str) -> Record | None:
        return self.records.get(id)

    def put(self, partition: int, record: Record) -> None:
        self.records[record.id] = record

    def drop(self, partition: int, id: str) -> None:
        del self.records[id]

    def changed(self, partition: int, have: object, after: str | None, limit: int) -> list[Record]:
        return []


def replica(node: str = "a", peers: tuple[str, ...] = ("b", "c")) -> Replica:
    return Replica(node, f"r/{node}@1", Shelf(), HybridClock(), {0: peers}, 2)


def store(one: Replica, acks: int | None = None) -> list[object]:
    """Write; the tickets that are done once it is durable here."""
    one.write(0, Store(i=1, id="m", content="text", acks=acks), "agent", "s-1", NOW, "ticket")
    return [waiting.ticket for waiting in one.persisted(one.end_turn())]


def acknowledged(one: Replica, node: str, n: int = 1) -> list[object]:
    return [waiting.ticket for waiting in one.ack(Ack(node=node, actor=one.actor, reached={0: n}))]


def test_who_joins_counts_for_no_quorum_until_it_is_a_member() -> None:
    one = replica()
    one.change_peers({0: ("b", "c", "d")}, {0: frozenset("d")})
    assert store(one) == []
    assert acknowledged(one, "d") == []
    done, lost = one.change_peers({0: ("b", "c", "d")}, {0: frozenset()})
    assert [waiting.ticket for waiting in done] == ["ticket"]
    assert lost == []


def test_all_of_the_replicas_are_those_that_count() -> None:
    one = replica()
    one.change_peers({0: ("b", "c", "d")}, {0: frozenset("d")})
    assert store(one, acks=9) == []
    assert acknowledged(one, "b") == []
    assert acknowledged(one, "c") == ["ticket"]


def test_a_tombstone_waits_for_who_joins_and_not_for_who_left() -> None:
    one = replica()
    store(one)
    said = {"b": {one.actor: 1}, "c": {one.actor: 1}}
    for node, vector in said.items():
        one.hear(Announcement(node=node, actor=f"r/{node}@1", state="up", now=NOW, vectors={0: vector}))
    partition = one.partitions[0]
    assert partition.stable(one.peers[0]) == {one.actor: 1}
    one.change_peers({0: ("b", "c", "d")}, {0: frozenset("d")})
    assert partition.stable(one.peers[0]) == {}
    one.change_peers({0: ("b",)}, {})
    assert partition.stable(one.peers[0]) == {one.actor: 1}
    one.change_peers({0: ("b", "c")}, {})  # back again: what it said before is forgotten
    assert partition.stable(one.peers[0]) == {}


def test_a_partition_that_is_dropped_takes_nothing_any_more_and_begins_empty_when_it_comes_back() -> None:
    one, other = replica(), replica("b", ("a", "c"))
    store(one)
    other.write(0, Store(i=1, id="n", content="text"), "agent", "s-2", NOW, "ticket")
    ((number, raw),) = other.end_turn().deltas
    one.close([0])
    delta = Delta(partition=number, actor="r/b@1", first=1, deps={}, changes=[])
    assert one.receive(delta, raw, NOW)
    assert one.end_turn().empty
    done, lost = one.change_peers({}, {})
    assert (done, [waiting.ticket for waiting in lost]) == ([], ["ticket"])
    assert not one.partitions and not one.durable and not one.operations
    one.change_peers({0: ("b", "c")}, {0: frozenset("a")})
    assert one.partitions[0].vector == {} and isinstance(one.partitions[0], Partition)


def test_a_partition_is_not_dropped_while_something_of_it_is_not_durable() -> None:
    one = replica()
    one.write(0, Store(i=1, id="m", content="text"), "agent", "s-1", NOW, "ticket")
    one.close([0])
    with pytest.raises(AssertionError, match="not durable"):
        one.change_peers({}, {})
    turn = one.end_turn()
    with pytest.raises(AssertionError, match="not durable"):
        one.change_peers({}, {})
    one.persisted(turn)
    one.change_peers({}, {})


def test_messages_say_which_epoch_a_node_has_adopted() -> None:
    announcement = Announcement(node="a", actor="r/a@1", state="up", now=NOW, vectors={}, epoch=7)
    assert b'"epoch":7' in encode(announcement)
