"""A strong operation as it goes in and out of core/strong.py, and while it is under way."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from crdt_spine.core.causality import Vector, join
from crdt_spine.core.fences import Fence
from crdt_spine.core.messages import Delete, Edit, Get, Round, Store
from crdt_spine.core.record import Record
from crdt_spine.limits import STRONG_SECONDS_MAX

Outcome = Literal["not applied", "unknown"]


class Ask(msgspec.Struct, eq=False):
    """A strong operation; `ticket` is the shell's. `wanted` is its agent's token of the partition, `seen` the same
    where what it overwrites beyond is to leave a receipt (core/conflicts.py)."""

    ticket: Any
    number: int
    operation: Get | Store | Edit | Delete
    agent: str = ""
    operation_id: str = ""
    retry: bool = False
    seen: Vector | None = None
    wanted: Vector = {}


class Answer(msgspec.Struct, eq=False):
    """What came of an operation. Without `error`, it is done: `record` is the memory after it, `version` what the
    operation made it. Errors are those of core/writes.py, "FenceRejected", "QuorumFailed", "Elsewhere" with the
    `primary` if that is known, and "NotHere". `final`, of a refusal: the memory remembers it, so that no other attempt
    of the operation will be done; else it is of this attempt only."""

    ask: Ask
    record: Record | None = None
    version: str = ""
    error: str = ""
    message: str = ""
    outcome: Outcome | None = None
    acks: int = 0
    needed: int = 0
    missing: tuple[str, ...] = ()
    primary: str = ""
    final: bool = False


class Send(msgspec.Struct):
    """A round for another replica. Its answer goes to `heard` under this number; `unheard` where none can come."""

    node: str
    number: int
    round: Round


class Pull(msgspec.Struct):
    """Have this replica's partition pulled from that node, now: since(own vector), as for any repair."""

    number: int
    node: str


Effect = Answer | Send | Pull


class Operation:
    """An operation under way, and the round that it is in."""

    __slots__ = (
        "again_at", "answer", "ask", "asked", "asked_at", "bound", "clean", "deadline", "granted", "have", "joined",
        "news_at", "open", "refused_fence", "round", "source", "version", "wrote",
    )  # fmt: skip

    def __init__(self, ask: Ask, at: float) -> None:
        self.ask = ask
        self.joined: list[Ask] = []  # further attempts of the same one: what comes of it is said to all
        self.deadline = at + STRONG_SECONDS_MAX
        self.round = 0  # 0: it is in none
        self.have: Vector = {}  # what it told of in its round
        self.bound = 0  # that it told of, milliseconds
        self.asked: set[str] = set()
        self.open = 0  # questions under way
        self.asked_at = 0.0
        self.granted: set[str] = set()
        self.clean: set[str] = set()  # those that have all of `have` durably, and nothing else
        self.again_at = 0.0
        self.news_at = 0.0  # since when it waits for what others have
        self.source = ""  # who has it
        self.refused_fence = 0  # a newer token of its lock
        self.version: Vector | None = None  # what is to be confirmed, once it is decided
        self.answer: Answer | None = None  # which is then given
        self.wrote = False

    def join(self, ask: Ask, at: float) -> None:
        """Another attempt has come while this one is under way: they are one. What was refused is decided anew, as an
        operation that is tried again: its refusal is to be remembered."""
        if not self.ask.retry and self.answer is not None and self.answer.outcome == "not applied":
            self.round, self.answer, self.version = 0, None, None
        self.joined.append(ask)
        self.ask.retry = True
        self.ask.wanted = join(self.ask.wanted, ask.wanted)
        if not self.wrote:
            self.deadline = at + STRONG_SECONDS_MAX


def fence_of(ask: Ask) -> Fence | None:
    """The lease under which it is to be done."""
    return None if isinstance(ask.operation, Get) else ask.operation.fence
