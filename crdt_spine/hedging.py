"""Reads that take too long are sent to another node as well (*hedges*), and the first good answer counts.

Too long is longer than nearly all others at that node (`Health.patience`; Dean, Barroso, "The tail at scale" (2013)).
Hedges have a budget, so that a cluster that is slow as a whole does not get twice the reads. Writes are never hedged:
they are moved, once the first node can't take them any more (dispatch.py). Decision 25 says why so.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from crdt_spine.call import Call
from crdt_spine.health import PATIENCE_SECONDS_MIN, QUERY, Health
from crdt_spine.requests import Requests
from crdt_spine.transport.base import Transport
from crdt_spine.whereabouts import Whereabouts

LATE_SECONDS = 0.005  # a loop that is that late has answers to read before anybody is said not to have answered
LATE_TIMES_MAX = 3  # in a row, for one call
HEDGE_SHARE = 0.05  # of reads may be sent twice, so that an overload is not doubled ...
HEDGES_SAVED_MAX = 20.0  # ... or so many at once, by who read for a while without


class Hedging:
    """Looks at a session's calls under way (`calls`, in the order of their beginning) while there are any."""

    def __init__(
        self, transport: Transport, requests: Requests, whereabouts: Whereabouts, health: Health,
        calls: dict[int, Call], counts: Counter[str],
    ) -> None:  # fmt: skip
        self.idle = True  # nobody looks: `begin` is due when something is sent
        self.reads = 0  # sent since the budget was looked at
        self._transport = transport
        self._requests = requests
        self._whereabouts = whereabouts
        self._health = health
        self._calls = calls
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._left = HEDGES_SAVED_MAX
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._late = 0  # how often in a row a look was late, while ...
        self._late_oldest = 0  # ... this call was the oldest

    def begin(self, now: float) -> None:
        """Something is under way: look at it, for as long as there is anything."""
        self.idle = False
        self._look_at(now + PATIENCE_SECONDS_MIN)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def won(self, call: Call, now: float) -> list[Call]:
        """The other node has answered this. Gives what is to go elsewhere now, as it waits where this one did: it is
        not to wait for its own evidence."""
        self._counts["hedges_won"] += 1
        self._health.measured(call.hedge, call.kind, now - call.hedged_at, now)
        slow = call.node
        if self._health.heard.get(slow, 0.0) > call.sent_at or not self._health.doubt(slow, now):
            return []
        return [
            other
            for other in self._calls.values()
            if other.node == slow and other.kind <= QUERY and other is not call and not other.future.done()
        ]

    def _look_at(self, due: float) -> None:
        self._due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """Which reads are late? Another replica is asked as well."""
        now = self._loop.time()
        if now - self._due > LATE_SECONDS:
            # This process was busy, or was not let run: what has arrived meanwhile comes first.
            oldest = next(iter(self._calls), 0)
            self._late = self._late + 1 if oldest == self._late_oldest else 1
            self._late_oldest = oldest
            if self._late <= LATE_TIMES_MAX:
                self._look_at(now + LATE_SECONDS)
                return
        self._late = 0
        overdue = []
        due_next = float("inf")
        for call in self._calls.values():
            if call.sent_at > now - PATIENCE_SECONDS_MIN and call.attempts == 1:
                due_next = min(due_next, call.sent_at + PATIENCE_SECONDS_MIN)
                break  # the others are younger still
            if call.kind > QUERY or not call.node or call.future.done():
                continue
            if call.hedge:
                due = call.hedged_at + self._health.patience(call.hedge, call.kind)
            else:
                due = call.sent_at + self._health.patience(call.node, call.kind)
            if due <= now:
                overdue.append(call)
            else:
                due_next = min(due_next, due)
        if overdue and self._transport.connected:
            self._hedge(overdue)
        if self._calls:
            self._look_at(min(max(due_next, now + LATE_SECONDS), now + PATIENCE_SECONDS_MIN))
        else:
            self.idle = True

    def _hedge(self, calls: list[Call]) -> None:
        """These reads have not been answered in time."""
        self._left = min(self._left + HEDGE_SHARE * self.reads, HEDGES_SAVED_MAX)
        self.reads = 0
        groups: dict[tuple[str, int], list[Call]] = {}
        for call in calls:
            if self._left < 1:
                break
            other = self._whereabouts.routing.other(call.candidates, (call.node, call.hedge, *call.asked))
            if other is not None:
                if call.hedge:
                    call.drop_hedge()
                self._left -= 1
                self._counts["hedges"] += 1
                groups.setdefault((other, 0 if call.token is None else call.operation.i), []).append(call)
        for (other, _), some in groups.items():
            self._requests.send(other, True, some, hedge=True)
