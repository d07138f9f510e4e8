"""How likely is it that somebody who says nothing is gone? (Hayashibara et al., "The φ accrual failure detector",
SRDS 2004.)

The times between heartbeats are taken to be normally distributed. φ is -log10 of the probability that the next one
comes even later than now: at φ = 1 a suspicion is wrong once in ten times, at φ = 8 once in a hundred million, if only
the distribution is right. It is not, so the deviation has a minimum.

Mean and variance are of an exponential window: two numbers, where Akka and Cassandra keep the last thousand intervals.
What was a few dozen heartbeats ago has faded. A silence that led to a suspicion is no sample (core/gossip.py), or a
node that was away once would be missed later the next time.
"""

from __future__ import annotations

import math
from typing import Final

WEIGHT: Final = 1 / 32  # of a new interval
DEVIATION_SECONDS_MIN: Final = 0.5  # a process is held up so long by its disk or its neighbours, whatever it was before
PHI_MAX: Final = 100.0  # beyond it only silence grows


def phi(elapsed: float, mean: float, variance: float) -> float:
    """The suspicion after `elapsed` seconds of silence, where the intervals have this mean and variance."""
    deviation = max(DEVIATION_SECONDS_MIN, math.sqrt(variance))
    later = 0.5 * math.erfc((elapsed - mean) / (deviation * math.sqrt(2)))
    return PHI_MAX if later < 10**-PHI_MAX else -math.log10(later)


def averaged(interval: float, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance with one more interval in them (West's incremental form of an exponential window)."""
    change = WEIGHT * (interval - mean)
    return mean + change, (1 - WEIGHT) * (variance + change * (interval - mean))
