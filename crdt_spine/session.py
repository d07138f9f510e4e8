"""An agent's session with a cluster: operations leave in batches, answers come back, retries never apply twice.

Operations issued in one loop turn for one node travel as one message. Each has an id (session, number) that stays the
same through every retry. A session goes to a partition's first replica, so that it usually reads where it last wrote;
when that node is gone (the broker says so at once), silent or slow, its operations move on to another replica. The
token has what the session wrote and saw; a read takes it along.

A read that takes longer than nearly all others at that node is sent to another one as well (a *hedge*), and the first
good answer counts. Writes are never sent twice while the first node may be at work on them: they are moved, with their
id, when it has been silent for a while.

Who holds what may change while operations are under way. A node that knows a newer epoch says so, or "NotHere"; the
session then asks anew, in the background, and everything that is sent from then on goes by the new layout.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any

import msgspec

from crdt_spine.core.causality import Vector, join_into
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import (
    Delete,
    Edit,
    EditDocument,
    Get,
    GetDocument,
    Hello,
    Operation,
    Query,
    Reach,
    Request,
    Response,
    Result,
    Store,
    Unreadable,
    Vectors,
    Write,
    encode,
)
from crdt_spine.core.subjects import Subjects
from crdt_spine.discovery import discover
from crdt_spine.errors import ConnectionFailed, InvalidInput, Outcome, QuorumFailed, SpineError, StaleToken
from crdt_spine.health import OTHER, PATIENCE_SECONDS_MIN, PING, QUERY, READ, WRITE, Health
from crdt_spine.lateness import Lateness
from crdt_spine.limits import (
    BATCH_BYTES_TARGET,
    BATCH_OPERATIONS_MAX,
    CONNECT_SECONDS_MAX,
    OPERATION_SECONDS_MAX,
    SESSION_OPERATIONS_MAX,
)
from crdt_spine.routing import Group, Routing
from crdt_spine.transport.base import Message, Subscription, Transport
from crdt_spine.transport.pace import Pace

SWEEP_SECONDS = 0.05
PACE_SECONDS_MAX = 0.002  # between two batches, if the first ...
PACE_OPERATIONS = 20  # ... had this many operations: only ten thousand a second are ever held up for that long
SILENT_SECONDS = 1.0  # a node that owes answers and says nothing for that long is taken for stuck
SUSPECT_SILENT_SECONDS = 0.3  # if others say so, too, or have answered in its place
RESEND_SECONDS = 3.0  # an operation that a lively node has not answered for that long was lost on the way
BACK_OFF_SECONDS = 0.05  # before an operation that was turned away is tried again; doubling ...
BACK_OFF_SECONDS_MAX = 1.0  # ... up to here: thousands of them must not keep an overloaded node busy
LATE_SECONDS = 0.005  # a loop that is that late has answers to read before anybody is said not to have answered
LATE_TIMES_MAX = 3  # in a row, for one call
LATE_SWEEP_SECONDS = 0.25
HEDGE_SHARE = 0.05  # of reads may be sent twice, so that an overload is not doubled ...
HEDGES_SAVED_MAX = 20.0  # ... or so many at once, by who read for a while without
EXPECTED_SECONDS_MAX = 5.0  # then an answer that comes late is nothing to learn from
ACTIVE_SECONDS = 2.0  # a session that asks for nothing does not ask how its nodes do
RENEW_SECONDS = 0.5  # for nodes to say who holds what
RENEW_SPREAD_SECONDS = 0.1  # within which many sessions ask, if nothing waits for it
RENEW_PAUSE_SECONDS = 0.2

_decode = msgspec.json.Decoder(Response).decode
_ELSEWHERE = frozenset(("Behind", "Busy", "Late", "NotHere"))
_KINDS: dict[type, int] = {
    Get: READ, GetDocument: READ, Query: QUERY, Store: WRITE, Edit: WRITE, Delete: WRITE, EditDocument: WRITE,
}  # fmt: skip


class Moved(SpineError):
    """What was asked of these nodes lies elsewhere now: it is to be planned anew. No caller of Spine sees it."""


class Call:
    """One operation under way."""

    __slots__ = (
        "asked", "attempts", "candidates", "deadline", "fixed", "future", "hedge", "hedge_request", "hedged_at", "kind",
        "layout", "node", "numbers", "open_attempts", "operation", "problem", "ready_at", "request", "retry", "seconds",
        "sent_at", "token", "tried", "until", "use_token",
    )  # fmt: skip

    def __init__(
        self, operation: Operation, candidates: Sequence[str], numbers: Collection[int], use_token: bool,
        token: Vectors | None, seconds: float, loop: asyncio.AbstractEventLoop, layout: Layout | None,
    ) -> None:  # fmt: skip
        self.operation = operation
        self.candidates = candidates
        self.layout = layout  # by which the candidates are those of the partitions; None: they are meant themselves
        self.fixed = layout is None
        self.kind = OTHER if layout is None else _KINDS.get(type(operation), OTHER)
        self.numbers = numbers  # partitions whose token the answer must have reached
        self.use_token = use_token
        self.token = token  # instead of the session's; such a call travels alone
        self.seconds = seconds
        self.deadline = loop.time() + seconds
        self.future: asyncio.Future[Result] = loop.create_future()
        self.node = ""
        self.request = 0
        self.sent_at = 0.0
        self.until = 0.0  # a write may be taken so long by the node that it was sent to
        self.tried: tuple[str, ...] = ()  # those that have turned it away, until all have
        self.asked: tuple[str, ...] = ()  # those that were given it as a hedge before `hedge`
        self.hedge = ""  # who was asked as well
        self.hedge_request = 0
        self.hedged_at = 0.0
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
        self.strays: Vectors = {}  # of those, what established the strays that were shown (core/strays.py)
        self.counts: Counter[str] = Counter(hedges=0, hedges_won=0, moved_away=0)
        self.openings: set[asyncio.Future[None]] = set()  # subscriptions that are about to begin
        self.closers: set[Callable[[], Awaitable[None]]] = set()  # of what ends with the session
        self.calls: dict[int, Call] = {}
        self._numbers = itertools.count(1)
        self._requests = itertools.count(1)
        self._outbox: list[Call] = []
        self._later: list[Call] = []
        self._check_at = 0.0
        self._check_timer: asyncio.TimerHandle | None = None
        self._check_late = 0  # how often in a row a check was late, while ...
        self._late_oldest = 0  # ... this call was the oldest
        self._hedges_left = HEDGES_SAVED_MAX
        self._expected: dict[int, tuple[str, float, int]] = {}  # pings, and reads that others answered: operation ->
        # the node that will answer, too, since when, and what that measures
        self._active_at = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._wanted_epoch = 0
        self._waiters: deque[asyncio.Future[None]] = deque()  # calls for which there is no room yet
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(self._flush, PACE_SECONDS_MAX, PACE_OPERATIONS)
        self.health = Health(self._loop.time, self.counts)
        self._lateness = Lateness()
        self.layout: Layout
        self.routing: Routing
        self._adopt(hello)

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
        if self._check_timer is not None:
            self._check_timer.cancel()
        for task in (self._sweeper, self._renewing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
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
        return self._run(operation, self.routing.replicas[number], (number,), use_token, None, None, self.layout)

    async def query(
        self, query: Query, *, use_token: bool = True, token: Vectors | None = None, timeout: float | None = None,
        partitions: Collection[int] | None = None,
    ) -> list[Result]:  # fmt: skip
        """The same question to the fewest nodes that have every partition, or these: a page of each. Each partition is
        in one page, whatever moves meanwhile. Raises as `run` does."""
        everything = len(self.layout.replicas)

        def part(numbers: Sequence[int]) -> tuple[Operation, Vectors | None]:
            # A node that holds everything and can't lose any of it need not be told what everything is.
            named = None if len(numbers) == everything and not self.hello.epoch else tuple(numbers)
            needed = None if token is None else {number: token[number] for number in numbers if number in token}
            return msgspec.structs.replace(query, i=self.number(), partitions=named), needed

        def plan(numbers: Collection[int] | None) -> list[Group]:
            return self.routing.cover(numbers)  # by the layout of that moment

        return await self._spread(partitions, plan, part, use_token, timeout)

    async def reach(self, vectors: Vectors, timeout: float) -> None:
        """Wait until some replica of each of these partitions has reached this. Raises StaleToken, ConnectionFailed."""

        def groups(numbers: Collection[int] | None) -> list[Group]:
            parts: dict[tuple[str, ...], list[int]] = {}
            for number in vectors.keys() if numbers is None else numbers:
                parts.setdefault(self.routing.replicas[number], []).append(number)
            return [(nodes, tuple(part)) for nodes, part in parts.items()]

        def part(numbers: Sequence[int]) -> tuple[Operation, Vectors | None]:
            return Reach(i=self.number()), {number: vectors[number] for number in numbers}

        await self._spread(None, groups, part, True, timeout)

    async def _spread(
        self, numbers: Collection[int] | None, plan: Callable[[Collection[int] | None], list[Group]],
        part: Callable[[Sequence[int]], tuple[Operation, Vectors | None]], use_token: bool, timeout: float | None,
    ) -> list[Result]:  # fmt: skip
        """One operation for each group of partitions; what has moved meanwhile is planned anew."""
        results: list[Result] = []
        deadline = self._loop.time() + (self.timeout if timeout is None else timeout)
        while True:
            calls = []
            groups = plan(numbers)
            left = max(deadline - self._loop.time(), 0.001) if numbers is not None else timeout
            for candidates, group in groups:
                operation, token = part(group)
                calls.append(self._run(operation, candidates, group, use_token, token, left, self.layout))
            if len(calls) == 1:
                with contextlib.suppress(Moved):
                    return [*results, await calls[0]]
                moved = list(groups[0][1])
            else:
                moved = []
                found = await asyncio.gather(*calls, return_exceptions=True)
                for (_, group), result in zip(groups, found, strict=True):
                    if isinstance(result, Moved):
                        moved += group
                    elif isinstance(result, BaseException):
                        raise result
                    else:
                        results.append(result)
            if not moved:
                return results
            numbers = moved
            await self.renewed()

    async def run(
        self, operation: Operation, candidates: Sequence[str], numbers: Collection[int] = (), *, use_token: bool = True,
        token: Vectors | None = None, timeout: float | None = None,
    ) -> Result:  # fmt: skip
        """An operation at one of just these nodes, with the session's token of these partitions, or with `token`.
        Raises SpineErrors; Moved where the nodes do not have what is asked for."""
        return await self._run(operation, candidates, numbers, use_token, token, timeout, None)

    async def _run(
        self, operation: Operation, candidates: Sequence[str], numbers: Collection[int], use_token: bool,
        token: Vectors | None, timeout: float | None, layout: Layout | None,
    ) -> Result:  # fmt: skip
        while self.openings:
            await asyncio.wait(self.openings)
        if len(self.calls) >= SESSION_OPERATIONS_MAX:
            await self._have_room()
        if self._closed:
            raise ConnectionFailed("this spine is closed; use it inside its `async with`")
        seconds = self.timeout if timeout is None else timeout
        call = Call(operation, candidates, numbers, use_token, token, seconds, self._loop, layout)
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
        layout, well = self.layout, self.health.all_well
        self._active_at = now = self._loop.time()
        if self._check_timer is None and len(self.hello.nodes) > 1:
            self._check_at_time(now + PATIENCE_SECONDS_MIN)
        reads = 0
        for call in outbox:
            if call.kind <= QUERY:
                reads += 1
            if call.layout is not layout and not self._located(call):
                continue
            if well and not call.tried:
                call.node = call.candidates[0]
            else:
                call.node = self.routing.choose(call.candidates, call.tried, reads=call.kind <= QUERY)
            alone = 0 if call.token is None else call.operation.i
            by_node.setdefault((call.node, call.retry, alone), []).append(call)
        self._hedges_left = min(self._hedges_left + HEDGE_SHARE * reads, HEDGES_SAVED_MAX)
        for (node, retry, _), calls in by_node.items():
            for start in range(0, len(calls), BATCH_OPERATIONS_MAX):
                self._send(node, retry, calls[start : start + BATCH_OPERATIONS_MAX])

    def _located(self, call: Call) -> bool:
        """Where it goes by the layout of now. False: nowhere, as a whole; who has it planned hears of it."""
        if call.fixed:
            return True
        candidates = self.routing.holders(call.numbers)
        if not candidates:
            if not call.future.done():
                call.future.set_exception(Moved("these partitions lie on several nodes now"))
            return False
        call.candidates, call.layout = candidates, self.layout
        return True

    def _send(self, node: str, retry: bool, calls: list[Call], hedge: bool = False) -> None:
        token: dict[int, Vector] = {}
        for call in calls:
            if call.token is not None:
                token = call.token
            elif call.use_token:
                for number in call.numbers:
                    if number in self.vectors:
                        token[number] = self.vectors[number]
        operations, now = [call.operation for call in calls], self._loop.time()
        by, until = self._lateness.by(node, now), now + self._lateness.window(node, now)
        request = Request(session=self.id, agent=self.agent, operations=operations, token=token, retry=retry, by=by)
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
            self._send(node, retry, calls[:middle], hedge)
            self._send(node, retry, calls[middle:], hedge)
            return
        if problem:
            if not calls[0].future.done():
                calls[0].future.set_exception(InvalidInput(problem))
            return
        now, number = self._loop.time(), next(self._requests)
        if hedge:
            for call in calls:
                call.hedge, call.hedge_request, call.hedged_at = node, number, now
        else:
            for call in calls:
                call.sent_at, call.request, call.until = now, number, until
                call.attempts += 1
                call.open_attempts += 1
        self.transport.send(self.subjects.rpc(node), payload, f"{self.inbox}.{node}.{number}")

    # -- hedges -----------------------------------------------------------------------------------------------------

    def _check_at_time(self, due: float) -> None:
        self._check_at = due
        self._check_timer = self._loop.call_at(due, self._check)

    def _check(self) -> None:
        """Which reads are late? Another replica is asked as well."""
        now = self._loop.time()
        if now - self._check_at > LATE_SECONDS:
            # This process was busy, or was not let run: what has arrived meanwhile comes first.
            oldest = next(iter(self.calls), 0)
            self._check_late = self._check_late + 1 if oldest == self._late_oldest else 1
            self._late_oldest = oldest
            if self._check_late <= LATE_TIMES_MAX:
                self._check_at_time(now + LATE_SECONDS)
                return
        self._check_late = 0
        overdue = []
        due_next = float("inf")
        for call in self.calls.values():  # in the order of their beginning
            if call.sent_at > now - PATIENCE_SECONDS_MIN and call.attempts == 1:
                due_next = min(due_next, call.sent_at + PATIENCE_SECONDS_MIN)
                break  # the others are younger still
            if call.kind > QUERY or not call.node or call.future.done():
                continue
            if call.hedge:
                due = call.hedged_at + self.health.patience(call.hedge, call.kind)
            else:
                due = call.sent_at + self.health.patience(call.node, call.kind)
            if due <= now:
                overdue.append(call)
            else:
                due_next = min(due_next, due)
        if overdue and self.transport.connected:
            self._hedge(overdue)
        if self.calls:
            self._check_at_time(min(max(due_next, now + LATE_SECONDS), now + PATIENCE_SECONDS_MIN))
        else:
            self._check_timer = None

    def _hedge(self, calls: list[Call]) -> None:
        """These reads have not been answered in time."""
        groups: dict[tuple[str, int], list[Call]] = {}
        for call in calls:
            if self._hedges_left < 1:
                break
            other = self.routing.other(call.candidates, (call.node, call.hedge, *call.asked))
            if other is not None:
                if call.hedge:
                    self._drop_hedge(call)
                self._hedges_left -= 1
                self.counts["hedges"] += 1
                groups.setdefault((other, 0 if call.token is None else call.operation.i), []).append(call)
        for (other, _), some in groups.items():
            self._send(other, True, some, hedge=True)

    def _won(self, call: Call, node: str, now: float) -> None:
        """Another node than the one that was asked first has answered."""
        if node != call.hedge:
            return
        self.counts["hedges_won"] += 1
        self._expected[call.operation.i] = call.node, call.sent_at, call.kind
        self.health.measured(node, call.kind, now - call.hedged_at, now)
        slow = call.node
        if self.health.heard.get(slow, 0.0) > call.sent_at or not self.health.doubt(slow, now):
            return
        for other in list(self.calls.values()):  # what else waits there is not to wait for its own evidence
            if other.node == slow and other.kind <= QUERY and other is not call and not other.future.done():
                self._again(other)

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
        node, now = response.node, self._loop.time()
        self.health.hear(node, now)
        if response.now:
            self._lateness.heard(node, response.now, now)
        if response.epoch > self.hello.epoch:
            self._ask_anew(response.epoch)
        if response.down:
            self.health.hint(response.down, now)
        for number, vector in response.seen.items():
            mine = self.vectors.get(number)
            if mine is None:
                self.vectors[number] = vector
            else:
                join_into(mine, vector)
        for number, vector in response.strays.items():
            join_into(self.strays.setdefault(number, {}), vector)
        measured = 0.0
        for result in response.results:
            call = self.calls.get(result.i)
            if call is None or call.future.done():
                if self._expected and result.i in self._expected:
                    self._came_late(node, result, now)
                continue
            if result.error in _ELSEWHERE:
                self._elsewhere(call, node, result)
                continue
            if call.node == node:
                if call.sent_at != measured:  # once a request
                    measured = call.sent_at
                    self.health.measured(node, call.kind, now - measured, now)
            elif call.hedge:
                self._won(call, node, now)
            call.future.set_result(result)

    def _elsewhere(self, call: Call, node: str, result: Result) -> None:
        """This node can't, not now: the next one, after a breath if there is none or it has too much to do."""
        call.problem = result
        if result.error == "Late":
            self._lateness.refused(node, self._loop.time())
        if result.error == "NotHere":
            self.ask_who_holds_what()
            if call.fixed:
                call.future.set_exception(Moved(f"node {node} does not hold what was asked for"))
                return
        if node == call.hedge:
            self._drop_hedge(call)
            return
        call.open_attempts -= 1
        if call.node != node:
            return  # an answer from where it was before
        if call.hedge:
            self._follow_hedge(call)
            return
        call.tried = (*call.tried, node)
        left = [other for other in call.candidates if other not in call.tried]
        if not left:
            call.tried = (node,) if len(call.candidates) > 1 else ()
        call.retry = True
        call.node = ""
        if result.error != "Busy" and any(self.health.well(other) for other in left):
            self._post(call)
        else:
            self._wait(call)

    def _lost(self, node: str, request: int) -> None:
        """The broker says that nobody listens at this node: this request never arrived, others may be unanswered."""
        self.health.fail(node, "gone", self._loop.time())
        for number, (lost, _, kind) in list(self._expected.items()):
            if lost == node:
                del self._expected[number]
                if kind == PING:
                    self.health.ponged(node, None, self._loop.time())
        for call in list(self.calls.values()):
            if call.future.done():
                continue
            if call.hedge == node:
                self._drop_hedge(call)
            if call.node == node:
                if call.request == request:
                    call.open_attempts -= 1
                self._again(call)

    def _again(self, call: Call) -> None:
        if call.hedge:
            self._follow_hedge(call)
            return
        call.retry = True
        call.node = ""
        call.asked = ()
        if all(self.routing.avoided(node) for node in call.candidates):
            self._wait(call)
        else:
            self._post(call)

    def _drop_hedge(self, call: Call) -> None:
        """The other node has no answer either."""
        call.asked = (*call.asked, call.hedge)
        call.hedge, call.hedge_request = "", 0

    def _follow_hedge(self, call: Call) -> None:
        """It is under way at another node already: that one's answer is waited for."""
        call.asked = (*call.asked, call.node)
        call.node, call.hedge = call.hedge, ""
        call.sent_at, call.request = call.hedged_at, call.hedge_request

    def _wait(self, call: Call) -> None:
        """Not again at once: for longer the more often it was tried."""
        pause = min(BACK_OFF_SECONDS * 2 ** min(max(call.attempts - 1, 0), 16), BACK_OFF_SECONDS_MAX)
        call.ready_at = self._loop.time() + pause
        self._later.append(call)

    # -- who holds what ---------------------------------------------------------------------------------------------

    def _adopt(self, hello: Hello) -> None:
        """From now on, everything goes by this."""
        self.hello = hello
        if hello.now:
            self._lateness.heard(hello.node, hello.now, self._loop.time())
        self.layout = Layout(hello)
        self.routing = Routing(hello, self.layout, int(self.id, 16), self.health, self.zone)
        self.health.keep(node.id for node in hello.nodes)
        self.health.hint(hello.down, self._loop.time())
        for call in self._later:
            call.tried = ()
            if call.problem is not None and call.problem.error == "NotHere":
                call.ready_at = 0.0

    def ask_who_holds_what(self) -> None:
        """A node does not hold what this session thinks it does: ask anew, in the background."""
        self._ask_anew(self.hello.epoch + 1, hurry=True)

    def _ask_anew(self, epoch: int, hurry: bool = False) -> None:
        """Somebody knows of an epoch that this session does not know."""
        self._wanted_epoch = max(self._wanted_epoch, epoch)
        if not self._closed and (self._renewing is None or self._renewing.done()):
            self._renewing = self._loop.create_task(self._renew(hurry))

    async def _renew(self, hurry: bool) -> None:
        """Ask who holds what, until it is as new as somebody has said, or nobody says more."""
        if not hurry:
            await asyncio.sleep(RENEW_SPREAD_SECONDS * (int(self.id, 16) % 100) / 100)
        asked = 0
        while asked < 2 or self._wanted_epoch > self.hello.epoch + 1:
            wanted = self._wanted_epoch
            asked += 1
            with contextlib.suppress(ConnectionFailed):
                hello = await discover(self.transport, self.hello.cluster, RENEW_SECONDS, epoch=wanted)
                if hello.epoch > self.hello.epoch:
                    self.counts["layouts"] += 1
                    self._adopt(hello)
            if self.hello.epoch >= self._wanted_epoch or asked > 10:
                break
            await asyncio.sleep(RENEW_PAUSE_SECONDS)
        self._wanted_epoch = self.hello.epoch

    async def renewed(self) -> None:
        """Wait a moment for who holds what, where that is being asked."""
        if self._renewing is not None and not self._renewing.done():
            await asyncio.wait((self._renewing,), timeout=RENEW_SECONDS)
        else:
            await asyncio.sleep(BACK_OFF_SECONDS)

    # -- how nodes do -----------------------------------------------------------------------------------------------

    def _ping(self, node: str, now: float) -> None:
        """Does this node answer, and has it what this session has seen?"""
        for given_up in [i for i, (pinged, _, kind) in self._expected.items() if pinged == node and kind == PING]:
            del self._expected[given_up]
        number = self.number()
        token: Vectors = {}
        if node in self.health.trouble:
            token = {n: self.vectors[n] for n in self.routing.held.get(node, ()) if n in self.vectors}
        self._expected[number] = node, now, PING
        request = Request(session=self.id, agent=self.agent, operations=[Reach(i=number)], token=token)
        reply = f"{self.inbox}.{node}.{next(self._requests)}"
        self.transport.send(self.subjects.rpc(node), encode(request), reply)

    def _came_late(self, node: str, result: Result, now: float) -> None:
        """An answer for which nobody waits: it says how the node does."""
        expected, since, kind = self._expected[result.i]
        if expected != node:
            return
        del self._expected[result.i]
        if kind == PING:
            self.health.ponged(node, None if result.error in ("Behind", "Busy") else now - since, now)
        elif result.error is None:
            self.health.measured(node, kind, now - since, now)

    def _look_after_nodes(self, now: float) -> None:
        self.health.judge(now)
        if self._expected:
            for number, (_, since, _) in list(self._expected.items()):
                if now - since > EXPECTED_SECONDS_MAX:
                    del self._expected[number]
        if self.transport.connected and now - self._active_at < ACTIVE_SECONDS:
            for node in self.health.to_ping(now):
                self._ping(node, now)

    # -- time -------------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Send what waited, move what hangs, fail what is too late."""
        connected = True
        before = self._loop.time()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._loop.time()
            late, before = now - before > SWEEP_SECONDS + LATE_SWEEP_SECONDS, now
            if late:  # this process was busy, or was not let run: what has arrived meanwhile comes first
                continue
            later, self._later = self._later, []
            reconnected = self.transport.connected and not connected
            connected = self.transport.connected
            waiting = set(map(id, later))
            self._look_after_nodes(now)
            heard = self.health.heard
            limits = dict.fromkeys((*self.health.trouble, *self.health.doubted), SUSPECT_SILENT_SECONDS)
            for call in list(self.calls.values()):
                if call.future.done():
                    continue
                if now >= call.deadline:
                    call.future.set_exception(self._too_late(call))
                elif not connected or id(call) in waiting or not call.node:
                    continue
                elif call.kind == WRITE and now <= call.until:
                    continue  # the node may still take it
                elif reconnected or now - call.sent_at > RESEND_SECONDS:
                    self._drop_hedge(call)
                    self._again(call)
                elif now - max(heard.get(call.node, 0.0), call.sent_at) > limits.get(call.node, SILENT_SECONDS):
                    self.health.fail(call.node, "silent", now)
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
            needed = min(write.acks or self.hello.write_quorum, len(call.candidates))
            acks = call.problem.acks_seen if call.problem is not None else 0
            missing = (call.problem.missing if call.problem is not None else ()) or tuple(call.candidates)
            message = (
                f"the write was not confirmed within {seconds:g} s ({outcome}): {acks} of the {needed} replicas needed "
                f"are known to have it, {', '.join(missing)} are not{said}"
            )
            return QuorumFailed(message, outcome=outcome, acks=acks, needed=needed, missing=missing)
        if call.problem is not None and call.problem.acks_needed and self.transport.connected:  # too few for a read
            return error_of(msgspec.structs.replace(call.problem, error="QuorumFailed"))
        where = getattr(self.transport, "url", "the cluster")
        reason = "the broker is not connected" if not self.transport.connected else "no replica answered"
        return ConnectionFailed(f"{where}: {reason} within {seconds:g} s{said}")

    # -- tokens -----------------------------------------------------------------------------------------------------

    def see(self, vectors: Vectors, strays: Vectors | None = None) -> None:
        """From now on, read at least this. `strays`: of it, what established strays; None: any of it may have."""
        for number, vector in vectors.items():
            join_into(self.vectors.setdefault(number, {}), vector)
        if self.hello.placement != "hash":
            for number, vector in (vectors if strays is None else strays).items():
                join_into(self.strays.setdefault(number, {}), vector)


def error_of(result: Result) -> SpineError:
    """The error that an answer names."""
    from crdt_spine import errors

    message = result.message or f"the operation failed: {result.error}"
    if result.error == "QuorumFailed":
        return QuorumFailed(
            message, outcome=result.outcome or "unknown", acks=result.acks_seen, needed=result.acks_needed,
            missing=result.missing,
        )  # fmt: skip
    kind = getattr(errors, result.error or "", SpineError)
    error: SpineError = kind(message)
    return error
