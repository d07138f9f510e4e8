"""At which consistency level a session's operations go, and why: so that callers can see it.

The level is the call's own, else the strictest that the memory's tags demand by the cluster's overrides, else the
spine's `consistency=`, else the cluster's default. Which tags a memory has already, only its coordinator knows: an
operation that nobody gave a level says at which one it was sent, and one that its memory demands more of comes back
(`Demanded`) and is sent again with the same number. What a session learns of a memory's tags it remembers, so that this
happens once. Where a cluster has no overrides, nothing of this happens.

Edits of a document are merged and never refused, so what is strong can't be edited in that way: that is refused, at the
latest by the coordinator, unless the call itself names another level.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import msgspec

from crdt_spine.call import Demanded
from crdt_spine.core.levels import Demand, Overrides, stricter
from crdt_spine.core.messages import Delete, Edit, EditDocument, Get, GetDocument, Level, Result, Store
from crdt_spine.errors import InvalidInput
from crdt_spine.limits import LEVELS_REMEMBERED_MAX
from crdt_spine.memory import Consistency, LevelInForce
from crdt_spine.session import Session

OnMemory = Get | GetDocument | Store | Edit | EditDocument | Delete
Leveled = TypeVar("Leveled", Get, GetDocument, Store, Edit, EditDocument, Delete)

_noted: ContextVar[list[LevelInForce] | None] = ContextVar("levels", default=None)


@contextmanager
def noted() -> Iterator[list[LevelInForce]]:
    """A list to which each call that ends within the block adds its level, whether it was done or failed: of this task,
    and of those it starts."""
    levels: list[LevelInForce] = []
    before = _noted.set(levels)
    try:
        yield levels
    finally:
        _noted.reset(before)


def note(operation: str, id: str | None, level: Level, because: str) -> None:
    """A call has ended; it was at this level."""
    levels = _noted.get()
    if levels is not None:
        levels.append(LevelInForce(operation, id, Consistency(level), because))


@contextmanager
def noting(operation: str, id: str | None, level: Level, because: str) -> Iterator[None]:
    """The block is a call at this level: that is noted when it ends, also where it fails."""
    try:
        yield
    finally:
        note(operation, id, level, because)


def check(operation: OnMemory, chosen: Consistency | None) -> None:
    """Can this be done at the level that its caller has given? Raises InvalidInput."""
    if (forced := _forced(operation)) and chosen is Consistency.EVENTUAL:
        raise InvalidInput(f"{forced} needs a majority of the replicas; leave consistency='eventual' out")


class InForce:
    """The level of a call under way, which may be raised meanwhile, and why it is that."""

    __slots__ = ("because", "level")

    def __init__(self, level: Level, because: str) -> None:
        self.level: Level = level
        self.because = because


class Levels:
    """The levels of one session's operations. `chosen` is the spine's own `consistency=`."""

    def __init__(self, session: Session, chosen: Consistency | None) -> None:
        self._session = session
        self._overrides = Overrides(session.hello.overrides)
        self.default: Level = session.hello.default_level if chosen is None else chosen.value
        self._because = "default" if chosen is None else "spine"
        self._known: OrderedDict[str, Demand] = OrderedDict()  # memories whose tags demand a level

    def of(self, chosen: Consistency | None) -> tuple[Level, str]:
        """The level of a call that is not on one memory, or on a document, and why."""
        return (self.default, self._because) if chosen is None else (chosen.value, "call")

    async def perform(self, operation: Leveled, chosen: Consistency | None, *, use_token: bool = False) -> Result:
        """An operation on one memory, at its level. `use_token`: with the session's token whatever the level is. Raises
        what the operation's answer says."""
        check(operation, chosen)
        force = self._in_force(operation, chosen)
        try:
            return await self.within(force, operation, chosen, use_token=use_token)
        finally:
            note(_NAMES[type(operation)], operation.id, force.level, force.because)

    async def within(
        self, force: InForce, operation: Leveled, chosen: Consistency | None, *, use_token: bool = False
    ) -> Result:  # fmt: skip
        """An operation as a part of a call, at that call's level; who makes the call notes it. Else as `perform`."""
        if chosen is None and self._overrides and not _forced(operation):
            return await self._by_tags(operation, use_token, force)
        sent = self._at(operation, force.level)
        return await self._session.on_memory(sent, sent.id, use_token=use_token or force.level != "eventual")

    def of_document(self, id: str, chosen: Consistency | None) -> InForce:
        """The level at which a document is edited, as far as that is known before. Raises InvalidInput where that is
        strong."""
        force = InForce(*self.of(chosen))
        if force.level == "strong":
            note("document", id, force.level, force.because)
            raise InvalidInput(_no_strong(id, force))
        return force

    def _in_force(self, operation: OnMemory, chosen: Consistency | None) -> InForce:
        """The level of an operation, as far as that is known before it is sent."""
        if forced := _forced(operation):
            return InForce("strong", forced)
        known = self._expected(operation) if chosen is None and self._overrides else None
        return InForce(*self.of(chosen)) if known is None else InForce(known.level, _reason(known.tag))

    async def _by_tags(self, operation: Leveled, use_token: bool, force: InForce) -> Result:
        """An operation that nobody gave a level: at the one that the memory's tags demand, as far as they are known
        here; else its coordinator says it, and it is in force from then on."""
        session = self._session
        loop = asyncio.get_running_loop()
        deadline = loop.time() + session.timeout
        open_attempts = 0
        while True:
            sent = msgspec.structs.replace(self._at(operation, force.level), level=force.level, default=self.default)
            left = max(deadline - loop.time(), 0.001)
            try:
                with_token = use_token or force.level != "eventual"
                result = await session.on_memory(
                    sent, sent.id, use_token=with_token, timeout=left, open_attempts=open_attempts
                )  # fmt: skip
            except Demanded as demanded:
                if not stricter(demanded.level, force.level):
                    raise  # a node's mistake: it was given that
                force.level, force.because = demanded.level, _reason(demanded.tag) if demanded.tag else self._because
                if force.level == "strong" and isinstance(operation, GetDocument | EditDocument):
                    raise InvalidInput(_no_strong(operation.id, force)) from None
                session.counts["levels_raised"] += 1
                open_attempts = demanded.open_attempts
                self._keep(operation.id, Demand(demanded.level, demanded.tag) if demanded.tag else None)
                continue
            if result.level is not None:
                force.level, force.because = result.level, _reason(result.because)
                self._keep(operation.id, Demand(result.level, result.because))
            elif force.level != "strong" and not isinstance(operation, Get | GetDocument):
                self._keep(operation.id, None)
            return result

    def learn(self, id: str, tags: Iterable[str]) -> None:
        """A memory has these tags now."""
        if self._overrides:
            self._keep(id, self._overrides.demand(tags))

    def _expected(self, operation: OnMemory) -> Demand | None:
        """What an operation's tags demand, and those that the memory had when it was heard of last."""
        known = self._known.get(operation.id)
        match operation:
            case Store():
                demand = self._overrides.demand(operation.tags)
            case Edit():
                demand = self._overrides.demand(operation.add)
            case _:
                demand = None
        if known is not None and (demand is None or stricter(known.level, demand.level)):
            return known
        return demand

    def _keep(self, id: str, demand: Demand | None) -> None:
        if demand is None:
            self._known.pop(id, None)
            return
        self._known[id] = demand
        self._known.move_to_end(id)
        if len(self._known) > LEVELS_REMEMBERED_MAX:
            self._known.popitem(last=False)

    def _at(self, operation: Leveled, level: Level) -> Leveled:
        """The operation at this level."""
        if level == "strong":
            assert not isinstance(operation, GetDocument | EditDocument)
            return msgspec.structs.replace(operation, strong=True)
        if level != "eventual" or isinstance(operation, GetDocument):
            return operation
        if not isinstance(operation, Get):
            return msgspec.structs.replace(operation, acks=1)
        return msgspec.structs.replace(operation, reads=1) if self._session.hello.read_quorum > 1 else operation


_NAMES: dict[type, str] = {
    Get: "get", GetDocument: "document", Store: "store", Edit: "update", EditDocument: "document", Delete: "delete",
}  # fmt: skip


def _no_strong(id: str, force: InForce) -> str:
    return (
        f"memory {id!r} is at 'strong' ({force.because}), and there is none for edits of a document, as they are "
        "merged and never refused: use document(…, consistency='read-your-writes') where that is meant, or "
        "update(…, content=…, if_version=…)"
    )


def _forced(operation: OnMemory) -> str:
    """What makes an operation a strong one, whatever its level is."""
    if isinstance(operation, Store | Edit | Delete) and operation.fence is not None:
        return "fence"
    return "if_version" if isinstance(operation, Edit) and operation.if_version is not None else ""


def _reason(tag: str) -> str:
    return f"override:{tag}"
