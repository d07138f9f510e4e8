"""What was promised: every write with its acknowledgement, every update that a subscription brought, every read.

Kept by the agents while they work, outside the cluster, so that the facts can be held against it afterwards. Times are
monotonic seconds of the demo's process: when a write was issued, and when its acknowledgement was there.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from typing import Any, Literal

import msgspec

from crdt_spine.demo.cast import Follow
from crdt_spine.errors import SpineError
from crdt_spine.memory import Memory, Update


class Write(msgspec.Struct):
    """One store or update. `values`: what it wrote, by register (`content`, `importance`, `metadata.<key>`); `tags`:
    what it added. `memory` is the acknowledgement, None without one."""

    kind: Literal["store", "update"]
    agent: str
    id: str
    values: dict[str, Any]
    tags: frozenset[str]
    started: float
    ended: float = 0.0
    memory: Memory | None = None


class Delivery(msgspec.Struct, frozen=True):
    """One update that a subscription brought, and when."""

    kind: Literal["stored", "updated", "deleted"]
    memory: Memory
    at: float


class Feed(msgspec.Struct):
    """One subscription and all that it brought, in order."""

    agent: str
    follow: Follow
    deliveries: list[Delivery]


class Ledger:
    """Grows while the agents work."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.feeds: list[Feed] = []
        self.reads = 0
        self.stale: list[str] = []  # reads that were behind the reader's own writes
        self.failures: list[str] = []
        self.stored = 0  # acknowledged
        self.updated = 0
        self.delivered = 0
        self.last_acknowledged = 0.0

    async def store(self, agent: str, arguments: Mapping[str, Any], storing: Awaitable[Memory]) -> Memory | None:
        """Await a store and keep what came of it; None: it failed."""
        values = {"content": arguments["content"], "importance": arguments.get("importance", 0.5)}
        values |= {f"metadata.{key}": value for key, value in arguments.get("metadata", {}).items()}
        write = Write("store", agent, "", values, frozenset(arguments.get("tags", ())), time.monotonic())
        return await self._keep(write, storing)

    async def update(
        self, agent: str, id: str, values: Mapping[str, Any], tags: frozenset[str], updating: Awaitable[Memory]
    ) -> Memory | None:
        """Await an update and keep what came of it; None: it failed."""
        return await self._keep(Write("update", agent, id, dict(values), tags, time.monotonic()), updating)

    async def _keep(self, write: Write, working: Awaitable[Memory]) -> Memory | None:
        self.writes.append(write)
        try:
            write.memory = await working
        except SpineError as error:
            self.failures.append(f"{write.agent}: {write.kind}: {error}")
            return None
        write.id = write.memory.id
        write.ended = self.last_acknowledged = time.monotonic()
        if write.kind == "store":
            self.stored += 1
        else:
            self.updated += 1
        return write.memory

    def follow(self, agent: str, follow: Follow) -> Feed:
        """Begin a subscription's record."""
        feed = Feed(agent, follow, [])
        self.feeds.append(feed)
        return feed

    def deliver(self, feed: Feed, update: Update) -> None:
        """An update arrived."""
        feed.deliveries.append(Delivery(update.kind, update.memory, time.monotonic()))
        self.delivered += 1

    def read(self, agent: str, what: str, holds: bool) -> None:
        """A read was answered; does the answer have what the reader had written?"""
        self.reads += 1
        if not holds:
            self.stale.append(f"{agent} read {what} as it was before its own write")

    def fail(self, agent: str, what: str, error: SpineError) -> None:
        """A read or a subscription failed."""
        self.failures.append(f"{agent}: {what}: {error}")
