"""The records that changed since a version vector, by the index of dots; and those that are dead or expired.

`changed` gives pages in the order of ids, because ids stay while a record's dots move. The index is in the order of
dots, so a page needs all that is in the ranges. The ids found are remembered, for a few repairs at once, and the next
page continues from them; a flush in between makes them old, and the ranges are read again from there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from crdt_spine.limits import CHANGED_IDS_REMEMBERED_MAX, CHANGED_PAGES_REMEMBERED_MAX
from crdt_spine.storage import facets
from crdt_spine.storage.database import Database
from crdt_spine.storage.tables import Tables

_read_found = msgspec.json.Decoder(list[tuple[str, int]]).decode
_CHAINS_AT_ONCE = 100  # ranges in one statement


class _Gathered(msgspec.Struct):
    """Ids and keys of what changed, in the order of ids, behind the id `after`; `all`: nothing comes behind them."""

    flushes: int
    after: str
    ids: list[str]
    keys: list[int]
    all: bool


class Changes:
    """Called from one thread. `rows_read` counts the index entries and the records that pages were made from,
    `pages_read` the database's pages that were fetched for that."""

    def __init__(self, tables: Tables, database: Database) -> None:
        self.tables = tables
        self.database = database
        self.rows_read = 0
        self.pages_read = 0
        self._gathered: OrderedDict[Any, _Gathered] = OrderedDict()

    def changed(
        self, partition: int, have: Mapping[str, int], after: str | None, limit: int
    ) -> list[tuple[str, bytes]]:
        """(id, state) of the partition's records with a dot above have[actor], by id, behind `after`; at most `limit`.

        A record whose only new dots come with a flush during the paging is found if its id is still to come.
        """
        fetched = self.database.pages_read
        page: list[tuple[str, bytes]] = []
        place = "" if after is None else after
        while len(page) < limit:
            gathered = self._gather(partition, have, place)
            start = bisect_right(gathered.ids, place)
            end = start + limit - len(page)
            keys = gathered.keys[start:end]
            states = dict(
                self.database.rows(f"SELECT key, state FROM records WHERE key IN ({','.join('?' * len(keys))})", keys)
            )
            self.rows_read += len(keys)
            for id, key in zip(gathered.ids[start:end], keys, strict=True):
                place = id
                if key in states:
                    page.append((id, states[key]))
            if end >= len(gathered.ids) and gathered.all:
                break
        self.pages_read += self.database.pages_read - fetched
        return page

    def _gather(self, partition: int, have: Mapping[str, int], place: str) -> _Gathered:
        """What changed behind the id `place`, remembered or read anew; at least one id of it, if there is one."""
        name = (partition, tuple(sorted(have.items())))
        known = self._gathered.pop(name, None)
        usable = (
            known is not None
            and known.flushes == self.tables.flushes
            and known.after <= place
            and (known.all or (known.ids and place < known.ids[-1]))
        )
        if known is None or not usable:
            known = self._read(partition, have, place)
        if len(known.ids) and not (known.all and place >= known.ids[-1]):
            self._gathered[name] = known
        while len(self._gathered) > CHANGED_PAGES_REMEMBERED_MAX:
            self._gathered.popitem(last=False)
        return known

    def _read(self, partition: int, have: Mapping[str, int], place: str) -> _Gathered:
        flushes = self.tables.flushes  # before reading: a flush meanwhile makes it old, not unnoticed
        ranges = [
            (chain, have.get(actor, 0)) for (number, actor), chain in self.tables.chains.items() if number == partition
        ]
        found: list[tuple[str, int]] = []
        complete = True
        for start in range(0, len(ranges), _CHAINS_AT_ONCE):
            part = ranges[start : start + _CHAINS_AT_ONCE]
            scan = " UNION ".join(["SELECT key FROM dots WHERE chain = ? AND n > ?"] * len(part))
            row = self.database.row(
                f"WITH changed AS MATERIALIZED ({scan}) SELECT (SELECT count(*) FROM changed),"
                " (SELECT json_group_array(json_array(id, key)) FROM (SELECT r.id, r.key FROM changed CROSS JOIN"
                " records r USING (key) WHERE r.id > ? ORDER BY r.id LIMIT ?))",
                [value for pair in part for value in pair] + [place, CHANGED_IDS_REMEMBERED_MAX],
            )
            assert row is not None
            self.rows_read += row[0]
            some = _read_found(row[1])
            complete = complete and len(some) < CHANGED_IDS_REMEMBERED_MAX
            found += some
        if len(ranges) > _CHAINS_AT_ONCE:
            found = sorted(set(found))
            complete = complete and len(found) <= CHANGED_IDS_REMEMBERED_MAX
            found = found[:CHANGED_IDS_REMEMBERED_MAX]
        return _Gathered(flushes, place, [id for id, _ in found], [key for _, key in found], complete)

    def ahead(self, vectors: Mapping[int, Mapping[str, int]]) -> list[tuple[int, str]]:
        """(partition, actor): of the actor a record of the partition has a dot above the partition's vector."""
        return [
            (number, actor)
            for (number, actor), chain in list(self.tables.chains.items())
            if number in vectors
            and self.database.row(
                "SELECT 1 FROM dots WHERE chain = ? AND n > ? LIMIT 1", (chain, vectors[number].get(actor, 0))
            )
        ]

    def tombstones(self, partition: int, limit: int) -> list[tuple[str, bytes]]:
        """(id, state) of dead records of a partition, the longest untouched first."""
        return self.database.rows(
            "SELECT r.id, r.state FROM postings p CROSS JOIN records r ON r.key = p.key WHERE p.term = ?"
            " ORDER BY p.at, p.key LIMIT ?", (facets.dead(partition), limit),
        )  # fmt: skip

    def expired(self, now: int, limit: int) -> list[str]:
        """Ids of living records whose time is over, the longest over first."""
        rows = self.database.rows(
            "SELECT r.id FROM postings p CROSS JOIN records r ON r.key = p.key WHERE p.term = ? AND p.at <= ?"
            " ORDER BY p.at, p.key LIMIT ?", (facets.EXPIRING, now, limit),
        )  # fmt: skip
        return [id for (id,) in rows]
