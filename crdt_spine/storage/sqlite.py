"""The storage engine on SQLite: the journal in one file, tables and indexes in another, so that neither waits.

    method                               may be called from                  waits for
    append                               one thread (journal)                its fsync; a few rows of a `prune`
    prune, flush, wipe…, index_text      one thread (tables)                 each other
    get, changed, tombstones, expired    one thread (the event loop)         the disk
    since                                one thread (pages for others)       the disk
    select, search                       any number of threads               a free reader, of READERS_MAX

Readers have connections of their own and see the last commit: a flush never holds them up. An engine in memory
(":memory:") has a single connection, so there everything waits for everything; it keeps nothing and syncs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from crdt_spine.core.conflicts import Place, Receipt
from crdt_spine.core.selection import Selection
from crdt_spine.limits import READ_CACHE_BYTES_MAX, READERS_MAX
from crdt_spine.storage import history
from crdt_spine.storage import tables as format
from crdt_spine.storage.changes import Changes
from crdt_spine.storage.database import MEMORY, Database
from crdt_spine.storage.engine import Checkpoint, Former, Found, Order, Past, Row, StorageFull, StorageUnusable
from crdt_spine.storage.folder import Files, Lock, files_of
from crdt_spine.storage.journal import Journal
from crdt_spine.storage.places import place_of
from crdt_spine.storage.recent import Key
from crdt_spine.storage.search import Words, search
from crdt_spine.storage.select import select
from crdt_spine.storage.tables import Tables
from crdt_spine.storage.text_index import TextIndex

_GET = "SELECT r.state FROM ids CROSS JOIN records r ON r.key = ids.key WHERE ids.place = ? AND r.id = ?"


class SqliteEngine:
    """An `Engine`; make one with `open`. `writable` is false where `read_only_ok` was needed."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only_ok: bool = False) -> SqliteEngine:
        """The engine of a folder, of a database file (folder.py says which is which), or of ":memory:".

        With `read_only_ok` a folder that another process has, or that can't be written to, is opened for reading; what
        the other process commits is seen. Raises StorageUnusable.
        """
        if str(path) == MEMORY:
            return cls(MEMORY, MEMORY, None, True)
        files = files_of(path)
        lock = None
        try:
            lock = Lock(files)
        except StorageUnusable:
            if not read_only_ok or not files.tables.exists():
                raise
        try:
            if lock is not None:
                files.remove_discarded()
            return cls(str(files.tables), str(files.journal), lock, lock is not None, files)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def __init__(
        self, tables: str, journal: str, lock: Lock | None, writable: bool, files: Files | None = None
    ) -> None:
        self.writable = writable
        self._files = files
        self._lock = lock
        self._opened: list[Any] = []
        try:
            self._journal = Journal(journal, write=writable)
            self._opened.append(self._journal)
            self._tables = Tables(tables, write=writable)
            self._opened.append(self._tables.database)
            self._journal.raise_to(self._tables.checkpoint.through)
            self._point = self._reader(tables)
            self._changes = Changes(self._tables, self._point)
            self._since = Changes(self._tables, self._reader(tables))
            self._text = TextIndex(self._tables.database)
            self._words = Words()
            self._opened.append(self._words)
            self._readers: SimpleQueue[Database] = SimpleQueue()
            for _ in range(READERS_MAX):
                self._readers.put(self._reader(tables))
            self._has_history = history.present(self._read)  # not where an earlier program's folder is only read
        except BaseException:
            self.close()
            raise

    def _reader(self, path: str) -> Database:
        if path == MEMORY:
            return self._tables.database
        database = Database(path, application_id=format.APPLICATION_ID, cache_bytes=READ_CACHE_BYTES_MAX, write=False)
        self._opened.append(database)
        return database

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the last flush."""
        return self._tables.checkpoint

    @property
    def rows_read(self) -> int:
        """How many index entries and records `changed` and `since` have looked at since the engine was opened."""
        return self._changes.rows_read + self._since.rows_read

    def pages(self) -> tuple[int, int]:
        """How many pages the tables have, and how many of them `changed` and `since` have fetched since the engine was
        opened."""
        return self._point.number("PRAGMA page_count"), self._changes.pages_read + self._since.pages_read

    def sizes(self) -> dict[int, int]:
        """Partition -> bytes of its records in the tables, as of the last flush."""
        return self._tables.sizes

    def limit_bytes(self, journal: int, tables: int) -> None:
        """Let the files not grow above these sizes: StorageFull from there on, as on a full disk."""
        self._journal.database.limit_bytes(journal)
        self._tables.database.limit_bytes(tables)

    # -- the journal ------------------------------------------------------------------------------------------------

    def journal_rows(self, after: int) -> Iterator[tuple[int, bytes]]:
        """The journal's rows with a sequence above `after`, in order."""
        return self._journal.rows(after)

    def append(self, row: bytes) -> int:
        """Write one journal row and make it durable; its sequence. Raises StorageFull."""
        return self._journal.append(row)

    def prune(self, through: int) -> None:
        """Drop the journal's rows up to and including `through`. Raises StorageFull."""
        self._journal.prune(through)

    # -- the tables -------------------------------------------------------------------------------------------------

    def flush(
        self, rows: Sequence[Row], forget: Sequence[str], checkpoint: Checkpoint, past: Past | None = None,
        rest: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Records and checkpoint into the tables, ids in `forget` out of them (unless they are in `rows` too), what was
        replaced and lost into the history: all or nothing, durable. Raises StorageFull."""
        self._tables.flush(rows, forget, checkpoint, past, rest)

    def wipe(self, partitions: Sequence[int], records_max: int) -> int:
        """Drop up to that many records of these partitions; how many those were. Raises StorageFull."""
        return self._tables.wipe(partitions, records_max)

    def wipe_past(self, belongs: Callable[[str], bool], after: int, rows_max: int) -> int | None:
        """Drop the history of the memories that `belongs` says, from that many rows; None at the end. Raises
        StorageFull."""
        return history.wipe(self._tables.database, belongs, after, rows_max)

    def index_text(self, records_max: int) -> int:
        """Put up to that many waiting records into the text index; how many still wait. Raises StorageFull."""
        return self._text.index(records_max)

    # -- reading ----------------------------------------------------------------------------------------------------

    def get(self, id: str) -> bytes | None:
        """The state of one record (alive or dead) from the tables."""
        state: bytes | None = self._point.value(_GET, (place_of(id), id))
        return state

    def changed(
        self, partition: int, have: Mapping[str, int], after: str | None, limit: int
    ) -> list[tuple[str, bytes]]:
        """(id, state) of the partition's records with a dot above `have`, by id, behind `after`; at most `limit`."""
        return self._changes.changed(partition, have, after, limit)

    def ahead(self, vectors: Mapping[int, Mapping[str, int]]) -> list[tuple[int, str]]:
        """(partition, actor): of the actor a record of the partition has a dot above the partition's vector."""
        return self._changes.ahead(vectors)

    def since(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> list[tuple[str, bytes]]:
        """The same, from another thread and on a connection of its own."""
        return self._since.changed(partition, have, after, limit)

    def tombstones(self, partition: int, limit: int) -> list[tuple[str, bytes]]:
        """(id, state) of dead records of a partition, the longest untouched first."""
        return self._changes.tombstones(partition, limit)

    def expired(self, now: int, limit: int) -> list[str]:
        """Ids of living records whose time is over, the longest over first."""
        return self._changes.expired(now, limit)

    def select(
        self,
        selection: Selection,
        order: Order,
        limit: int,
        after: tuple[int, str] | None,
        partitions: Sequence[int] | None,
        now: int,
    ) -> Iterator[Found]:
        """Living, unexpired records of the selection in (created, id) order, beyond `after`, as they are asked for."""
        return select(self._read, selection, order, limit, after, partitions, now)

    def search(
        self,
        text: str,
        selection: Selection,
        order: Order | Literal["relevance"],
        limit: int,
        after: tuple[int, str] | None,
        partitions: Sequence[int] | None,
        now: int,
    ) -> list[tuple[float, Found]]:
        """As `select`, among those whose content has the words of `text`: all of them when ordered by time, any of
        them by relevance (the float: smaller is better). A text without a word finds nothing."""
        words = self._words.of(text)
        return search(self._read, words, selection, order, limit, after, partitions, now)

    def versions(self, id: str) -> list[Former]:
        """The replaced versions of a memory, the newest first."""
        return history.versions(self._read, id) if self._has_history else []

    def receipts_of(self, ids: Sequence[str]) -> dict[str, dict[Key, Receipt]]:
        """The conflict receipts of some memories, by id."""
        return history.receipts_of(self._read, ids) if self._has_history else {}

    def receipts(self, after: Place | None, limit: int) -> list[Receipt]:
        """A page of all conflict receipts, the newest first."""
        return history.receipts(self._read, after, limit) if self._has_history else []

    def _read(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        reader = self._readers.get()
        try:
            return reader.rows(sql, values)
        finally:
            self._readers.put(reader)

    def beside(self, name: str) -> Path | None:
        """Where a file of this name is that lies with the engine's; None for an engine in memory."""
        return None if self._files is None else self._files.beside(name)

    def discard(self) -> None:
        """From the next opening on there is nothing; durable. Raises StorageFull."""
        if self._files is not None:
            try:
                self._files.discard()
            except OSError as error:
                raise StorageFull(f"{self._files.discarded}: {error.strerror}") from error

    def close(self) -> None:
        """Close the files and let go of the lock; may be called again."""
        for opened in reversed(self._opened):
            opened.close()
        if self._lock is not None:
            self._lock.release()
