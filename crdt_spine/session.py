"""An agent's session with a cluster: operations, and the token that has what they wrote and saw; a read takes it along.

What Spine calls is here; how it comes about is in the parts:

- call.py: one operation under way, and the error that it ends with;
- dispatch.py: batches out, answers in, what is to be tried again or elsewhere;
- requests.py: a batch as a message;
- hedging.py: reads that take too long are sent to another node as well;
- pings.py, health.py, lateness.py: how nodes do, and what their clocks show;
- whereabouts.py, routing.py: who holds what, followed when it changes, and whom to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, Final

import msgspec

from crdt_spine.call import Call, Demanded, Moved, error_of
from crdt_spine.core.causality import join_into
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Hello, Operation, Query, Reach, Result, Vectors
from crdt_spine.core.subjects import Subjects
from crdt_spine.core.token import token_text, token_vectors
from crdt_spine.discovery import discover
from crdt_spine.dispatch import Dispatch
from crdt_spine.errors import ConnectionFailed, SpineError, StaleToken
from crdt_spine.health import Health
from crdt_spine.hedging import Hedging
from crdt_spine.lateness import Lateness
from crdt_spine.limits import CONNECT_SECONDS_MAX, OPERATION_SECONDS_MAX, SESSION_OPERATIONS_MAX
from crdt_spine.pings import Pings
from crdt_spine.requests import Requests
from crdt_spine.routing import Group, Routing
from crdt_spine.transport.base import Transport
from crdt_spine.whereabouts import Whereabouts

LOST_SECONDS_MAX: Final = 3.0  # for finding out what else of an actor is lost, once something is


class Session:
    """Use `Session.discover`. One per agent process; agents may share it."""

    def __init__(self, transport: Transport, hello: Hello, agent: str, *, zone: str | None = None) -> None:
        self.transport = transport
        self.subjects = Subjects(hello.cluster)
        self.agent = agent
        self.id = secrets.token_hex(5)
        self.timeout = OPERATION_SECONDS_MAX
        self.token_secret = b""  # with which tokens are signed; empty: they are not
        self.vectors: Vectors = {}
        self.strays: Vectors = {}  # of those, what established the strays that were shown (core/strays.py)
        self.counts: Counter[str] = Counter(hedges=0, hedges_won=0, moved_away=0)
        self.openings: set[asyncio.Future[None]] = set()  # subscriptions that are about to begin
        self.closers: set[Callable[[], Awaitable[None]]] = set()  # of what ends with the session
        self.calls: dict[int, Call] = {}
        self._numbers = itertools.count(1)
        self._waiters: deque[asyncio.Future[None]] = deque()  # calls for which there is no room yet
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.health = Health(self._loop.time, self.counts)
        self.lateness = Lateness()
        self.whereabouts = Whereabouts(
            transport, hello, int(self.id, 16), zone, self.health, self.lateness, self.counts, self._changed
        )
        self.requests = Requests(transport, self.subjects, self.id, agent, self.vectors, self.lateness)
        self.hedging = Hedging(transport, self.requests, self.whereabouts, self.health, self.calls, self.counts)
        self.pings = Pings(self.requests, self.whereabouts, self.health, self.vectors, self.number)
        self._dispatch = Dispatch(
            transport, self.whereabouts, self.requests, self.hedging, self.pings, self.health, self.lateness,
            self.calls, self.vectors, self.strays, self.counts,
        )  # fmt: skip
        self.hello: Hello  # these three are those of `whereabouts`, at hand for every operation
        self.layout: Layout
        self.routing: Routing
        self._changed()

    def _changed(self) -> None:
        """Others hold it now: everything goes by that."""
        where = self.whereabouts
        self.hello, self.layout, self.routing = where.hello, where.layout, where.routing
        self._dispatch.changed()

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
        await self._dispatch.start()

    async def close(self) -> None:
        """End, and the subscriptions with it; operations under way fail with ConnectionFailed."""
        self._closed = True
        for close in list(self.closers):
            await close()
        await self.whereabouts.close()
        await self._dispatch.close()
        while self._waiters:
            self._next_waiter()

    # -- operations -------------------------------------------------------------------------------------------------

    def number(self) -> int:
        """A new operation's number."""
        return next(self._numbers)

    def on_memory(
        self, operation: Operation, id: str, *, use_token: bool = True, timeout: float | None = None,
        open_attempts: int = 0,
    ) -> Coroutine[Any, Any, Result]:  # fmt: skip
        """An operation on one memory, at one of its replicas; so many earlier attempts of it may yet be done. Raises
        what the operation's answer says."""
        number, layout = self.layout.partition_of(id), self.layout
        return self._run(
            operation, self.routing.replicas[number], (number,), use_token, None, timeout, layout, open_attempts
        )

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
            return self._by_replicas(vectors if numbers is None else numbers)

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
        token: Vectors | None, timeout: float | None, layout: Layout | None, open_attempts: int = 0,
    ) -> Result:  # fmt: skip
        while self.openings:
            await asyncio.wait(self.openings)
        if len(self.calls) >= SESSION_OPERATIONS_MAX:
            await self._have_room()
        if self._closed:
            raise ConnectionFailed("this spine is closed; use it inside its `async with`")
        seconds = self.timeout if timeout is None else timeout
        call = Call(operation, candidates, numbers, use_token, token, seconds, self._loop, layout)
        call.open_attempts, call.retry = open_attempts, open_attempts > 0
        self.calls[operation.i] = call
        self._dispatch.post(call)
        try:
            result = await call.future
        finally:
            self.calls.pop(operation.i, None)
            if self._waiters:
                self._next_waiter()
        if result.error is not None:
            if result.gone and token is None:
                self._dispatch.let_go(await self.lost(self.vectors, result.gone))
            error = error_of(result)
            if isinstance(error, Demanded):
                error.open_attempts = call.open_attempts
            raise error
        return result

    async def lost(self, vectors: Vectors, gone: Vectors) -> Vectors:
        """Of the actors in `gone` something is lost: that, and whatever else these vectors have of them that no replica
        will ever have, in any partition, as far as that can be known soon. So whose vectors they are is told once."""
        found = {number: dict(vector) for number, vector in gone.items()}
        actors = {actor for vector in gone.values() for actor in vector}
        concerned = [number for number, vector in vectors.items() if not actors.isdisjoint(vector)]
        deadline = self._loop.time() + min(self.timeout, LOST_SECONDS_MAX)

        async def ask(nodes: Sequence[str], numbers: Sequence[int]) -> None:
            while (left := deadline - self._loop.time()) > 0:
                wanted = {
                    number: {
                        actor: n for actor, n in vectors[number].items()
                        if actor in actors and actor not in found.get(number, {})
                    }
                    for number in numbers
                }  # fmt: skip
                try:
                    await self._run(Reach(i=self.number()), nodes, numbers, True, wanted, left, self.layout)
                    return  # they have the rest
                except StaleToken as stale:
                    if not stale.gone:
                        return
                    for number, vector in stale.gone.items():
                        found.setdefault(number, {}).update(vector)
                except SpineError:
                    return

        await asyncio.gather(*[ask(nodes, numbers) for nodes, numbers in self._by_replicas(concerned)])
        return found

    def _by_replicas(self, numbers: Iterable[int]) -> list[Group]:
        """These partitions, with the nodes that hold them."""
        parts: dict[tuple[str, ...], list[int]] = {}
        for number in numbers:
            parts.setdefault(self.routing.replicas[number], []).append(number)
        return [(nodes, tuple(part)) for nodes, part in parts.items()]

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

    # -- who holds what ---------------------------------------------------------------------------------------------

    def ask_who_holds_what(self) -> None:
        """A node does not hold what this session thinks it does: ask anew, in the background."""
        self.whereabouts.ask_who_holds_what()

    async def renewed(self) -> None:
        """Wait a moment for who holds what, where that is being asked."""
        await self.whereabouts.renewed()

    # -- tokens -----------------------------------------------------------------------------------------------------

    def token_text(self, vectors: Vectors) -> str:
        """These vectors as a token."""
        return token_text(self.hello.identity, self.hello.region, vectors, self.token_secret)

    def token_vectors(self, text: str) -> Vectors:
        """The vectors of a token. Raises InvalidInput, StaleToken."""
        hello = self.hello
        return token_vectors(text, hello.identity, hello.region, hello.partitions, self.token_secret)

    def see(self, vectors: Vectors, strays: Vectors | None = None) -> None:
        """From now on, read at least this. `strays`: of it, what established strays; None: any of it may have."""
        for number, vector in vectors.items():
            join_into(self.vectors.setdefault(number, {}), vector)
        if self.hello.placement != "hash":
            for number, vector in (vectors if strays is None else strays).items():
                join_into(self.strays.setdefault(number, {}), vector)
