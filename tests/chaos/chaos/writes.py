"""Which write is surely older than which, from when they were called and answered.

A change's stamp is made while its call is under way, by clocks that here are all one machine's. So a write that was
answered before another was called has the smaller stamp. One whose outcome is unknown may have been taken a moment
later (crdt_spine/lateness.py), but no later than somebody saw it.
"""

from __future__ import annotations

import math
from collections import defaultdict

from chaos.history import History, Op
from crdt_spine.lateness import LATE_SECONDS_MAX

TAKEN_SECONDS = LATE_SECONDS_MAX + 0.1
TIE_SECONDS = 0.005  # wall clock and monotonic clock, and the milliseconds of a stamp


class Writes:
    """The writes of a history by value, and by the memory that they write. What was not applied is not among them."""

    def __init__(self, history: History) -> None:
        self.by_value: dict[str, Op] = {}
        self.by_id: defaultdict[str, list[Op]] = defaultdict(list)
        self._seen: dict[str, float] = {}  # value -> when it was first shown
        for op in history.ops:
            if op.do in ("store", "update") and op.value:
                self.by_value[op.value] = op
                if op.id and op.outcome != "not applied":
                    self.by_id[op.id].append(op)
            elif op.do == "get" and op.seen:
                self._seen[op.seen] = min(op.back, self._seen.get(op.seen, math.inf))

    def applied_by(self, write: Op) -> float:
        """When it was applied at the latest."""
        return min(
            write.back if write.outcome == "ok" else write.back + TAKEN_SECONDS, self._seen.get(write.value, math.inf)
        )

    def surely_before(self, one: Op, other: Op) -> bool:
        """Has `one` the smaller stamp?"""
        return self.applied_by(one) + TIE_SECONDS < other.call


def promised(op: Op, history: History) -> bool:
    """Was the agent told that it is done, by as many replicas as can't all be lost here?"""
    return op.writes and op.outcome == "ok" and (op.with_token or not history.lossy)


def told(op: Op) -> str:
    """An operation in a few words, for a person who looks for it in the history."""
    what = op.value or "+".join((*op.add, *op.remove)) or "-"
    return f"{op.do} {op.id or '?'} {what} ({op.level}, {op.outcome}, {op.session}, {op.call:.3f}–{op.back:.3f})"
