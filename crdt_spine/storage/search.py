"""Finding memories by their words, in the order of time or of relevance.

What a user types is words and nothing else: it is cut by the tokenizer that cuts the contents, and every word is
quoted, so nothing in it is an operator.

By time, a memory must have all the words; the index says how many such there are, and either those are sorted or the
order of time is walked and the index asked about it. By relevance, any word will do, and the sum of the words' weights
(BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) decides. Weighing costs twenty times what
finding does, so at most RANKED_MAX memories are weighed: where words are so frequent that there are more, the rarest
words decide what is weighed, then those that have all the words, then the newest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from threading import Lock
from typing import Any, Literal

import apsw

from crdt_spine.core.selection import Selection
from crdt_spine.limits import RANKED_MAX
from crdt_spine.storage import facets
from crdt_spine.storage.engine import Found, Order
from crdt_spine.storage.select import Rows, select

_FEW = 4_000  # memories with all the words: fewer are sorted, more are walked in the order of time
_FETCH = 128  # records of the best ranked at once
_NARROW = 20_000  # memories with a term of the selection: fewer are taken as a set before anything is weighed

#: English words that say nothing about what is meant; a text of nothing else is searched for as it is.
STOP_WORDS = frozenset(
    """
    a about all also am an and any are as at be been but by can could did do does for from had has have he her him his
    how i if in into is it its just me my no not of on or our out she should so some that the their them then there
    these they this to up us was we were what when where which who whom why will with would you your
    """.split()  # noqa: SIM905
)


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


class Search:
    """One search: of which records, on which reader."""

    def __init__(
        self, rows: Rows, words: list[str], selection: Selection, partitions: Collection[int] | None, now: int
    ) -> None:
        self.rows = rows
        self.words = words
        self.selection = selection
        self.partitions = None if partitions is None else frozenset(partitions)
        self.now = now

    def by_time(self, order: Order, limit: int, after: tuple[int, str] | None) -> Iterator[Found]:
        """Records with all the words, behind `after`."""
        expression = _all(self.words)
        keys = [key for (key,) in self.rows(f"{_MATCHES} LIMIT ?", (expression, _FEW + 1))]
        if len(keys) > _FEW:
            walked = select(self.rows, self.selection, order, limit, after, self.partitions, self.now, expression)
            yield from walked
            return
        newest = order == "newest"
        hits = []
        for start in range(0, len(keys), _FETCH):
            for key, id, created in self._selected(keys[start : start + _FETCH]):
                place = (created, id)
                if after is None or (place < after if newest else place > after):
                    hits.append((created, id, key))
        hits.sort(reverse=newest)
        for start in range(0, min(limit, len(hits)), _FETCH):
            part = hits[start : min(start + _FETCH, limit)]
            states = self._states([key for _, _, key in part])
            for created, id, key in part:
                if key in states:
                    yield Found(created, id, states[key])

    def by_relevance(self, limit: int) -> Iterator[tuple[float, Found]]:
        """Records with any of the words, the best first; the score, smaller is better."""
        matches, values = self._candidates(limit)
        ranked = f"{matches.replace('rowid', 'rowid, bm25(text) AS score', 1)} ORDER BY score LIMIT ?"
        shown = 0
        # Weighing is the same work for few and for many: whoever is not content with some gets all of them.
        for wanted in (2 * limit, RANKED_MAX):
            best = self.rows(ranked, (*values, wanted))[shown:]
            for start in range(0, len(best), _FETCH):
                part = best[start : start + _FETCH]
                meant = {key: (id, created) for key, id, created in self._selected([key for key, _ in part])}
                states = self._states(list(meant))
                for key, score in part:
                    if key in states:
                        id, created = meant[key]
                        yield score, Found(created, id, states[key])
                        limit -= 1
                        if not limit:
                            return
            shown += len(best)
            if shown < wanted:
                return

    def _candidates(self, wanted: int) -> tuple[str, list[Any]]:
        """A statement that gives what is to be weighed, at most RANKED_MAX or so, and its values."""
        words = [word for word in self.words if word not in STOP_WORDS] or self.words
        narrow = self._narrow()
        if narrow is not None:
            # Inside the set every word counts. The plus keeps the index from being asked once for each of the set.
            marks = ",".join("?" * len(narrow))
            return f"{_MATCHES} AND +rowid IN (SELECT key FROM postings WHERE term IN ({marks}))", [
                _any(words),
                *narrow,
            ]
        found = sorted((self._count(_any([word])), word) for word in words)
        kept, total = [], 0
        for count, word in found:
            total += count
            if count and total <= RANKED_MAX:
                kept.append(word)
        if kept or not total:
            return _MATCHES, [_any(kept or words)]
        expression = _all(words)
        together = self._count(expression)
        if together < wanted:
            expression = _any([word for count, word in found if count][:1])
        if wanted <= together <= RANKED_MAX:
            return _MATCHES, [expression]
        newest = self.rows(f"{_MATCHES} ORDER BY rowid DESC LIMIT 1 OFFSET ?", (expression, RANKED_MAX - 1))
        return f"{_MATCHES} AND rowid >= ?", [expression, newest[0][0] if newest else 0]

    def _narrow(self) -> tuple[int, ...] | None:
        """The terms of a condition that few memories fulfil, if there is one."""
        for terms in facets.required(self.selection):
            marks = ",".join("?" * len(terms))
            few = f"SELECT count(*) FROM (SELECT 1 FROM postings WHERE term IN ({marks}) LIMIT ?)"
            if self.rows(few, (*terms, _NARROW + 1))[0][0] <= _NARROW:
                return terms
        return None

    def _count(self, expression: str) -> int:
        """How many match, or RANKED_MAX + 1 where it is more."""
        return int(self.rows(f"SELECT count(*) FROM ({_MATCHES} LIMIT ?)", (expression, RANKED_MAX + 1))[0][0])

    def _selected(self, keys: list[int]) -> Iterator[tuple[int, str, int]]:
        """Those of the keys whose records are meant: key, id, created."""
        marks = ",".join("?" * len(keys))
        for key, id, data in self.rows(f"SELECT key, id, facets FROM records WHERE key IN ({marks})", keys):
            its = facets.decode(data)
            if its.selected(self.selection, self.partitions, self.now):
                yield key, id, its.created

    def _states(self, keys: list[int]) -> dict[int, bytes]:
        return dict(self.rows(f"SELECT key, state FROM records WHERE key IN ({','.join('?' * len(keys))})", keys))


_MATCHES = "SELECT rowid FROM text WHERE text MATCH ?"


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
    """Hits with their scores, as `Engine.search` describes them."""
    if not words or limit <= 0:
        return []
    one = Search(rows, words, selection, partitions, now)
    if order == "relevance":
        return list(one.by_relevance(limit))
    return [(0.0, found) for found in one.by_time(order, limit, after)]


def _any(words: list[str]) -> str:
    return " OR ".join(map(_quoted, words))


def _all(words: list[str]) -> str:
    return " AND ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'
