"""A write, or a strong read, under way: what is kept of it until it has its quorum, and what its agent is told then.

The rules (core/quorum.py, core/strong.py) carry a ticket with the operation and give it back; they don't look into it.
"""

from __future__ import annotations

import msgspec

from crdt_spine.core.causality import Vector
from crdt_spine.core.levels import Demand
from crdt_spine.core.messages import Delete, Edit, EditDocument, Get, Result, Write
from crdt_spine.core.open_documents import OpenDocuments
from crdt_spine.core.record import Record
from crdt_spine.node.view import encoded


class Ticket:
    """Whom to answer, and what the write gave."""

    __slots__ = ("demand", "inbox", "operation", "partition", "record", "seen")

    def __init__(self, inbox: str, operation: Write | Get, partition: int, demand: Demand | None = None) -> None:
        self.inbox = inbox
        self.operation = operation
        self.partition = partition
        self.demand = demand  # of an operation that nobody gave a level
        self.record: Record | None = None
        self.seen: Vector = {}  # of its partition when it was done


def written(ticket: Ticket, documents: OpenDocuments) -> Result:
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
        return Result(i=operation.i, version=record.etag)
    origin = record.life.origin
    return Result(
        i=operation.i, created=record.life.value.created, updated=origin.time, version=record.etag,
        born=(origin.actor, origin.n) if operation.clock else None,
    )  # fmt: skip
