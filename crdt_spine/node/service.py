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
from crdt_spine.errors import InvalidInput
from crdt_spine.limits import (
    OPERATION_SECONDS_MAX,
    QUORUM_READS_MAX,
    READ_WAIT_SECONDS_MAX,
    REQUESTS_WAITING_MAX,
)
from crdt_spine.node.committer import Committer
from crdt_spine.node.load import Load
from crdt_spine.node.past import PastReader
from crdt_spine.node.queries import Queries
from crdt_spine.node.quorum_reads import Question, QuorumReads
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.node.view import encoded, shown
from crdt_spine.storage.records import UNPLACED, Entry, RecordStore
from crdt_spine.transport.base import Disconnected, Message, Transport
from crdt_spine.transport.pace import Pace

log = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(Request).decode
_to_msgpack = msgspec.msgpack.Encoder().encode

PACE_SECONDS_MAX = 0.001  # between two rounds of answers, if the first ...
PACE_RESULTS = 10  # ... had this many
RESPONSE_BYTES_TARGET = 256 * 1024


class Refusal(msgspec.Struct, frozen=True):
    """Why a write is not taken; where that is for its quorum, how many replicas are reached, and which are not."""

    message: str
    reached: int = 0
    needed: int = 0
    missing: tuple[str, ...] = ()


class Ticket:
    """A write under way: whom to answer, and what the write gave."""

    __slots__ = ("inbox", "operation", "partition", "record")

    def __init__(self, inbox: str, operation: Write, partition: int) -> None:
        self.inbox = inbox
        self.operation = operation
        self.partition = partition
        self.record: Record | None = None


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
    ahead: Vectors = {}  # what they show beyond what is durable here: a sync that is not over brought it
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
        self.readable: frozenset[int] = frozenset(replica.partitions)  # the partitions of which agents are answered ...
        self.writable = self.readable  # ... and take writes here (seats.py)
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
        news = wanted != durable
        if (news and wanted and not within(wanted, durable)) or id in self.replica.unsettled:
            return False
        self.reads += 1
        self.load.counts[number] += 1
        reads = operation.reads or self.read_quorum
        if reads > 1 and (reads := min(reads, self.replica.counting[number])) > 1:
            self._ask_others(Asking(inbox, operation, entry, durable, wanted), number, reads)
            return True
        memory = None if entry is None else shown(entry, at_milliseconds(now), self.replica.documents)
        result = Result(i=operation.i) if memory is None else Result(i=operation.i, memory=memory)
        record = None if entry is None else entry.record
        if record is not None and not within(record.version, durable):
            self._answer(inbox, result, number)
            join_into(self._answers[inbox].ahead.setdefault(number, {}), record.version)
        elif news:
            self._answer(inbox, result, number)
        else:  # the agent knows this vector already
            self._answer(inbox, result)
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
        if entry is not None and record is entry.record:
            memory = shown(entry, now, self.replica.documents)
        elif record is None or not record.alive or record.expired(now):
            memory = None
        else:
            memory = msgspec.Raw(encoded(record))
        self._answer(asking.inbox, Result(i=i) if memory is None else Result(i=i, memory=memory))
        # Not what is durable by now: the answer does not show it, and its agent must not be taken to have seen it.
        seen = asking.vector if record is None else join(asking.vector, record.version)
        answers = self._answers[asking.inbox]
        if seen != asking.wanted:
            join_into(answers.ahead.setdefault(question.number, {}), seen)
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
        partition = self.replica.partitions[number]
        wanted = request.token.get(number)
        if wanted and not within(wanted, partition.vector):
            return False
        overload = self._overload()
        refusal = Refusal(overload) if overload else self.may_write(number, operation.acks or 0, now)
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
            self._answer(inbox, Result(i=operation.i, error="InvalidInput", message=message, outcome="not applied"))
            return True
        ticket = Ticket(inbox, operation, number)
        agent = operation.agent or request.agent
        try:
            ticket.record = self.replica.write(
                number, operation, agent, f"{request.session}-{operation.i}", now, ticket, request.retry,
                _seen(operation, wanted),
            )  # fmt: skip
        except Refused as refused:
            if isinstance(operation, Delete) and refused.error == "NotFound":
                result = Result(i=operation.i, existed=False)
            else:
                result = Result(i=operation.i, error=refused.error, message=str(refused), outcome="not applied")
            self._spawn(self._refuse(inbox, result, number))
            return True
        self.counts["writes"] += 1
        self.load.counts[number] += 1
        self.waiting += 1
        self.committer.touch()
        return True

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
            self._answer(ticket.inbox, _written(ticket, self.replica.documents), ticket.partition)

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
                if one.deadline <= now:
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
        self._parked.append(Parked(inbox, operation, token, request, time.monotonic() + READ_WAIT_SECONDS_MAX))
        self.committer.touch()

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
        try:
            result = await self.queries.answer(operation, partitions, self._now())
            if operation.keys and self.strays is not None:
                result = msgspec.structs.replace(result, elsewhere=self.strays.elsewhere(operation, partitions))
        except Exception as error:
            log.exception("a query failed")
            result = Result(i=operation.i, error="SpineError", message=f"node {self.node}: the query failed: {error!r}")
        if not partitions <= self.readable:  # one of them was dropped meanwhile
            result = Result(i=operation.i, error="NotHere")
        self._answer(inbox, result, *partitions)

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

    def _send(self) -> None:
        answers, self._answers = self._answers, {}
        self._pace.sent(sum(len(one.results) for one in answers.values()))
        for inbox, one in answers.items():
            seen = {number: self.replica.durable[number] for number in one.partitions if number in self.replica.durable}
            for number, vector in one.ahead.items():
                seen[number] = join(seen.get(number, {}), vector)
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


def _storable(metadata: dict[str, Any]) -> bool:
    """Will the tables take it? Sessions see to it; not every agent has ours."""
    try:
        _to_msgpack(metadata)
    except (OverflowError, RecursionError):
        return False
    return True


def _written(ticket: Ticket, documents: OpenDocuments) -> Result:
    """What the agent is told of a write that is done."""
    operation, record = ticket.operation, ticket.record
    if isinstance(operation, Delete):
        return Result(i=operation.i, existed=True)
    if record is None:  # a retry, long after: applied, deleted and forgotten
        return Result(i=operation.i, error="NotFound", message=f"memory {operation.id!r} was deleted meanwhile")
    if isinstance(operation, Edit):
        return Result(i=operation.i, memory=msgspec.Raw(encoded(record, documents)))
    if isinstance(operation, EditDocument):
        return Result(i=operation.i, version=version_text(record.version))
    origin = record.life.origin
    return Result(
        i=operation.i, created=record.life.value.created, updated=origin.time, version=version_text(record.version),
        born=(origin.actor, origin.n) if operation.clock else None,
    )  # fmt: skip
