"""How much agents ask of a node: operations on memories, by partition, as a rate of the last seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

RATE_SECONDS = 1.0  # between two looks
SMOOTHING_SECONDS = 5.0  # over about how long a rate is a mean


class Load:
    """`counts` has, by partition, how many operations there were; whoever serves one adds it there."""

    def __init__(self, partitions: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = [0] * partitions
        self.rates = [0.0] * partitions  # operations a second
        self._clock = clock
        self._looked, self._before = clock(), [0] * partitions

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
