"""Virtual time: events happen in the order (time, when they were planned); nothing else moves the clock."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable

START = 1_700_000_000_000  # the wall clock of a node without skew at the start, milliseconds


class Violation(AssertionError):
    """Something that must hold did not."""


class Crash(Exception):
    """A node has died in the middle of what it was doing: nothing of it happens any more."""


class Chance(random.Random):
    """A generator of chance."""

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` through `high`; several times as quick as randint."""
        return low + int(self.random() * (high - low + 1))


class World:
    """The event queue, the generator of all chance, and the story of what happened. Strong operations and what else was
    added later draw from a `second` one, so that a seed without them is the story that it was."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Chance(seed)
        self.second = Chance(f"{seed}, strong")
        self.now = 0  # milliseconds
        self.story: list[str] = []
        self.hash = hashlib.sha256()
        self.events = 0
        self.between = self.random.between
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._planned = 0

    @property
    def wall(self) -> int:
        """The true wall clock, milliseconds."""
        return START + self.now

    def after(self, milliseconds: int, action: Callable[[], None]) -> None:
        """Do something later."""
        self._planned += 1
        heapq.heappush(self._queue, (self.now + milliseconds, self._planned, action))

    def run_until(self, time: int) -> None:
        """Let everything happen that is planned up to then."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= time:
            self.now, _, action = pop(queue)
            self.events += 1
            try:
                action()
            except Crash:
                pass
        self.now = time

    def tell(self, who: str, what: str) -> None:
        """One line of the story; the story's hash is the run's."""
        line = f"{self.now / 1000:8.3f}  {who:<8} {what}"
        self.hash.update(line.encode() + b"\n")
        self.story.append(line)
