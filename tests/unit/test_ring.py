"""The ring against a naive second implementation, and what adding and removing nodes may move."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.ring import ConsistentHashRing
from crdt_spine.errors import InvalidInput

KEYS = [f"partition-{number}" for number in range(200)]
names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True)
keys = st.text(max_size=12)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def naive_walk(nodes: list[str], virtual_nodes: int, key: str) -> list[str]:
    """The nodes from the key's point to the right, by looking at every point there is."""
    points = sorted((sha256(f"{node}:{index}"), node) for node in nodes for index in range(virtual_nodes))
    at = sha256(key)
    turned = [entry for entry in points if entry[0] >= at] + [entry for entry in points if entry[0] < at]
    return list(dict.fromkeys(node for _, node in turned))


@given(names, keys, st.integers(1, 8))
def test_owner_and_replicas_are_those_of_a_naive_ring(nodes: list[str], key: str, replicas: int) -> None:
    ring = ConsistentHashRing(nodes, virtual_nodes=7)
    expected = naive_walk(nodes, 7, key)
    assert ring.get_node(key) == expected[0]
    assert ring.get_replica_nodes(key, replicas) == expected[:replicas]


def test_the_default_is_150_points_a_node() -> None:
    nodes = ["spine-1", "spine-2", "spine-3", "spine-4"]
    ring = ConsistentHashRing(nodes)
    for key in KEYS[:40]:
        assert ring.get_replica_nodes(key) == naive_walk(nodes, 150, key)[:3]


def test_a_point_equal_to_the_keys_owns_it() -> None:
    ring = ConsistentHashRing(["a", "b", "c"], virtual_nodes=5)
    for node in ("a", "b", "c"):
        for index in range(5):
            assert ring.get_node(f"{node}:{index}") == node


def test_a_key_behind_the_last_point_goes_round_to_the_first() -> None:
    ring = ConsistentHashRing(["a", "b", "c"], virtual_nodes=1)
    points = {sha256(f"{node}:0"): node for node in ("a", "b", "c")}
    behind = next(key for key in map(str, range(10_000)) if sha256(key) > max(points))
    assert ring.get_node(behind) == points[min(points)]


def test_the_order_in_which_nodes_are_added_does_not_matter() -> None:
    one = ConsistentHashRing(["a", "b", "c"])
    other = ConsistentHashRing(["c"])
    other.add_node("a")
    other.add_node("b")
    assert [one.get_replica_nodes(key) for key in KEYS] == [other.get_replica_nodes(key) for key in KEYS]


@given(names, st.text(min_size=1, max_size=8), st.lists(keys, max_size=30))
def test_a_new_node_takes_keys_and_moves_none_between_the_others(nodes: list[str], new: str, some: list[str]) -> None:
    if new in nodes:
        nodes.remove(new)
    ring = ConsistentHashRing(nodes, virtual_nodes=11)
    before = {key: ring.get_replica_nodes(key) for key in some} if nodes else {}
    ring.add_node(new)
    for key, replicas in before.items():
        after = ring.get_replica_nodes(key)
        old = [node for node in after if node != new]
        assert old == replicas[: len(old)]
        assert len(after) == min(3, len(nodes) + 1)


@given(names.filter(lambda nodes: len(nodes) > 1), st.lists(keys, max_size=30))
def test_a_removed_node_moves_only_what_it_had(nodes: list[str], some: list[str]) -> None:
    ring = ConsistentHashRing(nodes, virtual_nodes=11)
    gone = nodes[0]
    before = {key: ring.get_replica_nodes(key, 2) for key in some}
    ring.remove_node(gone)
    for key, replicas in before.items():
        after = ring.get_replica_nodes(key, 2)
        left = [node for node in replicas if node != gone]
        assert after[: len(left)] == left
        assert gone not in after


def test_a_fourth_node_takes_about_a_quarter_of_the_keys() -> None:
    ring = ConsistentHashRing(["spine-1", "spine-2", "spine-3"])
    some = [f"key-{number}" for number in range(4_000)]
    before = [ring.get_node(key) for key in some]
    ring.add_node("spine-4")
    moved = sum(ring.get_node(key) != old for key, old in zip(some, before, strict=True))
    assert 0.18 < moved / len(some) < 0.32


def test_fewer_nodes_than_replicas_gives_all_of_them_once() -> None:
    assert sorted(ConsistentHashRing(["a", "b"]).get_replica_nodes("key", 5)) == ["a", "b"]


def test_a_node_can_come_back_and_owns_what_it_owned() -> None:
    ring = ConsistentHashRing(["a", "b", "c"])
    before = [ring.get_node(key) for key in KEYS]
    ring.remove_node("b")
    assert ring.nodes == {"a", "c"}
    ring.add_node("b")
    assert [ring.get_node(key) for key in KEYS] == before


def test_mistakes_are_named() -> None:
    ring = ConsistentHashRing(["a", "b"])
    with pytest.raises(InvalidInput, match="'a' is on the ring already"):
        ring.add_node("a")
    with pytest.raises(InvalidInput, match="'c' is not on the ring; there are"):
        ring.remove_node("c")
    with pytest.raises(InvalidInput, match="'a' is on the ring already"):
        ConsistentHashRing(["a", "a"])
    with pytest.raises(InvalidInput, match="not the one text"):
        ConsistentHashRing("abc")
    with pytest.raises(InvalidInput, match="name"):
        ring.add_node("")
    with pytest.raises(InvalidInput, match="at least 1"):
        ring.get_replica_nodes("key", 0)
    with pytest.raises(InvalidInput, match="at least 1"):
        ConsistentHashRing(["a"], virtual_nodes=0)
    with pytest.raises(InvalidInput, match="must be a text"):
        ring.get_node(17)  # type: ignore[arg-type]


def test_a_name_that_can_not_be_hashed_stayed_among_the_nodes() -> None:
    ring = ConsistentHashRing(["a"])
    with pytest.raises(InvalidInput, match="valid Unicode"):
        ring.add_node("\ud800")
    with pytest.raises(InvalidInput, match="valid Unicode"):
        ring.get_node("\ud800")
    assert ring.nodes == {"a"}
    assert ring.get_replica_nodes("key") == ["a"]


def test_an_empty_ring_owns_nothing_and_says_so() -> None:
    ring = ConsistentHashRing([])
    for ask in (ring.get_node, ring.get_replica_nodes):
        with pytest.raises(InvalidInput, match="no nodes"):
            ask("key")
    ring.add_node("a")
    ring.remove_node("a")
    with pytest.raises(InvalidInput, match="no nodes"):
        ring.get_node("key")
