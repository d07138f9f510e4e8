"""Finding memories by their words: SQLite's FTS5, filled behind the tables.

Cutting text into words costs more than everything else about storing it, so a flush only notes what has to be indexed
(`pending`) and `index_text` does it when there is time; what is overwritten meanwhile is indexed once. The index keeps
no text ("contentless"); English words are found by their stems.

What a user types is words and nothing else: it is cut by the tokenizer that cuts the contents, and every word is
quoted, so nothing in it is an operator.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from threading import Lock
from typing import Literal

import apsw

from crdt_spine.core.selection import Selection
from crdt_spine.storage import facets
from crdt_spine.storage.database import Database
from crdt_spine.storage.engine import Found, Order
from crdt_spine.storage.select import Rows, select

_FEW = 1_000  # records with all the words: fewer are sorted, more are walked in the order of time
_FETCH = 64  # records of the best ranked at once

#: English words that say nothing about what is meant; a text of nothing else is searched for as it is.
STOP_WORDS = frozenset(
    """
    a about all also am an and any are as at be been but by can could did do does for from had has have he her him his
    how i if in into is it its just me my no not of on or our out she should so some that the their them then there
    these they this to up us was we were what when where which who whom why will with would you your
    """.split()  # noqa: SIM905
)


class TextIndex:
    """The side that writes; called from the thread that flushes."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._reached = 0  # the last key that was indexed: the waiting take turns, however often some are overwritten

    def index(self, records_max: int) -> int:
        """Bring up to that many waiting records into the index; how many still wait. Raises StorageFull."""
        database = self.database
        if records_max > 0 and self._waiting():
            # Not made durable at once: what a power failure undoes waits again.
            database.run("PRAGMA synchronous = NORMAL")
            try:
                self._index(records_max)
            finally:
                database.run("PRAGMA synchronous = FULL")
        return self._waiting()

    def _index(self, records_max: int) -> None:
        database = self.database
        with database.transaction():
            place = "FROM pending WHERE key > ? ORDER BY key"
            if not database.row(f"SELECT 1 {place} LIMIT 1", (self._reached,)):
                self._reached = 0
            last = database.row(f"SELECT key {place} LIMIT 1 OFFSET ?", (self._reached, records_max - 1))
            last = last or database.row("SELECT max(key) FROM pending")
            assert last is not None
            span = (self._reached, last[0])
            some = "FROM pending WHERE key > ? AND key <= ?"
            database.run(f"DELETE FROM text WHERE rowid IN (SELECT key {some} AND content IS NULL)", span)
            database.run(
                f"INSERT OR REPLACE INTO text (rowid, content) SELECT key, content {some} AND content IS NOT NULL", span
            )
            before = database.connection.total_changes()
            database.run(f"DELETE {some}", span)
            done = database.connection.total_changes() - before
            database.run("UPDATE counters SET waiting = waiting - ?", (done,))
        self._reached = last[0]

    def _waiting(self) -> int:
        return self.database.number("SELECT waiting FROM counters")


class Words:
    """Cuts what a user typed, as the index cuts contents (but for the stems: the index does that with the query)."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._connection = apsw.Connection(":memory:")  # a tokenizer belongs to one
        self._cut = self._connection.fts5_tokenizer("unicode61", ["remove_diacritics", "2"])

    def of(self, text: str) -> list[str]:
        """The different words of a text, in order."""
        with self._lock:
            words = self._cut(
                text.encode(), apsw.FTS5_TOKENIZE_QUERY, None, include_offsets=False, include_colocated=False
            )
        return list(dict.fromkeys(map(str, words)))

    def close(self) -> None:
        self._connection.close()


def search(
    rows: Rows,
    words: list[str],
    selection: Selection,
    order: Order | Literal["relevance"],
    limit: int,
    after: tuple[int, str] | None,
    partitions: Collection[int] | None,
    now: int,
) -> list[tuple[float, Found]]:
    """Hits with their scores: by relevance (any of the words, best first, lower is better) or by time (all words)."""
    if not words:
        return []
    if order == "relevance":
        return list(_ranked(rows, words, selection, limit, partitions, now))
    expression = _expression(words, " AND ")
    few = rows("SELECT rowid FROM text WHERE text MATCH ? LIMIT ?", (expression, _FEW + 1))
    if len(few) > _FEW:
        walked = select(rows, selection, order, limit, after, partitions, now, expression)
        return [(0.0, found) for found in walked]
    newest = order == "newest"
    some = None if partitions is None else frozenset(partitions)
    hits = [
        (its.created, id, key)
        for key, id, its in _facets(rows, [key for (key,) in few])
        if its.selected(selection, some, now)
        and (after is None or ((its.created, id) < after if newest else (its.created, id) > after))
    ]
    hits.sort(reverse=newest)
    hits = hits[:limit]
    states = _states(rows, [key for _, _, key in hits])
    return [(0.0, Found(created, id, states[key])) for created, id, key in hits if key in states]


def _ranked(
    rows: Rows, words: list[str], selection: Selection, limit: int, partitions: Collection[int] | None, now: int
) -> Iterator[tuple[float, Found]]:
    telling = [word for word in words if word not in STOP_WORDS] or words
    some = None if partitions is None else frozenset(partitions)
    expression = _expression(telling, " OR ")
    wanted = shown = 0
    while limit > 0:
        # Ranking looks at every hit anyway, so more of them are had by asking again, for many more.
        wanted = max(4 * wanted, limit, _FETCH)
        ranked = rows("SELECT rowid, rank FROM text WHERE text MATCH ? ORDER BY rank LIMIT ?", (expression, wanted))
        for start in range(shown, len(ranked), _FETCH):
            part = ranked[start : start + _FETCH]
            found = {key: (id, its) for key, id, its in _facets(rows, [key for key, _ in part])}
            keys = [key for key, _ in part if key in found and found[key][1].selected(selection, some, now)]
            states = _states(rows, keys)
            for key, score in part:
                if key in states:
                    id, its = found[key]
                    yield score, Found(its.created, id, states[key])
                    limit -= 1
                    if not limit:
                        return
        shown = len(ranked)
        if shown < wanted:
            return


def _expression(words: list[str], operator: str) -> str:
    return operator.join(['"' + word.replace('"', '""') + '"' for word in words])


def _facets(rows: Rows, keys: list[int]) -> Iterator[tuple[int, str, facets.Facets]]:
    for key, id, data in rows(f"SELECT key, id, facets FROM records WHERE key IN ({','.join('?' * len(keys))})", keys):
        yield key, id, facets.decode(data)


def _states(rows: Rows, keys: list[int]) -> dict[int, bytes]:
    return dict(rows(f"SELECT key, state FROM records WHERE key IN ({','.join('?' * len(keys))})", keys))
