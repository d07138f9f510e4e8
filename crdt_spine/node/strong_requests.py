"""What agents ask at the level strong: whether it is begun here, and what they are told of it.

strong.py does the operations. A query has no primary: a majority says what it has, and the query then waits for that as
for a token.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.messages import Delete, Get, Operation, Query, Result, Store, Vectors
from crdt_spine.core.replica import Replica
from crdt_spine.core.strong import Answer, Ask
from crdt_spine.limits import STRONG_OPERATIONS_MAX, STRONG_SECONDS_MAX
from crdt_spine.node.answers import Answers
from crdt_spine.node.levels import told
from crdt_spine.node.load import Load
from crdt_spine.node.serving import Serving
from crdt_spine.node.strong import StrongOperations
from crdt_spine.node.ticket import Ticket, written
from crdt_spine.node.view import encoded


class StrongRequests:
    """Between agents and `StrongOperations`."""

    def __init__(
        self, replica: Replica, strong: StrongOperations, answers: Answers, load: Load, serving: Serving
    ) -> None:
        self.replica = replica
        self.strong = strong
        strong.on_answer = self.done
        self.answers = answers
        self.load = load
        self.serving = serving

    def begin(self, ask: Ask) -> None:
        """A strong operation, by this node if it is the primary of its partition. Its ticket is a `Ticket`."""
        number, ticket = ask.number, ask.ticket
        if number not in self.serving.writable:
            self.answers.add(ticket.inbox, Result(i=ask.operation.i, error="NotHere", outcome="not applied"))
            return
        if self.strong.open >= STRONG_OPERATIONS_MAX:
            message = f"node {self.replica.node} has {self.strong.open} strong operations waiting"
            result = Result(i=ask.operation.i, error="Busy", message=message, outcome="not applied")
            self.answers.add(ticket.inbox, result)
            return
        if isinstance(ask.operation, Get):
            self.load.reads += 1
        else:
            self.load.totals["writes"] += 1
        self.load.counts[number] += 1
        self.load.waiting += 1
        self.strong.ask(ask)

    def done(self, answer: Answer) -> None:
        """What came of a strong operation."""
        ticket: Ticket = answer.ask.ticket
        self.load.waiting -= 1
        if answer.error == "QuorumFailed":
            self.load.quorum_failed(ticket.inbox, ticket.operation.i)
        result = self._result(answer, ticket)
        self.answers.add(ticket.inbox, told(result, ticket.demand), ticket.partition)

    def _result(self, answer: Answer, ticket: Ticket) -> Result:
        operation, record = answer.ask.operation, answer.record
        if answer.error == "NotFound" and isinstance(operation, Delete):
            return Result(i=operation.i, existed=False, final=answer.final)
        if answer.error:
            return Result(
                i=operation.i, error=answer.error, message=answer.message, outcome=answer.outcome,
                acks_seen=answer.acks, acks_needed=answer.needed, missing=answer.missing, primary=answer.primary,
                final=answer.final,
            )  # fmt: skip
        if isinstance(operation, Get):
            if record is None or not record.alive or record.expired(at_milliseconds(wall_clock.now())):
                return Result(i=operation.i)
            return Result(i=operation.i, memory=msgspec.Raw(encoded(record, self.replica.documents)))
        ticket.record = record
        result = written(ticket, self.replica.documents)
        return msgspec.structs.replace(result, version=answer.version) if isinstance(operation, Store) else result

    async def query(
        self, inbox: str, operation: Query, partitions: frozenset[int], go_on: Callable[[str, Operation, Vectors], None]
    ) -> None:
        """A query that shows all that a majority of each partition has now: `go_on` is given one with a token that says
        so."""
        found = await self.strong.newest(partitions)
        if isinstance(found, tuple):
            self.load.quorum_failed(inbox, operation.i)
            acks, needed, missing = found
            message = (
                f"{acks} of the {needed} replicas needed for a strong query answered; {', '.join(missing)} did not "
                f"within {STRONG_SECONDS_MAX:g} s; nothing was read"
            )
            result = Result(
                i=operation.i, error="QuorumFailed", message=message, outcome="not applied", acks_seen=acks,
                acks_needed=needed, missing=missing,
            )  # fmt: skip
            self.answers.add(inbox, result)
            return
        go_on(inbox, msgspec.structs.replace(operation, strong=False), found)
