"""Changes and states say the same: applying what a state has more equals merging it, in every order that causality
allows; and what comes of it is what the naive specification says."""

from __future__ import annotations

from histories import Dot, Histories, State, TagSets, histories, merged, tag_sets
from hypothesis import given
from hypothesis import strategies as st
from simulator.history import seen, value


def specified(history: Histories, state: State) -> object:
    return value(
        ((history.changes[dot].time, dot[0]), dot, history.changes[dot]) for dot in history.changes if dot in state.seen
    )


@given(histories)
def test_a_memory_is_what_the_set_of_its_changes_adds_up_to(history: Histories) -> None:
    for state in history.states:
        assert seen(state.record) == specified(history, state)


@given(histories)
def test_states_made_of_the_same_changes_are_equal(history: Histories) -> None:
    by_changes = {}
    for state in history.states:
        assert by_changes.setdefault(state.seen, state.record) == state.record


@given(histories, st.randoms(use_true_random=False))
def test_applying_changes_in_any_causal_order_equals_merging_the_state(history: Histories, chance: object) -> None:
    for mine in history.states[-6:]:
        for theirs in history.states[-6:]:
            record = mine.record
            for dot in causal_order(history, mine, theirs, chance):
                record = history.applied(record, dot)
            assert record == merged(mine.record, theirs.record)


@given(tag_sets)
def test_tags_are_the_adds_that_no_remove_had_observed(history: TagSets) -> None:
    for (elements, _), events in zip(history.sets, history.seen, strict=True):
        present = {tag: {(origin.actor, origin.n) for origin in origins} for tag, origins in elements.items()}
        assert present == history.observed_remove(events)


def causal_order(history: Histories, mine: State, theirs: State, chance) -> list[Dot]:  # type: ignore[no-untyped-def]
    left, order, have = history.missing(mine, theirs), [], mine.seen
    while left:
        ready = [dot for dot in left if history.deps[dot] <= have]
        dot = chance.choice(ready)
        left.remove(dot)
        order.append(dot)
        have |= {dot}
    return order
