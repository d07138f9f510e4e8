"""Until when a node may take a write: a session's idea of each node's clock.

A node that was stopped, or cut off while its connection stayed open, finds in its inbox what was asked of it long ago.
Its agents have asked others meanwhile, were told that it is done, and wrote on. Would the node take such a write now,
its stamp would be above everything that came after: an acknowledged write would be beaten by an older one, and what was
deleted would live again (DESIGN rule 11). So a write says by when it must be taken, by the clock of the node that is
asked, and it is not repeated elsewhere for having heard nothing before that.

No clocks need to agree for this. Every answer says what the node's clock showed when it left; since then that has gone
on as ours has, and the answer was on its way for a while: what this makes of the node's time is never ahead of it. Of
several answers the one that was on its way for the shortest time is the best. It is believed a little less with each
second, so that a node's clock may be set back. Of a node that has not answered yet, another's clock is taken: nodes
whose clocks differ by more than half a second take no writes.

A node that is overloaded finds everything late. Would all of it be refused and come again, it would never get out of
that: so who refuses for that reason is given twice the time from then on, for a while.
"""

from __future__ import annotations

from typing import Final

WRITE_SECONDS_MAX: Final = 0.5  # on its way to a node and in its inbox; nodes look at what comes within milliseconds
LATE_SECONDS_MAX: Final = 4.0  # the same, for nodes that are that far behind
CALM_SECONDS: Final = 5.0  # without a refusal, until half the time is enough again
_AGAIN_SECONDS: Final = 0.2  # refusals that come so soon after another are of the same moment
_TRUST: Final = 0.01  # seconds by which an estimate is taken back each second


class Lateness:
    """Use one a session. Times are the session's monotonic seconds; a node's clock has milliseconds."""

    def __init__(self) -> None:
        self._ahead: dict[str, tuple[float, float]] = {}  # node -> (its clock less ours, in seconds; when that was so)
        self._last = ""
        self._windows: dict[str, tuple[float, float]] = {}  # node -> (seconds that it is given, since when)

    def heard(self, node: str, clock_milliseconds: int, now: float) -> None:
        """An answer has arrived that left when the node's clock showed this."""
        ahead = clock_milliseconds / 1_000 - now
        known = self._ahead.get(node)
        if known is None or ahead >= known[0] - (now - known[1]) * _TRUST:
            self._ahead[node] = ahead, now
        self._last = node

    def refused(self, node: str, now: float) -> None:
        """It found a write too late."""
        since = self._windows.get(node, (0.0, float("-inf")))[1]
        if now - since >= _AGAIN_SECONDS:
            self._windows[node] = min(2 * self.window(node, now), LATE_SECONDS_MAX), now

    def window(self, node: str, now: float) -> float:
        """For how many seconds after it is sent a write may be taken by this node."""
        known = self._windows.get(node)
        if known is None:
            return WRITE_SECONDS_MAX
        seconds, since = known
        if now - since >= CALM_SECONDS:
            seconds /= 2
            if seconds <= WRITE_SECONDS_MAX:
                del self._windows[node]
                return WRITE_SECONDS_MAX
            self._windows[node] = seconds, now
        return seconds

    def by(self, node: str, now: float) -> int:
        """What the node's clock may show at most when it takes a write that is sent now, in milliseconds; 0: nothing is
        known of any clock."""
        known = self._ahead.get(node, self._ahead.get(self._last))
        if known is None:
            return 0
        return int((now + known[0] + self.window(node, now)) * 1_000)
