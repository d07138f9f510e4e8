"""The syncs under way: from whom each partition is pulled, how far it is, and whom to ask next.

A node that comes back misses something of every partition, and hears of it from all its peers. Partitions are spread
over the peers that have the most, so that no peer gives all of it and several give at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec


class Repair(msgspec.Struct):
    """One sync. `missing` are the changes that were missing when it began; `whole`: all is compared beside that."""

    partition: int
    source: str
    began: float  # monotonic seconds
    missing: int
    whole: bool = False
    records: int = 0
    bytes: int = 0

    def report(self, now: float) -> dict[str, Any]:
        """For the node's status."""
        return {
            "partition": self.partition, "source": self.source, "whole": self.whole, "records": self.records,
            "bytes": self.bytes, "changes_missing": self.missing, "seconds": round(now - self.began, 1),
        }  # fmt: skip


class Repairs:
    """The repairs under way, by partition."""

    def __init__(self) -> None:
        self.under_way: dict[int, Repair] = {}

    def begin(self, number: int, source: str, missing: int) -> None:
        self.under_way[number] = Repair(number, source, time.monotonic(), missing)

    def end(self, number: int) -> None:
        self.under_way.pop(number, None)

    def source(self, missing: Mapping[str, int]) -> str | None:
        """Whom to pull the next partition from, `missing` being how much of it each peer has that is not here: of those
        that have next to all the one that gives the fewest partitions now. None: nobody has anything."""
        most = max(missing.values(), default=0)
        asked = Counter(repair.source for repair in self.under_way.values())
        able = [peer for peer, count in missing.items() if count and count * 10 >= most * 9]
        return min(able, key=lambda peer: (asked[peer], peer), default=None)

    def report(self) -> list[dict[str, Any]]:
        """For the node's status."""
        now = time.monotonic()
        return [repair.report(now) for _, repair in sorted(self.under_way.items())]
