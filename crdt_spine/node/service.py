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
from crdt_spine.limits import READ_WAIT_SECONDS_MAX, REQUESTS_WAITING_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.past import PastReader
from crdt_spine.node.queries import Queries
from crdt_spine.node.view import encoded, shown
from crdt_spine.storage.records import UNPLACED, RecordStore
from crdt_spine.transport.base import Message, Transport
from crdt_spine.transport.pace import Pace

log = logging.getLogger(__name__)

_decode = msgspec.json.Decoder(Request).decode
_to_msgpack = msgspec.msgpack.Encoder().encode

PACE_SECONDS_MAX = 0.001  # between two rounds of answers, if the first ...
PACE_RESULTS = 10  # ... had this many
RESPONSE_BYTES_TARGET = 256 * 1024


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


class Answers(msgspec.Struct, eq=False):
    """What is to be said to one agent at the end of this loop turn."""

    results: list[Result]
    partitions: set[int]
    ahead: Vectors = {}  # what they show beyond what is durable here: a sync that is not over brought it


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
        may_write: Callable[[int, int], str],
        status: Callable[[], Awaitable[msgspec.Raw]],
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
        durable = self.replica.durable.get(number)
        if durable is None:
            self._answer(inbox, Result(i=operation.i, error="NotHere"))
            return True
        wanted = token.get(number)
        news = wanted != durable
        if (news and wanted and not within(wanted, durable)) or id in self.replica.unsettled:
            return False
        self.reads += 1
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

    def _write(self, inbox: str, operation: Write, request: Request, now: int) -> bool:
        """False: not yet. What its agent wrote or read before must be here, or the write would not build on it."""
        number = partition_of(operation.id, self.partition_count)
        partition = self.replica.partitions.get(number)
        if partition is None:
            self._answer(inbox, Result(i=operation.i, error="NotHere"))
            return True
        wanted = request.token.get(number)
        if wanted and not within(wanted, partition.vector):
            return False
        refusal = self._overload() or self.may_write(operation.acks or 0, now)
        if refusal:
            self.counts["refused_writes"] += 1
            self._answer(inbox, Result(i=operation.i, error="Busy", message=refusal, outcome="not applied"))
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
        self.waiting += 1
        self.committer.touch()
        return True

    def _other(self, inbox: str, operation: Operation, token: Vectors) -> bool:
        """Queries, waits and status; False: not yet."""
        if isinstance(operation, Status):
            self._spawn(self._report(inbox, operation))
            return True
        if any(number in self.replica.durable and self.replica.behind(number, v) for number, v in token.items()):
            return False
        if isinstance(operation, GetDocument):
            return self._document(inbox, operation)
        if isinstance(operation, Reach):
            self._answer(inbox, Result(i=operation.i), *token)
        elif isinstance(operation, Query):
            held = self.replica.durable.keys()
            partitions = frozenset(held if operation.partitions is None else operation.partitions)
            if partitions <= held:
                self.counts["queries"] += 1
                self._spawn(self._query(inbox, operation, partitions))
            else:
                self._answer(inbox, Result(i=operation.i, error="NotHere"))
        elif isinstance(operation, History | Conflicts):
            number = None if operation.id is None else partition_of(operation.id, self.partition_count)
            if number is None or number in self.replica.durable:
                self._spawn(self._past(inbox, operation))
            else:
                self._answer(inbox, Result(i=operation.i, error="NotHere"))
        return True

    def _document(self, inbox: str, operation: GetDocument) -> bool:
        """False: not yet."""
        number = partition_of(operation.id, self.partition_count)
        if number not in self.replica.durable:
            self._answer(inbox, Result(i=operation.i, error="NotHere"))
            return True
        if operation.id in self.replica.unsettled:
            return False
        self.reads += 1
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
            message = f"{acks} of the {one.needed} replicas needed have confirmed the write of {ticket.operation.id!r}"
            self._answer(
                ticket.inbox,
                Result(
                    i=ticket.operation.i, error="QuorumFailed", message=message, outcome="unknown", acks_seen=acks,
                    acks_needed=one.needed,
                ),
            )  # fmt: skip

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
                else:
                    self._parked.append(one)

    def _park(self, inbox: str, operation: Operation, token: Vectors, request: Request | None = None) -> None:
        self._parked.append(Parked(inbox, operation, token, request, time.monotonic() + READ_WAIT_SECONDS_MAX))
        self.committer.touch()

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
        except Exception as error:
            log.exception("a query failed")
            result = Result(i=operation.i, error="SpineError", message=f"node {self.node}: the query failed: {error!r}")
        self._answer(inbox, result, *partitions)

    async def _past(self, inbox: str, operation: History | Conflicts) -> None:
        try:
            result = await self.past.answer(operation)
        except Exception as error:
            log.exception("a question about the past failed")
            result = Result(i=operation.i, error="SpineError", message=f"node {self.node}: it failed: {error!r}")
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
            self._respond(inbox, one.results, seen)

    def _respond(self, inbox: str, results: list[Result], seen: Vectors) -> None:
        """The results in messages of bearable size."""
        payload = encode(Response(node=self.node, results=results, seen=seen))
        if len(payload) <= RESPONSE_BYTES_TARGET or len(results) == 1:
            self.transport.send(inbox, payload)
        else:
            middle = len(results) // 2
            self._respond(inbox, results[:middle], seen)
            self._respond(inbox, results[middle:], seen)

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
