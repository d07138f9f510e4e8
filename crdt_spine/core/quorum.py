"""When is a write done: once as many replicas as it asked for have its change durably.

What a replica has is known from its acknowledgements, which are cumulative ("everything of this actor up to n"), and
from its announcements, which say the same of all actors; a lost acknowledgement is made good by the next of either.
So of the writes that wait for the same number of replicas, those up to some n are done, and nobody looks at the rest.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any

import msgspec


class Waiting(msgspec.Struct, eq=False):
    """A write that waits for its quorum. `ticket` is the shell's: whom to answer."""

    ticket: Any
    actor: str
    n: int
    needed: int
    deadline: int  # wall clock, milliseconds


_n = attrgetter("n")


def awaited(coordinator: str, replicas: Iterable[str], write_quorum: int, away: Collection[str] = ()) -> list[str]:
    """For which of a partition's `replicas` (those that count) a change of the `coordinator` waits, were it up to them:
    as many as make a majority with it, or the write quorum, whichever is more, in an order that all know, with those
    that are `away` at its end. The others have no hurry: their word counts as well, and is needed where one of these is
    slow."""
    names = after(coordinator, replicas)
    needed = max(write_quorum, (len(names) + 1) // 2 + 1) - 1
    return sorted(names, key=lambda node: node in away)[:needed]


def after(node: str, others: Iterable[str]) -> list[str]:
    """The others, in the order in which this node waits for them: those first whose names come after its own, and then
    round from the beginning. So they are the same few in most of its partitions, and what it has for them, and they for
    it, travels together; and each node is as often another one's first as any."""
    return sorted({*others} - {node}, key=lambda other: (other < node, other))


class Quorum:
    """The writes of one partition that wait at this coordinator, and what every replica is known to have."""

    __slots__ = ("_chains", "durable", "muted")

    def __init__(self) -> None:
        self.durable: dict[str, dict[str, int]] = {}  # replica -> actor -> n; this node among them
        self.muted: frozenset[str] = frozenset()  # replicas that count for no quorum: they join, or leave
        self._chains: dict[tuple[str, int], list[Waiting]] = {}  # (actor, needed) -> those that wait, by n

    @property
    def waiting(self) -> list[Waiting]:
        """All writes that wait."""
        return [waiting for chain in self._chains.values() for waiting in chain]

    def has(self, replica: str, actor: str, n: int) -> bool:
        """Is a replica known to have the change?"""
        return self.durable.get(replica, {}).get(actor, 0) >= n

    def confirmed(self, actor: str, n: int) -> int:
        """How many replicas that count have the change."""
        return sum(reached.get(actor, 0) >= n for name, reached in self.durable.items() if name not in self.muted)

    def wait(self, waiting: Waiting) -> bool:
        """Remember a write until `reached` or `expire` gives it back; False: it is done already."""
        if self._level(waiting.actor, waiting.needed) >= waiting.n:
            return False
        chain = self._chains.setdefault((waiting.actor, waiting.needed), [])
        if not chain or chain[-1].n <= waiting.n:
            chain.append(waiting)
        else:  # a retry
            insort(chain, waiting, key=_n)
        return True

    def reached(self, replica: str, vector: Mapping[str, int]) -> list[Waiting]:
        """A replica durably has this much; the writes that are done with it, those of one actor in their order."""
        known = self.durable.setdefault(replica, {})
        if known == vector:
            return []
        grown = False
        for actor, n in vector.items():
            if known.get(actor, 0) < n:
                known[actor] = n
                grown = True
        return self._done() if grown else []

    def mute(self, replicas: frozenset[str]) -> list[Waiting]:
        """These replicas, and no others, do not count from now on; the writes that are done now."""
        if replicas == self.muted:
            return []
        self.muted = replicas
        return self._done()

    def _done(self) -> list[Waiting]:
        done: list[Waiting] = []
        for (actor, needed), chain in list(self._chains.items()):
            level = self._level(actor, needed)
            if chain[0].n <= level:
                end = bisect_right(chain, level, key=_n)
                done += chain[:end]
                del chain[:end]
                if not chain:
                    del self._chains[actor, needed]
        return done

    def expire(self, now: int) -> list[Waiting]:
        """The writes whose time is over."""
        over: list[Waiting] = []
        for key, chain in list(self._chains.items()):
            if any(waiting.deadline <= now for waiting in chain):
                over += [waiting for waiting in chain if waiting.deadline <= now]
                chain[:] = [waiting for waiting in chain if waiting.deadline > now]
                if not chain:
                    del self._chains[key]
        return over

    def forget(self, replica: str) -> None:
        """A replica came back with less than it said (it lost its disk): nothing of it counts any more."""
        self.durable.pop(replica, None)

    def _level(self, actor: str, needed: int) -> int:
        """Up to where at least `needed` replicas have an actor's changes."""
        if len(self.durable) < needed:
            return 0
        reached = [have.get(actor, 0) for name, have in self.durable.items() if name not in self.muted]
        return sorted(reached)[-needed] if len(reached) >= needed else 0
