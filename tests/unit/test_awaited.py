"""For whom a write waits: as many replicas as it needs are in a hurry, by the same order everywhere, and no more."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import msgspec
import pytest
from records import Records

from crdt_spine.core.actors import actor_name
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Announcement, Delta, Edit, Store, encode
from crdt_spine.core.quorum import awaited
from crdt_spine.core.replica import Replica
from crdt_spine.node.peers import Peers

NOW = 1_763_000_000_000
NAMES = ("a", "b", "c")
decode = msgspec.json.Decoder(Delta).decode


@pytest.mark.parametrize(
    ("factor", "quorum", "others"), [(3, 1, 1), (3, 2, 1), (3, 3, 2), (5, 2, 2), (5, 4, 3), (1, 1, 0)]
)
def test_a_majority_or_the_write_quorum_is_in_a_hurry(factor: int, quorum: int, others: int) -> None:
    replicas = [f"n{i}" for i in range(factor)]
    for coordinator in replicas:
        found = awaited(coordinator, replicas, quorum)
        assert len(found) == others
        assert coordinator not in found


@pytest.mark.parametrize(("factor", "quorum"), [(3, 2), (5, 2), (5, 4), (7, 2)])
def test_the_hurry_is_shared_between_the_replicas(factor: int, quorum: int) -> None:
    replicas = [f"n{i}" for i in range(factor)]
    took = Counter(node for coordinator in replicas for node in awaited(coordinator, replicas, quorum))
    assert len({took[node] for node in replicas}) == 1, took


def test_of_a_few_partitions_nodes_one_is_waited_for_in_most() -> None:
    nodes = [f"n{i}" for i in range(8)]
    took = Counter(node for others in combinations(nodes[:4] + nodes[5:], 2) for node in awaited("n4", others, 2))
    assert took == {"n5": 6, "n6": 5, "n7": 4, "n0": 3, "n1": 2, "n2": 1}, "n3 is never its first"


@pytest.mark.parametrize(("gone", "stands_in"), [("b", "c"), ("c", "b")])
def test_who_is_away_is_stood_in_for(gone: str, stands_in: str) -> None:
    assert awaited("a", NAMES, 2, {gone}) == [stands_in]


def test_where_all_others_are_away_the_first_ones_are_in_a_hurry_still() -> None:
    assert awaited("a", NAMES, 2, {"b", "c"}) == ["b"]
    assert awaited("a", NAMES, 3, {"b"}) == ["c", "b"], "all are needed: who is away comes back some time"


def test_who_catches_up_or_is_slow_is_not_waited_for_until_it_keeps_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes once waited for what their second replica puts off, while the first one was back and caught up."""
    now = 1_000.0
    monkeypatch.setattr("crdt_spine.node.peers.time.monotonic", lambda: now)
    peers = Peers()
    told = Announcement(node="b", actor="r/b@1", state="starting", now=NOW, vectors={})
    for state, behind in (("starting", False), ("up", False), ("up", True), ("up", False)):
        peers.hear(msgspec.structs.replace(told, state=state, behind=behind), 0)
        assert peers.alive() == {"b"}
        assert peers.steady() == set()
        now += 1
    for _ in range(2):
        peers.hear(msgspec.structs.replace(told, state="up"), 0)
        now += 1
    assert peers.steady() == {"b"}
    now += 10
    assert peers.steady() == set(), "it is not heard of"
    peers.hear(msgspec.structs.replace(told, state="up"), 0)
    assert peers.steady() == set(), "it is back this moment"


def test_whatever_a_node_knows_of_who_is_away_enough_are_in_a_hurry() -> None:
    """Two nodes may see different ones away. Each that is in nobody's list is one that nobody waits for; of those that
    are there, as many as are needed always take themselves for awaited."""
    replicas = ["a", "b", "c", "d", "e"]
    for dead in combinations("bcde", 2):
        there = [node for node in "bcde" if node not in dead]
        hurrying = [node for node in there if node in awaited("a", replicas, 3, set(dead))]
        assert len(hurrying) == 2


class Node:
    """A replica of a few partitions."""

    def __init__(self, name: str) -> None:
        peers = {number: tuple(other for other in NAMES if other != name) for number in range(4)}
        self.replica = Replica(name, actor_name("r", name, "1"), Records(), HybridClock(), peers, 2)

    def write(self, number: int, id: str) -> list[Delta]:
        self.replica.write(number, Store(i=0, id=id, content="text"), "agent", id, NOW, id)
        return self.commit()

    def commit(self) -> list[Delta]:
        turn = self.replica.end_turn()
        self.replica.persisted(turn)
        return [decode(raw) for _, raw in turn.deltas]

    def takes(self, delta: Delta) -> bool:
        """Is what a delta brought awaited?"""
        assert self.replica.receive(delta, encode(delta), NOW)
        found = self.replica.awaited
        self.commit()
        return found


def test_of_each_change_one_replica_of_two_is_awaited() -> None:
    a, b, c = (Node(name) for name in NAMES)
    for number in range(4):
        (delta,) = a.write(number, f"m{number}")
        assert b.takes(delta) != c.takes(delta)


def test_the_other_one_is_awaited_once_the_first_is_not_heard_of() -> None:
    a, c = Node("a"), Node("c")
    (first,) = a.write(0, "m")
    assert not c.takes(first), "b is a's first"
    c.replica.miss(frozenset({"b"}))
    (later,) = a.write(0, "n")
    assert c.takes(later), "b is away"
    c.replica.miss(frozenset())
    (last,) = a.write(0, "o")
    assert not c.takes(last), "b is back"


def test_who_counts_for_no_quorum_is_not_waited_for() -> None:
    a, c = Node("a"), Node("c")
    muted = {number: frozenset({"b"}) for number in range(4)}
    for node in (a, c):
        node.replica.change_peers(node.replica.peers, muted)
    for number in range(4):
        (delta,) = a.write(number, f"m{number}")
        assert c.takes(delta)


def test_a_write_and_a_repetition_are_awaited() -> None:
    a, b, c = (Node(name) for name in NAMES)
    assert not a.replica.awaited
    a.replica.write(0, Store(i=0, id="m", content="text"), "agent", "s-1", NOW, "ticket")
    assert a.replica.awaited
    (delta,) = a.commit()
    assert not a.replica.awaited
    a.replica.write(0, Store(i=0, id="m", content="text"), "agent", "s-1", NOW, "ticket")
    assert a.replica.awaited, "whoever asks again is answered once the open turn is durable"
    a.commit()
    for node in (b, c):
        node.takes(delta)
        assert node.takes(delta), "a delta that comes again: its first acknowledgement may have been lost"


def test_changes_of_another_region_are_awaited_by_its_bridge() -> None:
    b, c = Node("b"), Node("c")
    elsewhere = Replica("x", actor_name("elsewhere", "x", "1"), Records(), HybridClock(), {0: ("b",)}, 1)
    elsewhere.write(0, Store(i=0, id="m", content="text"), "agent", "s-1", NOW, None)
    elsewhere.write(0, Edit(i=1, id="m", content="more"), "agent", "s-2", NOW, None)
    (raw,) = [raw for _, raw in elsewhere.end_turn().deltas]
    for node in (b, c):
        assert node.takes(decode(raw))
