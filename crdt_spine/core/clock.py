"""The hybrid logical clock: wall time that never goes back and is above everything heard.

A time is one integer: 48 bits of milliseconds, 16 bits of counter. Adding one to a full counter carries into the
milliseconds, so an overflow is no special case: the clock then runs ahead of the wall for a moment, as it does after
hearing a faster peer.
Kulkarni, Demirbas et al., "Logical physical clocks and consistent snapshots in globally distributed databases" (2014).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

COUNTER_BITS: Final = 16


def at_milliseconds(milliseconds: int) -> int:
    """The first hybrid time of a wall-clock millisecond."""
    return milliseconds << COUNTER_BITS


def milliseconds_of(time: int) -> int:
    """The wall-clock milliseconds of a hybrid time."""
    return time >> COUNTER_BITS


def moment(time: int) -> datetime:
    """The wall-clock moment of a hybrid time, UTC."""
    return datetime.fromtimestamp((time >> COUNTER_BITS) / 1000, UTC)


class HybridClock:
    """Gives times that only rise. `highest` is persisted with the journal's changes, so a restart goes on above it."""

    __slots__ = ("highest",)

    def __init__(self, highest: int = 0) -> None:
        self.highest = highest

    def tick(self, now: int) -> int:
        """A new time, above every earlier and every observed one; `now` is the wall clock in milliseconds."""
        self.highest = max(self.highest + 1, now << COUNTER_BITS)
        return self.highest

    def observe(self, time: int) -> None:
        """Another replica's time: later ticks are above it."""
        self.highest = max(self.highest, time)
