"""Changes and states say the same: applying what a state has more equals merging it, in every order that causality
allows."""

from __future__ import annotations

from typing import Any

import pytest
from executions import Dot, State
from hypothesis import given
from hypothesis import strategies as st
from kinds import KINDS, TAGS, Kind, Run


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@given(data=st.data(), chance=st.randoms(use_true_random=False))
def test_applying_changes_in_any_causal_order_equals_merging_the_state(
    kind: Kind, data: st.DataObject, chance: Any
) -> None:
    run = data.draw(kind.runs)
    for mine in run.states[-6:]:
        for theirs in run.states[-6:]:
            value = mine.value
            for dot in causal_order(run, mine, theirs, chance):
                value = kind.apply(run, value, dot)
            assert value == kind.merge(mine.value, theirs.value)


@given(TAGS.runs)
def test_tags_are_the_adds_that_no_remove_had_observed(run: Run) -> None:
    for state in run.states:
        assert TAGS.read(state.value) == TAGS.specified(run, state.seen)


def causal_order(run: Any, mine: State, theirs: State, chance: Any) -> list[Dot]:
    """What `theirs` has and `mine` has not, in an order in which each finds what it builds on."""
    left, order, have = [dot for dot in run.changes if dot in theirs.seen - mine.seen], [], mine.seen
    while left:
        dot = chance.choice([dot for dot in left if run.deps[dot] <= have])
        left.remove(dot)
        order.append(dot)
        have |= {dot}
    return order
