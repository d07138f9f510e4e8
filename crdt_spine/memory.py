"""What an agent sees: memories, pages of them, updates, and the consistency levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec


class Consistency(StrEnum):
    """How fresh an operation must be; see docs/ARCHITECTURE.md, "Consistency levels"."""

    EVENTUAL = "eventual"
    READ_YOUR_WRITES = "read-your-writes"
    CAUSAL = "causal"
    STRONG = "strong"


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """One memory, as it was on the replica that answered. Times are aware UTC datetimes.

    `version` is its ETag: equal versions mean equal memories. `clock` is the vector clock of a thread's entry.
    """

    id: str
    content: str
    agent: str
    created_at: datetime
    updated_at: datetime
    version: str
    tags: frozenset[str] = frozenset()
    metadata: Mapping[str, Any] = {}
    thread: str | None = None
    clock: Mapping[str, int] = {}
    importance: float = 0.5
    expires_at: datetime | None = None


class LevelInForce(msgspec.Struct, frozen=True):
    """At which level one call was done, or failed: `operation` is "get", "store", "update", "delete", "document" (a
    block of it), "query" or "thread", `id` the memory's or the thread's. `because`: "call" (its own `consistency=`),
    "override:<tag>" (of cluster.yaml),
    "spine" (the spine's `consistency=`), "default" (the cluster's), "if_version" or "fence"."""

    operation: str
    id: str | None
    level: Consistency
    because: str


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """A value that was lost to a concurrent write: neither agent had seen what the other one wrote.

    `field` is "content", "importance" or "metadata.<key>". Times are those of the writes, as aware UTC datetimes. A
    lost None is a metadata key that was removed. A kept None says that the value has no successor: the memory was
    deleted, or the key removed, or the memory stored anew without it.
    """

    memory_id: str
    field: str
    lost: Any
    kept: Any
    lost_agent: str
    kept_agent: str
    lost_at: datetime
    kept_at: datetime


class Page(msgspec.Struct, frozen=True):
    """One page of a query's answer; `cursor` continues it and is None at the end."""

    memories: list[Memory]
    cursor: str | None = None


class Update:
    """One step of a subscription. `token` resumes right after it.

    A deleted memory comes with its id, agent, thread and tags; its content is empty.
    """

    __slots__ = ("_positions", "_text", "kind", "memory")

    def __init__(
        self,
        kind: Literal["stored", "updated", "deleted"],
        memory: Memory,
        positions: dict[int, dict[str, int]],
        text: Callable[[dict[int, dict[str, int]]], str],
    ) -> None:
        self.kind = kind
        self.memory = memory
        self._positions = positions
        self._text = text

    @property
    def token(self) -> str:
        """Made when asked for: most updates are never resumed from."""
        return self._text(self._positions)

    def __repr__(self) -> str:
        return f"Update(kind={self.kind!r}, memory={self.memory!r})"
