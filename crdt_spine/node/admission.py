"""Why a write is not taken here now: too much to do, a full disk, a wrong clock, too few replicas heard for its quorum.

The coordinator (coordinator.py) asks for every write, before anything is done. Such a write was not applied, and its
session tries another replica.
"""

from __future__ import annotations

import msgspec

from crdt_spine.core.clock import milliseconds_of
from crdt_spine.core.drift import describe
from crdt_spine.core.replica import Replica
from crdt_spine.limits import REQUESTS_WAITING_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.load import Load
from crdt_spine.node.replication import Replication
from crdt_spine.storage.records import RecordStore

REACHABLE_MILLISECONDS = 20  # for as long a node believes what it found of its peers


class Refusal(msgspec.Struct, frozen=True):
    """Why a write is not taken; where that is for its quorum, how many replicas are reached, and which are not. The
    agent then asks all that are reached: it is a failed quorum, once, of the one for which this is `ours`."""

    message: str
    reached: int = 0
    needed: int = 0
    missing: tuple[str, ...] = ()
    ours: bool = False


class Admission:
    """Judges by what the other parts of the node say of themselves; keeps nothing but whom it reaches, for a moment."""

    def __init__(
        self, replica: Replica, store: RecordStore, committer: Committer, replication: Replication, load: Load
    ) -> None:
        self.replica = replica
        self.store = store
        self.committer = committer
        self.replication = replication
        self.load = load
        self._reachable: set[str] = set()
        self._reachable_at = 0

    def overload(self) -> str:
        """What is too much for this node; empty: nothing."""
        if self.committer.full:
            return f"the disk of node {self.replica.node} is full"
        if self.load.waiting >= REQUESTS_WAITING_MAX:
            return f"node {self.replica.node} has {self.load.waiting} writes waiting"
        if self.store.behind() >= 1:
            return f"the tables of node {self.replica.node} are {len(self.store.dirty)} memories behind"
        return ""

    def refusal(self, number: int, acks: int, now: int) -> Refusal | None:
        """Why a write of this partition that needs that many replicas (0: the write quorum) can't be taken at `now`
        (milliseconds), for another reason than `overload`; None: it can."""
        ahead = self.replication.clock_ahead
        if ahead:
            return Refusal(f"the clock of node {self.replica.node} is {describe(ahead)}")
        if stamps := self.stamps_ahead(now):
            wrong = f"{stamps / 1000:.1f} s ahead of its clock, as that was wrong"
            return Refusal(f"the stamps of node {self.replica.node} are {wrong}")
        needed = min(acks or self.replica.write_quorum, self.replica.counting[number])
        if needed <= 1:
            return None
        if abs(now - self._reachable_at) > REACHABLE_MILLISECONDS:
            self._reachable, self._reachable_at = self.replication.peers.reachable(), now
        if self._reachable.issuperset(self.replica.peers[number]):
            return None  # mostly; asked for each write
        others = self.replica.counting_peers(number)
        missing = tuple(sorted(node for node in others if node not in self._reachable))
        reached = 1 + len(others) - len(missing)
        if reached >= needed:
            return None
        starts = self.replication.peers.starts  # it sends agents elsewhere
        ours = all(node > self.replica.node for node in others if node not in missing and not starts(node))
        return Refusal(
            f"quorum: node {self.replica.node} reaches {reached} of the {needed} replicas that the write needs, not "
            f"{', '.join(missing)}", reached, needed, missing, ours,
        )  # fmt: skip

    def abstains(self, now: int) -> bool:
        """Would peers not take this node's stamps, or are they wrong?"""
        return bool(self.replication.clock_ahead or self.stamps_ahead(now))

    def stamps_ahead(self, now: int) -> int:
        """By how many milliseconds the next stamp would be further ahead than peers take it (rule 10): the clock was
        wrong, and stamps never go back. 0: it would not, or there are no peers."""
        ahead = milliseconds_of(self.replica.clock.highest) - now
        return ahead if ahead > self.replica.drift and any(self.replica.peers.values()) else 0
