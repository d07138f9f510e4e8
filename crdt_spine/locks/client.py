"""An agent's side of locks: `Spine.lock` gives a `Locking`, which gives a `Lease` while its block runs.

How long the lease holds, the holder reckons by its own monotonic clock: from before it asked, less a margin for clocks
that do not run alike. So its reckoning ends before the broker's does, without any clock being set right. A lease is
renewed three times in its time; once it could not be in time, or somebody says that it is lost, `lost` is set. Who was
paused meanwhile learns it then; what it writes with the lease as its `fence` is refused once another one was given
(core/fences.py).

The broker gives a request to any instance of the service, and does not know that one is paused. So what is not answered
at once is asked again and again, with the same nonce, of any of them: whoever answers first is heard. An instance that
wakes up distrusts what it finds (locks/service.py); what one gives too late all the same is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import msgspec

from crdt_spine.core.fences import Fence
from crdt_spine.core.lock_messages import (
    Acquire,
    ListLocks,
    LockAnswer,
    LockList,
    LockRequest,
    Offer,
    OfferAnswer,
    Release,
    Renew,
)
from crdt_spine.core.messages import Unreadable, encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.errors import ConnectionFailed, InvalidInput, LeaseLost, LockTimeout
from crdt_spine.limits import CONNECT_SECONDS_MAX
from crdt_spine.locks.direct import DirectWay
from crdt_spine.transport.base import Disconnected, Message, NobodyListens, Subscription, Transport

log = logging.getLogger(__name__)

ANSWER_SECONDS_MAX: Final = 3.0  # for any instance to answer a request
ANOTHER_SECONDS: Final = 0.3  # for one, before any is asked the same again; above service.py's STILL_SECONDS
LISTED_SECONDS: Final = 1.0  # the same for a list of all locks, which takes longer
DECIDED_SECONDS_MIN: Final = 1.0  # for the service to say something about a lock, however short the wait for it
ASK_AGAIN_SECONDS: Final = 2.0  # while in line: so that an instance knows of it whatever became of the others
SILENT_SECONDS_MAX: Final = 15.0  # of a service that has answered before: instances are started again
PAUSE_SECONDS: Final = 0.1  # before an instance is asked again that can't answer now
RENEWALS: Final = 3  # of a lease in its time
MARGIN_SHARE: Final = 0.05  # of a lease's time, that its holder does not count on
RELEASE_AGAIN_SECONDS: Final = 0.7  # before another instance is told
RELEASE_SECONDS_MAX: Final = 2.0  # to say that it is not wanted any more; else it ends by itself

_decode = msgspec.json.Decoder(LockAnswer).decode
_decode_list = msgspec.json.Decoder(LockList).decode
_decode_offer = msgspec.json.Decoder(Offer).decode


def monotonic() -> float:
    """Seconds that go on while the machine sleeps, where the system tells them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease:
    """A lock that is held. `token` rises with every acquisition; give the lease as `fence` to what may only be written
    while it holds. `lost` is set once it does not, or may not, any more."""

    def __init__(
        self, client: LockClient, name: str, nonce: str, ttl: float, granted: LockAnswer, until: float
    ) -> None:
        self.name = name
        self.token = granted.token
        self.ttl = ttl
        self.lost = asyncio.Event()
        self.cluster = client.identity  # whose lock it is: `name@id`
        self._client = client
        self._nonce = nonce
        self._sequence = granted.sequence
        self._until = until
        self._loop = asyncio.get_running_loop()
        self._one = asyncio.Lock()  # renewal at a time
        self._timer = self._loop.call_later(max(0.0, until - monotonic()), self._look)
        self._keeper = self._loop.create_task(self._keep())

    def __repr__(self) -> str:
        return f"<Lease {self.name!r} token={self.token}{' lost' if not self.valid else ''}>"

    @property
    def valid(self) -> bool:
        """Does it hold, by its holder's own reckoning?"""
        if monotonic() >= self._until:
            self.lost.set()
        return not self.lost.is_set()

    @property
    def expires_in(self) -> float:
        """Seconds for which it can be counted on if it is not renewed any more."""
        return max(0.0, self._until - monotonic()) if self.valid else 0.0

    @property
    def fence(self) -> Fence:
        """What a fenced write is sent with. Raises LeaseLost."""
        if not self.valid:
            raise self._over()
        return Fence(self.name, self.token)

    async def renew(self) -> None:
        """Have it for its whole time from now on; done by itself while it is held. Raises LeaseLost where it is lost,
        ConnectionFailed where nobody can say: then it holds on, until its time is over."""
        async with self._one:
            if not self.valid:
                raise self._over()
            asked = monotonic()
            answer = await self._client.renew(
                Renew(lock=self.name, nonce=self._nonce, agent=self._client.agent, ttl=self.ttl, token=self.token,
                      sequence=self._sequence),
                min(ANSWER_SECONDS_MAX, self._until - asked),
            )  # fmt: skip
            if answer.state == "lost":
                self.lost.set()
                raise self._over(f" {answer.holder} holds it now." if answer.holder else "")
            if answer.state != "granted":
                raise ConnectionFailed(f"the lease of {self.name!r} could not be renewed yet: {answer.message}")
            self._sequence = answer.sequence
            self._until = asked + counted(self.ttl)
            if not self.valid:
                raise self._over()

    async def release(self) -> None:
        """Have it no more: the next in line gets it. Leaving the block does it."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._timer.cancel()
        self.lost.set()
        await self._client.release(Release(lock=self.name, nonce=self._nonce, sequence=self._sequence))

    async def _keep(self) -> None:
        """Renew, until it is lost."""
        while self.valid:
            pause = self.ttl / RENEWALS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.lost.wait(), pause)
                return
            while self.valid:
                try:
                    await self.renew()
                    break
                except LeaseLost as error:
                    log.warning("%s", error)
                    return
                except ConnectionFailed as error:
                    log.info("%s", error)
                    await asyncio.sleep(min(PAUSE_SECONDS, self.ttl / 20))

    def _look(self) -> None:
        """Its time may be over."""
        if self.valid:
            self._timer = self._loop.call_later(max(0.001, self._until - monotonic()), self._look)

    def _over(self, more: str = "") -> LeaseLost:
        return LeaseLost(
            f"the lease of the lock {self.name!r} with token {self.token} is over: it was released, or not renewed "
            f"within {self.ttl:g} s (was its process paused, or the broker away?).{more} Acquire the lock again, and "
            "read again what you decided by"
        )


class LockClient:
    """What asks the lock service for an agent. `cluster` is the cluster's name, `identity` what tells it from others of
    that name (None: nothing does)."""

    def __init__(self, transport: Transport, cluster: str, agent: str, identity: str | None = None) -> None:
        self.cluster = cluster
        self.identity = identity or cluster
        self.agent = agent
        self._transport = transport
        self._subject = Subjects(cluster).lock
        self._direct = DirectWay(transport, cluster)
        self._offers: dict[str, asyncio.Future[Offer]] = {}  # of those in line, by nonce
        self._wanted: set[str] = set()  # nonces of attempts and leases that are not over
        self._tasks: set[asyncio.Task[Any]] = set()  # requests that are not answered, also where another one is
        self._inbox = f"_INBOX.spinelock.{secrets.token_hex(6)}"
        self._subscription: Subscription | None = None
        self._subscribing = asyncio.Lock()

    async def close(self) -> None:
        """Hear no more offers, nor answers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.cancel()

    async def acquire(self, name: str, ttl: float, wait: float | None) -> Lease:
        """Have the lock, for `ttl` seconds at a time, within `wait` seconds (None: however long it takes). Raises
        LockTimeout, ConnectionFailed where no lock service answers for a while, InvalidInput."""
        await self._listen()
        nonce, begun = secrets.token_hex(8), monotonic()
        offer: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        self._offers[nonce] = offer
        self._wanted.add(nonce)
        held = False
        try:
            lease = await self._acquired(name, nonce, ttl, wait, begun, offer)
            held = True
            return lease
        except ConnectionFailed:
            held = True  # nobody to say it to; what there is ends by itself
            self._wanted.discard(nonce)
            raise
        finally:
            self._offers.pop(nonce, None)
            if not held:
                await asyncio.shield(self.release(Release(lock=name, nonce=nonce)))

    async def _acquired(
        self, name: str, nonce: str, ttl: float, wait: float | None, begun: float, offer: asyncio.Future[Offer]
    ) -> Lease:
        # `fresh`: what is granted in answer to the first question was given just now.
        first, fresh, decided, holder, heard_at = True, True, False, "", 0.0
        problem: ConnectionFailed | None = None
        while True:
            asked = monotonic()
            left = None if wait is None else wait - (asked - begun)
            if left is not None and left <= 0 and (decided or asked - begun >= DECIDED_SECONDS_MIN):
                if problem is not None and not heard_at:
                    raise problem
                by = f": {holder} holds it" if holder else ""
                message = f"the lock {name!r} was not to be had within {wait:g} s{by}; try again, or wait longer"
                raise LockTimeout(message)
            request = Acquire(
                lock=name, nonce=nonce, agent=self.agent, ttl=ttl, inbox=self._inbox,
                wait=None if left is None else max(left, 0.0),
            )  # fmt: skip
            if first and self._direct.is_open:
                if (given := await self._direct.acquire(request)) is not None:
                    return Lease(self, name, nonce, ttl, given, asked + counted(ttl))
                fresh = False
            patience = ANSWER_SECONDS_MAX if left is None else min(ANSWER_SECONDS_MAX, left)
            patience = max(patience, 0.2 if decided else begun + DECIDED_SECONDS_MIN - asked)
            pause = ASK_AGAIN_SECONDS
            try:
                answer = await self.ask(request, patience)
            except ConnectionFailed as error:
                now = monotonic()
                if now - (heard_at or begun) > (SILENT_SECONDS_MAX if heard_at else CONNECT_SECONDS_MAX):
                    raise
                problem, answer = error, LockAnswer(state="again")
            else:
                heard_at = monotonic()
            if answer.state == "granted" and first and fresh:
                return Lease(self, name, nonce, ttl, answer, asked + counted(ttl))
            if answer.state == "granted" and (lease := await self._confirmed(name, nonce, ttl, answer)) is not None:
                return lease
            if answer.state == "refused":
                raise InvalidInput(f"the lock {name!r} can't be had: {answer.message}")
            if answer.state == "held":
                raise LockTimeout(f"the lock {name!r} is held by {answer.holder or 'another one, or being given away'}")
            if answer.state == "again":
                pause = PAUSE_SECONDS
            else:
                decided = True
            first, holder = False, answer.holder or holder
            if wait is not None and decided:
                pause = min(pause, max(0.0, wait - (monotonic() - begun)))
            with contextlib.suppress(TimeoutError):
                heard = await asyncio.wait_for(asyncio.shield(offer), pause)
                offered = LockAnswer(state="granted", token=heard.token, sequence=heard.sequence)
                if (lease := await self._confirmed(name, nonce, ttl, offered)) is not None:
                    return lease
                offer = self._offers[nonce] = asyncio.get_running_loop().create_future()

    async def _confirmed(self, name: str, nonce: str, ttl: float, given: LockAnswer) -> Lease | None:
        """A lease that was given some time ago, from now on for its whole time; None: it is over already."""
        for _ in range(RENEWALS):
            asked = monotonic()
            request = Renew(
                lock=name, nonce=nonce, agent=self.agent, ttl=ttl, token=given.token, sequence=given.sequence
            )
            with contextlib.suppress(ConnectionFailed):
                answer = await self.renew(request, 1.0)
                if answer.state == "granted":
                    return Lease(self, name, nonce, ttl, answer, asked + counted(ttl))
                if answer.state == "lost":
                    return None
            await asyncio.sleep(PAUSE_SECONDS)
        return None

    async def renew(self, request: Renew, seconds: float) -> LockAnswer:
        """Without the service where it can be, in a part of the time. Raises ConnectionFailed."""
        asked = monotonic()
        if self._direct.is_open and (given := await self._direct.renew(request, seconds / 3)) is not None:
            return given
        return await self.ask(request, seconds - (monotonic() - asked))

    async def release(self, release: Release) -> None:
        """Say that it is not wanted any more, as far as somebody hears it in time."""
        self._wanted.discard(release.nonce)
        if self._direct.is_open and await self._direct.release(release):
            self._transport.send(self._subject, encode(release))  # the next in line gets it
            return
        ends = monotonic() + RELEASE_SECONDS_MAX
        while (left := ends - monotonic()) > 0:
            try:
                if (await self.ask(release, min(left, RELEASE_AGAIN_SECONDS))).state != "again":
                    return
            except ConnectionFailed:
                if not self._transport.connected:
                    return
            await asyncio.sleep(PAUSE_SECONDS)

    async def locks(self, seconds: float = ANSWER_SECONDS_MAX) -> LockList:
        """What is held, and waited for. Raises ConnectionFailed."""
        until = monotonic() + seconds
        while True:
            answer = await self._request(ListLocks(), until - monotonic())
            try:
                return _decode_list(answer)
            except Unreadable as error:
                if monotonic() + PAUSE_SECONDS > until:
                    raise ConnectionFailed(f"the lock service can't say now: {_decode(answer).message}") from error
            await asyncio.sleep(PAUSE_SECONDS)  # it is to be asked again

    async def ask(self, request: LockRequest, seconds: float) -> LockAnswer:
        """What any instance says. Raises ConnectionFailed where no answer came; the request may have been done."""
        try:
            answer = _decode(await self._request(request, seconds))
        except Unreadable as error:
            raise ConnectionFailed(f"the lock service answers what is no answer: {error}") from error
        if answer.state == "granted":
            self._direct.learn(answer.token)
        return answer

    async def _request(self, request: LockRequest, seconds: float) -> bytes:
        """The first answer that comes."""
        address = getattr(self._transport, "url", "this address")
        try:
            async with asyncio.timeout(max(seconds, 0.05)):
                asked = {self._asked(request)}
                while True:
                    patience = LISTED_SECONDS if isinstance(request, ListLocks) else ANOTHER_SECONDS
                    done, asked = await asyncio.wait(asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                    if done:
                        return min(done, key=lambda one: one.exception() is not None).result()
                    asked.add(self._asked(request))
        except NobodyListens as error:
            raise ConnectionFailed(
                f"no lock service of the cluster {self.cluster!r} is at {address}; `spine locks` starts one, and "
                "`spine up` has one"
            ) from error
        except (TimeoutError, Disconnected) as error:
            raise ConnectionFailed(f"{address}: the lock service did not answer within {seconds:g} s") from error

    def _asked(self, request: LockRequest) -> asyncio.Task[bytes]:
        """The request, under way. Its answer is heard even if another one was sooner."""
        asking = asyncio.create_task(self._transport.request(self._subject, encode(request), ANSWER_SECONDS_MAX))
        self._keep(asking)
        asking.add_done_callback(lambda asking: self._look_at(request, asking))
        return asking

    def _look_at(self, request: LockRequest, asking: asyncio.Task[bytes]) -> None:
        """Give back what is given to an attempt that is over."""
        if asking.cancelled() or asking.exception() is not None:
            return
        if isinstance(request, Acquire) and request.nonce not in self._wanted:
            with contextlib.suppress(*Unreadable):
                if (answer := _decode(asking.result())).state == "granted":
                    late = Release(lock=request.lock, nonce=request.nonce, sequence=answer.sequence)
                    self._keep(asyncio.create_task(self.release(late)))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self) -> None:
        async with self._subscribing:
            if self._subscription is None:
                self._subscription = await self._transport.subscribe(self._inbox, self._take_offer)

    def _take_offer(self, message: Message) -> None:
        if message.nobody:
            return
        try:
            offer = _decode_offer(message.payload)
        except Unreadable:
            return
        if message.reply:
            self._transport.send(message.reply, encode(OfferAnswer(wanted=offer.nonce in self._wanted)))
        waiting = self._offers.get(offer.nonce)
        if waiting is not None and not waiting.done():
            waiting.set_result(offer)


class Locking:
    """A lock that is to be held while a block runs: `async with spine.lock("deploy") as lease`."""

    def __init__(self, client: Callable[[], LockClient], name: str, ttl: float, wait: float | None) -> None:
        self._client = client
        self._name = name
        self._ttl = ttl
        self._wait = wait
        self._lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        if self._lease is not None:
            raise InvalidInput(f"this lock of {self._name!r} is held already; make another one for another block")
        self._lease = await self._client().acquire(self._name, self._ttl, self._wait)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.release()


def counted(ttl: float) -> float:
    """For how long a holder counts on a lease."""
    return ttl * (1 - MARGIN_SHARE)


def fence_of(fence: Any, cluster: str) -> Fence | None:
    """What a write sends of what it was given as `fence`, in the cluster of this identity. Raises InvalidInput for what
    is no lease of this cluster, LeaseLost for one that is over."""
    if fence is None:
        return None
    if isinstance(fence, Fence):
        return fence
    if not isinstance(fence, Lease):
        raise InvalidInput(f"fence must be a Lease, as `async with spine.lock(…) as lease` gives it, not {fence!r:.60}")
    if fence.cluster != cluster:
        raise InvalidInput(
            f"the lease of {fence.name!r} is from the cluster {fence.cluster!r}, this is {cluster!r}: acquire the lock "
            "of this one"
        )
    return fence.fence
