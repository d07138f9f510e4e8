"""When a node comes or goes, as little moves as can, and what comes of it is even and spread over the zones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt_spine.core.placement import placed
from crdt_spine.core.rebalancing import Move, plan

Zones = dict[str, str | None]
Replicas = dict[int, set[str]]


def nodes(count: int, zone: str | None = None) -> Zones:
    return {f"spine-{number}": zone for number in range(1, count + 1)}


def founded(zones: Zones, partitions: int = 64, factor: int = 3) -> Replicas:
    return {number: set(found) for number, found in placed(partitions, zones, factor, zones).items()}


def moved(replicas: Replicas, moves: Mapping[int, Move]) -> Replicas:
    after: Replicas = {}
    for number, there in replicas.items():
        move = moves.get(number, Move(None, None))
        assert move.to not in there and (move.frm is None or move.frm in there), f"{move} of {there}"
        after[number] = (there | {move.to or ""}) - {"", move.frm or ""}
    return after


def shares(replicas: Replicas) -> Counter[str]:
    return Counter(node for there in replicas.values() for node in there)


def uneven(replicas: Replicas, zones: Iterable[str]) -> int:
    """By how much the shares of these nodes differ."""
    counts = shares(replicas)
    return max(counts[node] for node in zones) - min(counts[node] for node in zones)


def zones_of(there: Iterable[str], zones: Mapping[str, str | None]) -> int:
    return len({zones.get(node) or f"that of {node}" for node in there})


@pytest.mark.parametrize(("before", "moves"), [(3, [48]), (3, [48, 38]), (4, [38, 32]), (8, [21]), (8, [21, 19, 17])])
def test_each_node_that_comes_takes_its_share_and_nothing_else_moves(before: int, moves: list[int]) -> None:
    replicas = founded(nodes(before))
    for count, expected in enumerate(moves, before + 1):
        planned = plan(replicas, nodes(count), 3, comes=f"spine-{count}")
        assert len(planned) == expected == 192 // count
        assert {move.to for move in planned.values()} == {f"spine-{count}"}
        replicas = moved(replicas, planned)
        assert uneven(replicas, nodes(count)) <= 1


@pytest.mark.parametrize("count", [4, 5, 9])
def test_of_a_node_that_goes_only_what_it_held_moves(count: int) -> None:
    replicas = founded(nodes(count))
    planned = plan(replicas, nodes(count), 3, goes="spine-2")
    assert planned.keys() == {number for number, there in replicas.items() if "spine-2" in there}
    assert {move.frm for move in planned.values()} == {"spine-2"}
    after = moved(replicas, planned)
    assert {len(there) for there in after.values()} == {3}
    assert uneven(after, nodes(count).keys() - {"spine-2"}) <= 1


@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_node_that_takes_anothers_place_takes_all_that_it_held(count: int) -> None:
    replicas = founded(nodes(count))
    planned = plan(replicas, nodes(count), 3, comes="fresh", goes="spine-2")
    assert planned == {number: Move("fresh", "spine-2") for number, there in replicas.items() if "spine-2" in there}


def test_a_node_in_a_zone_of_its_own_gets_a_replica_of_everything() -> None:
    zones: Zones = {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}
    replicas = founded(zones)
    after = moved(replicas, plan(replicas, {**zones, "c1": "c"}, 3, comes="c1"))
    assert all("c1" in there and zones_of(there, {**zones, "c1": "c"}) == 3 for there in after.values())
    assert uneven(after, zones) <= 1


def test_in_zones_of_unlike_sizes_the_nodes_of_a_zone_share_evenly() -> None:
    zones: Zones = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "c1": "c"}
    replicas = founded(zones)
    assert (
        shares(replicas) == {"a1": 21, "a2": 22, "a3": 21, "b1": 64, "c1": 64}
        or uneven(replicas, ("a1", "a2", "a3")) <= 1
    )
    planned = plan(replicas, {**zones, "b2": "b"}, 3, comes="b2")
    assert len(planned) == 32 and {move.frm for move in planned.values()} == {"b1"}


def test_what_was_uneven_is_even_when_a_node_has_come() -> None:
    zones = nodes(6)
    replicas: Replicas = {number: {"spine-1", "spine-2", f"spine-{3 + number % 2}"} for number in range(64)}
    after = moved(replicas, plan(replicas, zones, 3, comes="spine-6"))
    assert uneven(after, zones) <= 1


def test_too_few_replicas_become_enough_once_there_are_nodes() -> None:
    replicas: Replicas = {number: {"spine-1", "spine-2"} for number in range(8)}
    planned = plan(replicas, nodes(3), 3, comes="spine-3")
    assert set(planned.values()) == {Move("spine-3", None)} and len(planned) == 8


def test_what_is_on_a_node_that_may_hold_nothing_any_more_stays_there() -> None:
    replicas: Replicas = {number: {"spine-1", "spine-2", "dead"} for number in range(8)}
    planned = plan(replicas, nodes(3), 3, comes="spine-3")
    assert all("dead" in there for there in moved(replicas, planned).values())


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Zones, int, int]:
    """Zones, partitions, factor."""
    count = draw(st.integers(2, 9))
    names = st.sampled_from([None, "east", "west", "north"])
    zones = {f"n{index}": draw(names) for index in range(count)}
    return zones, draw(st.integers(1, 40)), draw(st.integers(1, min(4, count)))


@settings(deadline=None, max_examples=60)
@given(clusters(), st.sampled_from([None, "east", "south"]), st.sampled_from(["add", "remove", "replace"]))
def test_whatever_comes_and_goes(cluster: tuple[Zones, int, int], zone: str | None, kind: str) -> None:
    zones, partitions, factor = cluster
    if kind == "remove" and len(zones) <= factor:
        kind = "add"
    replicas = founded(zones, partitions, factor)
    comes, goes = "x" if kind != "remove" else None, "n0" if kind != "add" else None
    there = {**zones, **({"x": zone} if comes else {})}
    planned = plan(replicas, there, factor, comes=comes, goes=goes)
    assert planned == plan(
        dict(reversed(replicas.items())), dict(reversed(there.items())), factor, comes=comes, goes=goes
    )
    after = moved(replicas, planned)
    left = there.keys() - {goes}
    existing = zones_of(left, there)
    for number, held in after.items():
        kept = replicas[number] - {goes or ""}
        more = kept != replicas[number] or (
            comes is not None and zones_of(kept | {comes}, there) > zones_of(kept, there)
        )
        assert len(held) == factor and held <= left
        assert zones_of(held, there) >= min(zones_of(kept, there) + more, factor, existing)
    if len({there[node] for node in left}) == 1:
        assert uneven(after, left) <= 1, "no zone is in the way"
    if kind == "remove" and len({there[node] for node in left}) == 1:
        assert all(move.frm == goes for move in planned.values())


@settings(deadline=None, max_examples=40)
@given(clusters())
def test_a_new_cluster_is_even_and_in_as_many_zones_as_can_be(cluster: tuple[Zones, int, int]) -> None:
    zones, partitions, factor = cluster
    replicas = placed(partitions, zones, factor, zones)
    assert replicas == placed(partitions, list(reversed(zones)), factor, zones)
    assert all(len(set(there)) == len(there) == factor for there in replicas.values())
    assert all(zones_of(there, zones) == min(factor, zones_of(zones, zones)) for there in replicas.values())
    for zone in set(zones.values()) - {None}:
        assert uneven({number: set(there) for number, there in replicas.items()}, [
            node for node in zones if zones[node] == zone
        ]) <= 1  # fmt: skip
