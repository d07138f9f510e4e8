"""The tables, and the transaction that brings a flush into them.

    records   key → id, state, and what of it is in the indexes (dots, facets, fingerprint of the content)
    ids       hash of the id → key
    dots      (chain, n) → key, the last n for each actor and record; a chain is one actor's dots in one partition
    postings  (term, at, key), see facets.py
    pending   key → content that waits for the text index; NULL: to be taken out of it

A record's own row says what the indexes have of it, so a replaced record costs what has changed about it: usually one
row, one dot out, one dot in. A key is given once: what the text index still has of a forgotten record finds nothing.
Each table is written in its own order, many rows in one statement, so that neighbours are written together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain as concatenate
from typing import Any
from zlib import crc32

import msgspec

from crdt_spine.limits import PAGE_CACHE_BYTES_MAX, WAL_BYTES_TARGET
from crdt_spine.storage import facets
from crdt_spine.storage.database import PAGE_BYTES, Database
from crdt_spine.storage.engine import Checkpoint, Row

APPLICATION_ID = 0x53505442  # "SPTB"
_SCHEMA = """
CREATE TABLE records (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL, fingerprint INTEGER NOT NULL, dots TEXT NOT NULL, facets BLOB NOT NULL,
    state BLOB NOT NULL
);
CREATE TABLE ids (hash INTEGER, key INTEGER, PRIMARY KEY (hash, key)) WITHOUT ROWID;
CREATE TABLE chains (chain INTEGER PRIMARY KEY, partition INTEGER NOT NULL, actor TEXT NOT NULL);
CREATE TABLE dots (chain INTEGER, n INTEGER, key INTEGER, PRIMARY KEY (chain, n, key)) WITHOUT ROWID;
CREATE TABLE postings (term INTEGER, at INTEGER, key INTEGER, PRIMARY KEY (term, at, key)) WITHOUT ROWID;
CREATE TABLE pending (key INTEGER PRIMARY KEY, content TEXT);
CREATE VIRTUAL TABLE text USING fts5 (
    content, content = '', contentless_delete = 1, tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TABLE counters (next_key INTEGER NOT NULL, flushes INTEGER NOT NULL, waiting INTEGER NOT NULL);
INSERT INTO counters VALUES (1, 0, 0);
CREATE TABLE checkpoint (data BLOB NOT NULL);
"""
_LOOKUPS = 256  # ids in one statement
_NO_TEXT = -1  # the fingerprint of a record that is not in the text index

# What a flush asks about many ids at once. An index into them and a key make one number, so that numbers are sorted.
_INDEX_BITS = 24
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_FIND_KEYS = f"""
SELECT '[' || coalesce(group_concat(ids.key << {_INDEX_BITS} | v.column1, ','), '') || ']'
FROM (VALUES ?) v CROSS JOIN ids ON ids.hash = v.column2
"""
_FIND_RECORDS = """
SELECT '[' || coalesce(group_concat(
    '[' || v.column1 || ',' || r.key || ',' || fingerprint || ',' || dots || ',' || facets || ']', ','
), '') || ']'
FROM (VALUES ?) v CROSS JOIN records r ON r.key = v.column2 AND r.id = v.column3
"""
_Known = tuple[int, int, int, list[int], msgspec.Raw]  # index into the ids asked for, key, fingerprint, dots, facets

_read_numbers = msgspec.json.Decoder(list[int]).decode
_read_known = msgspec.json.Decoder(list[_Known]).decode


def id_hash(id: str) -> int:
    """What `ids` is ordered by. Several ids may share one; the record has the id itself."""
    return crc32(id.encode()) - 0x8000_0000  # SQLite keeps numbers signed, in four bytes


class Tables:
    """The one writer. Called from one thread at a time; readers have connections of their own."""

    def __init__(self, path: str, *, write: bool) -> None:
        self.database = Database(path, application_id=APPLICATION_ID, cache_bytes=PAGE_CACHE_BYTES_MAX, write=write)
        if write:
            self.database.create(_SCHEMA)
            self.database.run(f"PRAGMA wal_autocheckpoint = {WAL_BYTES_TARGET // PAGE_BYTES}")
            self.database.run(f"PRAGMA journal_size_limit = {2 * WAL_BYTES_TARGET}")
        stored = self.database.row("SELECT data FROM checkpoint")
        self.checkpoint = Checkpoint() if stored is None else msgspec.msgpack.decode(stored[0], type=Checkpoint)
        #: (partition, actor) → chain; replaced by every flush that adds to it, for readers look at it too.
        self.chains: dict[tuple[int, str], int] = {
            (partition, actor): chain for chain, partition, actor in self.database.rows("SELECT * FROM chains")
        }
        #: How many flushes there were: a reader that remembers something sees by it that it is old.
        self.flushes = self.database.number("SELECT flushes FROM counters")

    def flush(self, rows: Sequence[Row], forget: Sequence[str], checkpoint: Checkpoint) -> None:
        """All of it or nothing, durable. A row replaces an older one of its id, also one that is to be forgotten."""
        latest = {row.id: row for row in rows}
        data = msgspec.msgpack.encode(checkpoint)
        with self.database.transaction():
            flush = _Flush(self, list(latest.values()), self.flushes + 1)
            flush.forget([id for id in dict.fromkeys(forget) if id not in latest])
            flush.put()
            flush.write_indexes()
            self.database.run("DELETE FROM checkpoint")
            self.database.run("INSERT INTO checkpoint VALUES (?)", (data,))
        self.chains = flush.chains
        self.flushes += 1
        self.checkpoint = msgspec.msgpack.decode(data, type=Checkpoint)

    def known(self, ids: Sequence[str]) -> Iterator[list[_Known]]:
        """Those of the ids that have records, in the order of their keys, some at a time."""
        hashes = [id_hash(id) for id in ids]
        order = sorted(range(len(ids)), key=hashes.__getitem__)
        found: list[int] = []
        for start in range(0, len(order), _LOOKUPS):
            part = order[start : start + _LOOKUPS]
            values: list[Any] = []
            for index in part:
                values += (index, hashes[index])
            found += _read_numbers(self._joined(_FIND_KEYS, "(?,?)", values, len(part)))
        found.sort()
        for start in range(0, len(found), _LOOKUPS):
            numbers = found[start : start + _LOOKUPS]
            values = []
            for number in numbers:
                index = number & _INDEX_MASK
                values += (index, number >> _INDEX_BITS, ids[index])
            yield _read_known(self._joined(_FIND_RECORDS, "(?,?,?)", values, len(numbers)))

    def _joined(self, sql: str, each: str, values: list[Any], count: int) -> str:
        """A query's rows in one text: stepping through them would ask for the interpreter's lock each time."""
        row = self.database.row(sql.replace("?", ",".join([each] * count)), values)
        assert row is not None
        return str(row[0])


class _Flush:
    """What one flush changes, collected by table."""

    def __init__(self, tables: Tables, rows: list[Row], number: int) -> None:
        self.tables = tables
        self.database = tables.database
        self.rows = rows
        self.number = number
        self.chains = tables.chains.copy()
        self.new_chains: list[tuple[int, int, str]] = []
        self.dots_out: list[tuple[int, int, int]] = []
        self.dots_in: list[tuple[int, int, int]] = []
        self.postings_out: list[tuple[int, int, int]] = []
        self.postings_in: list[tuple[int, int, int]] = []
        self.texts: list[tuple[int, str | None]] = []

    def forget(self, ids: Sequence[str]) -> None:
        """Remove the records of these ids, where there are any."""
        keys: list[tuple[int, int]] = []
        for some in self.tables.known(ids):
            for index, key, fingerprint, dots, old in some:
                keys.append((id_hash(ids[index]), key))
                self.dots_out += [(chain, n, key) for chain, n in facets.pairs(dots)]
                self.postings_out += [(term, at, key) for term, at in facets.decode(old).postings()]
                if fingerprint != _NO_TEXT:
                    self.texts.append((key, None))
        self.database.run_many("DELETE FROM records WHERE key IN (", "?", ")", 1, [key for _, key in keys])
        self._delete("ids", ("hash", "key"), keys)

    def put(self) -> None:
        """Replace the records that are known, add those that are not."""
        rows = self.rows
        new = dict(enumerate(rows))
        for some in self.tables.known([row.id for row in rows]):
            values: list[Any] = []
            for known in some:
                row = new.pop(known[0])
                values += self._replaced(row, known)
            self._write_records(values)
        values, hashes = [], []
        key = self.database.number("SELECT next_key FROM counters")
        for row in sorted(new.values(), key=lambda row: row.created):
            values += self._added(row, key)
            hashes.append((id_hash(row.id), key))
            key += 1
        self._write_records(values)
        self._insert("ids", 2, hashes)
        self.database.run("UPDATE counters SET next_key = ?", (key,))

    def _replaced(self, row: Row, known: _Known) -> tuple[Any, ...]:
        _, key, old_fingerprint, old_dots, old_facets = known
        dots = self._dots(row)
        if len(dots) == len(old_dots) == 2:
            if dots != old_dots:
                self.dots_out.append((old_dots[0], old_dots[1], key))
                self.dots_in.append((dots[0], dots[1], key))
        else:
            before, after = set(facets.pairs(old_dots)), set(facets.pairs(dots))
            self.dots_out += [(chain, n, key) for chain, n in before - after]
            self.dots_in += [(chain, n, key) for chain, n in after - before]
        data = facets.of_row(row, self.number)
        if data != bytes(old_facets):
            before, after = facets.decode(old_facets).postings(), facets.decode(data).postings()
            self.postings_out += [(term, at, key) for term, at in before - after]
            self.postings_in += [(term, at, key) for term, at in after - before]
        fingerprint = _fingerprint(row)
        if fingerprint != old_fingerprint:
            self.texts.append((key, row.content if row.alive else None))
        return key, row.id, fingerprint, _listed(dots), data, row.state

    def _added(self, row: Row, key: int) -> tuple[Any, ...]:
        dots = self._dots(row)
        self.dots_in += [(chain, n, key) for chain, n in facets.pairs(dots)]
        data = facets.of_row(row, self.number)
        self.postings_in += [(term, at, key) for term, at in facets.decode(data).postings()]
        if row.alive:
            self.texts.append((key, row.content))
        return key, row.id, _fingerprint(row), _listed(dots), data, row.state

    def _dots(self, row: Row) -> list[int]:
        """The row's version as chain, n, chain, n, …"""
        partition, chains = row.partition, self.chains
        flat: list[int] = []
        for actor, n in row.version.items():
            chain = chains.get((partition, actor))
            if chain is None:
                chain = chains[partition, actor] = len(chains) + 1
                self.new_chains.append((chain, partition, actor))
            flat += (chain, n)
        return flat

    def _write_records(self, values: list[Any]) -> None:
        self.database.run_many(
            "INSERT INTO records VALUES", "(?,?,?,?,?,?)",
            "ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, dots = excluded.dots,"
            " facets = excluded.facets, state = excluded.state", 6, values,
        )  # fmt: skip

    def write_indexes(self) -> None:
        """The rest, table by table."""
        self._insert("chains", 3, self.new_chains)
        self._delete("dots", ("chain", "n", "key"), self.dots_out)
        self._insert("dots", 3, self.dots_in)
        self._delete("postings", ("term", "at", "key"), self.postings_out)
        self._insert("postings", 3, self.postings_in)
        again = self._delete("pending", ("key",), [(key,) for key, _ in self.texts])
        self._insert("pending", 2, self.texts)
        self.database.run(
            "UPDATE counters SET flushes = ?, waiting = waiting + ?", (self.number, len(self.texts) - again)
        )

    def _insert(self, table: str, width: int, rows: list[Any]) -> None:
        rows.sort()
        each = f"({','.join('?' * width)})"
        self.database.run_many(f"INSERT INTO {table} VALUES", each, "", width, concatenate.from_iterable(rows))

    def _delete(self, table: str, columns: tuple[str, ...], rows: list[Any]) -> int:
        rows.sort()
        width = len(columns)
        head, each = f"DELETE FROM {table} WHERE ({','.join(columns)}) IN (VALUES", f"({','.join('?' * width)})"
        return self.database.run_many(head, each, ")", width, concatenate.from_iterable(rows))


def _fingerprint(row: Row) -> int:
    """Tells whether the text index has to look at the content again. One in 2**32 changes goes unnoticed."""
    return crc32(row.content.encode()) if row.alive else _NO_TEXT


def _listed(dots: list[int]) -> str:
    if len(dots) == 2:
        return f"[{dots[0]},{dots[1]}]"
    return f"[{','.join(map(str, dots))}]"
