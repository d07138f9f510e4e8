"""Which node is asked: zones, trouble, the better of two, and the fewest that have everything."""

from __future__ import annotations

from collections import Counter

import pytest

from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Hello, NodeInfo
from crdt_spine.health import QUERY, READ, Health
from crdt_spine.routing import Routing


class Map:
    """A cluster and a session's routing in it."""

    def __init__(self, zones: dict[str, str | None], factor: int = 3, zone: str | None = None, turn: int = 0) -> None:
        self.hello = Hello(
            cluster="c", region="r", node=next(iter(zones)), state="up", partitions=64, factor=factor, write_quorum=2,
            nodes=[NodeInfo(id=id, zone=where) for id, where in zones.items()],
        )  # fmt: skip
        self.now = 10.0
        self.health = Health(lambda: self.now, Counter())
        self.health.keep(zones)
        self.layout = Layout(self.hello)
        self.routing = Routing(self.hello, self.layout, turn, self.health, zone)

    def costs(self, node: str, seconds: float, kind: int = READ) -> None:
        for _ in range(5):
            self.health.measured(node, kind, seconds, self.now)


def test_while_all_is_well_everybody_goes_to_the_first_replica() -> None:
    for turn in range(5):
        there = Map(dict.fromkeys("abc"), turn=turn)
        for nodes in there.layout.replicas.values():
            assert there.routing.choose(nodes) == nodes[0]


def test_the_same_zone_comes_first() -> None:
    there = Map({"a": "x", "b": "y", "c": "z"}, zone="y")
    for nodes in there.routing.replicas.values():
        assert nodes[0] == "b"
    assert [nodes[0] for nodes, _ in there.routing.cover()] == ["b"]
    there.health.fail("b", "gone", 10.0)
    assert there.routing.choose(there.routing.replicas[0]) in ("a", "c")


def test_an_unknown_zone_changes_nothing() -> None:
    there = Map({"a": "x", "b": "y", "c": None}, zone="elsewhere")
    assert there.routing.replicas == there.layout.replicas


@pytest.mark.parametrize("turn", range(4))
def test_a_node_in_trouble_is_left_for_one_that_is_kept(turn: int) -> None:
    there = Map(dict.fromkeys("abcd"), factor=4, turn=turn)
    nodes = there.routing.replicas[0]
    there.health.fail(nodes[0], "slow", 10.0)
    chosen = there.routing.choose(nodes)
    assert chosen == nodes[1]
    there.costs(chosen, 0.3)
    assert there.routing.choose(nodes) == chosen, "the session's writes are there now"
    there.health.fail(chosen, "slow", 10.0)
    assert there.routing.choose(nodes) in nodes[2:]


def test_of_two_others_the_much_better_one_takes_its_place() -> None:
    there = Map(dict.fromkeys("abc"))
    nodes = there.routing.replicas[0]
    there.costs(nodes[1], 0.03)
    there.costs(nodes[2], 0.002)
    there.health.fail(nodes[0], "gone", 10.0)
    assert there.routing.choose(nodes) == nodes[2]


def test_about_as_good_is_no_reason_to_have_two_coordinators() -> None:
    there = Map(dict.fromkeys("abc"))
    nodes = there.routing.replicas[0]
    there.costs(nodes[1], 0.004)
    there.costs(nodes[2], 0.002)
    there.health.fail(nodes[0], "gone", 10.0)
    assert there.routing.choose(nodes) == nodes[1]


def test_only_reads_leave_a_node_in_doubt() -> None:
    there = Map(dict.fromkeys("abc"))
    nodes = there.routing.replicas[0]
    there.health.doubt(nodes[0], 10.0)
    assert there.routing.choose(nodes, reads=False) == nodes[0]
    assert there.routing.choose(nodes) == nodes[1]
    there.health.hear(nodes[0], 10.1)
    assert there.routing.choose(nodes) == nodes[0]


def test_who_turned_it_away_is_asked_again_before_one_in_trouble() -> None:
    there = Map(dict.fromkeys("abc"))
    nodes = there.routing.replicas[0]
    assert there.routing.choose(nodes, (nodes[0],)) == nodes[1]
    there.health.fail(nodes[1], "gone", 10.0)
    there.health.fail(nodes[2], "gone", 10.0)
    assert there.routing.choose(nodes, (nodes[0],)) == nodes[0]


def test_where_all_are_in_trouble_it_is_the_least() -> None:
    there = Map(dict.fromkeys("abc"))
    nodes = there.routing.replicas[0]
    there.health.fail(nodes[0], "gone", 10.0)
    there.health.fail(nodes[1], "slow", 10.0)
    there.health.fail(nodes[2], "silent", 10.0)
    assert there.routing.choose(nodes) == nodes[1]


def test_nobody_else_is_asked_where_nobody_else_is_well() -> None:
    there = Map(dict.fromkeys("abc"))
    assert there.routing.other("abc", "a") in ("b", "c")
    there.health.doubt("b", 10.0)
    assert there.routing.other("abc", "a") == "c"
    assert there.routing.other("abc", "ac") is None


@pytest.mark.parametrize("nodes", ["abc", "abcdef", "abcdefghijk"])
@pytest.mark.parametrize("gone", ["", "a", "ab"])
def test_a_cover_has_every_partition_once_at_nodes_that_have_it_and_are_well(nodes: str, gone: str) -> None:
    there = Map(dict.fromkeys(nodes))
    for node in gone:
        there.health.fail(node, "gone", 10.0)
    groups = there.routing.cover()
    assert sorted(number for _, numbers in groups for number in numbers) == list(range(64))
    for candidates, numbers in groups:
        for node in candidates:
            assert set(numbers) <= there.routing.held[node]
        assert candidates[0] not in gone
    assert len(groups) <= len(nodes) - len(gone)
    part = there.routing.cover({3, 5})
    assert sorted(number for _, numbers in part for number in numbers) == [3, 5]


def test_where_all_are_in_trouble_a_cover_asks_one_after_the_other() -> None:
    """Not always the one that holds most: it may be the one that is gone for good."""
    there = Map(dict.fromkeys("abcde"))
    held = there.routing.held
    most = max("abcde", key=lambda node: len(held[node]))
    for node in "abcde":
        there.health.fail(node, "gone", 10.0 if node == most else 11.0)
    asked = []
    for second in range(5):
        ((best, *_), _), *_ = there.routing.cover(set(range(64)))
        asked.append(best)
        there.health.fail(best, "gone", 12.0 + second)
    assert asked[0] == most
    assert sorted(asked) == list("abcde")


def test_a_plan_is_made_anew_when_a_node_is_left() -> None:
    there = Map(dict.fromkeys("abc"))
    ((first, *_), _), *_ = there.routing.cover()
    assert there.routing.cover() is there.routing.cover()
    there.health.fail(first, "silent", 10.0)
    ((second, *_), _), *_ = there.routing.cover()
    assert second != first


def test_a_plan_prefers_the_much_better_of_two() -> None:
    there = Map(dict.fromkeys("abc"))
    ((first, second, _), _), *_ = there.routing.cover()
    there.costs(first, 0.2, QUERY)
    there.costs(second, 0.01, QUERY)
    there.health.changes += 1
    assert there.routing.cover()[0][0][0] == second


def test_holders_are_the_nodes_that_have_all_of_it() -> None:
    there = Map(dict.fromkeys("abcdef"))
    both = there.routing.holders((3, 5))
    assert set(both) == {n for n in "abcdef" if n in there.layout.replicas[3] and n in there.layout.replicas[5]}
    assert there.routing.holders((3,)) == list(there.routing.replicas[3])
