"""The shortest part found of a history that has no order: what a person is to look at.

Of the operations of an object, those stay whose answers contradict each other. All others are let go, step by step, and
each step may only allow more orders, so what is left has none for any of the reasons for which it was let go:

1. What was called after the first impossible answer had been given explains nothing.
2. The part begins as late as can be, with the object in any state that it may ever have been in before.
3. A read is left out; any other operation may happen whenever it likes from its call on, or never.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from histories.history import Operation
from histories.linearizability import IMPOSSIBLE, Contradiction, Model, State, Step, order, steps

CONFIGURATIONS_MAX: Final = 20_000  # of one try: one that is harder is not taken
SECONDS_MAX: Final = 10.0  # then what was found until then has to do


class Part(NamedTuple):
    """`operations` contradict each other, in the order in which they were called, whatever the object was before and
    whenever the `others` took effect, if at all."""

    operations: tuple[Operation, ...]
    others: tuple[Operation, ...]


def shortest(operations: Iterable[Operation], model: Model) -> Part | None:
    """The part of one object's history; None: it has an order, or that could not be decided."""
    until = time.monotonic() + SECONDS_MAX
    history = sorted(operations, key=lambda one: one.invoke)
    try:
        found = steps(history, model)
    except Contradiction as wrong:
        return Part(tuple(wrong.operations), ())
    verdict = order("", found, [model.initial])
    if verdict.linearizable is not False or verdict.stuck is None:
        return None
    found = _until(found, verdict.stuck.returned)
    found, initial = _from_as_late_as_can_be(found, model.initial)
    for number in reversed(range(len(found))):
        step = found[number]
        if time.monotonic() > until or not step.answered:
            continue
        tried = [*found[:number], *_let_go(step), *found[number + 1 :]]
        if _has_none(tried, initial):
            found = tried
    return Part(
        tuple(step.operation for step in found if step.answered),
        tuple(step.operation for step in found if not step.answered),
    )


def _until(found: Sequence[Step], end: int) -> list[Step]:
    """What was called by then; what had not returned may have happened or not."""
    return [
        left
        for step in found
        if step.operation.invoke <= end
        for left in ([step] if step.operation.returned <= end else _let_go(step))
    ]


def _from_as_late_as_can_be(found: list[Step], initial: State) -> tuple[list[Step], set[State]]:
    """The part from some time on, with the states in which it may begin."""
    times = sorted({step.operation.returned for step in found if step.answered})
    best = found, {initial}
    low, high = 0, len(times)
    while low < high:
        middle = (low + high) // 2
        begin = times[middle]
        tried, states = _from(found, begin), _states(found, begin, initial)
        if _has_none(tried, states):
            best, low = (tried, states), middle + 1
        else:
            high = middle
    return best


def _from(found: Sequence[Step], begin: int) -> list[Step]:
    """What returned after that time; what was under way then may have happened before, or after, or not."""
    return [
        left
        for step in found
        if not step.answered or step.operation.returned > begin
        for left in ([step] if step.operation.invoke > begin else _let_go(step))
    ]


def _states(found: Sequence[Step], begin: int, initial: State) -> set[State]:
    """All that the object may have been by that time, in any order of what was called until then."""
    effects = [step.effect for step in found if step.operation.invoke <= begin and not step.effect.keeps]
    states: set[State] = {initial}
    new = {initial}
    while new:
        new = {effect.apply(state) for effect in effects for state in new} - states - {IMPOSSIBLE}
        states |= new
    return states


def _let_go(step: Step) -> list[Step]:
    return [] if step.effect.keeps else [step._replace(answered=False)]


def _has_none(found: Sequence[Step], initial: Iterable[State]) -> bool:
    return order("", found, initial, CONFIGURATIONS_MAX).linearizable is False
