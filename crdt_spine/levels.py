"""At which consistency level a session's operations go, and why: so that callers can see it.

The level is the call's own, else the strictest that the memory's tags demand by the cluster's overrides, else the
spine's `consistency=`, else the cluster's default. Which tags a memory has already, only its coordinator knows: an
operation that nobody gave a level says at which one it was sent, and one that its memory demands more of comes back
(`Demanded`) and is sent again with the same number. What a session learns of a memory's tags it remembers, so that this
happens once. Where a cluster has no overrides, nothing of this happens.
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
from crdt_spine.core.messages import Delete, Edit, Get, Level, Result, Store
from crdt_spine.errors import InvalidInput
from crdt_spine.limits import LEVELS_REMEMBERED_MAX
from crdt_spine.memory import Consistency, LevelInForce
from crdt_spine.session import Session

Leveled = TypeVar("Leveled", Get, Store, Edit, Delete)

_noted: ContextVar[list[LevelInForce] | None] = ContextVar("levels", default=None)


@contextmanager
def noted() -> Iterator[list[LevelInForce]]:
    """A list to which each call that ends within the block adds its level: of this task, and of those it starts."""
    levels: list[LevelInForce] = []
    before = _noted.set(levels)
    try:
        yield levels
    finally:
        _noted.reset(before)


def note(operation: str, id: str | None, level: Level, because: str) -> None:
    """A call is done; it was at this level."""
    levels = _noted.get()
    if levels is not None:
        levels.append(LevelInForce(operation, id, Consistency(level), because))


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
        level, because = self.of(chosen)
        if forced := _forced(operation):
            if chosen is Consistency.EVENTUAL:
                raise InvalidInput(f"{forced} needs a majority of the replicas; leave consistency='eventual' out")
            level, because = "strong", forced
        elif chosen is None and self._overrides:
            result, level, because = await self._by_tags(operation, use_token)
            note(_NAMES[type(operation)], operation.id, level, because)
            return result
        sent = self._at(operation, level)
        result = await self._session.on_memory(sent, sent.id, use_token=use_token or level != "eventual")
        note(_NAMES[type(operation)], operation.id, level, because)
        return result

    async def _by_tags(self, operation: Leveled, use_token: bool) -> tuple[Result, Level, str]:
        """An operation that nobody gave a level: at the one that the memory's tags demand, as far as they are known
        here; else its coordinator says it. The answer, the level, and why."""
        session, known = self._session, self._expected(operation)
        level, because = self.of(None) if known is None else (known.level, _reason(known.tag))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + session.timeout
        open_attempts = 0
        while True:
            sent = msgspec.structs.replace(self._at(operation, level), level=level, default=self.default)
            left = max(deadline - loop.time(), 0.001)
            try:
                with_token = use_token or level != "eventual"
                result = await session.on_memory(
                    sent, sent.id, use_token=with_token, timeout=left, open_attempts=open_attempts
                )  # fmt: skip
            except Demanded as demanded:
                if not stricter(demanded.level, level):
                    raise  # a node's mistake: it was given that
                session.counts["levels_raised"] += 1
                open_attempts = demanded.open_attempts
                self._keep(operation.id, Demand(demanded.level, demanded.tag) if demanded.tag else None)
                level, because = demanded.level, _reason(demanded.tag) if demanded.tag else self._because
                continue
            if result.level is not None:
                level, because = result.level, _reason(result.because)
                self._keep(operation.id, Demand(level, result.because))
            elif level != "strong" and not isinstance(operation, Get):
                self._keep(operation.id, None)
            return result, level, because

    def learn(self, id: str, tags: Iterable[str]) -> None:
        """A memory has these tags now."""
        if self._overrides:
            self._keep(id, self._overrides.demand(tags))

    def _expected(self, operation: Get | Store | Edit | Delete) -> Demand | None:
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
            return msgspec.structs.replace(operation, strong=True)
        if level != "eventual":
            return operation
        if not isinstance(operation, Get):
            return msgspec.structs.replace(operation, acks=1)
        return msgspec.structs.replace(operation, reads=1) if self._session.hello.read_quorum > 1 else operation


_NAMES: dict[type, str] = {Get: "get", Store: "store", Edit: "update", Delete: "delete"}


def _forced(operation: Get | Store | Edit | Delete) -> str:
    """What makes an operation a strong one, whatever its level is."""
    if not isinstance(operation, Get) and operation.fence is not None:
        return "fence"
    return "if_version" if isinstance(operation, Edit) and operation.if_version is not None else ""


def _reason(tag: str) -> str:
    return f"override:{tag}"
