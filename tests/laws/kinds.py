"""The types under the laws, each with what the laws need of it: how replicas come to states of it, its merge, its
delta, its codec, and a naive specification that knows nothing but the set of events that reached a replica.

Three replicas (or agents) make events, exchange states and exchange events, as `Run` and `Histories` do it. So the laws
are proved on states that can be reached, each with the events that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import msgspec
from executions import ACTORS, Dot, Histories, State, histories, merged, replicas, tags, values, walls
from hypothesis import strategies as st
from simulator.history import Made, seen, value

from crdt_spine.core import codec, orset
from crdt_spine.core.causality import join, within
from crdt_spine.core.clock import COUNTER_BITS, HybridClock, at_milliseconds, milliseconds_of
from crdt_spine.core.messages import Change, Delta, SyncPage, encode
from crdt_spine.core.record import Life, Record, empty
from crdt_spine.core.registers import NEVER, Origin, Register, later
from crdt_spine.core.token import token_text, token_vectors

Seen = frozenset[Dot]


class Kind(NamedTuple):
    """A type under the laws.

    `holds(one, both)`: has the merge `both` everything that `one` had? `apply` is an event's delta. `read` is what
    somebody sees of a state, `specified` what he should see by the events in it. `coded` has been encoded and decoded.
    """

    runs: st.SearchStrategy[Any]
    merge: Callable[[Any, Any], Any]
    holds: Callable[[Any, Any], bool]
    apply: Callable[[Any, Any, Dot], Any]
    read: Callable[[Any], Any]
    specified: Callable[[Any, Seen], Any]
    coded: Callable[[Any], Iterable[Any]]


class Run:
    """Three replicas of one value. `make(run, here, state, wall, what)` gives the event of an operation there."""

    def __init__(
        self, nothing: Any, make: Callable[..., Any], apply: Callable[..., Any], merge: Callable[[Any, Any], Any],
        steps: list[Any],
    ) -> None:  # fmt: skip
        self.replicas = [State(nothing) for _ in ACTORS]
        self.clocks = [HybridClock() for _ in ACTORS]
        self.changes: dict[Dot, Any] = {}
        self.deps: dict[Dot, Seen] = {}
        self.states: list[State] = list(self.replicas)
        for kind, here, there, what in steps:
            mine = self.replicas[here]
            if kind == "write":
                dot = (ACTORS[here], 1 + sum(actor == ACTORS[here] for actor, _ in self.changes))
                self.changes[dot] = make(self, here, mine.value, *what)
                self.deps[dot] = mine.seen
                state = State(apply(self, mine.value, dot), mine.seen | {dot})
            else:
                theirs = self.replicas[there]
                self.clocks[here].observe(self.clocks[there].highest)
                state = State(merge(mine.value, theirs.value), mine.seen | theirs.seen)
            self.replicas[here] = state
            self.states.append(state)


def runs(nothing: Any, make: Any, apply: Any, merge: Any, operations: Any) -> st.SearchStrategy[Run]:
    """Runs of operations and merges."""
    steps = st.lists(
        st.one_of(
            st.tuples(st.just("write"), replicas, st.none(), operations),
            st.tuples(st.just("merge"), replicas, replicas, st.none()),
        ),
        min_size=1,
        max_size=25,
    )
    return steps.map(lambda history: Run(nothing, make, apply, merge, history))


# -- the LWW register -----------------------------------------------------------------------------------------------


def write(run: Run, here: int, state: Any, wall: int, what: Any) -> Register:
    n = 1 + sum(actor == ACTORS[here] for actor, _ in run.changes)
    return Register(Origin(run.clocks[here].tick(wall), ACTORS[here], n, f"agent-{here}"), what)


def write_later(run: Run, state: Register | None, dot: Dot) -> Register | None:
    return later(state, run.changes[dot])


def greatest(run: Run, dots: Seen) -> Any:
    """Of all values that were written the one with the greatest stamp; no two have the same."""
    return max(((o.time, o.actor, v) for o, v in _written(run, dots)), key=lambda one: one[:2], default=None)


def _written(run: Run, dots: Seen) -> list[tuple[Origin, Any]]:
    return [(run.changes[dot].origin, run.changes[dot].value) for dot in dots]


def coded_register(register: Register | None) -> list[Register | None]:
    if register is None:
        return []
    origin = register.origin
    nothing = empty("m")
    record = Record(
        "m", {origin.actor: origin.n}, {origin.actor: origin.time}, nothing.life, None, None, None, {"k": register}, {}
    )
    return [read.metadata["k"] for read in coded_record(record)]


REGISTER = Kind(
    runs(None, write, write_later, later, st.tuples(walls, values)),
    later,
    lambda one, both: one is None or both.origin >= one.origin,
    write_later,
    lambda state: None if state is None else (state.origin.time, state.origin.actor, state.value),
    greatest,
    coded_register,
)


# -- the OR-set -----------------------------------------------------------------------------------------------------

#: Its elements, and the version of the record that it is in.
TagSet = tuple[orset.Tags, dict[str, int]]


class TagEvent(NamedTuple):
    """Elements added, all with one dot; elements removed, with the dots that the remover saw."""

    add: tuple[str, ...]
    remove: dict[str, tuple[Dot, ...]]


def change_tags(run: Run, here: int, state: TagSet, add: tuple[str, ...], remove: tuple[str, ...]) -> TagEvent:
    return TagEvent(add, {tag: tuple((o.actor, o.n) for o in state[0].get(tag, ())) for tag in remove})


def changed_tags(run: Run, state: TagSet, dot: Dot) -> TagSet:
    event, (elements, version) = run.changes[dot], state
    elements = dict(elements)
    orset.remove(elements, event.remove)
    orset.add(elements, event.add, Origin(dot[1], dot[0], dot[1], ""))
    return elements, {**version, dot[0]: dot[1]}


def merge_tags(one: TagSet, other: TagSet) -> TagSet:
    return orset.merge(*one, *other), join(one[1], other[1])


def not_removed(run: Run, dots: Seen) -> dict[str, set[Dot]]:
    """The adds of which no remove of the same tag had seen anything."""
    present: dict[str, set[Dot]] = {}
    for dot in dots:
        for tag in run.changes[dot].add:
            if not any(tag in run.changes[other].remove and dot in run.deps[other] for other in dots):
                present.setdefault(tag, set()).add(dot)
    return present


def coded_tags(state: TagSet) -> list[TagSet]:
    elements, version = state
    record = Record("m", version, version, empty("m").life, None, None, None, {}, elements)
    return [(read.tags, read.version) for read in coded_record(record)]


some_tags = st.lists(tags, unique=True, max_size=2).map(tuple)
TAGS = Kind(
    runs(({}, {}), change_tags, changed_tags, merge_tags, st.tuples(some_tags, some_tags)),
    merge_tags,
    lambda one, both: within(one[1], both[1]),
    changed_tags,
    lambda state: {tag: {(origin.actor, origin.n) for origin in origins} for tag, origins in state[0].items()},
    not_removed,
    coded_tags,
)


# -- the version vector ---------------------------------------------------------------------------------------------


def dots_of(vector: dict[str, int]) -> set[Dot]:
    """The naive vector: every dot that it stands for."""
    return {(actor, n) for actor, last in vector.items() for n in range(1, last + 1)}


def coded_vector(vector: dict[str, int]) -> list[dict[str, int]]:
    page = SyncPage(partition=0, records=[], upto=vector)
    token = token_vectors(token_text("c", "r", {0: vector}), "c", "r", 64)
    return [msgspec.json.decode(encode(page), type=SyncPage).upto, token.get(0, {})]


VERSION_VECTOR = Kind(
    runs({}, lambda *_: None, lambda run, state, dot: join(state, dict([dot])), join, st.just(())),
    join,
    within,
    lambda run, state, dot: join(state, dict([dot])),
    dots_of,
    lambda run, dots: set(dots),
    coded_vector,
)


# -- the vector clock -----------------------------------------------------------------------------------------------


def append(run: Run, here: int, state: dict[str, int]) -> dict[str, int]:
    """The clock of an event: all that its agent has read and written, and itself."""
    return {**state, ACTORS[here]: state.get(ACTORS[here], 0) + 1}


def numbers_of(run: Run, dots: Seen) -> dict[str, int]:
    """How many events of each agent are in a past."""
    agents = [agent for agent, _ in dots]
    return {agent: agents.count(agent) for agent in agents}


def coded_clock(clock: dict[str, int]) -> list[dict[str, int]]:
    change = Change(id="m", time=1, agent="a", alive=True, clock=clock)
    life = Register(Origin(1, "a", 1, "a"), Life(True, "a", "t", 1, clock, ()))
    record = msgspec.structs.replace(empty("m"), version={"a": 1}, times={"a": 1}, life=life)
    return [coded_change(change).clock, *[read.life.value.clock for read in coded_record(record)]]


def read_clock(run: Run, state: dict[str, int], dot: Dot) -> dict[str, int]:
    return join(state, run.changes[dot])


VECTOR_CLOCK = Kind(
    runs({}, append, read_clock, join, st.just(())),
    join,
    within,
    read_clock,
    dict,
    numbers_of,
    coded_clock,
)


# -- the hybrid clock -----------------------------------------------------------------------------------------------

FULL = (1 << COUNTER_BITS) - 1
#: Where all of them begin, so that counters overflow soon.
NEARLY_FULL = at_milliseconds(2) + FULL - 2


def tick(run: Run, here: int, state: int, wall: int) -> tuple[int, int]:
    return HybridClock(state).tick(wall), wall


def observe(one: int, other: int) -> int:
    clock = HybridClock(one)
    clock.observe(other)
    return clock.highest


def highest_pair(run: Run, dots: Seen) -> tuple[int, int]:
    """The clock as its authors wrote it down, a pair of milliseconds and counter; a full counter carries."""
    beginning = milliseconds_of(NEARLY_FULL), NEARLY_FULL & FULL
    pairs: dict[Dot, tuple[int, int]] = {}
    for dot, (_, wall) in run.changes.items():
        milliseconds, counter = max([pairs[before] for before in run.deps[dot]], default=beginning)
        if wall > milliseconds:
            pairs[dot] = wall, 0
        else:
            pairs[dot] = (milliseconds + 1, 0) if counter == FULL else (milliseconds, counter + 1)
    return max([pairs[dot] for dot in dots], default=beginning)


def coded_time(time: int) -> list[int]:
    page = SyncPage(partition=0, records=[], upto={}, clock=time)
    return [
        coded_change(Change(id="m", time=time, agent="a")).time,
        msgspec.json.decode(encode(page), type=SyncPage).clock,
    ]


HYBRID_CLOCK = Kind(
    runs(NEARLY_FULL, tick, lambda run, state, dot: observe(state, run.changes[dot][0]), observe, st.tuples(walls)),
    observe,
    lambda one, both: both >= one,
    lambda run, state, dot: observe(state, run.changes[dot][0]),
    lambda time: (milliseconds_of(time), time & FULL),
    highest_pair,
    coded_time,
)


# -- the memory record ----------------------------------------------------------------------------------------------


def record_holds(one: Record | None, both: Record | None) -> bool:
    """What a version says is there stays, but for what a later store or delete has made pointless."""
    if one is None or both is None:
        return one is None
    floor = (both.life.origin.time, both.life.origin.actor)
    return both.life.origin >= one.life.origin and all(
        both.version.get(actor, 0) >= n or (one.times[actor], actor) < floor for actor, n in one.version.items()
    )


def summed_up(history: Histories, dots: Seen) -> Any:
    """What the changes add up to, by the specification that the simulator has as well."""
    made = [Made(history.changes[dot].time, *dot, history.changes[dot]) for dot in dots]
    return value(tuple(sorted(made)))


def coded_record(record: Record | None) -> list[Record]:
    if record is None:
        return []
    return [
        codec.from_bytes(record.id, codec.to_bytes(record)),
        codec.from_json(record.id, codec.to_json(record)),
    ]


def coded_change(change: Change) -> Change:
    delta = Delta(partition=0, actor="a", first=1, deps={}, changes=[change])
    return msgspec.json.decode(encode(delta), type=Delta).changes[0]


MEMORY = Kind(
    histories,
    merged,
    record_holds,
    lambda history, state, dot: cast("Histories", history).applied(state, dot),
    seen,
    summed_up,
    coded_record,
)

KINDS = {
    "LWW register": REGISTER,
    "OR-set": TAGS,
    "version vector": VERSION_VECTOR,
    "vector clock": VECTOR_CLOCK,
    "hybrid clock": HYBRID_CLOCK,
    "memory record": MEMORY,
}

__all__ = ["KINDS", "NEVER", "Kind", "Run", "coded_record"]
