"""A node: a process's replicas, wired to a disk and a transport. Read `start` for the order in which it comes up.

    service.py      what agents ask           queries.py   pages of memories        feeds.py    subscriptions
    committer.py    journal, fsync            flusher.py   tables, text index       view.py     record -> memory
    replication.py  deltas, acks, repair      identity.py  under which name, and whether the disk may be believed
    gossip.py       who is alive and well
    reseeding.py    after being away for too long                           past.py     what was
    seats.py        what the node holds       steward.py   changes of the cluster   register.py where they are decided
    quorum_reads.py reads that several replicas answer                      strong.py   linearizable operations

The rules are in crdt_spine/core; here is only when things happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from crdt_spine.config import LimitsConfig
from crdt_spine.core.causality import missing
from crdt_spine.core.clock import HybridClock, at_milliseconds, milliseconds_of
from crdt_spine.core.drift import describe
from crdt_spine.core.levels import Overrides
from crdt_spine.core.membership import Member, Membership, to_json
from crdt_spine.core.messages import (
    Delete,
    FeedClose,
    FeedCommand,
    FeedCredit,
    FeedOpen,
    Hello,
    NodeState,
    Unreadable,
    encode,
)
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.replica import Entry, Refused, Replica, Turn
from crdt_spine.core.retirement import Retirement
from crdt_spine.core.subjects import DISCOVERY_SUBJECT, Subjects
from crdt_spine.errors import ConfigError
from crdt_spine.node.committer import Committer
from crdt_spine.node.feeds import Feeds
from crdt_spine.node.fences import FenceKeeper
from crdt_spine.node.flusher import Flusher
from crdt_spine.node.gossip import Fares, Gossiper
from crdt_spine.node.identity import Identity
from crdt_spine.node.metrics import Metrics
from crdt_spine.node.past import PastReader
from crdt_spine.node.queries import Queries
from crdt_spine.node.quorum_reads import QuorumReads
from crdt_spine.node.register import Register, beginning, saved_in
from crdt_spine.node.replication import Replication
from crdt_spine.node.reseeding import Reseeding
from crdt_spine.node.seats import Deltas, Seats
from crdt_spine.node.service import Refusal, Service
from crdt_spine.node.share import Demand
from crdt_spine.node.steward import Steward
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.node.strong import StrongOperations
from crdt_spine.storage.engine import Checkpoint, Engine, PartitionSummary, StorageFull
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Message, Subscription, Transport
from crdt_spine.transport.local import LocalCell

log = logging.getLogger(__name__)

CANCEL_SECONDS = 1.0  # before a task that has not ended is told again
EXPIRED_AT_ONCE = 200
EXPIRE_SECONDS = 1.0
SILENCE_SAVED_SECONDS = 10.0  # at most so often, and ...
SILENCE_LOST_MAX = 0.01  # ... as this share of a retirement: how much silence a restart may forget
REACHABLE_MILLISECONDS = 20  # for as long a node believes what it found of its peers

_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_feed: Callable[[bytes], FeedCommand] = msgspec.json.Decoder(FeedOpen | FeedCredit | FeedClose).decode


class Node:
    """One node. `hello` describes its cluster; it is in `hello.nodes`."""

    def __init__(
        self,
        id: str,
        hello: Hello,
        engine: Engine,
        transport: Transport,
        *,
        zone: str | None = None,
        limits: LimitsConfig | None = None,
        register: Register | None = None,
        membership: Membership | None = None,
    ) -> None:
        self.id = id
        self.hello = hello
        self.engine = engine
        self.transport = transport
        self.started = time.time()
        checkpoint = engine.checkpoint
        check_folder(checkpoint.extra, hello, id)
        kept = saved_in(checkpoint.extra)
        newest = membership or kept or beginning(hello)
        saved = kept or newest
        self.register = register or Register(LocalCell(to_json(newest)))
        peers = saved.peers_of(id)
        self.seats = Seats(id, hello, self.register, saved, newest, checkpoint.extra.get("wiping", ()))
        self.identity = Identity(id, hello.region, checkpoint.extra, self._write_checkpoint, self._on_serving)
        own = limits or LimitsConfig()
        self.store = RecordStore(engine, own.cache_bytes)
        clock = HybridClock(checkpoint.extra.get("clock", 0))
        quorum = min(hello.write_quorum, hello.factor)
        # Where each partition is on one node alone, nobody waits for anybody, and nobody could be reseeded.
        nodes = saved.nodes if hello.factor > 1 else [id]
        retirement = Retirement(id, nodes, self.identity.disk, own.replica_retirement)
        retirement.restore(checkpoint.extra)
        self.replica = Replica(
            id, self.identity.actor, self.store, clock, peers, quorum, drift=own.clock_drift_milliseconds,
            retirement=retirement,
        )  # fmt: skip
        for number, summary in checkpoint.partitions.items():
            partition = self.replica.partitions.get(number)
            if partition is not None:
                partition.vector = dict(summary.vector)
                partition.memories, partition.tombstones = summary.memories, summary.tombstones
                partition.forgotten = dict(summary.forgotten)
                known = summary.forgotten_time
                partition.forgotten_time = clock.highest if known is None else known
        self.committer = Committer(self.replica, engine, self._settled, checkpoint.through)
        self.demand = Demand(self._operations, self._operations_elsewhere)
        self.flusher = Flusher(self.store, engine, self.committer, self._checkpoint, self.demand)
        self.queries = Queries(self.store, engine, self.committer, self.flusher, hello.partitions)
        self.past = PastReader(self.store, engine, self.committer)
        self.replica.report_to(self.store.find, self.store.replace)
        self.subjects = Subjects(hello.cluster)
        self.replica.fences.restore(checkpoint.extra)
        self.replica.promises.restore(checkpoint.extra, self.replica.partitions)
        self.fences = FenceKeeper(id, self.replica, self.committer, transport, self.subjects)
        self.replication = Replication(
            id, hello.region, zone, self.replica, self.store, self.committer, transport, self.subjects, self._done,
            self.demand, None if limits is None else limits.tombstone_seconds,
        )  # fmt: skip
        self.identity.connect(self.replica, self.replication, self.committer)
        self.reseeding = Reseeding(
            self.replication, self.store, self.committer, engine, self._write_checkpoint, self._on_serving
        )
        self.feeds = Feeds(self.replica, self.store, self.committer, transport, time.monotonic)
        self.quorum_reads = QuorumReads(
            self.replica, self.store, self.committer, transport, self.subjects, hello.partitions,
            self.replication.alive, lambda: self.replication.believed,
        )  # fmt: skip
        self.strays: StrayKeeper | None = None
        if hello.placement != "hash":
            self.strays = StrayKeeper(
                id, hello.placement, hello.partitions, self.replica.durable, transport, self.subjects,
                lambda: self.seats.layout.replicas,
            )  # fmt: skip
            self.strays.restore(checkpoint)
            self.replica.note_strays(self.strays.own)
            self.replication.strays = self.strays
        self.service = Service(
            id, self.replica, self.store, self.committer, self.queries, self.past, transport, hello.partitions,
            self._may_write, self.status, self.quorum_reads, hello.read_quorum, self.strays,
        )  # fmt: skip
        self.service.overrides = Overrides(hello.overrides)
        self.service.said_since = self.replication.said_since
        self.strong = StrongOperations(
            self.replica, hello.partitions, self.committer, self.replication, transport, self.subjects,
            self.service.strongly_done, lambda: self.seats.membership.epoch,
        )  # fmt: skip
        self.service.strong = self.strong
        self.strong.abstains = self.replication.abstains = self._abstains
        self.replication.on_acked = self.strong.acked
        self.deltas = Deltas(hello.partitions, self._listen_to_deltas)
        self.seats.connect(
            self.replica, self.store, self.committer, self.flusher, self.identity, self.replication, self.feeds,
            self.service, self.deltas, self._done, self._on_serving,
        )  # fmt: skip
        self.replication.seated = self.seats.hear
        self.replication.renaming = lambda: self.identity.actor != self.replica.actor
        self.steward = Steward(self.seats, self.register, self.replication)
        self.replication.on_pulled = self.steward.pulled
        if register is not None:
            self.service.reshape = self.steward.propose
        self.service.pulled = self.replication.is_pulled
        self.replication.awaited = lambda: self.service.parked
        self.metrics = Metrics(self.replica, self.replication, engine, self.service.load)
        self.health = Gossiper(id, zone, transport, self.subjects, lambda: self.seats.seen.nodes, self._fares)
        self.gossips = register is not None  # an embedded node is alone
        self.service.down = lambda: self.health.away
        self.refused_feeds = 0
        self._reachable: set[str] = set()
        self._reachable_at = 0
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._joining: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] | None = None

    # -- coming up and going down -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover, make sure of the own identity, then serve; a node that can't believe its disk answers from then on,
        and serves once it has compared it with its peers'."""
        self.failed = asyncio.get_running_loop().create_future()
        self._recover()
        self._run(self.committer.run())
        await self.identity.begin()
        await self.seats.begin()
        subjects = self.subjects
        await self._listen(subjects.ack(self.id), self.replication.take_ack)
        await self._listen(subjects.sync(self.id), self.replication.take_request)
        await self._listen(subjects.all_vectors, self.replication.take_announcement)
        await self.deltas.hold(self.replica.partitions)
        if self.replica.retirement.expelled:
            self.replication.expelled.set()
        if self.gossips:
            await self._listen(subjects.gossip(self.id), self.health.take)
            self._run(self.health.run())
        self._run(self.replication.run())
        self._run(self.flusher.run())
        await self.identity.handshake()
        self.service.closed = self.identity.problem or self.reseeding.problem
        self._run(self.feeds.run())
        self._run(self._expire())
        await self._listen(subjects.record(self.id), self.quorum_reads.take)
        if self.strays is not None:
            await self._listen(subjects.strays(self.id), self.strays.take)
        self._subscriptions += await self.fences.start()
        self._subscriptions += await self.strong.start()
        await self._listen(subjects.rpc(self.id), self.service.take)
        await self._listen(subjects.feed(self.id), self._take_feed)
        await self._listen(DISCOVERY_SUBJECT, self._introduce)
        if not self.identity.to_compare:
            self._on_serving("")
        if self.gossips:
            self._run(self.fences.ask_others())
        self._run(self.strong.run())
        self._run(self.identity.run())
        self._run(self.reseeding.run())
        self._run(self._save_silence())
        self._run(self.seats.run())
        self._run(self.seats.wipe())
        self._run(self.steward.run())

    def join(self, member: Member) -> None:
        """Become a node of the cluster, as soon as that can be: it is not one yet."""
        self._joining = asyncio.get_running_loop().create_task(self.steward.join(member))
        self._joining.add_done_callback(_joined)

    async def stop(self) -> None:
        """Take no more, make everything durable, leave nothing running."""
        self.replication.state = "stopping"
        with contextlib.suppress(Exception):
            self.replication.announce()
            self.health.stop()
        await self.deltas.close()
        for subscription in self._subscriptions:
            with contextlib.suppress(Exception):
                await subscription.cancel()
        self.feeds.close()
        self.replication.close()
        self.service.close()
        self.quorum_reads.close()
        self.strong.close()
        if self.strays is not None:
            self.strays.close()
        if self._tasks and not self._tasks[0].done():
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.committer.barrier(), 2)
        tasks = pending = {*self._tasks, *filter(None, (self._joining,))}
        while pending:  # a request that is answered just then swallows the first cancellation (asyncio.wait_for)
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self.flusher.flush()
        self.queries.close()
        self.past.close()
        self.flusher.close()
        self.committer.close()
        self.engine.close()

    def _recover(self) -> None:
        """Replay what the journal has and the tables have not; remember the operations of the rows before that."""
        through = self.engine.checkpoint.through
        rows = 0
        for sequence, row in self.engine.journal_rows(0):
            entries = row.split(b"\n")
            self.committer.rows.append((sequence, row.count(b'"operation"')))
            if sequence <= through:
                self.replica.remember(entries, _decode_entry)
            else:
                self.replica.replay(entries, _decode_entry)
                rows += 1
            self.committer.through = max(self.committer.through, sequence)
        self.replica.recovered()
        if rows:
            log.info("replayed %d journal rows", rows)

    async def _listen(self, subject: str, handler: Callable[[Message], Awaitable[None] | None]) -> None:
        self._subscriptions.append(await self.transport.subscribe(subject, handler))

    async def _listen_to_deltas(self, number: int | None) -> Subscription:
        subject = self.subjects.deltas if number is None else self.subjects.delta(number)
        return await self.transport.subscribe(subject, self.replication.take_delta)

    @property
    def _peered(self) -> bool:
        return any(self.replica.peers.values())

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part of the node ended: only by being cancelled, or by a bug, and then the node must not go on."""
        if not task.cancelled() and self.failed is not None and not self.failed.done():
            self.failed.set_exception(task.exception() or RuntimeError("a part of the node ended"))

    # -- what is on the disk, besides memories -----------------------------------------------------------------------

    def _checkpoint(self) -> Checkpoint:
        """What the tables will have after a flush of everything that is dirty at this instant."""
        return Checkpoint(
            through=self.committer.through,
            partitions={
                number: PartitionSummary(dict(p.vector), p.memories, p.tombstones, dict(p.forgotten), p.forgotten_time)
                for number, p in self.replica.partitions.items()
            },
            extra={
                "cluster": self.hello.cluster, "region": self.hello.region, "node": self.id,
                "partitions": self.hello.partitions, "clock": self.replica.clock.highest, **self.identity.saved,
                **self.replica.retirement.saved, **self.seats.saved, **self.replica.fences.saved,
                **self.replica.promises.saved,
                **({} if self.strays is None else self.strays.saved),
            },
        )  # fmt: skip

    async def _write_checkpoint(self) -> None:
        await self.flusher.flush()

    async def _save_silence(self) -> None:
        """Keep on the disk how long others have been silent, and who is retired, also where nobody writes."""
        retirement = self.replica.retirement
        pause = max(SILENCE_SAVED_SECONDS, retirement.seconds * SILENCE_LOST_MAX)
        saved, retired = time.monotonic(), len(retirement.retired)
        while True:
            await asyncio.sleep(EXPIRE_SECONDS)
            due = retirement.said() and time.monotonic() - saved >= pause
            if due or retired != len(retirement.retired):
                with contextlib.suppress(StorageFull):
                    await self.flusher.flush()
                    saved, retired = time.monotonic(), len(retirement.retired)

    # -- the ways between the parts ---------------------------------------------------------------------------------

    def _settled(self, turn: Turn, done: list[Waiting]) -> None:
        self.replication.settled(turn)
        self.strong.settled(turn)
        self.service.done(done)
        if turn.events:
            self.feeds.settled(turn.events, turn.repeats)
        self.service.settled()

    def _on_serving(self, problem: str) -> None:
        """Serve agents from now on, or send them elsewhere because of `problem`."""
        problem = self.reseeding.problem or problem
        self.service.closed = problem
        self.replication.believed = not problem
        if problem:
            self.strong.void()
            self.feeds.dismiss(problem)
            self.service.settled()
        if self.replication.state != "stopping":
            self.replication.state = "starting" if problem else "up"
            self.replication.announce()

    def _operations(self) -> int:
        """How much the agents have asked so far."""
        return self.service.reads + self.service.counts["writes"]

    def _operations_elsewhere(self) -> float:
        """How much they ask of the other nodes, a second."""
        return self.health.load_elsewhere

    def _done(self, done: list[Waiting]) -> None:
        if done:
            self.service.done(done)

    def _may_write(self, number: int, acks: int, now: int) -> Refusal | None:
        """Why a write of this partition that needs that many replicas can't be taken at `now` (milliseconds); None: it
        can."""
        ahead = self.replication.clock_ahead
        if ahead:
            return Refusal(f"the clock of node {self.id} is {describe(ahead)}")
        if self._peered and (stamps := self._stamps_ahead(now)):
            return Refusal(
                f"the stamps of node {self.id} are {stamps / 1000:.1f} s ahead of its clock, as that was wrong"
            )
        needed = min(acks or self.replica.write_quorum, self.replica.counting[number])
        if needed <= 1:
            return None
        if abs(now - self._reachable_at) > REACHABLE_MILLISECONDS:
            self._reachable, self._reachable_at = self.replication.reachable(), now
        if self._reachable.issuperset(self.replica.peers[number]):
            return None  # mostly; asked for each write
        others = self.replica.counting_peers(number)
        missing = tuple(sorted(node for node in others if node not in self._reachable))
        reached = 1 + len(others) - len(missing)
        if reached >= needed:
            return None
        return Refusal(
            f"quorum: node {self.id} reaches {reached} of the {needed} replicas that the write needs, not "
            f"{', '.join(missing)}", reached, needed, missing,
        )  # fmt: skip

    def _abstains(self) -> bool:
        """Would peers not take its stamps, or are they wrong?"""
        return bool(self.replication.clock_ahead or (self._peered and self._stamps_ahead(_now())))

    def _stamps_ahead(self, now: int) -> int:
        """By how many milliseconds the next stamp would be further ahead than peers take it (rule 10): the clock was
        wrong, and stamps never go back. 0: it would not."""
        ahead = milliseconds_of(self.replica.clock.highest) - now
        return ahead if ahead > self.replica.drift else 0

    def _take_feed(self, message: Message) -> None:
        try:
            command = _decode_feed(message.payload)
        except Unreadable:
            self.refused_feeds += 1
            return
        if self.service.closed and isinstance(command, FeedOpen):
            self.feeds.refuse(command.inbox, command.feed, self.service.closed)
        else:
            self.feeds.command(command, message.reply)

    def _fares(self) -> Fares:
        return Fares(
            state=self.state, operations=self._operations(), waiting=self.service.waiting,
            commit_seconds=self.committer.seconds, epoch=self.seats.epoch, turn=self.committer.through,
            vectors=self.replica.durable,
        )  # fmt: skip

    def _introduce(self, message: Message) -> None:
        if message.reply:
            hello = msgspec.structs.replace(
                self.seats.hello, node=self.id, state=self.state, now=_now(), down=self.health.away
            )
            self.transport.send(message.reply, encode(hello))

    async def _expire(self) -> None:
        """Delete what is past its time, where this node is the first replica of those that are there; fail what waits
        too long for a quorum."""
        expired = 0.0
        while True:
            await asyncio.sleep(EXPIRE_SECONDS / (4 if self.service.waiting or self.service.parked else 2))
            self.service.load.look()
            self.service.failed(self.replica.expire(_now()))
            self.service.settled()
            mute = self.committer.full or self.service.closed or self._abstains()
            if time.monotonic() - expired < EXPIRE_SECONDS or mute:
                continue
            expired = time.monotonic()
            present = {self.id} | self.replication.alive()
            for id in self._expired():
                record = self.store.get(id)
                number = self.seats.layout.partition_of(id)
                replicas = self.seats.layout.replicas[number]
                first = next((node for node in replicas if node in present), "")
                mine = first == self.id and number in self.service.writable
                if mine and record is not None and record.alive and record.expired(at_milliseconds(_now())):
                    with contextlib.suppress(Refused):
                        self.replica.delete_expired(number, Delete(i=0, id=id), _now())
                        self.committer.touch()

    def _expired(self) -> list[str]:
        """Memories past their time, some of those in the tables and all that are not there yet."""
        now = at_milliseconds(_now())
        return self.store.expired(now) + self.engine.expired(now, EXPIRED_AT_ONCE)

    # -- status -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> NodeState:
        return "full" if self.committer.full else self.replication.state

    def _problem(self) -> str | None:
        ahead = self.replication.clock_ahead
        clock = f"its clock is {describe(ahead)}: it takes no writes" if ahead else ""
        if not clock and self._peered and (stamps := self._stamps_ahead(_now())):
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
        now = _now()
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

    async def status(self) -> msgspec.Raw:
        """The node's report, as `spine status --json` shows it."""
        replication = self.replication
        partitions = self.replica.partitions.values()
        alive = replication.alive()
        behind = {
            node: sum(
                missing(self.replica.durable.get(number, {}), vector)
                for number, vector in peer.announcement.vectors.items()
                if number in self.replica.durable
            )
            for node, peer in replication.peers.items()
            if node in alive
        }
        refused = self.service.counts["refused"] + replication.counts["refused"] + self.refused_feeds
        refused += self.quorum_reads.counts["records_refused"] + self.health.counts["refused"]
        refused += self.fences.refused
        pages, pages_read = self.engine.pages()
        report = {
            "id": self.id,
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
            "gossip": self.health.report() if self.gossips else None,
            "peers": {
                node: {"alive": node in alive, "state": peer.announcement.state, "lag_changes": peer.lag}
                for node, peer in replication.peers.items()
            },
            "unflushed": len(self.store.dirty) + len(self.store.flushing),
            "text_backlog": self.flusher.text_backlog,
            "waiting_changes": sum(p.waiting_changes for p in partitions),
            "waiting_writes": self.service.waiting,
            "feeds": len(self.feeds.feeds),
            "quorum_failures": self.service.counts["quorum_failures"],
            "messages_refused": refused,
            "counts": {
                "reads": self.service.reads,
                **self.service.counts,
                **replication.counts,
                **self.quorum_reads.counts,
                **self.strong.counts,
                **({} if self.strays is None else self.strays.counts),
                "retired_refused": self.replica.retirement.refused.total(),
                "tables_pages": pages,
                "since_pages_read": pages_read,
                "sync_pages_sent": replication.giving.pages,
                "sync_seconds_giving": round(replication.giving.seconds, 3),
                "sync_pages_taken": replication.taking.pages,
                "sync_seconds_taking": round(replication.taking.seconds, 3),
            },
        }
        return msgspec.Raw(encode(report))


def _joined(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("this node could not join the cluster", exc_info=task.exception())


def check_folder(extra: Mapping[str, Any], hello: Hello, node: str) -> None:
    """Raises ConfigError where a checkpoint's `extra` is another cluster's, or another node's."""
    here = {"cluster": hello.cluster, "region": hello.region, "node": node, "partitions": hello.partitions}
    for key, value in here.items():
        if extra.get(key, value) != value:
            raise ConfigError(
                f"this data folder belongs to {key} {extra[key]!r}, the configuration says {value!r}; "
                "give the node its own folder, or the folder its own configuration"
            )


def _now() -> int:
    return time.time_ns() // 1_000_000
