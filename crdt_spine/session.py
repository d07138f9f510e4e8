"""An agent's session with a cluster: operations leave in batches, answers come back, retries never apply twice.

Operations issued in one loop turn for one node travel as one message. Each has an id (session, number) that stays the
same through every retry. A session goes to a partition's first replica, so that it usually reads where it last wrote;
when that node is gone (the broker says so at once) or silent, its operations move on to the next replica. The token
has what the session wrote and saw; a read takes it along.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from crdt_spine.core.causality import Vector, join_into
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import (
    Hello,
    Operation,
    Query,
    Request,
    Response,
    Result,
    Unreadable,
    Vectors,
    Write,
    encode,
)
from crdt_spine.core.subjects import Subjects
from crdt_spine.discovery import discover
from crdt_spine.errors import ConnectionFailed, InvalidInput, Outcome, QuorumFailed, SpineError, StaleToken
from crdt_spine.limits import (
    BATCH_BYTES_TARGET,
    BATCH_OPERATIONS_MAX,
    CONNECT_SECONDS_MAX,
    OPERATION_SECONDS_MAX,
    SESSION_OPERATIONS_MAX,
)
from crdt_spine.routing import Routing
from crdt_spine.transport.base import Message, Subscription, Transport
from crdt_spine.transport.pace import Pace

SWEEP_SECONDS = 0.05
PACE_SECONDS_MAX = 0.002  # between two batches, if the first ...
PACE_OPERATIONS = 20  # ... had this many operations: only ten thousand a second are ever held up for that long
SILENT_SECONDS = 1.0  # a node that owes answers and says nothing for that long is taken for stuck
RESEND_SECONDS = 3.0  # an operation that a lively node has not answered for that long was lost on the way
BACK_OFF_SECONDS = 0.05  # before an operation that was turned away is tried again; doubling ...
BACK_OFF_SECONDS_MAX = 1.0  # ... up to here: thousands of them must not keep an overloaded node busy

_decode = msgspec.json.Decoder(Response).decode
_ELSEWHERE = frozenset(("Behind", "Busy", "NotHere"))


class Call:
    """One operation under way."""

    __slots__ = (
        "attempts", "candidates", "deadline", "future", "node", "numbers", "open_attempts", "operation", "problem",
        "ready_at", "request", "retry", "seconds", "sent_at", "token", "use_token",
    )  # fmt: skip

    def __init__(
        self, operation: Operation, candidates: Sequence[str], numbers: Iterable[int], use_token: bool,
        token: Vectors | None, seconds: float, loop: asyncio.AbstractEventLoop,
    ) -> None:  # fmt: skip
        self.operation = operation
        self.candidates = candidates
        self.numbers = numbers  # partitions whose token the answer must have reached
        self.use_token = use_token
        self.token = token  # instead of the session's; such a call travels alone
        self.seconds = seconds
        self.deadline = loop.time() + seconds
        self.future: asyncio.Future[Result] = loop.create_future()
        self.node = ""
        self.request = 0
        self.sent_at = 0.0
        self.ready_at = 0.0  # not to be sent before
        self.attempts = 0
        self.open_attempts = 0  # those of which it is not known that they did nothing
        self.retry = False
        self.problem: Result | None = None


class Session:
    """Use `Session.discover`. One per agent process; agents may share it."""

    def __init__(self, transport: Transport, hello: Hello, agent: str, *, zone: str | None = None) -> None:
        self.transport = transport
        self.hello = hello
        self.subjects = Subjects(hello.cluster)
        self.agent = agent
        self.zone = zone
        self.id = secrets.token_hex(5)
        self.inbox = f"_INBOX.spine.{self.id}"
        self.timeout = OPERATION_SECONDS_MAX
        self.vectors: Vectors = {}
        self.counts: Counter[str] = Counter()
        self.openings: set[asyncio.Future[None]] = set()  # subscriptions that are about to begin
        self.closers: set[Callable[[], Awaitable[None]]] = set()  # of what ends with the session
        self.calls: dict[int, Call] = {}
        self._numbers = itertools.count(1)
        self._requests = itertools.count(1)
        self._outbox: list[Call] = []
        self._later: list[Call] = []
        self._heard: dict[str, float] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()  # calls for which there is no room yet
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(self._flush, PACE_SECONDS_MAX, PACE_OPERATIONS)
        self.layout = Layout(hello)
        self.routing = Routing(hello, self.layout, int(self.id, 16), self._loop.time)

    # -- coming and going -------------------------------------------------------------------------------------------

    @classmethod
    async def discover(
        cls,
        transport: Transport,
        agent: str,
        *,
        cluster: str | None = None,
        zone: str | None = None,
        timeout: float = CONNECT_SECONDS_MAX,
    ) -> Session:
        """The session with the cluster behind a transport. Raises what discovery.discover raises."""
        session = cls(transport, await discover(transport, cluster, timeout), agent, zone=zone)
        await session.start()
        return session

    async def start(self) -> None:
        """Listen for answers."""
        self._subscription = await self.transport.subscribe(f"{self.inbox}.>", self._take)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def close(self) -> None:
        """End, and the subscriptions with it; operations under way fail with ConnectionFailed."""
        self._closed = True
        for close in list(self.closers):
            await close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for call in list(self.calls.values()):
            if not call.future.done():
                call.future.set_exception(ConnectionFailed("the session was closed"))
        self.calls.clear()
        while self._waiters:
            self._next_waiter()
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.cancel()

    # -- operations -------------------------------------------------------------------------------------------------

    def number(self) -> int:
        """A new operation's number."""
        return next(self._numbers)

    def on_memory(self, operation: Operation, id: str, *, use_token: bool = True) -> Coroutine[Any, Any, Result]:
        """An operation on one memory, at one of its replicas. Raises what the operation's answer says."""
        number = self.layout.partition_of(id)
        return self.run(operation, self.layout.replicas[number], (number,), use_token=use_token)

    async def query(
        self, query: Query, *, use_token: bool = True, token: Vectors | None = None, timeout: float | None = None
    ) -> list[Result]:
        """The same question to the fewest nodes that have every partition: a page of each. Raises as `run` does."""

        def ask(candidates: Sequence[str], numbers: tuple[int, ...] | None) -> Coroutine[Any, Any, Result]:
            part = msgspec.structs.replace(query, i=self.number(), partitions=numbers)
            asked = numbers or self.layout.replicas.keys()
            needed = None if token is None else {number: token[number] for number in asked if number in token}
            return self.run(part, candidates, asked, use_token=use_token, token=needed, timeout=timeout)

        return await asyncio.gather(*[ask(candidates, numbers) for candidates, numbers in self.routing.cover()])

    async def run(
        self, operation: Operation, candidates: Sequence[str], numbers: Iterable[int] = (), *, use_token: bool = True,
        token: Vectors | None = None, timeout: float | None = None,
    ) -> Result:  # fmt: skip
        """An operation at one of these nodes, with the session's token of these partitions, or with `token`. Raises
        SpineErrors."""
        while self.openings:
            await asyncio.wait(self.openings)
        if len(self.calls) >= SESSION_OPERATIONS_MAX:
            await self._have_room()
        if self._closed:
            raise ConnectionFailed("this spine is closed; use it inside its `async with`")
        seconds = self.timeout if timeout is None else timeout
        call = Call(operation, candidates, numbers, use_token, token, seconds, self._loop)
        self.calls[operation.i] = call
        self._post(call)
        try:
            result = await call.future
        finally:
            self.calls.pop(operation.i, None)
            if self._waiters:
                self._next_waiter()
        if result.error is not None:
            raise error_of(result)
        return result

    async def _have_room(self) -> None:
        """Wait in line until fewer operations are under way."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and self._waiters:
                self._next_waiter()
            raise

    def _next_waiter(self) -> None:
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    # -- out --------------------------------------------------------------------------------------------------------

    def _post(self, call: Call) -> None:
        if not self._outbox:
            self._pace.plan()
        self._outbox.append(call)

    def _flush(self) -> None:
        """Everything of this loop turn, one message a node."""
        outbox, self._outbox = self._outbox, []
        self._pace.sent(len(outbox))
        if not self.transport.connected:
            self._later += outbox
            return
        by_node: dict[tuple[str, bool, int], list[Call]] = {}
        for call in outbox:
            call.node = self.routing.healthy(call.candidates)
            alone = 0 if call.token is None else call.operation.i
            by_node.setdefault((call.node, call.retry, alone), []).append(call)
        for (node, retry, _), calls in by_node.items():
            for start in range(0, len(calls), BATCH_OPERATIONS_MAX):
                self._send(node, retry, calls[start : start + BATCH_OPERATIONS_MAX])

    def _send(self, node: str, retry: bool, calls: list[Call]) -> None:
        token: dict[int, Vector] = {}
        for call in calls:
            if call.token is not None:
                token = call.token
            elif call.use_token:
                for number in call.numbers:
                    if number in self.vectors:
                        token[number] = self.vectors[number]
        request = Request(
            session=self.id, agent=self.agent, operations=[call.operation for call in calls], token=token, retry=retry
        )
        payload, problem = b"", ""
        try:
            payload = encode(request)
        except (TypeError, ValueError, RecursionError) as error:  # what no check of the values had thought of
            problem = f"the operation can't be sent: {error}"
        else:
            if len(payload) > self.transport.payload_bytes_max:
                problem = (
                    f"the operation is {len(payload):,} bytes as a message, the broker takes "
                    f"{self.transport.payload_bytes_max:,}: raise its max_payload or store less in one memory"
                )
        if len(calls) > 1 and (problem or len(payload) > BATCH_BYTES_TARGET):
            middle = len(calls) // 2
            self._send(node, retry, calls[:middle])
            self._send(node, retry, calls[middle:])
            return
        if problem:
            if not calls[0].future.done():
                calls[0].future.set_exception(InvalidInput(problem))
            return
        now, number = self._loop.time(), next(self._requests)
        self._heard.setdefault(node, now)
        for call in calls:
            call.sent_at, call.request = now, number
            call.attempts += 1
            call.open_attempts += 1
        self.transport.send(self.subjects.rpc(node), payload, f"{self.inbox}.{node}.{number}")

    # -- in ---------------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        if message.nobody:
            _, lost_node, request = message.subject.rsplit(".", 2)
            self._lost(lost_node, int(request))
            return
        try:
            response = _decode(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        self._heard[response.node] = self._loop.time()
        for number, vector in response.seen.items():
            mine = self.vectors.get(number)
            if mine is None:
                self.vectors[number] = vector
            else:
                join_into(mine, vector)
        for result in response.results:
            call = self.calls.get(result.i)
            if call is None or call.future.done():
                continue
            if result.error in _ELSEWHERE:
                self._elsewhere(call, response.node, result)
            else:
                call.future.set_result(result)

    def _elsewhere(self, call: Call, node: str, result: Result) -> None:
        """This node can't, not now: the next one, after a breath if there is none or it has too much to do."""
        call.problem = result
        call.open_attempts -= 1
        if call.node != node:
            return  # an answer from where it was before
        others = [other for other in call.candidates if other != node]
        call.candidates = [*others, node]
        call.retry = True
        call.node = ""
        self._wait(call)

    def _lost(self, node: str, request: int) -> None:
        """The broker says that nobody listens at this node: this request never arrived, others may be unanswered."""
        self.routing.avoid(node)
        for call in list(self.calls.values()):
            if call.node == node and not call.future.done():
                if call.request == request:
                    call.open_attempts -= 1
                self._again(call)

    def _again(self, call: Call) -> None:
        call.retry = True
        call.node = ""
        if all(self.routing.avoided(node) for node in call.candidates):
            self._wait(call)
        else:
            self._post(call)

    def _wait(self, call: Call) -> None:
        """Not again at once: for longer the more often it was tried."""
        pause = min(BACK_OFF_SECONDS * 2 ** min(max(call.attempts - 1, 0), 16), BACK_OFF_SECONDS_MAX)
        call.ready_at = self._loop.time() + pause
        self._later.append(call)

    # -- time -------------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Send what waited, move what hangs, fail what is too late."""
        connected = True
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._loop.time()
            later, self._later = self._later, []
            reconnected = self.transport.connected and not connected
            connected = self.transport.connected
            waiting = set(map(id, later))
            for call in list(self.calls.values()):
                if call.future.done():
                    continue
                if now >= call.deadline:
                    call.future.set_exception(self._too_late(call))
                elif not connected or id(call) in waiting or not call.node:
                    continue
                elif reconnected or now - call.sent_at > RESEND_SECONDS:
                    self._again(call)
                elif now - max(self._heard.get(call.node, 0.0), call.sent_at) > SILENT_SECONDS:
                    self.routing.avoid(call.node)
                    self._again(call)
            for call in later:
                if call.future.done():
                    continue
                if connected and call.ready_at <= now:
                    self._post(call)
                else:
                    self._later.append(call)

    def _too_late(self, call: Call) -> SpineError:
        seconds = call.seconds
        write = call.operation if isinstance(call.operation, Write) else None
        said = f"; the last answer: {call.problem.message}" if call.problem is not None and call.problem.message else ""
        if call.problem is not None and call.problem.error == "Behind" and write is None:
            return StaleToken(f"no replica reached the session's token within {seconds:g} s{said}")
        if write is not None and (call.open_attempts or (said and self.transport.connected)):
            outcome: Outcome = "unknown" if call.open_attempts else "not applied"
            message = f"the write was not confirmed within {seconds:g} s ({outcome}){said}"
            needed = min(write.acks or self.hello.write_quorum, len(call.candidates))
            return QuorumFailed(message, outcome=outcome, needed=needed)
        where = getattr(self.transport, "url", "the cluster")
        reason = "the broker is not connected" if not self.transport.connected else "no replica answered"
        return ConnectionFailed(f"{where}: {reason} within {seconds:g} s{said}")

    # -- tokens -----------------------------------------------------------------------------------------------------

    def see(self, vectors: Vectors) -> None:
        """From now on, read at least this."""
        for number, vector in vectors.items():
            join_into(self.vectors.setdefault(number, {}), vector)


def error_of(result: Result) -> SpineError:
    """The error that an answer names."""
    from crdt_spine import errors

    message = result.message or f"the operation failed: {result.error}"
    if result.error == "QuorumFailed":
        return QuorumFailed(
            message, outcome=result.outcome or "unknown", acks=result.acks_seen, needed=result.acks_needed
        )
    kind = getattr(errors, result.error or "", SpineError)
    error: SpineError = kind(message)
    return error
