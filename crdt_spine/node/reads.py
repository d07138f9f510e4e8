"""A read of one memory, or of its document: answered from what is durable here, once the agent's token is reached.

It is answered at once, or not yet (then it waits, parking.py). One that more than one replica is to answer goes through
quorum_reads.py, a strong one through strong_requests.py.
"""

from __future__ import annotations

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.causality import Vector, join, within
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.document import Document, key_of, part
from crdt_spine.core.messages import DocumentPart, Get, GetDocument, Result, Vectors
from crdt_spine.core.placement import partition_of
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica
from crdt_spine.core.strong import Ask
from crdt_spine.limits import QUORUM_READS_MAX, READ_WAIT_SECONDS_MAX
from crdt_spine.node.answers import Answers
from crdt_spine.node.levels import Levels, told
from crdt_spine.node.load import Load
from crdt_spine.node.quorum_reads import Question, QuorumReads
from crdt_spine.node.serving import Serving
from crdt_spine.node.strong_requests import StrongRequests
from crdt_spine.node.ticket import Ticket
from crdt_spine.node.view import encoded, shown
from crdt_spine.storage.records import UNPLACED, Entry, RecordStore


class Asking(msgspec.Struct, eq=False):
    """A read that waits for other replicas. `entry` and `vector` are what this one had when it asked; the agent knows
    `wanted`."""

    inbox: str
    operation: Get
    entry: Entry | None
    vector: Vector
    wanted: Vector | None


class Reads:
    """Reads of agents. `read_quorum` is the cluster's: how many replicas answer one that does not say it."""

    def __init__(
        self, partitions: int, replica: Replica, store: RecordStore, quorum_reads: QuorumReads,
        strong_requests: StrongRequests, answers: Answers, levels: Levels, load: Load, serving: Serving,
        read_quorum: int, strays: bool,
    ) -> None:  # fmt: skip
        self.partition_count = partitions
        self.replica = replica
        self.store = store
        self.quorum_reads = quorum_reads
        self.strong_requests = strong_requests
        self.answers = answers
        self.levels = levels
        self.load = load
        self.serving = serving
        self.read_quorum = read_quorum
        self.strays = strays  # does it matter to agents what other replicas had?

    def get(self, inbox: str, operation: Get, token: Vectors, now: int) -> bool:
        """False: not yet. `now` in milliseconds."""
        id = operation.id
        entry = self.store.entry(id)
        if entry is None:
            number = partition_of(id, self.partition_count)
        else:
            number = entry.partition
            if number == UNPLACED:
                number = entry.partition = partition_of(id, self.partition_count)
        if number not in self.serving.readable:
            self.answers.add(inbox, Result(i=operation.i, error="NotHere"))
            return True
        durable = self.replica.durable[number]
        wanted = token.get(number)
        if operation.strong:
            if wanted and not within(wanted, durable):
                return False
            self.strong_requests.begin(Ask(Ticket(inbox, operation, number), number, operation))
            return True
        news = wanted != durable
        demand = None
        if operation.level is not None:
            demand = self.levels.demand(operation, None if entry is None else entry.record)
            if self.levels.more_is_demanded(inbox, operation, demand):
                return True
        relaxed = demand is not None and demand.level == "eventual"
        if (news and wanted and not relaxed and not within(wanted, durable)) or id in self.replica.unsettled:
            return False
        self.load.reads += 1
        self.load.counts[number] += 1
        reads = 1 if relaxed else operation.reads or self.read_quorum
        if reads > 1 and (reads := min(reads, self.replica.counting[number])) > 1:
            self._ask_others(Asking(inbox, operation, entry, durable, wanted), number, reads)
            return True
        memory = None if entry is None else shown(entry, at_milliseconds(now), self.replica.documents)
        result = Result(i=operation.i) if memory is None else Result(i=operation.i, memory=memory)
        result = told(result, demand)
        record = None if entry is None else entry.record
        self.answers.add(inbox, result)
        if news:  # else the agent knows this vector already
            self.answers.showed(inbox, number, durable)
        if record is not None and not within(record.version, durable):  # a sync that is not over has brought it
            self.answers.showed(inbox, number, record.version)
        return True

    # -- by several replicas ----------------------------------------------------------------------------------------

    def _ask_others(self, asking: Asking, number: int, needed: int) -> None:
        """A read that more than this replica answers."""
        if self.quorum_reads.open >= QUORUM_READS_MAX:
            message = f"node {self.replica.node} has {self.quorum_reads.open} reads waiting"
            self.answers.add(asking.inbox, Result(i=asking.operation.i, error="Busy", message=message))
            return
        record = None if asking.entry is None else asking.entry.record
        self.quorum_reads.ask(number, asking.operation.id, record, needed, self._asked, asking)

    def _asked(self, question: Question) -> None:
        """What several replicas have, or who of them did not answer; then another node is to try."""
        asking: Asking = question.ticket
        i, id, entry = asking.operation.i, asking.operation.id, asking.entry
        if not question.enough:
            if self.replica.node == min(question.answered):  # the agent asks the others that are there, too
                self.load.quorum_failed(asking.inbox, i)
            missing = self.quorum_reads.missing(question)
            message = (
                f"{len(question.answered)} of {question.needed} replicas answered the read of {id!r}; "
                f"{', '.join(missing)} did not within {READ_WAIT_SECONDS_MAX:g} s; nothing was read"
            )
            result = Result(
                i=i, error="Busy", message=message, outcome="not applied", acks_seen=len(question.answered),
                acks_needed=question.needed, missing=missing,
            )  # fmt: skip
            self.answers.add(asking.inbox, result)
            return
        record, now = question.record, at_milliseconds(wall_clock.now())
        demand = None if asking.operation.level is None else self.levels.demand(asking.operation, record)
        if demand is not None and self.levels.more_is_demanded(asking.inbox, asking.operation, demand):
            return
        if entry is not None and record is entry.record:
            memory = shown(entry, now, self.replica.documents)
        elif record is None or not record.alive or record.expired(now):
            memory = None
        else:
            memory = msgspec.Raw(encoded(record))
        found = Result(i=i) if memory is None else Result(i=i, memory=memory)
        self.answers.add(asking.inbox, told(found, demand))
        # Not what is durable by now: the answer does not show it, and its agent must not be taken to have seen it.
        seen = asking.vector if record is None else join(asking.vector, record.version)
        if seen != asking.wanted:
            self.answers.showed(asking.inbox, question.number, seen)
        if self.strays and record is not None and (entry is None or record is not entry.record):
            self.answers.merged(asking.inbox, question.number, record.version)

    # -- documents --------------------------------------------------------------------------------------------------

    def document(self, inbox: str, operation: GetDocument) -> bool:
        """What the agent misses of a document; its token is reached. False: not yet."""
        number = partition_of(operation.id, self.partition_count)
        if number not in self.serving.readable:
            self.answers.add(inbox, Result(i=operation.i, error="NotHere"))
            return True
        if operation.id in self.replica.unsettled:
            return False
        record = self.store.get(operation.id)
        demand = None if operation.level is None else self.levels.demand(operation, record)
        if demand is not None and self.levels.more_is_demanded(inbox, operation, demand):
            return True
        self.load.reads += 1
        self.load.counts[number] += 1
        found = (
            None
            if record is None or not record.alive or record.expired(at_milliseconds(wall_clock.now()))
            else _part(record, operation)
        )
        self.answers.add(inbox, told(Result(i=operation.i, document=found), demand), number)
        return True


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
