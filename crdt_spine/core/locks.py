"""The rules of locks: what is done with a lock's messages in JetStream so that one holds it, the others wait in line.

A lock is a few messages of one stream; their sequence numbers order everything that happens to all locks:

    <lock>.held           the lease. JetStream drops it after its time, by the server's clock; a release, at once
    <lock>.wait.<nonce>   one message for each who waits

**One holds it.** A lease is published under the condition that there is none (or, to renew it, that it is still the
very message that the holder knows): the stream's leader decides. Its sequence is its fencing token (core/fences.py).

**In line.** Who comes new is given the lease only if there is neither a lease nor anybody waiting; that is one
condition over both, so nobody gets in between. Else it is enqueued, and the first in line is *served*: given the lease
if there is none, told, taken out of the line; if it was not in line any more, the lease is taken back before. So it
does not matter which instance of the service serves, nor how many do at once, nor if one is paused or dies.

**Who was given it without having asked just now** gets an offer, which holds for `OFFER_SECONDS`; by renewing it, it is
taken. Who is not there any more, and who is paused, holds up the others for no longer than that.

**Lost answers.** A publish whose answer is lost may have been taken. Each attempt to acquire has a nonce; a refused one
is followed by a look at what is there, and what has the nonce is the attempt's own. Everything can be asked again.

Each rule is a generator: it yields what is to be done with the stream, is sent what came of it, and returns the answer
(a sans-IO state machine; the shell is crdt_spine/locks/service.py, and a test that lets several run at once and die).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Generator
from typing import Any, Final, TypeAlias

import msgspec

from crdt_spine.core.fences import Fence, epoch_of, sequence_of, token_of
from crdt_spine.core.lock_messages import Acquire, Held, LockAnswer, Offer, Release, Renew, Waiter
from crdt_spine.core.messages import Unreadable, encode
from crdt_spine.limits import LEASE_SECONDS_MAX

OFFER_SECONDS: Final = 3  # for who was in line to take the lease; a pause or a lost message costs the others as much
WAIT_SLACK_SECONDS: Final = 5  # how long a place in line outlives its time: who gives up says so itself
ATTEMPTS: Final = 4  # to find a moment in which nothing changes in between; then the agent asks again


class Put(msgspec.Struct, frozen=True):
    """Publish `value` at `path` for so many seconds, if the last message there (of the `whole` lock: of all its paths)
    is `expected`; 0: if there is none. What came of it: the message's sequence, or None: refused, or not known."""

    path: str
    value: bytes
    expected: int
    seconds: int
    whole: str = ""


class Last(msgspec.Struct, frozen=True):
    """The newest message at a path, a `Kept`, or None."""

    path: str


class First(msgspec.Struct, frozen=True):
    """The oldest message below a path, a `Kept`, or None."""

    path: str


class Drop(msgspec.Struct, frozen=True):
    """Delete this message; was it there?"""

    sequence: int


class Tell(msgspec.Struct, frozen=True):
    """Let all nodes know of a lease, before its holder does."""

    fence: Fence


class Ask(msgspec.Struct, frozen=True):
    """Offer a lease to who was in line: is it wanted? None: no answer in time."""

    inbox: str
    offer: Offer


class Kept(msgspec.Struct, frozen=True):
    """A message of the stream. It ends in `left` seconds, as far as that is known."""

    sequence: int
    value: bytes
    left: float | None = None


Step: TypeAlias = Put | Last | First | Drop | Tell | Ask
Rule: TypeAlias = Generator[Step, Any, LockAnswer]
Serving: TypeAlias = Generator[Step, Any, float | None]

_held = msgspec.json.Decoder(Held).decode
_waiter = msgspec.json.Decoder(Waiter).decode


def part_of(lock: str) -> str:
    """A lock's name as a part of a subject."""
    return base64.urlsafe_b64encode(lock.encode()).decode().rstrip("=")


def lock_of(part: str) -> str:
    """The lock that such a part names."""
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()


def held_path(lock: str) -> str:
    return f"{part_of(lock)}.held"


def waiting_path(lock: str, nonce: str = "*") -> str:
    return f"{part_of(lock)}.wait.{nonce}"


def whole_path(lock: str) -> str:
    return f"{part_of(lock)}.>"


def lease_in(kept: Kept | None) -> Held | None:
    """The lease that a message is; what is no lease holds nothing."""
    try:
        return None if kept is None else _held(kept.value)
    except Unreadable:
        return None


def waiter_in(kept: Kept) -> Waiter | None:
    try:
        return _waiter(kept.value)
    except Unreadable:
        return None


def acquire(ask: Acquire, epoch: int) -> Rule:
    """Have the lock, or a place in line."""
    lock, lease = ask.lock, _lease(ask)
    sequence = yield Put(held_path(lock), lease, 0, math.ceil(ask.ttl), whole_path(lock))
    if sequence is not None:
        return (yield from _granted(lock, epoch, sequence, 0))
    kept = yield Last(held_path(lock))
    held = lease_in(kept)
    if held is not None and held.nonce == ask.nonce:
        return (yield from _granted(lock, epoch, kept.sequence, held.token))
    if ask.wait == 0:
        return LockAnswer(state="held", holder="" if held is None else held.agent)
    seconds = LEASE_SECONDS_MAX if ask.wait is None else min(ask.wait + WAIT_SLACK_SECONDS, LEASE_SECONDS_MAX)
    waiter = Waiter(lock=lock, nonce=ask.nonce, agent=ask.agent, ttl=ask.ttl, inbox=ask.inbox)
    yield Put(waiting_path(lock, ask.nonce), encode(waiter), 0, math.ceil(seconds))
    return LockAnswer(state="waiting", holder="" if held is None else held.agent)


def serve(lock: str, epoch: int) -> Serving:
    """Give the lock to the first in line, if it is free; after how many seconds to look again, None: nobody waits."""
    for _ in range(ATTEMPTS):
        first = yield First(waiting_path(lock))
        if first is None:
            return None
        waiter = waiter_in(first)
        if waiter is None:
            yield Drop(first.sequence)
            continue
        sequence, token = (yield Put(held_path(lock), _lease(waiter), 0, OFFER_SECONDS)), 0
        mine = sequence is not None
        if sequence is None:
            kept = yield Last(held_path(lock))
            held = lease_in(kept)
            if held is None:
                continue
            if held.nonce != waiter.nonce:
                return held.ttl
            # It was given by this very attempt, whose answer was lost, or by somebody who died before the rest.
            sequence, token = kept.sequence, held.token
        place = yield Last(waiting_path(lock, waiter.nonce))
        if place is None or place.sequence != first.sequence:
            # Another instance has served it, or it gave up, while this one was slow: it is not its turn any more. As
            # long as it is in line, it is the first one; and nobody has been told of this lease.
            if mine:
                yield Drop(sequence)
            continue
        token = token or token_of(epoch, sequence)
        yield Tell(Fence(lock, token))
        wanted = yield Ask(waiter.inbox, Offer(lock=lock, nonce=waiter.nonce, token=token, sequence=sequence))
        # It leaves the line only now: should this instance die before, another one offers it again.
        yield Drop(first.sequence)
        if wanted is not False:
            return float(OFFER_SECONDS)
        yield Drop(sequence)
    return 0.0


def renew(ask: Renew, epoch: int) -> Rule:
    """Have it for longer."""
    lock, expected, token = ask.lock, ask.sequence, ask.token
    if epoch_of(token) != epoch:
        return LockAnswer(state="lost")
    if sequence_of(token) > ask.sequence:
        return LockAnswer(state="refused", message=f"the token {token} is none of the lease {ask.sequence}")
    for attempt in range(ATTEMPTS):
        sequence = yield Put(held_path(lock), _lease(ask, token), expected, math.ceil(ask.ttl))
        if sequence is not None:
            return (yield from _granted(lock, epoch, sequence, token))
        kept = yield Last(held_path(lock))
        held = lease_in(kept)
        if held is None or held.nonce != ask.nonce:
            return LockAnswer(state="lost", holder="" if held is None else held.agent)
        if attempt and kept.sequence > expected:  # it was taken since the last look: by this, or a later, renewal
            return (yield from _granted(lock, epoch, kept.sequence, held.token))
        expected, token = kept.sequence, held.token or token_of(epoch, kept.sequence)
    return LockAnswer(state="again")


def release(ask: Release, epoch: int) -> Rule:
    """Have it no more, nor a place in line."""
    if ask.sequence and (yield Drop(ask.sequence)):
        return LockAnswer(state="released")
    kept = yield Last(held_path(ask.lock))
    held = lease_in(kept)
    mine = held is not None and held.nonce == ask.nonce
    if mine:
        yield Drop(kept.sequence)
    if not ask.sequence:
        place = yield Last(waiting_path(ask.lock, ask.nonce))
        if place is not None:
            yield Drop(place.sequence)
    return LockAnswer(state="released" if mine or not ask.sequence else "lost")


def _granted(lock: str, epoch: int, sequence: int, token: int) -> Rule:
    token = token or token_of(epoch, sequence)
    yield Tell(Fence(lock, token))
    return LockAnswer(state="granted", token=token, sequence=sequence)


def _lease(ask: Acquire | Renew | Waiter, token: int = 0) -> bytes:
    return encode(Held(lock=ask.lock, nonce=ask.nonce, agent=ask.agent, ttl=ask.ttl, token=token))
