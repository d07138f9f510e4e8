"""What agents ask of a node: requests in, each of their operations to who does it.

    writes             coordinator.py, when admission.py has nothing against it
    reads, documents   reads.py, and quorum_reads.py where several replicas are to answer
    strong ones        strong_requests.py, from coordinator.py and reads.py
    queries, the past  questions.py, as is all else that takes a while
    not yet            parking.py: the operation's token is ahead of this replica
    results out        answers.py

Reads are answered at once, from what is durable; one whose token is ahead of this replica waits a moment and is then
sent elsewhere ("Behind"). Writes are answered when their quorum is reached.
"""

from __future__ import annotations

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.messages import (
    Conflicts,
    Get,
    GetDocument,
    History,
    Operation,
    Query,
    Reach,
    Request,
    Reshape,
    Result,
    Status,
    Unreadable,
    Vectors,
    Write,
)
from crdt_spine.core.placement import partition_of
from crdt_spine.core.replica import Replica
from crdt_spine.node.answers import Answers
from crdt_spine.node.committer import Committer
from crdt_spine.node.coordinator import Coordinator
from crdt_spine.node.load import Load
from crdt_spine.node.parking import Parking
from crdt_spine.node.questions import Questions
from crdt_spine.node.reads import Reads
from crdt_spine.node.replication import Replication
from crdt_spine.node.serving import Serving
from crdt_spine.node.strong_requests import StrongRequests
from crdt_spine.transport.base import Message

_decode = msgspec.json.Decoder(Request).decode


class Service:
    """The node's side of every agent's operations."""

    def __init__(
        self, partitions: int, replica: Replica, committer: Committer, replication: Replication, reads: Reads,
        coordinator: Coordinator, strong_requests: StrongRequests, questions: Questions, answers: Answers, load: Load,
        serving: Serving,
    ) -> None:  # fmt: skip
        self.partition_count = partitions
        self.replica = replica
        self.reads = reads
        self.coordinator = coordinator
        self.strong_requests = strong_requests
        self.questions = questions
        self.answers = answers
        self.load = load
        self.serving = serving
        self.parking = Parking(partitions, replica, committer, replication, answers, load, self._attempt)

    def take(self, message: Message) -> None:
        """One request. Garbage is counted and otherwise ignored."""
        if not message.reply:
            self.load.totals["refused"] += 1
            return
        try:
            request = _decode(message.payload)
        except Unreadable:
            self.load.totals["refused"] += 1
            return
        inbox = message.reply.rpartition(".")[0]  # its last token is the request's: answers to several share a message
        token = request.token
        now = wall_clock.now()
        for operation in request.operations:
            if not self._attempt(inbox, operation, token, request, now):
                self.parking.park(inbox, operation, token, request)

    def _attempt(self, inbox: str, operation: Operation, token: Vectors, request: Request | None, now: int) -> bool:
        """Do an operation, or begin it; False: not yet. `request` is that of a write."""
        if self.serving.closed and not isinstance(operation, Status):
            error = "Busy" if isinstance(operation, Write) else "Behind"  # another replica is to do it
            result = Result(i=operation.i, error=error, message=self.serving.closed, outcome="not applied")
            self.answers.add(inbox, result)
            return True
        if type(operation) is Get:
            return self.reads.get(inbox, operation, token, now)
        if isinstance(operation, Write):
            assert request is not None
            return self.coordinator.write(inbox, operation, request, now)
        if isinstance(operation, Status):
            self.answers.later(self.questions.report(inbox, operation))
            return True
        if isinstance(operation, Reshape):
            self.answers.later(self.questions.reshape(inbox, operation))
            return True
        if any(number in self.replica.durable and self.replica.behind(number, v) for number, v in token.items()):
            return False
        if isinstance(operation, GetDocument):
            return self.reads.document(inbox, operation)
        if isinstance(operation, Reach):
            if token.keys() <= self.serving.readable:
                self.answers.add(inbox, Result(i=operation.i), *token)
            else:
                self.answers.add(inbox, Result(i=operation.i, error="NotHere"))
        elif isinstance(operation, Query):
            self._query(inbox, operation)
        elif isinstance(operation, History | Conflicts):
            number = None if operation.id is None else partition_of(operation.id, self.partition_count)
            if number is None or number in self.serving.readable:
                self.answers.later(self.questions.past(inbox, operation))
            else:
                self.answers.add(inbox, Result(i=operation.i, error="NotHere"))
        return True

    def _query(self, inbox: str, operation: Query) -> None:
        numbers = range(self.partition_count) if operation.partitions is None else operation.partitions
        partitions = frozenset(numbers)
        if not partitions <= self.serving.readable:
            self.answers.add(inbox, Result(i=operation.i, error="NotHere"))
            return
        self.load.totals["queries"] += 1
        if operation.strong:
            self.answers.later(self.strong_requests.query(inbox, operation, partitions, self._go_on))
        else:
            self.answers.later(self.questions.query(inbox, operation, partitions))

    def _go_on(self, inbox: str, operation: Operation, token: Vectors) -> None:
        """An operation that has another token now."""
        if not self._attempt(inbox, operation, token, None, wall_clock.now()):
            self.parking.park(inbox, operation, token)
