"""A node's report, as `spine status --json` shows it: it reads what the other parts say, and changes nothing.

metrics.py has its partitions. crdt_spine/report.py makes one of several nodes' reports.
"""

from __future__ import annotations

import os
import time
from typing import Any

from crdt_spine import wall_clock
from crdt_spine.core.causality import missing
from crdt_spine.core.drift import describe
from crdt_spine.core.messages import NodeState
from crdt_spine.core.replica import Replica
from crdt_spine.node.admission import Admission
from crdt_spine.node.committer import Committer
from crdt_spine.node.feeds import Feeds
from crdt_spine.node.fences import FenceKeeper
from crdt_spine.node.flusher import Flusher
from crdt_spine.node.gossip import Gossiper
from crdt_spine.node.identity import Identity
from crdt_spine.node.lag import shortfalls
from crdt_spine.node.load import Load
from crdt_spine.node.metrics import Metrics
from crdt_spine.node.quorum_reads import QuorumReads
from crdt_spine.node.replication import Replication
from crdt_spine.node.reseeding import Reseeding
from crdt_spine.node.steward import Steward
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.node.strong import StrongOperations
from crdt_spine.storage.engine import Engine
from crdt_spine.storage.records import RecordStore


class Report:
    """Makes the report."""

    def __init__(
        self, replica: Replica, store: RecordStore, engine: Engine, committer: Committer, flusher: Flusher,
        replication: Replication, identity: Identity, reseeding: Reseeding, admission: Admission, load: Load,
        steward: Steward, gossiper: Gossiper | None, feeds: Feeds, fences: FenceKeeper,
        quorum_reads: QuorumReads, strong: StrongOperations, strays: StrayKeeper | None,
    ) -> None:  # fmt: skip
        self.replica = replica
        self.store = store
        self.engine = engine
        self.committer = committer
        self.flusher = flusher
        self.replication = replication
        self.identity = identity
        self.reseeding = reseeding
        self.admission = admission
        self.load = load
        self.steward = steward
        self.gossiper = gossiper  # in a cluster
        self.feeds = feeds
        self.fences = fences
        self.quorum_reads = quorum_reads
        self.strong = strong
        self.strays = strays
        self.metrics = Metrics(replica, replication, engine, load)
        self.started = time.time()

    @property
    def state(self) -> NodeState:
        return "full" if self.committer.full else self.replication.state

    def make(self) -> dict[str, Any]:
        """All of it."""
        replication = self.replication
        partitions = self.replica.partitions.values()
        alive = replication.peers.alive()
        behind = {
            node: sum(
                missing(self.replica.durable.get(number, {}), vector)
                for number, vector in peer.announcement.vectors.items()
                if number in self.replica.durable
            )
            for node, peer in replication.peers.items()
            if node in alive
        }
        return {
            "id": self.replica.node,
            "state": self.state,
            "problem": self._problem(),
            "zone": replication.zone,
            "pid": os.getpid(),
            "actor": self.replica.actor,
            "clock_ahead_milliseconds": replication.clock_ahead,
            "partitions_to_compare": len(self.identity.to_compare),
            "uptime_seconds": round(time.time() - self.started, 1),
            "partitions": len(partitions),
            "memories": sum(p.memories for p in partitions),
            "tombstones": sum(p.tombstones for p in partitions),
            **self._collection(),
            "replication_lag_seconds": replication.lag_seconds(),
            "replication_lag_changes": max(behind.values(), default=0),
            **self.metrics.report(),
            "cluster": self.steward.report(),
            "gossip": None if self.gossiper is None else self.gossiper.report(),
            "peers": {node: self._peer(node, node in alive) for node in replication.peers},
            "unflushed": len(self.store.dirty) + len(self.store.flushing),
            "text_backlog": self.flusher.text_backlog,
            "waiting_changes": sum(p.waiting_changes for p in partitions),
            "waiting_writes": self.load.waiting,
            "feeds": len(self.feeds.feeds),
            "quorum_failures": self.load.totals["quorum_failures"],
            "messages_refused": self._refused(),
            "counts": self._counts(),
        }

    def _peer(self, node: str, alive: bool) -> dict[str, Any]:
        """What is known of a peer: for the cluster's report, should it not answer itself."""
        announcement = self.replication.peers[node].announcement
        behind = shortfalls(self.replica, node, announcement.actor)
        return {
            "alive": alive,
            "state": announcement.state,
            "silent_seconds": round(self.replication.peers.silence()[node], 1),
            "lag_changes": sum(behind.values()),
            "behind": {str(number): changes for number, changes in sorted(behind.items())},
        }

    def _problem(self) -> str | None:
        ahead = self.replication.clock_ahead
        clock = f"its clock is {describe(ahead)}: it takes no writes" if ahead else ""
        if not clock and (stamps := self.admission.stamps_ahead(wall_clock.now())):
            clock = (
                f"its clock was wrong, and its stamps are {stamps / 1000:.1f} s ahead: it takes no writes until then"
            )
        double = self.replication.double
        twice = f"another process announces as this node, under the name {double}: stop one of them" if double else ""
        return "; ".join(filter(None, (self.reseeding.problem, self.identity.problem, clock, twice))) or None

    def _collection(self) -> dict[str, Any]:
        """How old the oldest tombstone is (by those in the tables; others are younger), for which replicas tombstones
        that are old enough stay, for how many seconds those have been silent, and which disks are retired."""
        replication, retirement = self.replication, self.replica.retirement
        now = wall_clock.now()
        ages = {
            number: ((now - (tombstone.life.origin.time >> 16)) / 1000, tombstone)
            for number, tombstone in replication.oldest_tombstones().items()
        }
        waits = {
            node
            for number, (age, tombstone) in ages.items()
            if age >= replication.tombstone_seconds
            for node in self.replica.waits_for(number, tombstone)
        }
        oldest = max((age for age, _ in ages.values()), default=None)
        return {
            "oldest_tombstone_seconds": None if oldest is None else round(max(0.0, oldest), 1),
            "tombstones_wait_for": {node: round(retirement.silent.get(node, 0.0), 1) for node in sorted(waits)},
            "retired": sorted(retirement.retired),
        }

    def _refused(self) -> int:
        refused = self.load.totals["refused"] + self.replication.counts["refused"] + self.feeds.refused
        refused += self.quorum_reads.counts["records_refused"] + self.fences.refused
        return refused + (0 if self.gossiper is None else self.gossiper.counts["refused"])

    def _counts(self) -> dict[str, Any]:
        replication = self.replication
        pages, pages_read = self.engine.pages()
        return {
            "reads": self.load.reads,
            **self.load.totals,
            **replication.counts,
            **self.quorum_reads.counts,
            **self.strong.counts,
            **({} if self.strays is None else self.strays.counts),
            "retired_refused": self.replica.retirement.refused.total(),
            "tables_pages": pages,
            "since_pages_read": pages_read,
            "sync_pages_sent": replication.since.share.pages,
            "sync_seconds_giving": round(replication.since.share.seconds, 3),
            "sync_pages_taken": replication.pulling.share.pages,
            "sync_seconds_taking": round(replication.pulling.share.seconds, 3),
        }
