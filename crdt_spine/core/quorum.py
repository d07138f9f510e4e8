"""When is a write done: once as many replicas as it asked for have its change durably.

What a replica has is known from its acknowledgements, which are cumulative ("everything of this actor up to n"), and
from its announcements, which say the same of all actors; a lost acknowledgement is made good by the next of either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec


class Waiting(msgspec.Struct, eq=False):
    """A write that waits for its quorum. `ticket` is the shell's: whom to answer."""

    ticket: Any
    actor: str
    n: int
    needed: int
    deadline: int  # wall clock, milliseconds


class Quorum:
    """The writes of one partition that wait at this coordinator, and what every replica is known to have."""

    __slots__ = ("durable", "waiting")

    def __init__(self) -> None:
        self.durable: dict[str, dict[str, int]] = {}  # replica -> actor -> n; this node among them
        self.waiting: list[Waiting] = []

    def confirmed(self, actor: str, n: int) -> int:
        """How many replicas have the change."""
        return sum(1 for reached in self.durable.values() if reached.get(actor, 0) >= n)

    def wait(self, waiting: Waiting) -> bool:
        """Remember a write until `reached` or `expire` gives it back; False: it is done already."""
        if self.confirmed(waiting.actor, waiting.n) >= waiting.needed:
            return False
        self.waiting.append(waiting)
        return True

    def reached(self, replica: str, vector: Mapping[str, int]) -> list[Waiting]:
        """A replica durably has this much; the writes that are done with it, in the order in which they came."""
        known = self.durable.setdefault(replica, {})
        grown = False
        for actor, n in vector.items():
            if known.get(actor, 0) < n:
                known[actor] = n
                grown = True
        if not grown or not self.waiting:
            return []
        return self._take(lambda w: self.confirmed(w.actor, w.n) >= w.needed)

    def expire(self, now: int) -> list[Waiting]:
        """The writes whose time is over."""
        return self._take(lambda w: w.deadline <= now) if self.waiting else []

    def forget(self, replica: str) -> None:
        """A replica came back with less than it said (it lost its disk): nothing of it counts any more."""
        self.durable.pop(replica, None)

    def _take(self, done: Callable[[Waiting], bool]) -> list[Waiting]:
        taken: list[Waiting] = []
        left: list[Waiting] = []
        for waiting in self.waiting:
            (taken if done(waiting) else left).append(waiting)
        self.waiting = left
        return taken
