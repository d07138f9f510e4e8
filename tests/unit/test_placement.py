"""Ids say their partitions; replicas are distinct, spread over zones, and coordinate evenly."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt_spine.core.placement import balanced, generated_id, partition_of, placed, placement_hash, replicas_of
from crdt_spine.core.rebalancing import Move, plan
from crdt_spine.core.ring import ConsistentHashRing

hashes = st.integers(0, 0xFFFF)
# From bytes, because wide ranges of integers are drawn mostly from their small end.
times = st.binary(min_size=6, max_size=6).map(int.from_bytes)
random_bits = st.binary(min_size=10, max_size=10).map(lambda drawn: int.from_bytes(drawn) >> 6)
partition_counts = st.integers(1, 1024)


@given(hashes, times, random_bits)
def test_a_generated_id_is_its_hash_and_a_uuid_of_version_7(hash16: int, now: int, random: int) -> None:
    id = generated_id(hash16, now, random)
    parsed = uuid.UUID(id[5:])
    assert id == f"{hash16:04x}-{parsed}"
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == now
    assert (parsed.int >> 64 & 0xFFF) << 62 | parsed.int & (1 << 62) - 1 == random


@given(hashes, times, times, random_bits, random_bits)
def test_generated_ids_of_one_hash_are_ordered_by_time(hash16: int, one: int, other: int, a: int, b: int) -> None:
    if one < other:
        assert generated_id(hash16, one, a) < generated_id(hash16, other, b)


@given(st.text(max_size=20), times, random_bits, partition_counts)
def test_a_generated_id_lies_where_its_placement_key_does(key: str, now: int, random: int, partitions: int) -> None:
    id = generated_id(placement_hash(key), now, random)
    expected = int(hashlib.sha256(key.encode()).hexdigest()[:4], 16) * partitions >> 16
    assert partition_of(id, partitions) == expected
    assert 0 <= expected < partitions
    assert partition_of(key, partitions) == expected, "both roads agree"


@pytest.mark.parametrize(
    "id",
    [
        "note-1",
        "",
        "käse",
        "a3f1",
        "A3F1-01890a5d-ac96-774b-bcce-b302099a8057",  # digits are lower case
        "a3g1-01890a5d-ac96-774b-bcce-b302099a8057",  # no hex digits
        "+3f1-01890a5d-ac96-774b-bcce-b302099a8057",
        "a3f1_01890a5d-ac96-774b-bcce-b302099a8057",
        "a3f1-01890a5d-ac96-474b-bcce-b302099a8057",  # a random UUID
        "a3f1-01890a5d-ac96-774b-bcce-b302099a80577",
    ],
)
def test_an_own_id_is_hashed(id: str) -> None:
    assert partition_of(id, 1024) == int(hashlib.sha256(id.encode()).hexdigest()[:4], 16) * 1024 >> 16


def test_an_own_id_that_looks_generated_is_read_as_one() -> None:
    assert partition_of("ffff-01890a5d-ac96-774b-bcce-b302099a8057", 64) == 63
    assert partition_of("0000-01890a5d-ac96-774b-bcce-b302099a8057", 64) == 0


@given(partition_counts)
def test_partitions_are_equal_ranges_of_the_hash(partitions: int) -> None:
    sizes = Counter(bits * partitions >> 16 for bits in range(0x10000))
    assert sorted(sizes) == list(range(partitions))
    assert max(sizes.values()) - min(sizes.values()) <= 1


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ConsistentHashRing, dict[str, str | None]]:
    count = draw(st.integers(1, 7))
    zone_names = st.sampled_from([None, "east", "west", "north"])
    zones = {f"n{index}": draw(zone_names) for index in range(count)}
    return ConsistentHashRing(zones, virtual_nodes=9), zones


def effective(zones: dict[str, str | None], node: str) -> str:
    return zones[node] or f"the zone of {node} alone"


@given(clusters(), st.integers(0, 63), st.integers(1, 5))
def test_replicas_are_distinct_and_in_as_many_zones_as_possible(
    cluster: tuple[ConsistentHashRing, dict[str, str | None]], partition: int, factor: int
) -> None:
    ring, zones = cluster
    replicas = replicas_of(partition, ring, factor, zones)
    assert len(replicas) == len(set(replicas)) == min(factor, len(zones))
    assert replicas[0] == ring.get_node(f"partition-{partition}")
    existing = {effective(zones, node) for node in zones}
    assert len({effective(zones, node) for node in replicas}) == min(factor, len(existing))


@given(clusters(), st.integers(0, 63))
def test_without_zones_the_replicas_are_the_rings(
    cluster: tuple[ConsistentHashRing, dict[str, str | None]], partition: int
) -> None:
    ring, _ = cluster
    assert replicas_of(partition, ring, 3, {}) == ring.get_replica_nodes(f"partition-{partition}", 3)


def test_with_two_zones_both_have_a_replica_of_everything() -> None:
    zones: dict[str, str | None] = {"a1": "a", "a2": "a", "a3": "a", "a4": "a", "b1": "b"}
    ring = ConsistentHashRing(zones)
    for partition in range(64):
        replicas = replicas_of(partition, ring, 3, zones)
        assert "b1" in replicas
        assert len(set(replicas)) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 8])
def test_every_node_coordinates_its_share_of_the_partitions(count: int) -> None:
    ring = ConsistentHashRing(f"spine-{number}" for number in range(1, count + 1))
    plain = {number: replicas_of(number, ring, 3, {}) for number in range(64)}
    layout = balanced(plain)
    first = Counter(replicas[0] for replicas in layout.values())
    assert all(abs(first[node] - 64 / count) <= 64 / count * 0.2 for node in ring.nodes), first
    assert all(sorted(layout[number]) == sorted(plain[number]) for number in plain), "balancing moves no data"


@given(clusters(), st.integers(1, 3))
def test_balancing_keeps_the_replicas_and_their_order_behind_the_first(
    cluster: tuple[ConsistentHashRing, dict[str, str | None]], factor: int
) -> None:
    ring, zones = cluster
    plain = {number: replicas_of(number, ring, factor, zones) for number in range(64)}
    layout = balanced(dict(reversed(plain.items())))
    assert layout == balanced(plain), "the order of the mapping does not matter"
    for number, replicas in plain.items():
        first, *rest = layout[number]
        assert rest == [node for node in replicas if node != first]


def test_three_nodes_with_three_replicas_differ_by_one_at_most() -> None:
    for names in (["a", "b", "c"], ["spine-1", "spine-2", "spine-3"], ["x", "yy", "zzz"]):
        ring = ConsistentHashRing(names)
        layout = balanced({number: replicas_of(number, ring, 3, {}) for number in range(64)})
        first = Counter(replicas[0] for replicas in layout.values())
        assert sorted(first.values()) == [21, 21, 22]


@pytest.mark.parametrize("zoned", [False, True])
def test_a_fourth_node_takes_about_a_quarter_of_the_data_and_moves_nothing_else(zoned: bool) -> None:
    zones: dict[str, str | None] = {f"spine-{n}": f"zone-{n}" if zoned else None for n in range(1, 5)}
    three = ConsistentHashRing(["spine-1", "spine-2", "spine-3"])
    four = ConsistentHashRing(zones)
    taken = 0
    for number in range(64):
        before, after = (set(replicas_of(number, ring, 3, zones)) for ring in (three, four))
        assert after - before <= {"spine-4"}
        taken += "spine-4" in after
    assert 0.18 < taken / (64 * 3) < 0.32


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_a_node_that_comes_changes_few_preferences_but_those_it_takes(count: int) -> None:
    names = [f"spine-{number}" for number in range(1, count + 1)]
    before = placed(64, names, 3, {})
    moves = plan(before, dict.fromkeys(names), 3, comes="fresh")
    after: dict[int, list[str]] = {}
    for number, nodes in before.items():
        move = moves.get(number, Move(None, None))
        after[number] = [node for node in nodes if node != move.frm] + ([move.to] if move.to else [])
    old, new = balanced(before), balanced(after)
    changed = sum(old[number][0] != new[number][0] for number in old)
    taken = sum(nodes[0] == "fresh" for nodes in new.values())
    assert taken in (64 // (count + 1), 64 // (count + 1) + 1)
    assert changed <= 32, "half of them, and a quarter must"


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.integers(0, 63), st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)))
def test_no_chain_of_preferences_would_be_more_even(replicas: dict[int, list[str]]) -> None:
    layout = balanced(replicas)
    load = Counter(nodes[0] for nodes in layout.values())
    above = {node: {other for nodes in layout.values() if nodes[0] == node for other in nodes} for node in "abcdef"}
    for source in above:
        reached, new = {source}, {source}
        while new:
            new = {other for node in new for other in above[node]} - reached
            reached |= new
        assert all(load[other] >= load[source] - 1 for other in reached), (source, load)


def test_a_reluctant_node_is_preferred_only_where_there_is_nobody_else_and_the_others_share_evenly() -> None:
    replicas = placed(64, "abcd", 3, {})
    layout = balanced(replicas, {"c"})
    first = Counter(nodes[0] for nodes in layout.values())
    assert first.keys() == {*"abd"} and sorted(first.values()) == [21, 21, 22]
    assert all(nodes.index("c") == 2 for nodes in layout.values() if "c" in nodes)
    assert {number: set(nodes) for number, nodes in layout.items()} == {n: set(nodes) for n, nodes in replicas.items()}
    assert balanced(replicas, {*"abcd"}) == balanced(replicas)
    alone = balanced({0: ["c"], 1: ["a", "c"]}, {"c"})
    assert alone == {0: ("c",), 1: ("a", "c")}
