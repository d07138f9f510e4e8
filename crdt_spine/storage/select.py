"""Queries by condition, in the order of time.

The index gives every term's records in the order of time, so a selection is an intersection of sorted lists that may
stop at its limit. It goes window by window: for each condition, look where its next `width` entries end; the condition
that gets furthest with them is the rarest hereabouts; walk it as far as that, and look the others up at each step.
Common and rare conditions are told apart where the query is, without statistics, and no statement does more than a
bounded amount of work. What the index proposes is checked on the record's facets (facets.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from crdt_spine.core.selection import Selection
from crdt_spine.storage import facets
from crdt_spine.storage.engine import Found, Order

Rows = Callable[[str, Any], list[tuple[Any, ...]]]  # a reader: statement, values → rows

_WIDTH_MIN = 256  # entries of the rarest condition in the first window ...
_WIDTH_MAX = 16_384  # ... doubling up to here while there are too few hits
_FETCH_MIN = 64  # records fetched at once, doubling ...
_FETCH_MAX = 128  # a record may be hundreds of kilobytes
_TIME_MIN, _TIME_MAX = -(2**63), 2**63 - 1


def select(
    rows: Rows,
    selection: Selection,
    order: Order,
    limit: int,
    after: tuple[int, str] | None,
    partitions: Collection[int] | None,
    now: int,
    words: str | None = None,
) -> Iterator[Found]:
    """The records of the selection in (created, id) order, behind `after`. With `words` only those that the text index
    finds by this expression. Between two fetches no statement is open, so a slow caller holds nothing up."""
    walk = _Walk(rows, selection, order, words)
    some = None if partitions is None else frozenset(partitions)
    if after is not None:
        after = max(_TIME_MIN, min(after[0], _TIME_MAX)), after[1]
    fetch = _FETCH_MIN
    while limit > 0:
        window = walk.window(after)
        if window is None:
            return
        while True:
            hits = walk.fetch(window, after, fetch)
            for created, id, data, state in hits:
                if facets.decode(data).selected(selection, some, now):
                    yield Found(created, id, state)
                    limit -= 1
                    if not limit:
                        return
            if len(hits) < fetch:
                break
            after = hits[-1][0], hits[-1][1]
            fetch = min(2 * fetch, _FETCH_MAX)
        walk.leave(window)


class _Walk:
    """Where a query is in the index, and its statements. Window: (driver, from time, to time), in index order."""

    def __init__(self, rows: Rows, selection: Selection, order: Order, words: str | None) -> None:
        self.rows = rows
        self.words = words
        self.terms = facets.required(selection)
        self.width = _WIDTH_MIN
        self.low = _TIME_MIN if selection.since is None else max(selection.since, _TIME_MIN)
        self.high = _TIME_MAX if selection.until is None else min(selection.until - 1, _TIME_MAX)
        self.newest = order == "newest"
        self.direction, self.beyond = ("DESC", "<") if self.newest else ("ASC", ">")

    def window(self, after: tuple[int, str] | None) -> tuple[int, int, int] | None:
        """The next stretch of time, and the condition (an index into `terms`) to walk in it; None at the end."""
        if after is not None:
            if self.newest:
                self.high = min(self.high, after[0])
            else:
                self.low = max(self.low, after[0])
        if self.low > self.high:
            return None
        if self.words is None and len(self.terms) == 1 and len(self.terms[0]) == 1:
            return 0, self.low, self.high  # nothing to intersect: the limit alone ends the walk
        reaches = [self._reach(terms) for terms in self.terms]
        furthest = min(reaches) if self.newest else max(reaches)
        driver = reaches.index(furthest)
        self.width = min(2 * self.width, _WIDTH_MAX)
        return (driver, furthest, self.high) if self.newest else (driver, self.low, furthest)

    def _reach(self, terms: tuple[int, ...]) -> int:
        """The time of the last of the next `width` entries of a condition, or the end of the range."""
        end = self.low if self.newest else self.high
        ends = [
            self.rows(
                f"SELECT at FROM postings WHERE term = ? AND at BETWEEN ? AND ? ORDER BY at {self.direction}"
                f" LIMIT 1 OFFSET {self.width - 1}", (term, self.low, self.high),
            )
            for term in terms
        ]  # fmt: skip
        times = [found[0][0] if found else end for found in ends]
        return max(times) if self.newest else min(times)

    def leave(self, window: tuple[int, int, int]) -> None:
        """The window is done."""
        _, low, high = window
        if self.newest:
            self.high = low - 1
        else:
            self.low = high + 1

    def fetch(self, window: tuple[int, int, int], after: tuple[int, str] | None, count: int) -> list[tuple[Any, ...]]:
        """The next records that the index proposes: (created, id, facets, state)."""
        driver, low, high = window
        values: list[Any] = []
        drivers = self.terms[driver]
        if len(drivers) == 1:
            source = "postings p CROSS JOIN records r ON r.key = p.key WHERE p.term = ? AND p.at BETWEEN ? AND ?"
        else:
            source = (
                f"(SELECT DISTINCT at, key FROM postings WHERE term IN ({_marks(drivers)}) AND at BETWEEN ? AND ?) p"
                " CROSS JOIN records r ON r.key = p.key WHERE 1"
            )
        values += (*drivers, low, high)
        for index, terms in enumerate(self.terms):
            if index != driver:
                source += (
                    f" AND EXISTS (SELECT 1 FROM postings o WHERE o.term IN ({_marks(terms)}) AND o.at = p.at"
                    " AND o.key = p.key)"
                )
                values += terms
        if self.words is not None:
            keys = self.rows(
                f"SELECT min(key), max(key) FROM postings WHERE term IN ({_marks(drivers)}) AND at BETWEEN ? AND ?",
                (*drivers, low, high),
            )
            source += " AND p.key IN (SELECT rowid FROM text WHERE text MATCH ? AND rowid BETWEEN ? AND ?)"
            values += (self.words, *keys[0])
        if after is not None:
            source += f" AND (p.at, r.id) {self.beyond} (?, ?)"
            values += after
        sql = (
            f"SELECT p.at, r.id, r.facets, r.state FROM {source}"
            f" ORDER BY p.at {self.direction}, r.id {self.direction} LIMIT {count}"
        )
        return self.rows(sql, values)


def _marks(terms: Collection[int]) -> str:
    return ",".join("?" * len(terms))
