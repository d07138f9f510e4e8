"""A node: a process's replicas, wired to a disk and a transport. Read `start` for the order in which it comes up.

    a write         service.py → coordinator.py (admission.py, ticket.py) → committer.py (worker.py) → replication.py →
                    the other replicas → acknowledgements.py → replication.py → coordinator.py →
                    answers.py; flusher.py later
    a read          service.py → reads.py (parking.py while it can't be answered, quorum_reads.py with others) →
                    view.py → answers.py
    a strong one    coordinator.py or reads.py → strong_requests.py → strong.py → strong_requests.py → answers.py
    a query         service.py → questions.py → queries.py or past.py → answers.py
    a subscription  feeds.py
    repair          replication.py (peers.py, lag.py) → pulling.py (repairs.py, share.py) → a peer's since.py

    identity.py     under which name, and whether the disk may be believed     recovery.py  what is taken up from it
    seats.py        what the node holds       steward.py  changes of the cluster            register.py  where they are
    serving.py      what agents are answered  levels.py   at which level                    stray_keeper.py  strays
    gossip.py       who is alive and well     fences.py   locks                             claim.py  one process a node
    reseeding.py    after being away too long expiry.py   what is past its time             agreement.py  one config
    report.py       how the node is           metrics.py  and its partitions                load.py  what agents ask

The rules are in crdt_spine/core; here is only when things happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from crdt_spine import wall_clock
from crdt_spine.config import LimitsConfig
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.levels import Overrides
from crdt_spine.core.membership import Member, Membership, to_json
from crdt_spine.core.messages import (
    Hello,
    NodeState,
    encode,
)
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.replica import Replica
from crdt_spine.core.retirement import Retirement
from crdt_spine.core.subjects import DISCOVERY_SUBJECT, Subjects
from crdt_spine.core.turn import Turn
from crdt_spine.node.admission import Admission
from crdt_spine.node.answers import Answers
from crdt_spine.node.committer import Committer
from crdt_spine.node.coordinator import Coordinator
from crdt_spine.node.expiry import Expiry
from crdt_spine.node.feeds import Feeds
from crdt_spine.node.fences import FenceKeeper
from crdt_spine.node.flusher import Flusher
from crdt_spine.node.gossip import Fares, Gossiper
from crdt_spine.node.identity import Identity
from crdt_spine.node.levels import Levels
from crdt_spine.node.load import Load
from crdt_spine.node.past import PastReader
from crdt_spine.node.queries import Queries
from crdt_spine.node.questions import Questions
from crdt_spine.node.quorum_reads import QuorumReads
from crdt_spine.node.reads import Reads
from crdt_spine.node.recovery import check_folder, replay, restore
from crdt_spine.node.register import Register, beginning, saved_in
from crdt_spine.node.replication import Replication
from crdt_spine.node.report import Report
from crdt_spine.node.reseeding import Reseeding
from crdt_spine.node.seats import Deltas, Seats
from crdt_spine.node.service import Service
from crdt_spine.node.serving import Serving
from crdt_spine.node.share import Demand
from crdt_spine.node.steward import Steward
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.node.strong import StrongOperations
from crdt_spine.node.strong_requests import StrongRequests
from crdt_spine.storage.engine import Checkpoint, Engine, PartitionSummary, StorageFull
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Message, Subscription, Transport
from crdt_spine.transport.local import LocalCell

log = logging.getLogger(__name__)

CANCEL_SECONDS = 1.0  # before a task that has not ended is told again
SILENCE_SECONDS = 1.0  # between two looks at how long others have been silent
SILENCE_SAVED_SECONDS = 10.0  # it is saved at most so often, and ...
SILENCE_LOST_MAX = 0.01  # ... as this share of a retirement: how much silence a restart may forget


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
        restore(self.replica, checkpoint)
        self.committer = Committer(self.replica, engine, self._settled, checkpoint.through)
        self.demand = Demand(lambda: self.load.operations, self._operations_elsewhere)
        self.flusher = Flusher(self.store, engine, self.committer, self._checkpoint, self.demand)
        self.queries = Queries(self.store, engine, self.committer, self.flusher, hello.partitions)
        self.past = PastReader(self.store, engine, self.committer)
        self.replica.report_to(self.store.find, self.store.replace)
        self.subjects = Subjects(hello.cluster)
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
            self.replication.peers.alive, lambda: self.replication.believed,
        )  # fmt: skip
        self.strays: StrayKeeper | None = None
        if hello.placement != "hash":
            self.strays = StrayKeeper(
                id, hello.placement, hello.partitions, self.replica.durable, transport, self.subjects,
                lambda: self.seats.layout.replicas,
            )  # fmt: skip
            self.strays.restore(checkpoint)
            self.replica.note_strays(self.strays.own)
            self.replication.strays = self.replication.since.strays = self.strays
        self.strong = StrongOperations(
            self.replica, hello.partitions, self.committer, self.replication, transport, self.subjects,
            lambda: self.seats.membership.epoch,
        )  # fmt: skip
        self.strong.abstains = self.replication.abstains = self._abstains
        self.replication.on_acked = self.strong.acked
        self.serving = Serving(self.replica.partitions)
        self.load = Load(hello.partitions)
        self.admission = Admission(self.replica, self.store, self.committer, self.replication, self.load)
        self.answers = Answers(self.replica, transport, self.serving, self.strays, lambda: self.health.away)
        levels = Levels(Overrides(hello.overrides), self.answers)
        self.strong_requests = StrongRequests(self.replica, self.strong, self.answers, self.load, self.serving)
        self.coordinator = Coordinator(
            hello.partitions, self.replica, self.store, self.committer, self.admission, self.strong_requests,
            self.answers, levels, self.load, self.serving,
        )  # fmt: skip
        reads = Reads(
            hello.partitions, self.replica, self.store, self.quorum_reads, self.strong_requests, self.answers, levels,
            self.load, self.serving, hello.read_quorum, self.strays is not None,
        )  # fmt: skip
        questions = Questions(
            hello.partitions, self.replica, self.queries, self.past, self.strays, self.status, self.answers,
            self.serving,
        )  # fmt: skip
        self.service = Service(
            hello.partitions, self.replica, self.committer, self.replication, reads, self.coordinator,
            self.strong_requests, questions, self.answers, self.load, self.serving,
        )  # fmt: skip
        self.parking = self.service.parking
        self.deltas = Deltas(hello.partitions, self._listen_to_deltas)
        self.seats.connect(
            self.replica, self.store, self.committer, self.flusher, self.identity, self.replication, self.feeds,
            self.coordinator, self.serving, self.deltas, self._done, self._on_serving,
        )  # fmt: skip
        self.replication.seated = self.seats.hear
        self.replication.renaming = lambda: self.identity.actor != self.replica.actor
        self.steward = Steward(self.seats, self.register, self.replication)
        self.replication.pulling.on_pulled = self.steward.pulled
        self.seats.on_change.append(self.strong.look_again)
        if register is not None:
            questions.propose = self.steward.propose
        self.replication.awaited = lambda: self.parking.occupied
        self.health = Gossiper(id, zone, transport, self.subjects, lambda: self.seats.seen.nodes, self._fares)
        self.gossips = register is not None  # an embedded node is alone
        self.expiry = Expiry(
            self.replica, self.store, engine, self.committer, self.replication, self.seats, self.admission,
            self.coordinator, self.parking, self.load, self.serving,
        )  # fmt: skip
        self.report = Report(
            self.replica, self.store, engine, self.committer, self.flusher, self.replication, self.identity,
            self.reseeding, self.admission, self.load, self.steward, self.health if self.gossips else None, self.feeds,
            self.fences, self.quorum_reads, self.strong, self.strays,
        )  # fmt: skip
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._joining: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] | None = None

    # -- coming up and going down -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover, make sure of the own identity, then serve; a node that can't believe its disk answers from then on,
        and serves once it has compared it with its peers'."""
        self.failed = asyncio.get_running_loop().create_future()
        replay(self.replica, self.committer, self.engine)
        self._run(self.committer.run())
        await self.identity.begin()
        await self.seats.begin()
        subjects = self.subjects
        await self._listen(subjects.ack(self.id), self.replication.take_ack)
        await self._listen(subjects.sync(self.id), self.replication.since.take)
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
        self.serving.closed = self.identity.problem or self.reseeding.problem
        self._run(self.feeds.run())
        self._run(self.expiry.run())
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
        self.answers.close()
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

    async def _listen(self, subject: str, handler: Callable[[Message], Awaitable[None] | None]) -> None:
        self._subscriptions.append(await self.transport.subscribe(subject, handler))

    async def _listen_to_deltas(self, number: int | None) -> Subscription:
        subject = self.subjects.deltas if number is None else self.subjects.delta(number)
        return await self.transport.subscribe(subject, self.replication.take_delta)

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
            await asyncio.sleep(SILENCE_SECONDS)
            due = retirement.said() and time.monotonic() - saved >= pause
            if due or retired != len(retirement.retired):
                with contextlib.suppress(StorageFull):
                    await self.flusher.flush()
                    saved, retired = time.monotonic(), len(retirement.retired)

    # -- the ways between the parts ---------------------------------------------------------------------------------

    def _settled(self, turn: Turn, done: list[Waiting]) -> None:
        self.replication.settled(turn)
        self.strong.settled(turn)
        self.coordinator.done(done)
        if turn.events:
            self.feeds.settled(turn.events, turn.repeats)
        self.parking.look_again()

    def _on_serving(self, problem: str) -> None:
        """Serve agents from now on, or send them elsewhere because of `problem`."""
        problem = self.reseeding.problem or problem
        self.serving.closed = problem
        self.replication.believed = not problem
        if problem:
            self.strong.void()
            self.feeds.dismiss(problem)
            self.parking.look_again()
        if self.replication.state != "stopping":
            self.replication.state = "starting" if problem else "up"
            self.replication.announce()

    def _operations_elsewhere(self) -> float:
        """How much they ask of the other nodes, a second."""
        return self.health.load_elsewhere

    def _done(self, done: list[Waiting]) -> None:
        if done:
            self.coordinator.done(done)

    def _abstains(self) -> bool:
        return self.admission.abstains(wall_clock.now())

    def _take_feed(self, message: Message) -> None:
        self.feeds.take(message, self.serving.closed)

    def _fares(self) -> Fares:
        return Fares(
            state=self.state, operations=self.load.operations, waiting=self.load.waiting,
            commit_seconds=self.committer.seconds, epoch=self.seats.epoch, turn=self.committer.through,
            vectors=self.replica.durable,
        )  # fmt: skip

    def _introduce(self, message: Message) -> None:
        if message.reply:
            hello = msgspec.structs.replace(
                self.seats.hello, node=self.id, state=self.state, now=wall_clock.now(), down=self.health.away
            )
            self.transport.send(message.reply, encode(hello))

    @property
    def state(self) -> NodeState:
        return self.report.state

    async def status(self) -> msgspec.Raw:
        """The node's report, as `spine status --json` shows it."""
        return msgspec.Raw(encode(self.report.make()))


def _joined(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("this node could not join the cluster", exc_info=task.exception())
