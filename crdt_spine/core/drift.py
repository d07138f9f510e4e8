"""Is the own clock wrong? The peers say so, if anybody does (rule 10).

Every announcement carries its node's wall clock. One that comes from the future proves that its sender's clock is ahead
of the hearer's: the way takes time, so it can only look less. One that comes from the past proves nothing, for it may
have been long on its way. So a node hears from its peers' clocks that its own is behind, and from what they say of its
announcements (`Announcement.ahead`) that it is ahead; load alone never looks like a wrong clock.

A peer accuses when several announcements in a row are that far off, and takes it back by as many that are not. It may
be wrong itself: only a majority of the cluster's nodes counts, and only if their clocks agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

from crdt_spine.limits import CLOCK_DRIFT_MILLISECONDS_MAX

ANNOUNCEMENTS_IN_A_ROW: Final = 3


class _Peer:
    """By how many milliseconds the own clock was ahead (negative: behind), by a peer's newest announcements."""

    __slots__ = ("accuses", "ahead")

    def __init__(self) -> None:
        self.ahead: deque[int] = deque(maxlen=ANNOUNCEMENTS_IN_A_ROW)
        self.accuses = 0  # 1: of being ahead, -1: of being behind


class ClockWatch:
    """The own clock beside the others'; `nodes` is how many the cluster has, this one included."""

    def __init__(self, nodes: int, drift: int = CLOCK_DRIFT_MILLISECONDS_MAX) -> None:
        self.drift = drift
        self.majority = nodes // 2 + 1
        self._peers: dict[str, _Peer] = {}

    def change_nodes(self, others: Collection[str]) -> None:
        """The cluster has these other nodes from now on."""
        self.majority = (len(others) + 1) // 2 + 1
        self._peers = {node: peer for node, peer in self._peers.items() if node in others}

    def heard(self, node: str, theirs: int, now: int, ahead: int) -> None:
        """A peer's announcement of its time `theirs` is here `now`, by the own clock; it says that an announcement of
        this node was `ahead` when it came there. All are milliseconds."""
        peer = self._peers.setdefault(node, _Peer())
        peer.ahead.append(ahead if ahead > 0 else min(0, now - theirs))
        says = {self._direction(one) for one in peer.ahead}
        if len(peer.ahead) == ANNOUNCEMENTS_IN_A_ROW and len(says) == 1:
            peer.accuses = says.pop()

    def ahead(self, alive: Collection[str]) -> int:
        """By how many milliseconds the own clock is ahead (negative: behind), at least, if a majority of the nodes
        agrees on that, of the peers that are alive; else 0."""
        for direction in (1, -1):
            said = sorted(
                peer.ahead[-1] for node, peer in self._peers.items() if node in alive and peer.accuses == direction
            )
            for start in range(len(said) - self.majority + 1):
                agreed = said[start : start + self.majority]
                if agreed[-1] - agreed[0] <= 2 * self.drift:
                    return agreed[len(agreed) // 2]
        return 0

    def _direction(self, ahead: int) -> int:
        return 0 if abs(ahead) <= self.drift else 1 if ahead > 0 else -1


def describe(ahead: int) -> str:
    """A difference as a part of a sentence about a clock."""
    return f"{abs(ahead) / 1000:.1f} s {'ahead of' if ahead > 0 else 'behind'} the clocks of most nodes"
