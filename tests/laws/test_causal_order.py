"""The order of a thread against what really happened: executions of agents that read, append, restart and delete.

The naive specification keeps for every entry the set of those that its writer had read or written. Clocks are made by
the contexts that agents really use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.causality import join_into
from crdt_spine.core.messages import Store, Vectors
from crdt_spine.core.thread import Entry, before, causal_order, relation, visible
from crdt_spine.thread import Context

AGENTS = ("ada", "ben", "cy")
NODES = ("r/x@1", "r/y@1")
PARTITIONS = 3

times = st.integers(0, 6)  # few and in no order: as wrong as clocks can be
processes = st.integers(0, len(AGENTS) - 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), processes, times, st.integers(0, PARTITIONS * len(NODES) - 1)),
        st.tuples(st.just("read"), processes, times, st.integers(0, 30)),
        st.tuples(st.just("delete"), processes, times, st.integers(0, 30)),
    ),
    max_size=40,
)
#: The same, and agents that restart, forgetting what they read, or come back as a second process beside the first; and
#: entries without a clock.
rough_steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5), times, st.integers(0, PARTITIONS * len(NODES) - 1)),
        st.tuples(st.just("read"), st.integers(0, 5), times, st.integers(0, 30)),
        st.tuples(st.just("delete"), processes, times, st.integers(0, 30)),
        st.tuples(st.just("restart"), st.integers(0, 5), times, st.just(0)),
        st.tuples(st.just("note"), processes, times, st.integers(0, PARTITIONS * len(NODES) - 1)),
    ),
    max_size=40,
)


@dataclasses.dataclass
class Process:
    """One agent's process: its context, and which entries are in its past."""

    agent: str
    context: Context = dataclasses.field(default_factory=Context)
    past: frozenset[int] = frozenset()


class Execution:
    """What a history of steps gives: `entries`, for each its `past`, and which of them were `deleted`."""

    def __init__(self, history: Sequence[tuple[str, int, int, int]]) -> None:
        self.processes = [Process(agent) for agent in AGENTS * 2]
        self.entries: list[Entry] = []
        self.past: list[frozenset[int]] = []
        self.deleted: set[int] = set()
        self.dots: dict[tuple[int, str], int] = {}
        for kind, number, time, argument in history:
            getattr(self, kind)(self.processes[number], time, argument)

    def append(self, process: Process, time: int, place: int) -> None:
        index, (partition, node) = len(self.entries), divmod(place, len(NODES))
        actor = NODES[node]
        n = self.dots[partition, actor] = self.dots.get((partition, actor), 0) + 1
        store = process.context.next(Store(i=0, id="e", content="e"), process.agent, partition)
        self.entries.append(
            Entry(f"e{index:02}", process.agent, store.clock, time, partition, actor, n, store.after, {actor: n})
        )
        self.past.append(process.past)
        process.context.reach({partition: {actor: n}})
        process.past |= {index}

    def note(self, process: Process, time: int, place: int) -> None:
        """Stored with the thread's id, but not appended: it claims to come after nothing."""
        self.append(process, time, place)
        self.entries[-1] = msgspec.structs.replace(self.entries[-1], clock={}, after={})
        self.past[-1] = frozenset()

    def read(self, process: Process, time: int, index: int) -> None:
        """A replica that has this entry, and what is before it, and no more."""
        if index < len(self.entries):
            seen = self.past[index] | {index}
            process.context.take(self.entries[i] for i in sorted(seen - self.deleted))
            process.past |= seen - self.deleted

    def delete(self, process: Process, time: int, index: int) -> None:
        if index < len(self.entries):
            self.deleted.add(index)

    def restart(self, process: Process, time: int, _: int) -> None:
        process.context, process.past = Context(), frozenset()
        own = [i for i, entry in enumerate(self.entries) if entry.agent == process.agent and i not in self.deleted]
        if own:
            newest = max(own, key=lambda i: self.entries[i].place)
            process.context.take([self.entries[newest]])
            process.past = frozenset([newest])

    @property
    def living(self) -> list[int]:
        return [index for index in range(len(self.entries)) if index not in self.deleted]

    def index(self, entry: Entry) -> int:
        return int(entry.id[1:])

    def comes_before(self, one: int, other: int) -> bool:
        """What the specification says: is `one` in the other's past, be it through what is deleted now?"""
        return one in self.closed(other)

    def closed(self, index: int) -> set[int]:
        found: set[int] = set()
        waiting = list(self.past[index])
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += self.past[one]
        return found


def happened_before(one: Entry, other: Entry) -> bool:
    return before(one.agent, one.clock, other.agent, other.clock)


def naive_order(execution: Execution) -> list[Entry]:
    """Again and again the earliest one with nothing left before it."""
    left, order = set(execution.living), []
    while left:
        free = [i for i in left if not any(execution.comes_before(other, i) for other in left)]
        first = min(free, key=lambda i: execution.entries[i].place)
        left.remove(first)
        order.append(execution.entries[first])
    return order


@given(steps)
def test_clocks_tell_exactly_what_happened_before_what(history: list[tuple[str, int, int, int]]) -> None:
    execution = Execution(history)
    for i, one in enumerate(execution.entries):
        for j, other in enumerate(execution.entries):
            said = relation(one.agent, one.clock, other.agent, other.clock)
            earlier, later = execution.comes_before(i, j), execution.comes_before(j, i)
            assert said == ("before" if earlier else "after" if later else "concurrent")


@given(steps, st.randoms(use_true_random=False))
def test_the_order_is_the_earliest_possible_at_every_step(
    history: list[tuple[str, int, int, int]], dice: object
) -> None:
    execution = Execution(history)
    living = [execution.entries[i] for i in execution.living]
    dice.shuffle(living)  # type: ignore[attr-defined]
    assert causal_order(living) == naive_order(execution)


@given(rough_steps, st.randoms(use_true_random=False))
def test_nothing_stands_before_what_it_answers_whatever_agents_forget(
    history: list[tuple[str, int, int, int]], dice: object
) -> None:
    """Restarts, deleted entries whose numbers are given again, two processes of one agent."""
    execution = Execution(history)
    living = [execution.entries[i] for i in execution.living]
    shuffled = list(living)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    order = causal_order(shuffled)
    assert sorted(entry.id for entry in order) == [entry.id for entry in living]
    place = {execution.index(entry): at for at, entry in enumerate(order)}
    for index, at in place.items():
        for other in execution.past[index] & place.keys():
            one, later = execution.entries[other], execution.entries[index]
            # In one partition, the coordinator's stamp puts what has no clock in its place.
            if one.clock or one.partition != later.partition:
                assert place[other] < at
    extends(order)


def extends(order: Sequence[Entry]) -> None:
    for at, later in enumerate(order):
        for earlier in order[:at]:
            assert not happened_before(later, earlier)


clocks = st.dictionaries(st.sampled_from(AGENTS), st.integers(0, 3))
anything = st.lists(
    st.builds(
        lambda agent, clock, created, partition, n, after: (agent, clock, created, partition, n, after),
        st.sampled_from(AGENTS), clocks, times, st.integers(0, 1), st.integers(1, 4),
        st.dictionaries(st.integers(0, 1), st.dictionaries(st.sampled_from(NODES), st.integers(1, 4)), max_size=2),
    ),
    max_size=12,
)  # fmt: skip


def arbitrary(parts: Iterable[tuple[str, dict[str, int], int, int, int, Vectors]]) -> list[Entry]:
    return [
        Entry(f"e{i}", agent, clock, created, partition, NODES[0], n, after)
        for i, (agent, clock, created, partition, n, after) in enumerate(parts)
    ]


@given(anything)
def test_whatever_clocks_there_are_nothing_is_lost_and_no_two_are_before_each_other(
    parts: list[tuple[str, dict[str, int], int, int, int, Vectors]],
) -> None:
    entries = arbitrary(parts)
    order = causal_order(entries)
    assert sorted(entry.id for entry in order) == sorted(entry.id for entry in entries)
    assert causal_order(reversed(entries)) == order
    for one in entries:
        assert not any(happened_before(one, other) and happened_before(other, one) for other in entries)
    extends(order)


@given(steps, st.lists(st.integers(0, 12), min_size=PARTITIONS * len(NODES), max_size=PARTITIONS * len(NODES)))
def test_a_reader_of_any_cut_sees_no_hole_and_all_that_has_none(
    history: list[tuple[str, int, int, int]], reached: list[int]
) -> None:
    """Each partition is causally consistent by itself; how far the others are has nothing to do with it."""
    execution = Execution(history)
    cut: Vectors = {p: {node: reached[p * len(NODES) + k] for k, node in enumerate(NODES)} for p in range(PARTITIONS)}
    close(execution, cut)
    living = [execution.entries[index] for index in execution.living]
    shown, lacking = visible(living, cut)
    seen = {execution.index(entry) for entry in shown}
    for index in execution.living:
        past = execution.closed(index)
        if index in seen:
            assert past - execution.deleted <= seen
        elif not any(beyond(execution.entries[i], cut) for i in past | {index}):
            raise AssertionError("nothing that it comes after is missing, and it is not shown")
    # With what was lacking, all that was here can be shown.
    here = {entry.id for entry in living if not beyond(entry, cut)}
    for partition, dots in lacking.items():
        join_into(cut[partition], dots)
    close(execution, cut, upwards=True)
    assert {entry.id for entry in visible(living, cut)[0]} >= here


def beyond(entry: Entry, cut: Vectors) -> bool:
    return cut[entry.partition].get(entry.actor, 0) < entry.n


def close(execution: Execution, cut: Vectors, *, upwards: bool = False) -> None:
    """Make each partition's vector one that rule 2 allows: less, or more, until nothing in it lacks its deps."""
    changed = True
    while changed:
        changed = False
        for index, entry in enumerate(execution.entries):
            vector = cut[entry.partition]
            if beyond(entry, cut):
                continue
            for other in map(execution.entries.__getitem__, execution.closed(index)):
                if other.partition == entry.partition and beyond(other, cut):
                    changed = True
                    if upwards:
                        vector[other.actor] = other.n
                    else:
                        vector[entry.actor] = entry.n - 1
                        break
