"""What is said about locks (docs/ARCHITECTURE.md, "Locks"): agents and the lock service, the service and the nodes, and
what is kept in JetStream. As core/messages: JSON, versioned, refused as a whole where it is no such message.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from crdt_spine import limits
from crdt_spine.core.fences import Fence, LockName, Token
from crdt_spine.core.messages import Agent, NodeId, Whole

Nonce = Annotated[str, msgspec.Meta(pattern="^[0-9a-z]{8,40}$")]  # of one attempt to acquire, and the lease it gives
Inbox = Annotated[str, msgspec.Meta(pattern=r"^_INBOX\.[0-9A-Za-z._-]{1,100}$")]
Seconds = Annotated[float, msgspec.Meta(ge=limits.LEASE_SECONDS_MIN, le=limits.LEASE_SECONDS_MAX)]
Waiting = Annotated[float, msgspec.Meta(ge=0)]


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    pass


# -- what an agent asks the lock service ---------------------------------------------------------------------------


class Acquire(_Message, frozen=True, kw_only=True, tag_field="type", tag="acquire/1"):
    """Let me have this lock, for `ttl` seconds; else let me wait in line for up to `wait` seconds (None: for as long as
    I ask again). `inbox` hears an `Offer` when it is my turn. The same nonce again is the same attempt."""

    lock: LockName
    nonce: Nonce
    agent: Agent
    ttl: Seconds
    inbox: Inbox
    wait: Waiting | None = None


class Renew(_Message, frozen=True, kw_only=True, tag_field="type", tag="renew/1"):
    """Let me have it for `ttl` seconds from now. `sequence` is the message that the lease is now, as far as I know."""

    lock: LockName
    nonce: Nonce
    agent: Agent
    ttl: Seconds
    token: Token
    sequence: Whole


class Release(_Message, frozen=True, kw_only=True, tag_field="type", tag="release/1"):
    """I don't want it any more, or no longer wait for it. `sequence` 0: I don't know which message it is."""

    lock: LockName
    nonce: Nonce
    sequence: Whole = 0


class ListLocks(_Message, frozen=True, kw_only=True, tag_field="type", tag="locks/1"):
    """Which locks are held, or waited for?"""


LockRequest = Acquire | Renew | Release | ListLocks


class LockAnswer(_Message, frozen=True, kw_only=True, tag_field="type", tag="lock-answer/1"):
    """granted: it is yours, with this token, as this message; waiting: you are in line; held: it is another one's, and
    you did not want to wait; lost: it is not yours (any more); released; again: not known, or not now, ask again;
    refused: never, `message` says why."""

    state: Literal["granted", "waiting", "held", "lost", "released", "again", "refused"]
    token: Token = 0
    sequence: Whole = 0
    holder: str = ""
    message: str = ""


class Offer(_Message, frozen=True, kw_only=True, tag_field="type", tag="offer/1"):
    """It is your turn: the lease is yours for a moment; renew it to keep it."""

    lock: LockName
    nonce: Nonce
    token: Token
    sequence: Whole


class OfferAnswer(_Message, frozen=True, kw_only=True, tag_field="type", tag="offer-answer/1"):
    """Is it still wanted?"""

    wanted: bool


class LockState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A lock that is held or waited for, as `spine lock ls` shows it; `expires_in_seconds` at most."""

    name: str
    holder: str | None
    token: int | None
    expires_in_seconds: float | None
    ttl_seconds: float | None
    waiters: int


class LockList(_Message, frozen=True, kw_only=True, tag_field="type", tag="lock-list/1"):
    """Those of which there is something to be said, by name; `more` is how many did not fit."""

    locks: list[LockState]
    more: Whole = 0


# -- what is kept in JetStream ---------------------------------------------------------------------------------------


class Held(_Message, frozen=True, kw_only=True, tag_field="type", tag="lease/1"):
    """A lease. It ends when JetStream drops the message. `token` 0: this very message gave it."""

    lock: LockName
    nonce: Nonce
    agent: Agent
    ttl: Seconds
    token: Token = 0


class Waiter(_Message, frozen=True, kw_only=True, tag_field="type", tag="waiter/1"):
    """Somebody in line; the line's order is that of the messages' sequences."""

    lock: LockName
    nonce: Nonce
    agent: Agent
    ttl: Seconds
    inbox: Inbox


# -- what the lock service and the nodes say to each other -----------------------------------------------------------


class EpochQuestion(_Message, frozen=True, kw_only=True, tag_field="type", tag="epoch/1"):
    """Which epochs and tokens do you know? From now on know this epoch, too, durably."""

    epoch: Whole = 0


class EpochAnswer(_Message, frozen=True, kw_only=True, tag_field="type", tag="epoch-answer/1"):
    """The highest epoch that a node knows, durably, and the newest token of any lock."""

    node: NodeId
    epoch: Whole
    newest: Token


class FencesQuestion(_Message, frozen=True, kw_only=True, tag_field="type", tag="fences/1"):
    """A node begins, and asks the others for all the fences that they know."""

    node: NodeId


class FencesAnswer(_Message, frozen=True, kw_only=True, tag_field="type", tag="fences-answer/1"):
    """What a node knows, or a part of it."""

    tokens: Annotated[dict[LockName, Token], msgspec.Meta(max_length=limits.FENCES_MAX)]
    floor: Token
    epoch: Whole


NodeQuestion = Fence | EpochQuestion | FencesQuestion
