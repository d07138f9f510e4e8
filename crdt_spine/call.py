"""One operation under way, and the error that it ends with where it fails: what a node says, or that it took too long.

Pure: what sends calls, moves and ends them is in dispatch.py, hedging.py and requests.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import msgspec

from crdt_spine import errors
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import (
    Delete,
    Edit,
    EditDocument,
    Get,
    GetDocument,
    Level,
    Operation,
    Query,
    Result,
    Store,
    Vectors,
    Write,
)
from crdt_spine.errors import ConnectionFailed, Outcome, QuorumFailed, SpineError, StaleToken
from crdt_spine.health import OTHER, QUERY, READ, WRITE

_KINDS: dict[type, int] = {
    Get: READ, GetDocument: READ, Query: QUERY, Store: WRITE, Edit: WRITE, Delete: WRITE, EditDocument: WRITE,
}  # fmt: skip


class Moved(SpineError):
    """What was asked of these nodes lies elsewhere now: it is to be planned anew. No caller of Spine sees it."""


class Demanded(SpineError):
    """The memory's tags demand a stricter level than this was asked at; nothing was done. `tag` is empty where that is
    the default, which is stricter than what the tags demanded before. `open_attempts` others may yet be done. No caller
    of Spine sees it."""

    def __init__(self, level: Level, tag: str) -> None:
        super().__init__(f"the memory demands {level}")
        self.level = level
        self.tag = tag
        self.open_attempts = 0


class Call:
    """One operation under way."""

    __slots__ = (
        "asked", "attempts", "candidates", "deadline", "fixed", "future", "hedge", "hedge_request", "hedged_at", "kind",
        "layout", "left", "node", "numbers", "open_attempts", "operation", "problem", "ready_at", "request", "retry",
        "seconds", "sent_at", "strong", "token", "tried", "until", "use_token",
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
        self.strong = not self.fixed and isinstance(operation, Get | Store | Edit | Delete) and operation.strong
        if self.strong and self.kind == READ:
            self.kind = OTHER  # the primary answers it, and nobody else could meanwhile
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
        self.left: dict[str, float] = {}  # those that said nothing to a strong one, and when that was enough
        self.hedge = ""  # who was asked as well
        self.hedge_request = 0
        self.hedged_at = 0.0
        self.ready_at = 0.0  # not to be sent before
        self.attempts = 0
        self.open_attempts = 0  # those of which it is not known that they did nothing
        self.retry = False
        self.problem: Result | None = None

    def verdict(self, node: str, result: Result) -> Result | None:
        """What this node's refusal or failure says of a write: "not applied" only if no other attempt may do it yet.
        None: nothing so far, the last attempt will say more."""
        if result.outcome != "unknown":
            self.open_attempts -= 1
        if result.final or self.open_attempts <= 0 or result.error == "Level":
            return result  # who is to ask at another level goes on with those that are open
        if self.node != node or (self.strong and result.error != "QuorumFailed"):
            return None  # the last one is, or will be, under way; a strong one will say what holds for all
        if result.outcome == "unknown":
            return result
        said = (result.message or result.error or "there is no such memory").removesuffix(" (not applied)")
        message = f"{said}; but it was tried before, and what came of that is not known (unknown)"
        return msgspec.structs.replace(result, error="QuorumFailed", outcome="unknown", message=message, existed=None)

    def is_elsewhere_too(self, node: str) -> bool:
        """Is this a write that a node other than this one may have taken? Then this one's refusal does not end it."""
        return self.kind == WRITE and self.open_attempts > (self.node == node)

    def drop_hedge(self) -> None:
        """The other node has no answer either."""
        self.asked = (*self.asked, self.hedge)
        self.hedge, self.hedge_request = "", 0

    def follow_hedge(self) -> None:
        """It is under way at another node already: that one's answer is waited for."""
        self.asked = (*self.asked, self.node)
        self.node, self.hedge = self.hedge, ""
        self.sent_at, self.request = self.hedged_at, self.hedge_request


def error_of(result: Result) -> SpineError:
    """The error that an answer names."""
    if result.error == "Level" and result.level is not None:
        return Demanded(result.level, result.because)
    message = result.message or f"the operation failed: {result.error}"
    if result.error == "QuorumFailed":
        return QuorumFailed(
            message, outcome=result.outcome or "unknown", acks=result.acks_seen, needed=result.acks_needed,
            missing=result.missing,
        )  # fmt: skip
    if result.error == "StaleToken":
        return StaleToken(message, result.gone)
    kind = getattr(errors, result.error or "", SpineError)
    error: SpineError = kind(message)
    return error


def too_late(call: Call, *, connected: bool, address: str, write_quorum: int) -> SpineError:
    """The error of a call whose time is over: what is known of it. `connected`: is the broker, at this address?"""
    seconds = call.seconds
    write = call.operation if isinstance(call.operation, Write) else None
    said = f"; the last answer: {call.problem.message}" if call.problem is not None and call.problem.message else ""
    if call.problem is not None and call.problem.error == "Behind" and write is None:
        return StaleToken(f"no replica reached the session's token within {seconds:g} s{said}")
    if write is not None and (call.open_attempts or (said and connected)):
        outcome: Outcome = "unknown" if call.open_attempts else "not applied"
        needed = len(call.candidates) // 2 + 1 if call.strong else min(write.acks or write_quorum, len(call.candidates))
        told = call.problem if call.problem is not None and call.problem.missing else None
        acks, missing = (told.acks_seen, told.missing) if told is not None else (0, tuple(call.candidates))
        message = f"the write was not confirmed within {seconds:g} s ({outcome})"
        if told is not None:  # it did not take the write, and says whom it reached; not who may have an earlier try
            needed = told.acks_needed or needed
            message += f": {acks} of the {needed} replicas needed were reached, {', '.join(missing)} were not"
        elif call.open_attempts:
            message += f": {acks} of the {needed} replicas needed are known to have it, {', '.join(missing)} are not"
        message += said
        return QuorumFailed(message, outcome=outcome, acks=acks, needed=needed, missing=missing)
    if call.strong and write is None and connected:
        message = f"the strong read was not confirmed within {seconds:g} s{said}"
        needed = len(call.candidates) // 2 + 1
        return QuorumFailed(message, outcome="not applied", needed=needed, missing=tuple(call.candidates))
    if call.problem is not None and call.problem.acks_needed and connected:  # too few for a read
        return error_of(msgspec.structs.replace(call.problem, error="QuorumFailed"))
    reason = "no replica answered" if connected else "the broker is not connected"
    return ConnectionFailed(f"{address}: {reason} within {seconds:g} s{said}")
