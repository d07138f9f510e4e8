"""The laws of merging, once for all types: commutative, associative, idempotent, and a merge never loses anything.

Each type brings a strategy of histories, the states in one, and its merge; the states are reached by real operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from histories import Histories, histories, merged, tag_sets
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core import orset
from crdt_spine.core.causality import join, within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.record import Record
from crdt_spine.core.registers import later


class Type(NamedTuple):
    """A type under the laws. `holds(one, both)`: has the merge `both` everything that `one` had?"""

    states: st.SearchStrategy[list[Any]]
    merge: Callable[[Any, Any], Any]
    holds: Callable[[Any, Any], bool]


def parts(history: Histories, of: Callable[[Record], Any]) -> list[Any]:
    return [None if state.record is None else of(state.record) for state in history.states]


def record_holds(one: Record | None, both: Record | None) -> bool:
    """What a version says is there stays, but for what a later store or delete has made pointless."""
    if one is None or both is None:
        return one is None
    floor = (both.life.origin.time, both.life.origin.actor)
    return both.life.origin >= one.life.origin and all(
        both.version.get(actor, 0) >= n or (one.times[actor], actor) < floor for actor, n in one.version.items()
    )


def register_holds(one: Any, both: Any) -> bool:
    return one is None or both.origin >= one.origin


def merge_tags(one: Any, other: Any) -> Any:
    return orset.merge(*one, *other), join(one[1], other[1])


def merge_clocks(one: int, other: int) -> int:
    clock = HybridClock(one)
    clock.observe(other)
    return clock.highest


TYPES = {
    "memory": Type(histories.map(lambda h: parts(h, lambda record: record)), merged, record_holds),
    "content register": Type(histories.map(lambda h: parts(h, lambda record: record.content)), later, register_holds),
    "alive register": Type(histories.map(lambda h: parts(h, lambda record: record.life)), later, register_holds),
    "tags": Type(tag_sets.map(lambda h: h.states), merge_tags, lambda one, both: within(one[1], both[1])),
    "vector": Type(tag_sets.map(lambda h: [version for _, version in h.states]), join, within),
    "clock": Type(st.lists(st.integers(0, 1 << 62), min_size=1), merge_clocks, lambda one, both: both >= one),
}
law = pytest.mark.parametrize("name", TYPES)


@law
@given(data=st.data())
def test_merging_is_commutative(name: str, data: st.DataObject) -> None:
    states, merge, _ = drawn(name, data)
    for one in states:
        for other in states:
            assert merge(one, other) == merge(other, one)


@law
@given(data=st.data())
def test_merging_is_associative(name: str, data: st.DataObject) -> None:
    states, merge, _ = drawn(name, data)
    for one in states[-6:]:
        for two in states[-6:]:
            for three in states[-6:]:
                assert merge(merge(one, two), three) == merge(one, merge(two, three))


@law
@given(data=st.data())
def test_merging_is_idempotent(name: str, data: st.DataObject) -> None:
    states, merge, _ = drawn(name, data)
    for one in states:
        assert merge(one, one) == one
        for other in states:
            both = merge(one, other)
            assert merge(both, one) == both == merge(both, other)


@law
@given(data=st.data())
def test_a_merge_loses_nothing(name: str, data: st.DataObject) -> None:
    states, merge, holds = drawn(name, data)
    for one in states:
        for other in states:
            assert holds(one, merge(one, other)) and holds(other, merge(one, other))


@given(histories)
def test_a_state_takes_nothing_new_from_what_it_was_before(history: Histories) -> None:
    for one in history.states:
        for other in history.states:
            if one.seen <= other.seen:
                assert merged(other.record, one.record) == other.record


def drawn(name: str, data: st.DataObject) -> tuple[list[Any], Callable[[Any, Any], Any], Callable[[Any, Any], bool]]:
    kind = TYPES[name]
    states = data.draw(kind.states)
    return states[-12:], kind.merge, kind.holds
