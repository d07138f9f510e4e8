"""States that replicas really reach: histories of agents' operations at three replicas, exchanged as states and as
changes. The laws are proved on these, not on arbitrary structs that no replica could hold."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

from crdt_spine.core import writes
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Change, Delete, Edit, Store
from crdt_spine.core.record import Record, apply, merge
from crdt_spine.core.registers import Origin

REPLICAS = 3
ACTORS = ("r/a@1", "r/b@1", "r/c@1")
Dot = tuple[str, int]

replicas = st.integers(0, REPLICAS - 1)
tags = st.sampled_from("xyz")
values = st.sampled_from([1, "one", None, [1, {"deep": 2.5}], True])
walls = st.integers(1, 4)  # milliseconds; few, so that stamps tie and only actors tell them apart
stores = st.builds(
    lambda content, add, metadata, expires: Store(
        i=0, id="m", content=content, tags=add, metadata=metadata, expires=expires, thread=None
    ),
    st.sampled_from(["first", "second"]),
    st.lists(tags, unique=True, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from("pq"), values.filter(lambda value: value is not None), max_size=2),
    st.sampled_from([None, 1 << 60]),
)
edits = st.builds(
    lambda content, importance, metadata, add, remove: Edit(
        i=0, id="m", content=content, importance=importance, metadata=metadata, add=add, remove=remove
    ),
    st.sampled_from([None, "edited"]),
    st.sampled_from([None, 0.25]),
    st.dictionaries(st.sampled_from("pq"), values, max_size=1),
    st.lists(tags, unique=True, max_size=2).map(tuple),
    st.lists(tags, unique=True, max_size=2).map(tuple),
)
deletes = st.just(Delete(i=0, id="m"))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), replicas, walls, st.one_of(stores, edits, deletes)),
        st.tuples(st.just("merge"), replicas, replicas, st.none()),
        st.tuples(st.just("deltas"), replicas, replicas, st.none()),
    ),
    min_size=1,
    max_size=25,
)


@dataclasses.dataclass
class State:
    """What a replica holds of the memory, and the dots of the changes that made it."""

    record: Any = None  # Record | None
    seen: frozenset[Dot] = frozenset()

    @property
    def value(self) -> Any:
        """The record, in the words of the laws."""
        return self.record


class Histories:
    """Three replicas of one memory. `states` are all that ever were; `changes` are in the order of their making, which
    every causal order is a part of."""

    def __init__(self, history: list[Any]) -> None:
        self.replicas = [State() for _ in ACTORS]
        self.clocks = [HybridClock() for _ in ACTORS]
        self.changes: dict[Dot, Change] = {}
        self.deps: dict[Dot, frozenset[Dot]] = {}
        self.states: list[State] = []
        for kind, here, there, operation in history:
            getattr(self, kind)(here, there, operation)
            self.states.append(self.replicas[here])

    def write(self, here: int, wall: int, operation: Store | Edit | Delete) -> None:
        state, clock = self.replicas[here], self.clocks[here]
        decide: Any = {Store: writes.store, Edit: writes.edit, Delete: writes.delete}[type(operation)]
        try:
            change = decide(operation, state.record, max(clock.highest + 1, wall << 16), f"agent-{here}", "")
        except writes.Refused:
            return
        clock.observe(change.time)
        dot = (ACTORS[here], 1 + sum(actor == ACTORS[here] for actor, _ in self.changes))
        self.changes[dot] = change
        self.deps[dot] = state.seen
        self.replicas[here] = State(self.applied(state.record, dot), state.seen | {dot})

    def merge(self, here: int, there: int, _: None) -> None:
        mine, theirs = self.replicas[here], self.replicas[there]
        self._observe(here, theirs)
        self.replicas[here] = State(merged(mine.record, theirs.record), mine.seen | theirs.seen)

    def deltas(self, here: int, there: int, _: None) -> None:
        mine, theirs = self.replicas[here], self.replicas[there]
        self._observe(here, theirs)
        record = mine.record
        for dot in self.missing(mine, theirs):
            record = self.applied(record, dot)
        self.replicas[here] = State(record, mine.seen | theirs.seen)

    def missing(self, mine: State, theirs: State) -> list[Dot]:
        """The dots that one state has and the other not, in the order in which they were made."""
        return [dot for dot in self.changes if dot in theirs.seen - mine.seen]

    def applied(self, record: Record | None, dot: Dot) -> Record:
        actor, n = dot
        change = self.changes[dot]
        return apply(record, change, Origin(change.time, actor, n, change.agent))

    def _observe(self, here: int, theirs: State) -> None:
        if theirs.record is not None:
            self.clocks[here].observe(theirs.record.updated)


def merged(one: Record | None, other: Record | None) -> Record | None:
    """The merge where a replica may have nothing yet."""
    if one is None or other is None:
        return one or other
    return merge(one, other)


histories = steps.map(Histories)
