"""Finding memories by their words: SQLite's FTS5, filled behind the tables.

Cutting text into words costs more than everything else about storing it, so a flush only notes what has to be indexed
(`pending`) and `index_text` does it when there is time; what is overwritten meanwhile is indexed once. The index keeps
no text ("contentless"); English words are found by their stems.
"""

from __future__ import annotations

from crdt_spine.storage.database import Database


class TextIndex:
    """The side that writes; called from the thread that flushes."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._reached = 0  # the last key that was indexed: the waiting take turns, however often some are overwritten

    def index(self, records_max: int) -> int:
        """Bring up to that many waiting records into the index; how many still wait. Raises StorageFull."""
        database = self.database
        while records_max > 0 and self._waiting():
            # Not made durable at once: what a power failure undoes waits again.
            database.run("PRAGMA synchronous = NORMAL")
            try:
                records_max -= self._index(records_max)
            finally:
                database.run("PRAGMA synchronous = FULL")
        return self._waiting()

    def _index(self, records_max: int) -> int:
        """Index those behind the last one, or from the beginning if none are; how many they were."""
        database = self.database
        with database.transaction():
            place = "FROM pending WHERE key > ? ORDER BY key"
            if not database.row(f"SELECT 1 {place} LIMIT 1", (self._reached,)):
                self._reached = 0
            last = database.row(f"SELECT key {place} LIMIT 1 OFFSET ?", (self._reached, records_max - 1))
            last = last or database.row("SELECT max(key) FROM pending")
            assert last is not None and last[0] is not None, "records wait, and there are none"
            span = (self._reached, last[0])
            some = "FROM pending WHERE key > ? AND key <= ?"
            database.run(f"DELETE FROM text WHERE rowid IN (SELECT key {some} AND content IS NULL)", span)
            database.run(
                f"INSERT OR REPLACE INTO text (rowid, content) SELECT key, content {some} AND content IS NOT NULL", span
            )
            done = database.number(f"SELECT count(*) {some}", span)
            database.run(f"DELETE {some}", span)
            database.run("UPDATE counters SET waiting = waiting - ?", (done,))
        self._reached = last[0]
        return done

    def _waiting(self) -> int:
        return self.database.number("SELECT waiting FROM counters")
