"""Operations become messages: those of one node are one request, in parts where that is too long.

A request takes the session's token along for the partitions it touches, and says by when a write must be taken
(lateness.py). The subject to which a node answers ends in the node and the request's number, so that it is known what
did not arrive when the broker says that nobody listens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from crdt_spine.call import Call
from crdt_spine.core.causality import Vector
from crdt_spine.core.messages import Reach, Request, Vectors, encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.errors import InvalidInput
from crdt_spine.lateness import Lateness
from crdt_spine.limits import BATCH_BYTES_TARGET
from crdt_spine.transport.base import Transport


class Requests:
    """What a session, `id`, says to nodes; `vectors` is its token."""

    def __init__(
        self, transport: Transport, subjects: Subjects, id: str, agent: str, vectors: Vectors, lateness: Lateness
    ) -> None:
        self.inbox = f"_INBOX.spine.{id}"
        self._transport = transport
        self._subjects = subjects
        self._id = id
        self._agent = agent
        self._vectors = vectors
        self._lateness = lateness
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()

    def send(self, node: str, retry: bool, calls: Sequence[Call], hedge: bool = False) -> None:
        """These to this node, as a hedge or as where they are from now on. One that can't be sent fails with
        InvalidInput; a call with a token of its own has to be alone."""
        token: dict[int, Vector] = {}
        for call in calls:
            if call.token is not None:
                token = call.token
            elif call.use_token:
                for number in call.numbers:
                    if number in self._vectors:
                        token[number] = self._vectors[number]
        operations, now = [call.operation for call in calls], self._loop.time()
        by, until = self._lateness.by(node, now), now + self._lateness.window(node, now)
        request = Request(session=self._id, agent=self._agent, operations=operations, token=token, retry=retry, by=by)
        payload, problem = b"", ""
        try:
            payload = encode(request)
        except (TypeError, ValueError, RecursionError) as error:  # what no check of the values had thought of
            problem = f"the operation can't be sent: {error}"
        else:
            if len(payload) > self._transport.payload_bytes_max:
                problem = (
                    f"the operation is {len(payload):,} bytes as a message, the broker takes "
                    f"{self._transport.payload_bytes_max:,}: raise its max_payload or store less in one memory"
                )
        if len(calls) > 1 and (problem or len(payload) > BATCH_BYTES_TARGET):
            middle = len(calls) // 2
            self.send(node, retry, calls[:middle], hedge)
            self.send(node, retry, calls[middle:], hedge)
            return
        if problem:
            if not calls[0].future.done():
                calls[0].future.set_exception(InvalidInput(problem))
            return
        now, number = self._loop.time(), next(self._numbers)
        if hedge:
            for call in calls:
                call.hedge, call.hedge_request, call.hedged_at = node, number, now
        else:
            for call in calls:
                call.sent_at, call.request, call.until = now, number, until
                call.attempts += 1
                call.open_attempts += 1
        self._transport.send(self._subjects.rpc(node), payload, f"{self.inbox}.{node}.{number}")

    def ping(self, node: str, number: int, token: Vectors) -> None:
        """Does this node answer, and has it reached this? The operation has this number."""
        request = Request(session=self._id, agent=self._agent, operations=[Reach(i=number)], token=token)
        self._transport.send(self._subjects.rpc(node), encode(request), f"{self.inbox}.{node}.{next(self._numbers)}")
