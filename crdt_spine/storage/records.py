"""Every record of a node, wherever it is: changed and not yet in the tables, cached, or in the tables.

A put is remembered in `dirty` until a flush has brought it into the tables; the journal has it meanwhile. A flush
takes all that is dirty at one instant, with the vectors of that instant, and writes it in one transaction, so that an
id written a hundred times between two flushes costs the tables one write. Reads and queries look at the dirty records
first: they see every write that was acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.causality import within
from crdt_spine.core.conflicts import Finding
from crdt_spine.core.record import Record
from crdt_spine.limits import CACHE_BYTES_MAX, DIRTY_BYTES_MAX, DIRTY_RECORDS_MAX
from crdt_spine.storage.engine import Checkpoint, Engine, Past, Row, Version
from crdt_spine.storage.recent import Recent, former_of, versions_of

#: What a decoded record weighs besides its text: objects for origins, registers, dicts (measured, rounded up).
ROWS_AT_ONCE = 256  # of a flush, without a look at whether to rest
RECORD_OVERHEAD_BYTES = 1_600

UNPLACED = -1


class Entry(msgspec.Struct, eq=False):
    """A record in memory; None: it is to be removed from the tables. `view` is the living memory as JSON, once asked
    for, `expires` the hybrid time from which on it is not shown any more."""

    partition: int  # UNPLACED where nobody asked yet
    record: Record | None
    view: msgspec.Raw | None = None
    expires: int | None = None

    @property
    def weight(self) -> int:
        record = self.record
        if record is None:
            return RECORD_OVERHEAD_BYTES
        content = len(record.content.value) if record.content is not None and record.content.value else 0
        if record.document is not None:
            content += record.document.size
        return RECORD_OVERHEAD_BYTES + 2 * content  # once decoded, once in the view


class Flush(msgspec.Struct):
    """What one flush brings into the tables: everything dirty at one instant, and the vectors of that instant."""

    entries: dict[str, Entry]
    checkpoint: Checkpoint
    recent: Recent
    now: int
    dropped: dict[str, Entry]  # nobody needs them any more
    weight: int = 0


class RecordStore:
    """The `Records` of the core, over an engine. Used from the event loop only, but for `write_flush`."""

    def __init__(self, engine: Engine, cache_bytes: int = CACHE_BYTES_MAX) -> None:
        self.engine = engine
        self.cache_bytes = cache_bytes
        self.ignored: Callable[[str], bool] | None = None  # of which memories the tables' records count no more
        self.dirty: dict[str, Entry] = {}
        self.flushing: dict[str, Entry] = {}
        self.dirty_bytes = 0  # of `dirty`, estimated
        self._dirty_of: dict[int, dict[str, Entry]] = {}  # `dirty` by partition: a page of a sync needs one partition's
        self._flushing_of: dict[int, dict[str, Entry]] = {}
        self.recent = Recent()  # what was replaced and lost since `dirty` began ...
        self.flushing_recent = Recent()  # ... and `flushing`
        # Two generations: what is asked for moves to the young one; when that is full it becomes the old one, and what
        # was not asked for since the last time is gone. No list to keep in order, and a flush is taken over whole.
        self._young: dict[str, Entry] = {}
        self._young_bytes = 0
        self._old: dict[str, Entry] = {}

    # -- one record -------------------------------------------------------------------------------------------------

    def get(self, id: str) -> Record | None:
        """The record, alive or dead, or None."""
        entry = self.entry(id)
        return None if entry is None else entry.record

    def entry(self, id: str) -> Entry | None:
        """The record with its cached view."""
        entry = self.dirty.get(id) or self.flushing.get(id) or self._cached(id)
        if entry is None:
            if self.ignored is not None and self.ignored(id):
                return None
            state = self.engine.get(id)
            if state is None:
                return None
            entry = Entry(UNPLACED, codec.from_bytes(id, state))
            self._remember(id, entry)
        return entry

    def put(self, partition: int, record: Record) -> None:
        """A record's new state; in the tables after the next flush."""
        self._change(record.id, Entry(partition, record))

    def replace(self, before: Record, after: Record) -> None:
        """Remember what a change of this node's own has replaced; in the tables after the next flush."""
        self.recent.replace(before, after)

    def find(self, findings: Iterable[Finding]) -> None:
        """Remember what was found about lost values; in the tables after the next flush."""
        self.recent.find(findings)

    def drop(self, partition: int, id: str) -> None:
        """The record is to be forgotten."""
        self._change(id, Entry(partition, None))

    def forget(self, belongs: Callable[[str], bool]) -> None:
        """Know nothing any more of the memories that `belongs` says; the tables are the caller's. Not while a flush is
        under way: it has them still."""
        assert not self.flushing, "a flush is under way"
        for entries in (self.dirty, self._young, self._old):
            for id in [id for id in entries if belongs(id)]:
                del entries[id]
        self.dirty_bytes = sum(entry.weight for entry in self.dirty.values())
        self._dirty_of = _by_partition(self.dirty)
        self._young_bytes = sum(entry.weight for entry in self._young.values())
        self.recent.forget(belongs)

    def behind(self) -> float:
        """How full the memory for what is not in the tables yet is: 1 is as much as there may be."""
        return max(len(self.dirty) / DIRTY_RECORDS_MAX, (self.dirty_bytes + self.recent.weight) / DIRTY_BYTES_MAX)

    # -- many -------------------------------------------------------------------------------------------------------

    def unflushed(self, partitions: frozenset[int] | None = None) -> dict[str, Entry]:
        """What is not (surely) in the tables yet, by id; it supersedes what the tables have."""
        if partitions is None:
            return {**self.flushing, **self.dirty}
        return {
            id: entry
            for by_partition in (self._flushing_of, self._dirty_of)
            for partition in partitions
            for id, entry in by_partition.get(partition, {}).items()
        }

    def expired(self, now: int) -> list[str]:
        """Of what is not (surely) in the tables yet, the ids of what ends by then; some may have been changed since."""
        return [
            id
            for entries in (self.flushing, self.dirty)
            for id, entry in entries.items()
            if entry.record is not None and entry.record.expires is not None and entry.record.expired(now)
        ]

    def changed(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> list[Record]:
        """since(have), one page: the partition's records whose version is not within `have`, by id, behind `after`.

        A record changed while somebody pages is sent as it is then. It must not be left out, although its newest dot
        is beyond what the first page promised: its older dots are promised, and nothing else carries them.
        """
        fresh = self.unflushed(frozenset((partition,)))
        page = _page(fresh, self.engine.changed(partition, have, after, limit + len(fresh)), have, after, limit)
        return [codec.from_bytes(id, one) if isinstance(one, bytes) else one for id, one in page]

    def ahead(self, vectors: Mapping[int, Mapping[str, int]]) -> list[tuple[int, str]]:
        """(partition, actor): of the actor a record in the tables has a dot above the partition's vector. What is not
        flushed yet is left out."""
        return self.engine.ahead(vectors)

    def since(
        self, partition: int, have: Mapping[str, int], after: str | None, limit: int
    ) -> Callable[[], list[tuple[str, Record | bytes]]]:
        """The same page, for another replica: what is called in a thread of its own to get it, since it may take a
        while. Records that are in the tables come as `codec.to_bytes` has them.

        What is not in the tables at this moment is taken now. What changes while they are read comes as it is now or as
        it is then; either has what it had when the page was asked for.
        """
        fresh = self.unflushed(frozenset((partition,)))
        return lambda: _page(fresh, self.engine.since(partition, have, after, limit + len(fresh)), have, after, limit)

    def tombstones(self, partition: int, limit: int) -> Iterator[Record]:
        """The partition's dead records that are in the tables, the longest untouched first."""
        for id, state in self.engine.tombstones(partition, limit):
            if id not in self.dirty and id not in self.flushing:
                yield codec.from_bytes(id, state)

    # -- flushing ---------------------------------------------------------------------------------------------------

    def begin_flush(self, checkpoint: Checkpoint, now: int = 0) -> Flush:
        """Take everything dirty; `checkpoint` must describe this very instant. `now` is the wall clock as a hybrid
        time, by which history that is too old goes. One flush at a time."""
        assert not self.flushing, "a flush is under way"
        self.flushing, self.dirty, self.dirty_bytes = self.dirty, {}, 0
        self._flushing_of, self._dirty_of = self._dirty_of, {}
        # What is being flushed takes the old one's place, so that there are never four generations in memory.
        dropped, self._old = self._old, {}
        self.flushing_recent, self.recent = self.recent, Recent()
        return Flush(self.flushing, checkpoint, self.flushing_recent, now, dropped)

    def write_flush(self, flush: Flush, rest: Callable[[], None] | None = None) -> None:
        """The blocking part, for a thread of its own; `rest` is called now and then. Raises StorageFull: nothing was
        written."""
        while flush.dropped:  # one by one: freed at once, twenty thousand keep the event loop waiting for 30 ms
            flush.dropped.popitem()
        flush.weight = sum(entry.weight for entry in flush.entries.values())
        rows: list[Row] = []
        for number, entry in enumerate(flush.entries.values()):
            if rest is not None and number % ROWS_AT_ONCE == 0:
                rest()
            if entry.record is not None:
                rows.append(_row(entry.partition, entry.record))
        forget = [id for id, entry in flush.entries.items() if entry.record is None]
        replaced = [
            Version(id, at, former_of(record))
            for id, pairs in flush.recent.replaced.items()
            for record, at in versions_of(pairs)
        ]
        past = Past(replaced, flush.recent.findings, flush.now)
        self.engine.flush(rows, forget, flush.checkpoint, past, rest)

    def end_flush(self, flush: Flush, written: bool) -> None:
        """The flush is in the tables, or it failed and all of it is dirty again."""
        self.flushing, self._flushing_of = {}, {}
        if not written:
            self.dirty = {**flush.entries, **self.dirty}
            self._dirty_of = _by_partition(self.dirty)
            self.dirty_bytes = sum(entry.weight for entry in self.dirty.values())
            self.recent, self.flushing_recent = flush.recent.followed_by(self.recent), Recent()
            return
        self.flushing_recent = Recent()
        self._old = flush.entries if flush.weight <= self.cache_bytes else {}
        for id in self.dirty:
            self._old.pop(id, None)

    def _change(self, id: str, entry: Entry) -> None:
        self._young.pop(id, None)
        self._old.pop(id, None)
        before = self.dirty.get(id)
        self.dirty_bytes += entry.weight - (0 if before is None else before.weight)
        self.dirty[id] = entry
        entries = self._dirty_of.get(entry.partition)
        if entries is None:
            entries = self._dirty_of[entry.partition] = {}
        entries[id] = entry

    # -- the cache --------------------------------------------------------------------------------------------------

    def _cached(self, id: str) -> Entry | None:
        entry = self._young.get(id)
        if entry is None:
            entry = self._old.get(id)
            if entry is not None:
                self._remember(id, entry)
        return entry

    def _remember(self, id: str, entry: Entry) -> None:
        self._young[id] = entry
        self._young_bytes += entry.weight
        if self._young_bytes > self.cache_bytes // 3:
            self._old, self._young, self._young_bytes = self._young, {}, 0


def _page(
    fresh: Mapping[str, Entry], flushed: list[tuple[str, bytes]], have: Mapping[str, int], after: str | None, limit: int
) -> list[tuple[str, Record | bytes]]:
    """A page of what is not in the tables yet, and of what they have where that is not newer."""
    page: dict[str, Record | bytes] = {
        id: entry.record
        for id, entry in fresh.items()
        if entry.record is not None and (after is None or id > after) and not within(entry.record.version, have)
    }
    page.update((id, state) for id, state in flushed if id not in fresh)
    return [(id, page[id]) for id in sorted(page)[:limit]]


def _by_partition(entries: Mapping[str, Entry]) -> dict[int, dict[str, Entry]]:
    grouped: dict[int, dict[str, Entry]] = {}
    for id, entry in entries.items():
        grouped.setdefault(entry.partition, {})[id] = entry
    return grouped


def _row(partition: int, record: Record) -> Row:
    life = record.life.value
    expires = record.expires.value if record.expires is not None else None
    return Row(
        id=record.id,
        partition=partition,
        alive=record.alive,
        agent=life.agent,
        thread=life.thread,
        created=life.created,
        expires=expires,
        tags=tuple(record.tags) if record.alive else (),
        metadata=record.metadata_values() if record.alive else {},
        content=record.text if record.alive else "",
        version=record.version,
        state=codec.to_bytes(record),
    )
