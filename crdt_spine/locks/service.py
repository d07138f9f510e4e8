"""An instance of the lock service: requests in, the rules of core/locks.py run against the stream, answers out.

It has no state that matters: several instances share the requests (a NATS queue group), and any may die at any moment.
What it remembers is when to look again whether a lock that somebody waits for has become free. An instance hears of
those that another one puts in line, as what it publishes for them passes by; and agents in line ask again from time to
time. So a release of a lock that nobody is known to wait for needs no look at the line.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

import msgspec

from crdt_spine.core import locks
from crdt_spine.core.fences import token_of
from crdt_spine.core.lock_messages import (
    Acquire,
    ListLocks,
    LockAnswer,
    LockList,
    LockRequest,
    LockState,
    OfferAnswer,
    Release,
    Renew,
)
from crdt_spine.core.messages import Unreadable, encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.limits import LOCK_MESSAGES_MAX, LOCK_REQUESTS_MAX, LOCKS_LISTED_MAX
from crdt_spine.locks.epochs import Epochs
from crdt_spine.transport.base import (
    Disconnected,
    Leases,
    LeasesGone,
    Message,
    NobodyListens,
    Subscription,
    Transport,
)

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.1
STILL_SECONDS: Final = 0.25  # an instance that does not come to run for so long may have been paused
DISTRUST_SECONDS: Final = 0.3  # after that: who asked then has asked another one, and may not want it any more
QUEUE: Final = "locks"
LINES: Final = "*.wait.*"  # the lines of all locks
LOOK_SECONDS_MAX: Final = 1.0  # between two looks at a lock that somebody waits for
OFFER_ANSWER_SECONDS_MAX: Final = 1.0
UNSURE_SECONDS: Final = 4.0  # after its start, or the broker was away: who waits has asked again by then
RECONNECT_SECONDS: Final = 3.0  # after the broker was away, who is not heard may be connecting again

_decode = msgspec.json.Decoder(LockRequest).decode
_decode_wanted = msgspec.json.Decoder(OfferAnswer).decode


class LockService:
    """Use `start`; `stop` at the end. `leases` is what it gives out from, `nodes` who belongs to the cluster now."""

    def __init__(
        self, transport: Transport, cluster: str, leases: Leases, nodes: Callable[[], Awaitable[frozenset[str]]]
    ) -> None:
        self.epoch = 0
        self.counts: Counter[str] = Counter()
        self._transport = transport
        self._subjects = Subjects(cluster)
        self._leases = leases
        self._epochs = Epochs(transport, self._subjects, leases, nodes)
        self._opening: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription] = []
        self._started_at = float("-inf")
        self._looks: dict[str, asyncio.TimerHandle] = {}  # lock -> when to look whether it is free
        self._serving: dict[str, bool] = {}  # being served; True: something has happened since
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._stood_still_at = float("-inf")
        self._watching: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] = self._loop.create_future()

    async def start(self, *, lazily: bool = False) -> None:
        """Find or make what leases are kept in, at once or when the first one is asked for; then answer. Raises
        ConfigError where the broker can't keep them."""
        if not lazily:
            self.epoch = await self._epochs.open()
        self._watching = self._loop.create_task(self._watch())
        self._started_at = self._loop.time()
        self._subscriptions = [
            await self._leases.hear(LINES, self._hear),
            await self._transport.subscribe(self._subjects.lock, self._take, QUEUE),
        ]

    async def stop(self) -> None:
        """Answer no more. Leases stay as they are."""
        for subscription in self._subscriptions:
            await subscription.cancel()
        for timer in self._looks.values():
            timer.cancel()
        tasks = [*self._tasks, *(task for task in (self._opening, self._watching) if task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Notice that this process stood still."""
        while True:
            before = self._loop.time()
            await asyncio.sleep(TICK_SECONDS)
            if self._loop.time() - before > STILL_SECONDS:
                self._stood_still_at = self._loop.time()

    # -- requests ---------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        try:
            request = _decode(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        if len(self._tasks) >= LOCK_REQUESTS_MAX:
            self._reply(message, LockAnswer(state="again", message="the lock service has too much to do"))
            return
        self._run(self._handle(message, request))

    async def _handle(self, message: Message, request: LockRequest) -> None:
        try:
            answer: LockAnswer | LockList
            if isinstance(request, Acquire) and self._loop.time() - self._stood_still_at < DISTRUST_SECONDS:
                self._reply(message, LockAnswer(state="again", message="this instance of the lock service stood still"))
                return
            if not self.epoch:
                await asyncio.wait((self._open_anew(),))
            if isinstance(request, Release) and not message.reply:  # its holder has released it (locks/direct.py)
                answer = LockAnswer(state="released")
            elif isinstance(request, ListLocks):
                answer = await self._list()
            else:
                answer = await self._driven(request)
        except LeasesGone:
            self._open_anew()
            answer = LockAnswer(state="again", message="what leases are kept in is made anew")
        except (Disconnected, TimeoutError) as error:
            answer = LockAnswer(state="again", message=str(error))
        self._reply(message, answer)
        waits = isinstance(request, Acquire) and isinstance(answer, LockAnswer) and answer.state == "waiting"
        if (isinstance(request, Release) and self._may_wait(request)) or (waits and isinstance(request, Acquire)):
            await self._serve(request.lock)

    def _reply(self, message: Message, answer: LockAnswer | LockList) -> None:
        if message.reply:
            self._transport.send(message.reply, encode(answer))

    def _open_anew(self) -> asyncio.Task[None]:
        """The stream is gone, or another one: find it, or make it, meanwhile ask everybody to come again."""
        if self._opening is not None and not self._opening.done():
            return self._opening

        async def open() -> None:
            self.epoch = await self._epochs.open()

        self._opening = self._loop.create_task(open())
        self._opening.add_done_callback(self._ended)
        return self._opening

    # -- who is next ------------------------------------------------------------------------------------------------

    async def _serve(self, lock: str) -> None:
        """Give it to the first in line, if it is free. Whoever comes meanwhile has it done once more."""
        if lock in self._serving:
            self._serving[lock] = True
            return
        self._serving[lock] = True
        again: float | None = LOOK_SECONDS_MAX
        try:
            while self._serving[lock]:
                self._serving[lock] = False
                again = await self._drive(locks.serve(lock, self.epoch))
        except LeasesGone:
            self._open_anew()
        except (Disconnected, TimeoutError):
            again = LOOK_SECONDS_MAX
        finally:
            del self._serving[lock]
        if (timer := self._looks.pop(lock, None)) is not None:
            timer.cancel()
        if again is not None:
            self._look_in(min(again, LOOK_SECONDS_MAX), lock)

    def _may_wait(self, release: Release) -> bool:
        """May somebody wait for this lock?"""
        since = max(self._started_at, getattr(self._transport, "connected_at", 0.0))
        known = release.lock in self._looks or release.lock in self._serving
        return known or not release.sequence or self._loop.time() - since < UNSURE_SECONDS

    def _hear(self, path: str) -> None:
        """Another instance puts somebody in line."""
        try:
            lock = locks.lock_of(path.partition(".")[0])
        except ValueError:  # somebody else publishes there
            return
        if lock not in self._looks and lock not in self._serving and len(self._looks) < LOCK_MESSAGES_MAX:
            self._look_in(LOOK_SECONDS_MAX, lock)

    def _look_in(self, seconds: float, lock: str) -> None:
        self._looks[lock] = self._loop.call_later(seconds, lambda: self._run(self._look(lock)))

    async def _look(self, lock: str) -> None:
        self._looks.pop(lock, None)
        await self._serve(lock)

    # -- the stream -------------------------------------------------------------------------------------------------

    async def _driven(self, request: Acquire | Renew | Release) -> LockAnswer:
        """What a request gives. Raises LeasesGone, also where another instance has made the stream anew, and a lease is
        not found because it is looked for in an epoch that is over."""
        answer: LockAnswer = await self._drive(_rule(request, self.epoch))
        if answer.state == "lost":
            found = await self._leases.find()
            if found is None or found[0] != self.epoch:
                raise LeasesGone
        return answer

    async def _drive(self, rule: Generator[locks.Step, Any, Any]) -> Any:
        """Run a rule to its end."""
        result: Any = None
        while True:
            try:
                step = rule.send(result)
            except StopIteration as end:
                return end.value
            result = await self._do(step)

    async def _do(self, step: locks.Step) -> Any:
        match step:
            case locks.Put(path, value, expected, seconds, whole):
                return await self._leases.put(path, value, expected, seconds, whole)
            case locks.Last(path):
                return await self._leases.last(path)
            case locks.First(path):
                return await self._leases.first(path)
            case locks.Drop(sequence):
                return await self._leases.drop(sequence)
            case locks.Tell(fence):
                self._transport.send(self._subjects.fence, encode(fence))
            case locks.Ask(inbox, offer):
                return await self._offer(inbox, encode(offer))
        return None

    async def _offer(self, inbox: str, offer: bytes) -> bool | None:
        """Is it wanted? Nobody is there: not, unless they may not have come back yet since the broker was away."""
        ends = self._loop.time() + OFFER_ANSWER_SECONDS_MAX
        while True:
            try:
                answer = await self._transport.request(inbox, offer, OFFER_ANSWER_SECONDS_MAX)
                return _decode_wanted(answer).wanted
            except NobodyListens:
                if self._loop.time() - getattr(self._transport, "connected_at", 0.0) > RECONNECT_SECONDS:
                    return False
            except TimeoutError:
                return None
            except Unreadable:
                return False
            if self._loop.time() > ends:
                return None
            await asyncio.sleep(0.1)

    async def _list(self) -> LockList:
        """What is held, and waited for."""
        held: set[str] = set()
        waiters: Counter[str] = Counter()
        for path in await self._leases.paths():
            part, _, kind = path.partition(".")
            name = locks.lock_of(part)
            waiters[name] += kind != "held"
            if kind == "held":
                held.add(name)
        found = []
        for name in sorted(waiters)[:LOCKS_LISTED_MAX]:
            kept = await self._leases.last(locks.held_path(name)) if name in held else None
            lease = locks.lease_in(kept)
            if lease is None or kept is None:
                if waiters[name]:
                    found.append(LockState(name, None, None, None, None, waiters[name]))
                continue
            token = lease.token or token_of(self.epoch, kept.sequence)
            found.append(LockState(name, lease.agent, token, kept.left, lease.ttl, waiters[name]))
        return LockList(locks=found, more=max(0, len(waiters) - LOCKS_LISTED_MAX))

    # -- tasks ------------------------------------------------------------------------------------------------------

    def _run(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A request's end; a bug in one must not go unnoticed."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)


def _rule(request: Acquire | Renew | Release, epoch: int) -> Generator[locks.Step, Any, LockAnswer]:
    match request:
        case Acquire():
            return locks.acquire(request, epoch)
        case Renew():
            return locks.renew(request, epoch)
        case Release():
            return locks.release(request, epoch)
