"""Answers queries: the tables' hits, superseded by what is not in the tables yet.

A query runs on a thread with a snapshot of the dirty records, taken before the tables are read: a record that is
flushed meanwhile is in both and counts once. The answer leaves after everything it shows is durable. While the disk is
full that may take long: another node is to answer; where there is none, what is not durable is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from heapq import merge as merge_sorted
from itertools import islice

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.causality import within
from crdt_spine.core.messages import Hit, Query, Result, Vectors
from crdt_spine.core.placement import partition_of
from crdt_spine.core.record import Record
from crdt_spine.core.selection import Selection
from crdt_spine.limits import RELEVANCE_RESULTS_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.flusher import Flusher
from crdt_spine.node.view import encoded
from crdt_spine.storage.engine import Engine, StorageFull
from crdt_spine.storage.records import Entry, RecordStore

READERS = 2
PAGE_BYTES_MAX = 512 * 1024  # a page that would be larger ends earlier; its cursor goes on from there


class Queries:
    """`answer` from the event loop; the work is done on threads."""

    def __init__(
        self, store: RecordStore, engine: Engine, committer: Committer, flusher: Flusher, partitions: int
    ) -> None:  # fmt: skip
        self.partition_count = partitions
        self.store = store
        self.engine = engine
        self.committer = committer
        self.flusher = flusher
        self._threads = ThreadPoolExecutor(READERS, "query")

    async def answer(self, query: Query, partitions: frozenset[int], now: int) -> Result:
        """The page; `now` is a hybrid time. `partitions` are those asked for; all of them are held here."""
        if query.text is not None:
            try:
                await self.flusher.catch_up_text()
            except StorageFull:
                return _full(query)
        cut = self._cut(partitions) if query.causal else {}  # before the picture is taken, which has all of it then
        fresh = self.store.unflushed()
        hits = await self._found(query, partitions, now, fresh)
        unsettled = self.committer.replica.unsettled
        if any(hit.id in unsettled for hit in hits) and not await self.committer.durable():
            if any(self.committer.replica.peers.values()):
                return _full(query)
            settled = {id: entry for id, entry in self.store.unflushed().items() if id not in unsettled}
            hits = await self._found(query, partitions, now, settled)
        page = _bounded(hits[: query.limit])
        return Result(i=query.i, hits=page, more=len(hits) > len(page), cut=cut)

    def _cut(self, partitions: frozenset[int]) -> Vectors:
        durable = self.committer.replica.durable
        return {number: durable[number] for number in partitions if number in durable}

    async def _found(self, query: Query, partitions: frozenset[int], now: int, fresh: dict[str, Entry]) -> list[Hit]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._page, query, partitions, now, fresh)

    def _page(self, query: Query, partitions: frozenset[int], now: int, fresh: dict[str, Entry]) -> list[Hit]:
        """One hit more than the limit, if there is one more."""
        wanted = query.limit + 1
        some = sorted(partitions)
        if query.text is not None:
            return self._search(query, query.text, some, now)
        newest, after = query.order == "newest", query.after
        tables: Iterator[tuple[int, str, bytes | Record]] = (
            (found.created, found.id, found.state)
            for found in self.engine.select(
                query.selection, "newest" if newest else "oldest", wanted + len(fresh), query.after, some, now
            )
            if found.id not in fresh
        )
        memory: list[tuple[int, str, bytes | Record]] = sorted(
            (
                (entry.record.life.value.created, id, entry.record)
                for id, entry in fresh.items()
                if entry.record is not None
                and entry.partition in partitions
                and (after is None or _behind(after, entry.record, newest))
                and _selected(query.selection, entry.record, now)
            ),
            key=_place,
            reverse=newest,
        )
        page = islice(merge_sorted(tables, memory, key=_place, reverse=newest), wanted)
        make = _causal_hit if query.causal else self._hit
        return _filled(make(created, id, state) for created, id, state in page)

    def _search(self, query: Query, text: str, partitions: list[int], now: int) -> list[Hit]:
        """The text index has caught up with everything acknowledged, so the tables alone answer."""
        shown = set(query.shown)
        wanted = min(query.limit + 1 + len(shown), RELEVANCE_RESULTS_MAX + 1)
        found = self.engine.search(text, query.selection, query.order, wanted, query.after, partitions, now)
        hits = [self._hit(f.created, f.id, f.state, score) for score, f in found if f.id not in shown]
        return hits[: query.limit + 1]

    def _hit(self, created: int, id: str, state: bytes | Record, score: float = 0.0) -> Hit:
        """A hit; one that is ahead of its partition's vector, since a sync is not over, says what it has."""
        record = state if isinstance(state, Record) else codec.from_bytes(id, state)
        durable = self.committer.replica.durable.get(partition_of(id, self.partition_count), {})
        changes = {} if within(record.version, durable) else record.version
        return Hit(created=created, id=id, memory=msgspec.Raw(encoded(record)), score=score, changes=changes)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def _full(query: Query) -> Result:
    return Result(i=query.i, error="Behind", message="the disk is full, and what is asked for is not on it yet")


def _bounded(hits: list[Hit]) -> list[Hit]:
    """As many hits as fit a message; at least one."""
    size = 0
    for index, hit in enumerate(hits):
        size += _bytes(hit)
        if size > PAGE_BYTES_MAX and index:
            return hits[:index]
    return hits


def _filled(hits: Iterable[Hit]) -> list[Hit]:
    """The hits, through the first one that `_bounded` leaves out: those behind it need not be made."""
    filled: list[Hit] = []
    size = 0
    for hit in hits:
        filled.append(hit)
        size += _bytes(hit)
        if size > PAGE_BYTES_MAX and len(filled) > 1:
            break
    return filled


def _bytes(hit: Hit) -> int:
    return len(bytes(hit.memory)) + 32 * sum(map(len, hit.after.values()))


def _place(hit: tuple[int, str, bytes | Record]) -> tuple[int, str]:
    return hit[0], hit[1]


def _causal_hit(created: int, id: str, state: bytes | Record) -> Hit:
    """A hit with what the order of a thread needs."""
    record = state if isinstance(state, Record) else codec.from_bytes(id, state)
    origin = record.life.origin
    return Hit(
        created=created, id=id, memory=msgspec.Raw(encoded(record)), born=(origin.actor, origin.n),
        after=record.life.value.after, changes={} if record.version == {origin.actor: origin.n} else record.version,
        replaced=created < origin.time,
    )  # fmt: skip


def _behind(after: tuple[int, str], record: Record, newest: bool) -> bool:
    place = (record.life.value.created, record.id)
    return place < after if newest else place > after


def _selected(selection: Selection, record: Record, now: int) -> bool:
    life = record.life.value
    return (
        life.alive
        and (selection.thread is None or selection.thread == life.thread)  # looked at first: most have another one
        and not record.expired(now)
        and selection.matches(record.tags, life.agent, life.thread, life.created, record.metadata_values())
    )
