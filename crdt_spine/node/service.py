"""What agents ask of a node: operations in, results out, each as soon as it is ready.

Reads are answered at once, from what is durable; one whose token is ahead of this replica waits a moment and is then
sent elsewhere ("Behind"). Writes are answered when their quorum is reached. All answers of one loop turn to one agent
travel in one message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from crdt_spine.core.causality import Vector, join, join_into, version_text, within
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.document import Document, key_of, part
from crdt_spine.core.levels import Demand, Overrides, stricter
from crdt_spine.core.messages import (
    Conflicts,
    Delete,
    DocumentPart,
    Edit,
    EditDocument,
    Get,
    GetDocument,
    History,
    Operation,
    Query,
    Reach,
    Request,
    Reshape,
    Response,
    Result,
    Status,
    Store,
    Unreadable,
    Vectors,
    Write,
    encode,
)
from crdt_spine.core.open_documents import OpenDocuments
from crdt_spine.core.placement import partition_of
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Refused, Replica
from crdt_spine.core.strong import Answer, Ask
from crdt_spine.errors import InvalidInput
from crdt_spine.limits import (
    OPERATION_SECONDS_MAX,
    QUORUM_READS_MAX,
    READ_WAIT_SECONDS_MAX,
    REQUESTS_WAITING_MAX,
    STRONG_OPERATIONS_MAX,
    STRONG_SECONDS_MAX,
)
from crdt_spine.node.committer import Committer
from crdt_spine.node.load import Load
from crdt_spine.node.past import PastReader
from crdt_spine.node.queries import Queries
from crdt_spine.node.quorum_reads import Question, QuorumReads
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.node.strong import StrongOperations
from crdt_spine.node.view import encoded, shown
from crdt_spine.storage.records import UNPLACED, Entry, RecordStore
from crdt_spine.transport.base import Disconnected, Message, Transport
from crdt_spine.transport.pace import Pace

log = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(Request).decode
_to_msgpack = msgspec.msgpack.Encoder().encode

PACE_SECONDS_MAX = 0.001  # between two rounds of answers, if the first ...
PACE_RESULTS = 10  # ... had this many
UNREACHABLE_SECONDS_MAX = 1.5  # beyond READ_WAIT_SECONDS_MAX: for all peers to say that they have it not, either
RESPONSE_BYTES_TARGET = 256 * 1024


class Refusal(msgspec.Struct, frozen=True):
    """Why a write is not taken; where that is for its quorum, how many replicas are reached, and which are not."""

    message: str
    reached: int = 0
    needed: int = 0
    missing: tuple[str, ...] = ()


class Ticket:
    """A write, or a strong read, under way: whom to answer, and what the write gave."""

    __slots__ = ("demand", "inbox", "operation", "partition", "record", "seen")

    def __init__(self, inbox: str, operation: Write | Get, partition: int, demand: Demand | None = None) -> None:
        self.inbox = inbox
        self.operation = operation
        self.partition = partition
        self.demand = demand  # of an operation that nobody gave a level
        self.record: Record | None = None
        self.seen: Vector = {}  # of its partition when it was done


class Parked(msgspec.Struct, eq=False):
    """An operation that waits for its token, or for what it would show to be durable; a write with its request."""

    inbox: str
    operation: Operation
    token: Vectors
    request: Request | None
    deadline: float


class Asking(msgspec.Struct, eq=False):
    """A read that waits for other replicas. `entry` and `vector` are what this one had when it asked; the agent knows
    `wanted`."""

    inbox: str
    operation: Get
    entry: Entry | None
    vector: Vector
    wanted: Vector | None


class Answers(msgspec.Struct, eq=False):
    """What is to be said to one agent at the end of this loop turn."""

    results: list[Result]
    partitions: set[int]
    ahead: Vectors = {}  # what they show, of when they were made: more may be durable by now, which nobody was shown
    merged: Vectors = {}  # of that, what other replicas had


class Service:
    """The node's side of every agent's operations. `status` gives the node's own report."""

    def __init__(
        self,
        node: str,
        replica: Replica,
        store: RecordStore,
        committer: Committer,
        queries: Queries,
        past: PastReader,
        transport: Transport,
        partitions: int,
        may_write: Callable[[int, int, int], Refusal | None],
        status: Callable[[], Awaitable[msgspec.Raw]],
        quorum_reads: QuorumReads,
        read_quorum: int = 1,
        strays: StrayKeeper | None = None,
    ) -> None:
        self.node = node
        self.replica = replica
        self.store = store
        self.committer = committer
        self.queries = queries
        self.past = past
        self.transport = transport
        self.partition_count = partitions
        self.may_write = may_write
        self.status = status
        self.quorum_reads = quorum_reads
        self.read_quorum = read_quorum
        self.strays = strays
        self.overrides = Overrides()  # of the cluster
        self.said_since: Callable[[str], dict[str, Vectors]] = lambda actor: {}  # replication.py
        self.readable: frozenset[int] = frozenset(replica.partitions)  # the partitions of which agents are answered ...
        self.writable = self.readable  # ... and take writes here (seats.py)
        self.strong: StrongOperations  # the node's
        self.epoch = 0  # of the membership that this is by
        self.down: Callable[[], tuple[str, ...]] = tuple  # the nodes that are believed to be away
        self.reshape: Callable[[Reshape, str], Awaitable[msgspec.Raw]] | None = None  # steward.py
        self.load = Load(partitions)
        self.pulled: Callable[[int], bool] = lambda number: False  # is a partition behind, and being repaired?
        self.counts: Counter[str] = Counter()
        self.closed = ""  # why agents are to go elsewhere with everything but questions about the node itself
        self.reads = 0
        self.waiting = 0  # operations taken and not yet answered
        self._answers: dict[str, Answers] = {}
        self._pace = Pace(self._send, PACE_SECONDS_MAX, PACE_RESULTS)
        self._parked: list[Parked] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # -- operations in ----------------------------------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """One request. Garbage is counted and otherwise ignored."""
        if not message.reply:
            self.counts["refused"] += 1
            return
        try:
            request = _decode(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        inbox, _, _ = message.reply.rpartition(
            "."
        )  # its last token is the request's: answers to several share a message
        token = request.token
        now = time.time_ns() // 1_000_000
        for operation in request.operations:
            if self.closed and not isinstance(operation, Status):
                self._turn_away(inbox, operation)
            elif type(operation) is Get:
                if not self._get(inbox, operation, token, now):
                    self._park(inbox, operation, token)
            elif isinstance(operation, Write):
                if not self._write(inbox, operation, request, now):
                    self._park(inbox, operation, token, request)
            elif not self._other(inbox, operation, token):
                self._park(inbox, operation, token)

    def _get(self, inbox: str, operation: Get, token: Vectors, now: int) -> bool:
        """False: not yet."""
        id = operation.id
        entry = self.store.entry(id)
        if entry is None:
            number = partition_of(id, self.partition_count)
        else:
            number = entry.partition
            if number == UNPLACED:
                number = entry.partition = partition_of(id, self.partition_count)
        if number not in self.readable:
            self._answer(inbox, Result(i=operation.i, error="NotHere"))
            return True
        durable = self.replica.durable[number]
        wanted = token.get(number)
        if operation.strong:
            if wanted and not within(wanted, durable):
                return False
            self._do_strongly(Ask(Ticket(inbox, operation, number), number, operation))
            return True
        news = wanted != durable
        demand = None
        if operation.level is not None:
            demand = self._demand(operation, None if entry is None else entry.record)
            if self._more_is_demanded(inbox, operation, demand):
                return True
        relaxed = demand is not None and demand.level == "eventual"
        if (news and wanted and not relaxed and not within(wanted, durable)) or id in self.replica.unsettled:
            return False
        self.reads += 1
        self.load.counts[number] += 1
        reads = 1 if relaxed else operation.reads or self.read_quorum
        if reads > 1 and (reads := min(reads, self.replica.counting[number])) > 1:
            self._ask_others(Asking(inbox, operation, entry, durable, wanted), number, reads)
            return True
        memory = None if entry is None else shown(entry, at_milliseconds(now), self.replica.documents)
        result = Result(i=operation.i) if memory is None else Result(i=operation.i, memory=memory)
        result = _told(result, demand)
        record = None if entry is None else entry.record
        self._answer(inbox, result)
        if news:  # else the agent knows this vector already
            self._showed(inbox, number, durable)
        if record is not None and not within(record.version, durable):  # a sync that is not over has brought it
            self._showed(inbox, number, record.version)
        return True

    def _ask_others(self, asking: Asking, number: int, needed: int) -> None:
        """A read that more than this replica answers."""
        if self.quorum_reads.open >= QUORUM_READS_MAX:
            message = f"node {self.node} has {self.quorum_reads.open} reads waiting"
            self._answer(asking.inbox, Result(i=asking.operation.i, error="Busy", message=message))
            return
        record = None if asking.entry is None else asking.entry.record
        self.quorum_reads.ask(number, asking.operation.id, record, needed, self._asked, asking)

    def _asked(self, question: Question) -> None:
        """What several replicas have, or who of them did not answer; then another node is to try."""
        asking: Asking = question.ticket
        i, id, entry = asking.operation.i, asking.operation.id, asking.entry
        if not question.enough:
            self.counts["quorum_failures"] += 1
            missing = self.quorum_reads.missing(question)
            message = (
                f"{len(question.answered)} of {question.needed} replicas answered the read of {id!r}; "
                f"{', '.join(missing)} did not within {READ_WAIT_SECONDS_MAX:g} s; nothing was read"
            )
            result = Result(
                i=i, error="Busy", message=message, outcome="not applied", acks_seen=len(question.answered),
                acks_needed=question.needed, missing=missing,
            )  # fmt: skip
            self._answer(asking.inbox, result)
            return
        record, now = question.record, self._now()
        demand = None if asking.operation.level is None else self._demand(asking.operation, record)
        if demand is not None and self._more_is_demanded(asking.inbox, asking.operation, demand):
            return
        if entry is not None and record is entry.record:
            memory = shown(entry, now, self.replica.documents)
        elif record is None or not record.alive or record.expired(now):
            memory = None
        else:
            memory = msgspec.Raw(encoded(record))
        found = Result(i=i) if memory is None else Result(i=i, memory=memory)
        self._answer(asking.inbox, _told(found, demand))
        # Not what is durable by now: the answer does not show it, and its agent must not be taken to have seen it.
        seen = asking.vector if record is None else join(asking.vector, record.version)
        answers = self._answers[asking.inbox]
        if seen != asking.wanted:
            self._showed(asking.inbox, question.number, seen)
        if self.strays is not None and record is not None and (entry is None or record is not entry.record):
            join_into(answers.merged.setdefault(question.number, {}), record.version)

    def _write(self, inbox: str, operation: Write, request: Request, now: int) -> bool:
        """False: not yet. What its agent wrote or read before must be here, or the write would not build on it."""
        number = partition_of(operation.id, self.partition_count)
        if number not in self.writable:
            self._answer(inbox, Result(i=operation.i, error="NotHere", outcome="not applied"))
            return True
        if 0 < request.by < now:
            self.counts["late_writes"] += 1
            message = f"the write came to node {self.node} {now - request.by} ms too late"
            self._answer(inbox, Result(i=operation.i, error="Late", message=message, outcome="not applied"))
            return True
        demand = None
        relaxed = False
        if not isinstance(operation, EditDocument) and operation.level is not None:
            demand = self._demand(operation, self.store.get(operation.id))
            if self._more_is_demanded(inbox, operation, demand):
                return True
            relaxed = demand.level == "eventual" and operation.level != "strong"
        partition = self.replica.partitions[number]
        wanted = request.token.get(number)
        if relaxed:
            operation, wanted = msgspec.structs.replace(operation, acks=1), None
        if wanted and not within(wanted, partition.vector):
            return False
        # A fence is checked by a majority, also where its writer did not say that the write is strong.
        strong = not isinstance(operation, EditDocument) and (operation.strong or operation.fence is not None)
        if request.retry and not strong and self.replica.is_unsure(number, operation.id):
            return False
        overload = self._overload()
        # Who is missing for a strong write, rounds find out, and say so at once.
        elsewhere = strong and self.replica.counting[number] > 1  # if the clock is wrong here, another node does it
        refusal = Refusal(overload) if overload else None
        if refusal is None and not elsewhere:
            refusal = self.may_write(number, 1 if strong else operation.acks or 0, now)
        if refusal is not None:
            self.counts["refused_writes"] += 1
            self._answer(
                inbox,
                Result(
                    i=operation.i, error="Busy", message=refusal.message, outcome="not applied",
                    acks_seen=refusal.reached, acks_needed=refusal.needed, missing=refusal.missing,
                ),
            )  # fmt: skip
            return True
        if isinstance(operation, Store | Edit) and operation.metadata and not _storable(operation.metadata):
            message = "metadata has a whole number that does not fit 64 bits"
            invalid = Result(
                i=operation.i, error="InvalidInput", message=message, outcome="not applied", final=True
            )  # fmt: skip
            self._answer(inbox, invalid)
            return True
        operation_id, agent = f"{request.session}-{operation.i}", operation.agent or request.agent
        if strong:
            assert not isinstance(operation, EditDocument)
            ticket = Ticket(inbox, operation, number, demand)
            self._do_strongly(
                Ask(ticket, number, operation, agent, operation_id, request.retry, _seen(operation, wanted))
            )
            return True
        ticket = Ticket(inbox, operation, number, demand)
        try:
            ticket.record = self.replica.write(
                number, operation, agent, operation_id, now, ticket, request.retry, _seen(operation, wanted)
            )
        except Refused as refused:
            if isinstance(operation, Delete) and refused.error == "NotFound":
                result = Result(i=operation.i, existed=False)
            else:
                result = Result(i=operation.i, error=refused.error, message=str(refused), outcome="not applied")
            self._spawn(self._refuse(inbox, result, number))
            return True
        ticket.seen = dict(partition.vector)
        self.counts["writes"] += 1
        self.load.counts[number] += 1
        self.waiting += 1
        self.committer.touch()
        return True

    def _do_strongly(self, ask: Ask) -> None:
        """A strong operation, by this node if it is the primary of its partition."""
        number, ticket = ask.number, ask.ticket
        if number not in self.writable:
            self._answer(ticket.inbox, Result(i=ask.operation.i, error="NotHere", outcome="not applied"))
            return
        if self.strong.open >= STRONG_OPERATIONS_MAX:
            message = f"node {self.node} has {self.strong.open} strong operations waiting"
            self._answer(ticket.inbox, Result(i=ask.operation.i, error="Busy", message=message, outcome="not applied"))
            return
        if isinstance(ask.operation, Get):
            self.reads += 1
        else:
            self.counts["writes"] += 1
        self.load.counts[number] += 1
        self.waiting += 1
        self.strong.ask(ask)

    def strongly_done(self, answer: Answer) -> None:
        """What came of a strong operation."""
        ticket: Ticket = answer.ask.ticket
        self.waiting -= 1
        self.counts["quorum_failures"] += answer.error == "QuorumFailed"
        result = _strong_result(answer, ticket, self.replica.documents, self._now())
        self._answer(ticket.inbox, _told(result, ticket.demand), ticket.partition)

    def _other(self, inbox: str, operation: Operation, token: Vectors) -> bool:
        """Queries, waits and status; False: not yet."""
        if isinstance(operation, Status):
            self._spawn(self._report(inbox, operation))
            return True
        if isinstance(operation, Reshape):
            self._spawn(self._reshape(inbox, operation))
            return True
        if any(number in self.replica.durable and self.replica.behind(number, v) for number, v in token.items()):
            return False
        if isinstance(operation, GetDocument):
            return self._document(inbox, operation)
        if isinstance(operation, Reach):
            if token.keys() <= self.readable:
                self._answer(inbox, Result(i=operation.i), *token)
            else:
                self._answer(inbox, Result(i=operation.i, error="NotHere"))
        elif isinstance(operation, Query):
            numbers = range(self.partition_count) if operation.partitions is None else operation.partitions
            partitions = frozenset(numbers)
            if partitions <= self.readable:
                self.counts["queries"] += 1
                self._spawn(self._query(inbox, operation, partitions))
            else:
                self._answer(inbox, Result(i=operation.i, error="NotHere"))
        elif isinstance(operation, History | Conflicts):
            number = None if operation.id is None else partition_of(operation.id, self.partition_count)
            if number is None or number in self.readable:
                self._spawn(self._past(inbox, operation))
            else:
                self._answer(inbox, Result(i=operation.i, error="NotHere"))
        return True

    def _document(self, inbox: str, operation: GetDocument) -> bool:
        """False: not yet."""
        number = partition_of(operation.id, self.partition_count)
        if number not in self.readable:
            self._answer(inbox, Result(i=operation.i, error="NotHere"))
            return True
        if operation.id in self.replica.unsettled:
            return False
        self.reads += 1
        self.load.counts[number] += 1
        record = self.store.get(operation.id)
        found = None if record is None or not record.alive or record.expired(self._now()) else _part(record, operation)
        self._answer(inbox, Result(i=operation.i, document=found), number)
        return True

    def _demand(self, operation: Get | Store | Edit | Delete, record: Record | None) -> Demand:
        """The level of an operation that nobody gave one, by its own tags and those that its memory has here."""
        own = operation.tags if isinstance(operation, Store) else operation.add if isinstance(operation, Edit) else ()
        tags = record.tags if record is not None and record.alive else ()
        return self.overrides.demand(own, tags) or Demand(operation.default, "")

    def _more_is_demanded(self, inbox: str, operation: Get | Store | Edit | Delete, demand: Demand) -> bool:
        """Was it sent at a level that promises less? Then it is to come again at the other one."""
        if operation.level is None or not stricter(demand.level, operation.level):
            return False
        result = Result(i=operation.i, error="Level", level=demand.level, because=demand.tag, outcome="not applied")
        self._answer(inbox, result)
        return True

    def _overload(self) -> str:
        if self.committer.full:
            return f"the disk of node {self.node} is full"
        if self.waiting >= REQUESTS_WAITING_MAX:
            return f"node {self.node} has {self.waiting} writes waiting"
        if self.store.behind() >= 1:
            return f"the tables of node {self.node} are {len(self.store.dirty)} memories behind"
        return ""

    # -- what becomes ready later -----------------------------------------------------------------------------------

    def done(self, waiting: list[Waiting]) -> None:
        """These writes have their quorum."""
        for one in waiting:
            ticket: Ticket = one.ticket
            self.waiting -= 1
            result = _told(_written(ticket, self.replica.documents), ticket.demand)
            # Not all that is durable by now: its agent has not seen what others have written over it since.
            self._answer(ticket.inbox, result)
            self._showed(ticket.inbox, ticket.partition, ticket.seen)
            self._showed(ticket.inbox, ticket.partition, {one.actor: one.n})

    def failed(self, expired: list[tuple[Waiting, int]]) -> None:
        """These writes did not get their quorum in time; they are on this node's disk and may yet spread."""
        for one, acks in expired:
            ticket: Ticket = one.ticket
            self.waiting -= 1
            self.counts["quorum_failures"] += 1
            missing = self.replica.unconfirmed(ticket.partition, one)
            message = (
                f"{acks} of {one.needed} replicas have the write of {ticket.operation.id!r}; {', '.join(missing)} did "
                f"not answer within {OPERATION_SECONDS_MAX:g} s; the write may yet spread (unknown)"
            )
            self._answer(
                ticket.inbox,
                Result(
                    i=ticket.operation.i, error="QuorumFailed", message=message, outcome="unknown", acks_seen=acks,
                    acks_needed=one.needed, missing=missing,
                ),
            )  # fmt: skip

    def lost(self, waiting: list[Waiting]) -> None:
        """Nobody will tell of these writes here any more, their partition is dropped: whoever holds it now can tell."""
        for one in waiting:
            ticket: Ticket = one.ticket
            self.waiting -= 1
            message = f"node {self.node} does not hold the partition any more"
            result = Result(i=ticket.operation.i, error="NotHere", message=message, outcome="unknown")
            self._answer(ticket.inbox, result)

    @property
    def parked(self) -> bool:
        """Does an operation wait for more to be durable here?"""
        return bool(self._parked)

    def settled(self) -> None:
        """More is durable: look again at what had to wait."""
        if not self._parked:
            return
        now, wall = time.monotonic(), time.time_ns() // 1_000_000
        parked, self._parked = self._parked, []
        for one in parked:
            operation = one.operation
            if self.closed:
                self._turn_away(one.inbox, operation)
                continue
            if isinstance(operation, Get):
                ready = self._get(one.inbox, operation, one.token, wall)
            elif isinstance(operation, Write):
                assert one.request is not None
                ready = self._write(one.inbox, operation, one.request, wall)
            else:
                ready = self._other(one.inbox, operation, one.token)
            if not ready:
                lost, undecided = self._unreachable(one)
                if lost is not None:
                    self._answer(one.inbox, lost)
                elif one.deadline <= now and not (undecided and now < one.deadline + UNREACHABLE_SECONDS_MAX):
                    message = f"node {self.node} has not reached the token within {READ_WAIT_SECONDS_MAX:g} s"
                    if self.committer.full:
                        message = f"the disk of node {self.node} is full, and what is asked for is not on it yet"
                    result = Result(i=operation.i, error="Behind", message=message, outcome="not applied")
                    self._answer(one.inbox, result)
                elif not self._sent_elsewhere(one.inbox, operation, one.token):
                    self._parked.append(one)

    def _park(self, inbox: str, operation: Operation, token: Vectors, request: Request | None = None) -> None:
        if self._sent_elsewhere(inbox, operation, token):
            return
        parked = Parked(inbox, operation, token, request, time.monotonic() + READ_WAIT_SECONDS_MAX)
        lost, _ = self._unreachable(parked)
        if lost is not None:
            self._answer(inbox, lost)
            return
        self._parked.append(parked)
        self.committer.touch()

    def _unreachable(self, parked: Parked) -> tuple[Result | None, bool]:
        """Will no replica ever have what an operation waits for? Then it is told so. And: is that about to be known?"""
        i, id, undecided = parked.operation.i, getattr(parked.operation, "id", None), False
        for number, wanted in parked.token.items():
            mine = id is None or number == partition_of(id, self.partition_count)
            if not mine or number not in self.replica.partitions or not self.replica.may_be_unreachable(number, wanted):
                continue
            found = self.replica.unreachable(number, wanted, self.said_since)
            if found is not None and (found[0] != self.replica.actor or parked.deadline <= time.monotonic()):
                actor, why = found
                here = self.replica.durable[number].get(actor, 0)
                self.counts["stale_tokens"] += 1
                message = (
                    f"the token has change {wanted[actor]} of {actor} in partition {number}, which no replica has, nor "
                    f"will have: {why}. The session goes on without it: read again what you rely on"
                )
                gone = {number: {actor: here}}
                return Result(i=i, error="StaleToken", message=message, gone=gone, outcome="not applied"), False
            undecided = True
        return None, undecided

    def _sent_elsewhere(self, inbox: str, operation: Operation, token: Vectors) -> bool:
        """Does an operation wait for what comes page by page? Another replica has it already."""
        id = getattr(operation, "id", None)
        numbers = token if id is None else (partition_of(id, self.partition_count),)
        for number in numbers:
            here = number in token and number in self.replica.durable
            if here and self.pulled(number) and self.replica.behind(number, token[number]):
                message = f"node {self.node} catches up with partition {number}"
                self._answer(inbox, Result(i=operation.i, error="Behind", message=message, outcome="not applied"))
                return True
        return False

    def _turn_away(self, inbox: str, operation: Operation) -> None:
        """Another replica is to do it."""
        error = "Busy" if isinstance(operation, Write) else "Behind"
        self._answer(inbox, Result(i=operation.i, error=error, message=self.closed, outcome="not applied"))

    async def _refuse(self, inbox: str, result: Result, number: int) -> None:
        """A refusal tells of what is here, so that must be durable first."""
        if not await self.committer.durable():
            result = Result(i=result.i, error="Busy", message=self._overload(), outcome="not applied")
        self._answer(inbox, result, number)

    async def _query(self, inbox: str, operation: Query, partitions: frozenset[int]) -> None:
        if operation.strong:
            await self._query_strongly(inbox, operation, partitions)
            return
        durable = self.replica.durable
        vectors = {number: durable[number] for number in partitions if number in durable}  # before the picture is taken
        try:
            result = await self.queries.answer(operation, partitions, self._now())
            if operation.keys and self.strays is not None:
                result = msgspec.structs.replace(result, elsewhere=self.strays.elsewhere(operation, partitions))
        except Exception as error:
            log.exception("a query failed")
            result = Result(i=operation.i, error="SpineError", message=f"node {self.node}: the query failed: {error!r}")
        if not partitions <= self.readable:  # one of them was dropped meanwhile
            result = Result(i=operation.i, error="NotHere")
        self._answer(inbox, result)
        for number, vector in vectors.items() if result.error is None else ():
            self._showed(inbox, number, vector)
        for hit in result.hits or ():  # it is not to be shown any older elsewhere
            if hit.changes:
                self._showed(inbox, partition_of(hit.id, self.partition_count), hit.changes)

    async def _query_strongly(self, inbox: str, operation: Query, partitions: frozenset[int]) -> None:
        """A query that shows all that a majority of each partition has now: one with a token that says so."""
        found = await self.strong.newest(partitions)
        if isinstance(found, tuple):
            self.counts["quorum_failures"] += 1
            acks, needed, missing = found
            message = (
                f"{acks} of the {needed} replicas needed for a strong query answered; {', '.join(missing)} did not "
                f"within {STRONG_SECONDS_MAX:g} s; nothing was read"
            )
            result = Result(
                i=operation.i, error="QuorumFailed", message=message, outcome="not applied", acks_seen=acks,
                acks_needed=needed, missing=missing,
            )  # fmt: skip
            self._answer(inbox, result)
            return
        weaker = msgspec.structs.replace(operation, strong=False)
        if not self._other(inbox, weaker, found):
            self._park(inbox, weaker, found)

    async def _past(self, inbox: str, operation: History | Conflicts) -> None:
        try:
            result = await self.past.answer(operation)
        except Exception as error:
            log.exception("a question about the past failed")
            result = Result(i=operation.i, error="SpineError", message=f"node {self.node}: it failed: {error!r}")
        self._answer(inbox, result)

    async def _reshape(self, inbox: str, operation: Reshape) -> None:
        """A change of the cluster; its name is the operation's (the inbox ends in session and node), so that one that
        comes again, here or at another node, is known."""
        if self.reshape is None:
            self._answer(inbox, Result(i=operation.i, error="InvalidInput", message="an embedded node has no cluster"))
            return
        try:
            status = await self.reshape(operation, f"{inbox.split('.')[-2]}-{operation.i}")
            result = Result(i=operation.i, status=status)
        except InvalidInput as refused:
            result = Result(i=operation.i, error="InvalidInput", message=str(refused), outcome="not applied")
        except (Disconnected, TimeoutError) as error:
            message = f"the register of the cluster does not answer: {error}"
            result = Result(i=operation.i, error="Busy", message=message, outcome="unknown")
        self._answer(inbox, result)

    async def _report(self, inbox: str, operation: Status) -> None:
        self._answer(inbox, Result(i=operation.i, status=await self.status()))

    def _spawn(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            await work

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _now(self) -> int:
        return at_milliseconds(time.time_ns() // 1_000_000)

    # -- results out ------------------------------------------------------------------------------------------------

    def _answer(self, inbox: str, result: Result, *partitions: int) -> None:
        answers = self._answers.get(inbox)
        if answers is None:
            if not self._answers:
                self._pace.plan()
            answers = self._answers[inbox] = Answers([], set())
        answers.results.append(result)
        if partitions:
            answers.partitions.update(partitions)

    def _showed(self, inbox: str, number: int, vector: Vector) -> None:
        """What was just said to an agent has this of a partition. Vectors are replaced, never changed."""
        ahead = self._answers[inbox].ahead
        known = ahead.get(number)
        if known is None:
            ahead[number] = vector
        elif not within(vector, known):
            ahead[number] = join(known, vector)

    def _send(self) -> None:
        answers, self._answers = self._answers, {}
        self._pace.sent(sum(len(one.results) for one in answers.values()))
        for inbox, one in answers.items():
            seen = {number: self.replica.durable[number] for number in one.partitions if number in self.replica.durable}
            for number, vector in one.ahead.items():
                seen[number] = join(seen[number], vector) if number in seen else vector
            strays = {} if self.strays is None else self.strays.established(seen)
            for number, vector in one.merged.items():
                strays[number] = join(strays.get(number, {}), vector)
            self._respond(inbox, one.results, seen, strays)

    def _respond(self, inbox: str, results: list[Result], seen: Vectors, strays: Vectors) -> None:
        """The results in messages of bearable size."""
        now = time.time_ns() // 1_000_000
        payload = encode(
            Response(
                node=self.node, results=results, seen=seen, strays=strays, epoch=self.epoch, down=self.down(), now=now
            )
        )
        if len(payload) <= RESPONSE_BYTES_TARGET or len(results) == 1:
            self.transport.send(inbox, payload)
        else:
            middle = len(results) // 2
            self._respond(inbox, results[:middle], seen, strays)
            self._respond(inbox, results[middle:], seen, strays)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def _part(record: Record, operation: GetDocument) -> DocumentPart:
    """What the agent misses of a document."""
    key, content = key_of(record.content), record.content.value if record.content is not None else None
    document = record.document or Document({}, b"", ())
    if key == operation.base:
        document = part(document, operation.have)
    tail = list(document.tail)
    return DocumentPart(
        key=key, content=content if document.base == b"" else None, seen=document.seen, base=document.base, tail=tail
    )


def _seen(operation: Write, token: Vector | None) -> Vector | None:
    """What the agent of a write has seen of its partition; None: not known, or it does not matter. Eventual writes come
    without a token, whoever names a version has seen it, edits of a document are merged, and a deletion overwrites
    nothing."""
    blind = operation.acks == 1 or isinstance(operation, EditDocument | Delete)
    if blind or (isinstance(operation, Edit) and operation.if_version is not None):
        return None
    return token or {}


def _told(result: Result, demand: Demand | None) -> Result:
    """The result, with the override that was in force, if any was."""
    if demand is None or not demand.tag:
        return result
    return msgspec.structs.replace(result, level=demand.level, because=demand.tag)


def _storable(metadata: dict[str, Any]) -> bool:
    """Will the tables take it? Sessions see to it; not every agent has ours."""
    try:
        _to_msgpack(metadata)
    except (OverflowError, RecursionError):
        return False
    return True


def _strong_result(answer: Answer, ticket: Ticket, documents: OpenDocuments, now: int) -> Result:
    """What the agent is told of a strong operation, at the hybrid time `now`."""
    operation, record = answer.ask.operation, answer.record
    if answer.error == "NotFound" and isinstance(operation, Delete):
        return Result(i=operation.i, existed=False, final=answer.final)
    if answer.error:
        return Result(
            i=operation.i, error=answer.error, message=answer.message, outcome=answer.outcome, acks_seen=answer.acks,
            acks_needed=answer.needed, missing=answer.missing, primary=answer.primary, final=answer.final,
        )  # fmt: skip
    if isinstance(operation, Get):
        if record is None or not record.alive or record.expired(now):
            return Result(i=operation.i)
        return Result(i=operation.i, memory=msgspec.Raw(encoded(record, documents)))
    ticket.record = record
    result = _written(ticket, documents)
    return msgspec.structs.replace(result, version=answer.version) if isinstance(operation, Store) else result


def _written(ticket: Ticket, documents: OpenDocuments) -> Result:
    """What the agent is told of a write that is done."""
    operation, record = ticket.operation, ticket.record
    assert not isinstance(operation, Get)
    if isinstance(operation, Delete):
        return Result(i=operation.i, existed=True)
    if record is None:  # a retry, long after: applied, deleted and forgotten
        message = f"memory {operation.id!r} was deleted meanwhile"
        return Result(i=operation.i, error="NotFound", message=message, final=True)
    if isinstance(operation, Edit):
        return Result(i=operation.i, memory=msgspec.Raw(encoded(record, documents)))
    if isinstance(operation, EditDocument):
        return Result(i=operation.i, version=version_text(record.version))
    origin = record.life.origin
    return Result(
        i=operation.i, created=record.life.value.created, updated=origin.time, version=version_text(record.version),
        born=(origin.actor, origin.n) if operation.clock else None,
    )  # fmt: skip
