"""The causal order of a thread: vector clocks that agents keep, and the order that a reader is shown.

An event of a thread is an append. Its clock maps each agent to how many of that agent's events are in its past, its own
event included: `clock[agent]` is the event's own number. An agent's context is the join of the clocks of everything it
has read and written in the thread; its next event is the context with its own number one higher. Then

    a happened before b   iff   clock_a <= clock_b (for every agent), and they are not equal

(Fidge, "Timestamps in message-passing systems that preserve the partial ordering" (1988); Mattern, "Virtual time and
global states of distributed systems" (1988); the relation is that of Lamport, "Time, clocks, and the ordering of events
in a distributed system" (1978)). Numbers need only rise: one that was given and never stored is a gap that nobody waits
for. Comparing whole clocks gives a strict partial order whatever the clocks are, so no mistake of an agent makes a
cycle. An agent that appends from two processes at once may give one number twice: those two are concurrent.

A thread usually lies in one partition, whose replicas are causally consistent by rule 2. Entries that do not (ids of
their own, or stored without a clock) are held together by `after`: for each other partition, the dots of the thread's
entries there that the writer had read or written. So a reader with a cut, a vector for every partition, knows for every
entry whether what it may answer is in the cut (`visible`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Literal

import msgspec

from crdt_spine.core.causality import Vector, join_into, within
from crdt_spine.core.messages import Vectors

Relation = Literal["before", "after", "concurrent"]

#: What is lost for good: partition -> actor -> (m, n), its changes m + 1 … n.
Spans = dict[str, tuple[int, int]]
Lost = dict[int, Spans]

Lane = str | tuple[int, str]  # an agent, or a partition and an actor

_NONE_LEFT = float("inf")  # above every number


class Entry(msgspec.Struct, frozen=True):
    """One entry of a thread, as its order needs it.

    (`actor`, `n`) is its birth's dot in its `partition`, `created` its creation time (hybrid), `changes` the vector of
    the changes that made it what it is. An entry that was not appended has no clock. `replaced`: it was stored anew at
    an older creation time.
    """

    id: str
    agent: str
    clock: Mapping[str, int]
    created: int
    partition: int
    actor: str
    n: int
    after: Vectors = {}
    changes: Vector = {}
    replaced: bool = False

    @property
    def number(self) -> int:
        """Which of its agent's events this is; 0 without a clock."""
        return self.clock.get(self.agent, 0)

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands as long as nothing else is known."""
        return self.created, self.id


# -- what happened before what ---------------------------------------------------------------------------------------


def before(agent: str, clock: Mapping[str, int], other_agent: str, other_clock: Mapping[str, int]) -> bool:
    """Did the event of `agent` with this clock happen before the other one? Nothing is known without a clock."""
    number = clock.get(agent, 0)
    if not number or (agent == other_agent and other_clock.get(agent) == number):
        return False
    return within(clock, other_clock) and not within(other_clock, clock)


def relation(agent: str, clock: Mapping[str, int], other_agent: str, other_clock: Mapping[str, int]) -> Relation:
    """How the event of `agent` with this clock stands to the other one."""
    if before(agent, clock, other_agent, other_clock):
        return "before"
    if before(other_agent, other_clock, agent, clock):
        return "after"
    return "concurrent"


# -- what may be shown -----------------------------------------------------------------------------------------------


def visible(entries: Sequence[Entry], cut: Vectors, lost: Mapping[int, Spans] = {}) -> tuple[list[Entry], Vectors]:
    """The entries of which nothing that they come after can be missing, and the dots that others lack.

    `cut` is what the answering replicas had when they looked: every entry that was born within it and still lives is
    among `entries`. An entry from beyond it is left out, since its causes may be missing: a paged sync brings records
    that are ahead of the vector. So is one that lacks dots, and whatever came after one that is left out. What was
    deleted or has expired is missing in no way: its dot is within the cut. Nor is what is `lost`.
    """
    lacking: Vectors = {}
    hidden: dict[str, int] = {}  # agent -> its first event that is left out
    candidates: list[Entry] = []
    for entry in entries:
        # What was stored anew without a clock stands where it stood, and claims to come after nothing.
        known = cut.get(entry.partition, {}).get(entry.actor, 0) >= entry.n or (entry.replaced and not entry.clock)
        missing = _missing(entry.after, cut, lost) if known and entry.after else {}
        for partition, dots in missing.items():
            join_into(lacking.setdefault(partition, {}), dots)
        if known and not missing:
            candidates.append(entry)
        elif entry.number:
            hidden[entry.agent] = min(entry.number, hidden.get(entry.agent, entry.number))
    if not hidden:
        return candidates, lacking
    return [entry for entry in candidates if not _comes_after(entry, hidden)], lacking


def _missing(after: Vectors, cut: Vectors, lost: Mapping[int, Spans]) -> Vectors:
    missing: Vectors = {}
    for partition, dots in after.items():
        have = cut.get(partition, {})
        if not within(dots, have):
            spans = lost.get(partition, {})
            wanted = {actor: _left(n, spans.get(actor)) for actor, n in dots.items()}
            if left := {actor: n for actor, n in wanted.items() if have.get(actor, 0) < n}:
                missing[partition] = left
    return missing


def _left(n: int, span: tuple[int, int] | None) -> int:
    """Up to where an actor's changes are to be waited for."""
    return span[0] if span is not None and span[0] < n <= span[1] else n


def _comes_after(entry: Entry, hidden: Mapping[str, int]) -> bool:
    # Of its own agent's, one of the same number is another process's, and concurrent.
    return any(entry.clock.get(agent, 0) - (agent == entry.agent) >= number for agent, number in hidden.items())


# -- the order -------------------------------------------------------------------------------------------------------


def causal_order(entries: Iterable[Entry]) -> list[Entry]:
    """The entries, each behind everything that happened before it, otherwise by creation time, then id.

    A topological sort that takes the earliest of what may come next (Kahn, "Topological sorting of large networks"
    (1962), with a heap). Each agent's entries are a lane in the order of their numbers, so what an entry waits for is a
    length of each lane: deleted entries are in no lane and hold nothing up. What the agent's previous entry has waited
    for is not looked at again, so the costs grow with what agents read, and not with agents times entries. An entry
    without a clock comes before those whose `after` has its dot.
    """
    sorting = _Sorting(sorted(entries, key=lambda entry: entry.place))
    order, left = sorting.run()
    # Left are those that wait for each other: an agent has given numbers again after its entries were deleted. The sum
    # of a clock rises with the partial order of whole clocks, so that order is kept all the same.
    return order + sorted(left, key=lambda entry: (sum(entry.clock.values()), entry.place))


class _Sorting:
    """One run of `causal_order`. An entry's rank is its place in the order of time, which it is known by here.

    A need is (lane, number): all entries of the lane up to that number are to come first.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.ranks: dict[Lane, list[int]] = {}
        self.numbers: dict[Lane, list[int]] = {}
        self.come: dict[Lane, int] = {}  # how many entries at the beginning of the lane are in the order already ...
        self.next_number: dict[Lane, float] = {}  # ... and the number of the one behind them
        self.placed = bytearray(len(entries))
        self.ready: list[int] = []
        self.waiting: dict[tuple[Lane, int], list[tuple[int, Iterator[tuple[Lane, int]]]]] = {}
        seats = sorted((_number(entry), rank) for rank, entry in enumerate(entries))
        for number, rank in seats:
            lane = _lane(entries[rank])
            self.ranks.setdefault(lane, []).append(rank)
            self.numbers.setdefault(lane, []).append(number)
            self.come[lane] = 0
        self.next_number = {lane: numbers[0] for lane, numbers in self.numbers.items()}

    def run(self) -> tuple[list[Entry], list[Entry]]:
        """The entries in order, and those that can't be ordered so."""
        for rank, entry in enumerate(self.entries):
            self._wait(rank, self._needs(entry))
        order = []
        while self.ready:
            rank = heappop(self.ready)
            order.append(self.entries[rank])
            self.placed[rank] = True
            self._come(_lane(self.entries[rank]))
        return order, [entry for rank, entry in enumerate(self.entries) if not self.placed[rank]]

    def _needs(self, entry: Entry) -> Iterator[tuple[Lane, int]]:
        clock, after, number = entry.clock.items(), entry.after, entry.number
        if number:
            yield entry.agent, number - 1
            at = bisect_left(self.numbers[entry.agent], number)
            if at:
                previous = self.entries[self.ranks[entry.agent][at - 1]]
                clock = clock - previous.clock.items()  # type: ignore[assignment]
                after = {p: dots for p, dots in after.items() if previous.after.get(p) != dots}
        for agent, n in clock:
            if agent != entry.agent:
                yield agent, n
        for partition, dots in after.items():
            for actor, n in dots.items():
                yield (partition, actor), n

    def _wait(self, rank: int, needs: Iterator[tuple[Lane, int]]) -> None:
        """Ready, or waiting for its next need: what has come once stays."""
        next_number = self.next_number
        for lane, number in needs:
            if number >= next_number.get(lane, _NONE_LEFT):
                length = bisect_right(self.numbers[lane], number)
                self.waiting.setdefault((lane, length), []).append((rank, needs))
                return
        heappush(self.ready, rank)

    def _come(self, lane: Lane) -> None:
        """An entry of the lane is in the order: does that make the lane's beginning longer?"""
        ranks, come = self.ranks[lane], self.come[lane]
        while come < len(ranks) and self.placed[ranks[come]]:
            come += 1
            self.come[lane] = come
            self.next_number[lane] = self.numbers[lane][come] if come < len(ranks) else _NONE_LEFT
            for rank, needs in self.waiting.pop((lane, come), ()):
                self._wait(rank, needs)


def _lane(entry: Entry) -> Lane:
    return entry.agent if entry.number else (entry.partition, entry.actor)


def _number(entry: Entry) -> int:
    return entry.number or entry.n
