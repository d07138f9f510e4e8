"""A write: whether it is taken here, its change, and what its agent is told once its quorum has it.

This node is the write's coordinator from here on: `Replica.write` (core/replica.py) stamps the change and gives it its
dot, committer.py makes it durable, replication.py publishes it. Acknowledgements come back to `done`. A strong write
goes through strong_requests.py instead.
"""

from __future__ import annotations

from typing import Any

import msgspec

from crdt_spine.core.causality import Vector, within
from crdt_spine.core.messages import Delete, Edit, EditDocument, Request, Result, Store, Write
from crdt_spine.core.placement import partition_of
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.replica import Refused, Replica
from crdt_spine.core.strong import Ask
from crdt_spine.limits import OPERATION_SECONDS_MAX
from crdt_spine.node.admission import Admission, Refusal
from crdt_spine.node.answers import Answers
from crdt_spine.node.committer import Committer
from crdt_spine.node.levels import Levels, told
from crdt_spine.node.load import Load
from crdt_spine.node.serving import Serving
from crdt_spine.node.strong_requests import StrongRequests
from crdt_spine.node.ticket import Ticket, written
from crdt_spine.storage.records import RecordStore

_to_msgpack = msgspec.msgpack.Encoder().encode


class Coordinator:
    """Writes of agents."""

    def __init__(
        self, partitions: int, replica: Replica, store: RecordStore, committer: Committer, admission: Admission,
        strong_requests: StrongRequests, answers: Answers, levels: Levels, load: Load, serving: Serving,
    ) -> None:  # fmt: skip
        self.partition_count = partitions
        self.replica = replica
        self.store = store
        self.committer = committer
        self.admission = admission
        self.strong_requests = strong_requests
        self.answers = answers
        self.levels = levels
        self.load = load
        self.serving = serving

    def write(self, inbox: str, operation: Write, request: Request, now: int) -> bool:
        """False: not yet. What its agent wrote or read before must be here, or the write would not build on it. `now`
        in milliseconds."""
        number = partition_of(operation.id, self.partition_count)
        if number not in self.serving.writable:
            self.answers.add(inbox, Result(i=operation.i, error="NotHere", outcome="not applied"))
            return True
        if 0 < request.by < now:
            self.load.totals["late_writes"] += 1
            message = f"the write came to node {self.replica.node} {now - request.by} ms too late"
            self.answers.add(inbox, Result(i=operation.i, error="Late", message=message, outcome="not applied"))
            return True
        demand = None
        relaxed = False
        if operation.level is not None:
            demand = self.levels.demand(operation, self.store.get(operation.id))
            if self.levels.more_is_demanded(inbox, operation, demand):
                return True
            relaxed = demand.level == "eventual" and operation.level != "strong"
        partition = self.replica.partitions[number]
        wanted = request.token.get(number)
        if relaxed:
            operation = msgspec.structs.replace(operation, acks=1)
            if not isinstance(operation, EditDocument):  # which is made on what was read
                wanted = None
        if wanted and not within(wanted, partition.vector):
            return False
        # A fence is checked by a majority, also where its writer did not say that the write is strong.
        strong = not isinstance(operation, EditDocument) and (operation.strong or operation.fence is not None)
        if request.retry and not strong and self.replica.is_unsure(number, operation.id):
            return False
        overload = self.admission.overload()
        # Who is missing for a strong write, rounds find out, and say so at once.
        elsewhere = strong and self.replica.counting[number] > 1  # if the clock is wrong here, another node does it
        refusal = Refusal(overload) if overload else None
        if refusal is None and not elsewhere:
            refusal = self.admission.refusal(number, 1 if strong else operation.acks or 0, now)
        if refusal is not None:
            self.load.totals["refused_writes"] += 1
            if refusal.ours:
                self.load.quorum_failed(inbox, operation.i)
            self.answers.add(
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
            self.answers.add(inbox, invalid)
            return True
        operation_id, agent = f"{request.session}-{operation.i}", operation.agent or request.agent
        ticket = Ticket(inbox, operation, number, demand)
        if strong:
            assert not isinstance(operation, EditDocument)
            self.strong_requests.begin(
                Ask(ticket, number, operation, agent, operation_id, request.retry, _seen(operation, wanted))
            )
            return True
        try:
            ticket.record = self.replica.write(
                number, operation, agent, operation_id, now, ticket, _seen(operation, wanted)
            )
        except Refused as refused:
            if isinstance(operation, Delete) and refused.error == "NotFound":
                result = Result(i=operation.i, existed=False)
            else:
                result = Result(i=operation.i, error=refused.error, message=str(refused), outcome="not applied")
            self.answers.later(self._refuse(inbox, result, number))
            return True
        ticket.seen = dict(partition.vector)
        self.load.totals["writes"] += 1
        self.load.counts[number] += 1
        self.load.waiting += 1
        self.committer.touch()
        return True

    async def _refuse(self, inbox: str, result: Result, number: int) -> None:
        """A refusal tells of what is here, so that must be durable first."""
        if not await self.committer.durable():
            result = Result(i=result.i, error="Busy", message=self.admission.overload(), outcome="not applied")
        self.answers.add(inbox, result, number)

    # -- what became of it ------------------------------------------------------------------------------------------

    def done(self, waiting: list[Waiting]) -> None:
        """These writes have their quorum."""
        for one in waiting:
            ticket: Ticket = one.ticket
            self.load.waiting -= 1
            result = told(written(ticket, self.replica.documents), ticket.demand)
            # Not all that is durable by now: its agent has not seen what others have written over it since.
            self.answers.add(ticket.inbox, result)
            self.answers.showed(ticket.inbox, ticket.partition, ticket.seen)
            self.answers.showed(ticket.inbox, ticket.partition, {one.actor: one.n})

    def failed(self, expired: list[tuple[Waiting, int]]) -> None:
        """These writes did not get their quorum in time; they are on this node's disk and may yet spread."""
        for one, acks in expired:
            ticket: Ticket = one.ticket
            self.load.waiting -= 1
            self.load.quorum_failed(ticket.inbox, ticket.operation.i)
            missing = self.replica.unconfirmed(ticket.partition, one)
            message = (
                f"{acks} of {one.needed} replicas have the write of {ticket.operation.id!r}; {', '.join(missing)} did "
                f"not answer within {OPERATION_SECONDS_MAX:g} s; the write may yet spread (unknown)"
            )
            self.answers.add(
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
            self.load.waiting -= 1
            message = f"node {self.replica.node} does not hold the partition any more"
            result = Result(i=ticket.operation.i, error="NotHere", message=message, outcome="unknown")
            self.answers.add(ticket.inbox, result)


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
