"""The laws, once for all types (kinds.py): merging is commutative, associative, idempotent and monotone; a delta says
what the state says; nothing is lost on the wire or on disk; what comes of it is what the naive specification says."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from executions import Histories, State, histories, merged
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS, Kind

from crdt_spine.core import record as records

LATEST = 8  # states of a run that are looked at in pairs: the last ones have seen most


def law(test: Any) -> Any:
    """A test for every type; a run has many states, so fewer runs than usual will do."""
    return pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))(settings(max_examples=75)(test))


def states(run: Any, count: int = LATEST) -> list[Any]:
    return [state.value for state in run.states[-count:]]


# -- merging ----------------------------------------------------------------------------------------------------------


@law
@given(data=st.data())
def test_merging_is_commutative(kind: Kind, data: st.DataObject) -> None:
    some = states(data.draw(kind.runs))
    for one in some:
        for other in some:
            assert kind.merge(one, other) == kind.merge(other, one)


@law
@given(data=st.data())
def test_merging_is_associative(kind: Kind, data: st.DataObject) -> None:
    some = states(data.draw(kind.runs), 6)
    for one in some:
        for two in some:
            both = kind.merge(one, two)
            for three in some:
                assert kind.merge(both, three) == kind.merge(one, kind.merge(two, three))


@law
@given(data=st.data())
def test_merging_is_idempotent(kind: Kind, data: st.DataObject) -> None:
    some = states(data.draw(kind.runs))
    for one in some:
        assert kind.merge(one, one) == one
        for other in some:
            both = kind.merge(one, other)
            assert kind.merge(both, one) == both == kind.merge(both, other)


@law
@given(data=st.data())
def test_merging_is_monotone_and_loses_nothing(kind: Kind, data: st.DataObject) -> None:
    some = states(data.draw(kind.runs))
    for one in some:
        for other in some:
            both = kind.merge(one, other)
            assert kind.holds(one, both) and kind.holds(other, both)
            if kind.merge(one, other) == other:  # one <= other
                for third in some[-4:]:
                    assert kind.holds(kind.merge(one, third), kind.merge(other, third))


@law
@given(data=st.data())
def test_a_state_takes_nothing_new_from_what_it_was_before(kind: Kind, data: st.DataObject) -> None:
    run = data.draw(kind.runs)
    for one in run.states[-LATEST:]:
        for other in run.states[-LATEST:]:
            if one.seen <= other.seen:
                assert kind.merge(other.value, one.value) == other.value


# -- deltas -----------------------------------------------------------------------------------------------------------


@law
@given(data=st.data())
def test_an_operations_delta_says_what_the_state_says_that_it_gave(kind: Kind, data: st.DataObject) -> None:
    """Wherever what the operation built on is there: applying its delta equals merging the state that it made."""
    run = data.draw(kind.runs)
    made = {}
    for state in run.states:
        for dot in state.seen - made.keys():
            made[dot] = state  # the first one that had it: its coordinator's, right after the operation
    for dot in list(made)[-LATEST:]:
        for here in run.states[-LATEST:]:
            if dot not in here.seen and run.deps[dot] <= here.seen:
                assert kind.apply(run, here.value, dot) == kind.merge(here.value, made[dot].value)


@law
@given(data=st.data())
def test_states_made_of_the_same_events_are_equal(kind: Kind, data: st.DataObject) -> None:
    by_events: dict[frozenset[Any], Any] = {}
    for state in data.draw(kind.runs).states:
        assert by_events.setdefault(state.seen, state.value) == state.value


# -- meaning and encoding ---------------------------------------------------------------------------------------------


@law
@given(data=st.data())
def test_a_state_is_what_the_naive_specification_makes_of_its_events(kind: Kind, data: st.DataObject) -> None:
    run = data.draw(kind.runs)
    for state in run.states:
        assert kind.read(state.value) == kind.specified(run, state.seen)


@law
@given(data=st.data())
def test_a_state_comes_back_from_what_it_is_encoded_as(kind: Kind, data: st.DataObject) -> None:
    for value in states(data.draw(kind.runs)):
        for back in kind.coded(value):
            assert back == value


# -- the short way ----------------------------------------------------------------------------------------------------


@given(histories)
def test_merging_records_the_short_way_gives_what_the_long_way_gives(history: Histories) -> None:
    """Where one record's version has all of the other's, `merge` does not look further."""
    some: list[State] = history.states[-LATEST:]
    for one in some:
        for other in some:
            short = merged(one.record, other.record)
            with patch.object(records, "within", lambda one, other: False):
                assert merged(one.record, other.record) == short
