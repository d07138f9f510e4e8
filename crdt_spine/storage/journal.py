"""The journal: what has to be durable before anybody hears of it, one row a commit.

A row is appended with one fsync and read again only after a restart. Rows whose content has reached the tables are
pruned. A sequence is given once: the highest one that was ever pruned is remembered (`pruned`), so that it is not
given again when no row is left.
"""

from __future__ import annotations

from collections.abc import Iterator

from crdt_spine.limits import JOURNAL_CACHE_BYTES_MAX, JOURNAL_PRUNE_ROWS_MAX, JOURNAL_WAL_BYTES_TARGET
from crdt_spine.storage.database import Database

APPLICATION_ID = 0x53504A4C  # "SPJL"
_SCHEMA = """
CREATE TABLE journal (sequence INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE pruned (through INTEGER NOT NULL);
INSERT INTO pruned VALUES (0);
"""
_READ_ROWS = 4  # at a time; a row may be megabytes
_PAGE_BYTES = 8_192  # larger ones cost a small row a third more work, smaller ones a row of tens of kilobytes


class Journal:
    """`append` from one thread; `prune` and `rows` may be called from another one meanwhile."""

    def __init__(self, path: str, *, write: bool) -> None:
        self.database = Database(
            path,
            application_id=APPLICATION_ID,
            cache_bytes=JOURNAL_CACHE_BYTES_MAX,
            write=write,
            page_bytes=_PAGE_BYTES,
        )
        if write:
            self.database.create(_SCHEMA)
            self.database.limit_wal(JOURNAL_WAL_BYTES_TARGET)
        self._pruned = self.database.number("SELECT through FROM pruned")
        self._last = max(self._pruned, self.database.number("SELECT coalesce(max(sequence), 0) FROM journal"))

    def append(self, row: bytes) -> int:
        """Write a row and make it durable; its sequence. Raises StorageFull: nothing was written."""
        with self.database.lock:
            self.database.run("INSERT INTO journal VALUES (?, ?)", (self._last + 1, row))
            self._last += 1
            return self._last

    def raise_to(self, sequence: int) -> None:
        """Give no sequence up to this one any more: the tables already have it, whatever became of the journal."""
        self._last = max(self._last, sequence)

    def rows(self, after: int) -> Iterator[tuple[int, bytes]]:
        """The rows with a sequence above `after`, in order."""
        while True:
            some = self.database.rows(
                f"SELECT sequence, row FROM journal WHERE sequence > ? ORDER BY sequence LIMIT {_READ_ROWS}",
                (max(after, self._pruned),),
            )
            if not some:
                return
            for sequence, row in some:
                yield sequence, row
                after = sequence

    def prune(self, through: int) -> None:
        """Drop the rows up to and including `through`, a few at a time: an append waits for a few at most.

        Not made durable at once: a row that comes back after a power failure is pruned again. Raises StorageFull.
        """
        through = min(through, self._last)
        while self._pruned < through:
            some = "SELECT sequence FROM journal WHERE sequence <= ? ORDER BY sequence LIMIT 1 OFFSET ?"
            step = self.database.number(some, (through, JOURNAL_PRUNE_ROWS_MAX - 1)) or through
            with self.database.lock:
                self.database.run("PRAGMA synchronous = NORMAL")
                try:
                    with self.database.transaction():
                        self.database.run("DELETE FROM journal WHERE sequence <= ?", (step,))
                        self.database.run("UPDATE pruned SET through = ?", (step,))
                finally:
                    self.database.run("PRAGMA synchronous = FULL")
            self._pruned = step

    def close(self) -> None:
        self.database.close()
