"""What takes a while: queries, questions about the past, about the node, and proposals of another cluster.

Each is a task of its own, which says its result when it has it; what comes behind it does not wait. queries.py, past.py
and steward.py find the answers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.messages import Conflicts, History, Query, Reshape, Result, Status
from crdt_spine.core.placement import partition_of
from crdt_spine.core.replica import Replica
from crdt_spine.errors import InvalidInput
from crdt_spine.node.answers import Answers
from crdt_spine.node.past import PastReader
from crdt_spine.node.queries import Queries
from crdt_spine.node.serving import Serving
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.transport.base import Disconnected

log = logging.getLogger(__name__)


class Questions:
    """Answers them. `status` gives the node's own report."""

    def __init__(
        self, partitions: int, replica: Replica, queries: Queries, past: PastReader, strays: StrayKeeper | None,
        status: Callable[[], Awaitable[msgspec.Raw]], answers: Answers, serving: Serving,
    ) -> None:  # fmt: skip
        self.partition_count = partitions
        self.replica = replica
        self.queries = queries
        self.past_reader = past
        self.strays = strays
        self.status = status
        self.answers = answers
        self.serving = serving
        self.propose: Callable[[Reshape, str], Awaitable[msgspec.Raw]] | None = None  # steward.py, in a cluster

    async def query(self, inbox: str, operation: Query, partitions: frozenset[int]) -> None:
        """One that is not strong, of partitions that are all held here."""
        durable = self.replica.durable
        vectors = {number: durable[number] for number in partitions if number in durable}  # before the picture is taken
        try:
            result = await self.queries.answer(operation, partitions, at_milliseconds(wall_clock.now()))
            if operation.keys and self.strays is not None:
                result = msgspec.structs.replace(result, elsewhere=self.strays.elsewhere(operation, partitions))
        except Exception as error:
            log.exception("a query failed")
            message = f"node {self.replica.node}: the query failed: {error!r}"
            result = Result(i=operation.i, error="SpineError", message=message)
        if not partitions <= self.serving.readable:  # one of them was dropped meanwhile
            result = Result(i=operation.i, error="NotHere")
        self.answers.add(inbox, result)
        for number, vector in vectors.items() if result.error is None else ():
            self.answers.showed(inbox, number, vector)
        for hit in result.hits or ():  # it is not to be shown any older elsewhere
            if hit.changes:
                self.answers.showed(inbox, partition_of(hit.id, self.partition_count), hit.changes)

    async def past(self, inbox: str, operation: History | Conflicts) -> None:
        """What was."""
        try:
            result = await self.past_reader.answer(operation)
        except Exception as error:
            log.exception("a question about the past failed")
            message = f"node {self.replica.node}: it failed: {error!r}"
            result = Result(i=operation.i, error="SpineError", message=message)
        self.answers.add(inbox, result)

    async def reshape(self, inbox: str, operation: Reshape) -> None:
        """A change of the cluster; its name is the operation's (the inbox ends in session and node), so that one that
        comes again, here or at another node, is known."""
        if self.propose is None:
            result = Result(i=operation.i, error="InvalidInput", message="an embedded node has no cluster")
            self.answers.add(inbox, result)
            return
        try:
            status = await self.propose(operation, f"{inbox.split('.')[-2]}-{operation.i}")
            result = Result(i=operation.i, status=status)
        except InvalidInput as refused:
            result = Result(i=operation.i, error="InvalidInput", message=str(refused), outcome="not applied")
        except (Disconnected, TimeoutError) as error:
            message = f"the register of the cluster does not answer: {error}"
            result = Result(i=operation.i, error="Busy", message=message, outcome="unknown")
        self.answers.add(inbox, result)

    async def report(self, inbox: str, operation: Status) -> None:
        """The node's own report."""
        self.answers.add(inbox, Result(i=operation.i, status=await self.status()))
