"""How much agents ask of a node: totals, and operations on memories by partition, as a rate of the last seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from crdt_spine.limits import QUORUM_FAILURES_REMEMBERED_MAX

RATE_SECONDS = 1.0  # between two looks
SMOOTHING_SECONDS = 5.0  # over about how long a rate is a mean


class Load:
    """`counts` has, by partition, how many operations there were. Whoever serves one adds it there and to a total."""

    def __init__(self, partitions: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = [0] * partitions
        self.rates = [0.0] * partitions  # operations a second
        self.reads = 0
        self.waiting = 0  # operations taken and not yet answered
        self.totals: Counter[str] = Counter()  # writes, queries, and what went wrong, as the node's report shows them
        self._failed: dict[tuple[str, int], None] = {}  # inbox and number of operations, the last tried ones last
        self._clock = clock
        self._looked, self._before = clock(), [0] * partitions

    @property
    def operations(self) -> int:
        """How much agents have asked so far."""
        return self.reads + self.totals["writes"]

    def quorum_failed(self, inbox: str, i: int) -> None:
        """Too few replicas are there for this agent's operation of this number. That counts once, however often the
        agent tries it until its time is over."""
        self.totals["quorum_failures"] += (inbox, i) not in self._failed
        self._failed.pop((inbox, i), None)
        self._failed[inbox, i] = None
        if len(self._failed) > QUORUM_FAILURES_REMEMBERED_MAX:
            del self._failed[next(iter(self._failed))]

    def look(self) -> None:
        """To be called now and then, at least as often as every few seconds."""
        now = self._clock()
        seconds = now - self._looked
        if seconds < RATE_SECONDS:
            return
        weight = min(1.0, seconds / SMOOTHING_SECONDS)
        self.rates = [
            rate + ((count - before) / seconds - rate) * weight
            for rate, count, before in zip(self.rates, self.counts, self._before, strict=True)
        ]
        self._looked, self._before = now, self.counts.copy()
