"""The tables, and the transaction that brings a flush into them.

    records   key → id, state, and what of it is in the indexes (dots, facets, fingerprint of the content)
    ids       place of the id → key
    dots      (chain, n) → key, the last n for each actor and record; a chain is one actor's dots in one partition
    postings  (term, at, key), see facets.py
    pending   key → content that waits for the text index; NULL: to be taken out of it
    sizes     partition → bytes of its records, see sizes.py
    versions, receipts: what was, see history.py

A record's own row says what the indexes have of it, so a replaced record costs what has changed about it: usually one
row, one dot out, one dot in. A key is given once: what the text index still has of a forgotten record finds nothing.
Each table is written in its own order, many rows in one statement, so that neighbours are written together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain as concatenate
from typing import Any
from zlib import crc32

import msgspec

from crdt_spine.limits import PAGE_CACHE_BYTES_MAX, WAL_BYTES_TARGET
from crdt_spine.storage import facets, history, sizes
from crdt_spine.storage.database import Database
from crdt_spine.storage.engine import Checkpoint, Past, Row
from crdt_spine.storage.places import place_of

APPLICATION_ID = 0x53505442  # "SPTB"
_SCHEMA = """
CREATE TABLE records (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL, fingerprint INTEGER NOT NULL, dots TEXT NOT NULL, facets BLOB NOT NULL,
    state BLOB NOT NULL
);
CREATE TABLE ids (place INTEGER, key INTEGER, PRIMARY KEY (place, key)) WITHOUT ROWID;
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
_KEYS = {"records": "key", "ids": "(place, key)", "dots": "(chain, n, key)", "postings": "(term, at, key)",
         "pending": "key"}  # fmt: skip
_AT_ONCE = 256  # records between two statements: a millisecond with the interpreter's lock
_NO_TEXT = -1  # the fingerprint of a record that is not in the text index

# What a flush asks about many ids at once; the answers are JSON in one value. An index into the ids and a key make one
# number, so that numbers are sorted and not tuples.
_INDEX_BITS = 24
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_FIND_KEYS = f"""
SELECT '[' || coalesce(group_concat(ids.key << {_INDEX_BITS} | v.column1, ','), '') || ']'
FROM (VALUES ?) v CROSS JOIN ids ON ids.place = v.column2
"""
_FIND_RECORDS = """
SELECT '[' || coalesce(group_concat(
    v.column1 || ',' || r.key || ',' || fingerprint || ',' || length(state) || ',"' || dots || '",'
    || CASE WHEN facets = v.column4 THEN 'null' ELSE json_quote(CAST(facets AS TEXT)) END, ','
), '') || ']'
FROM (VALUES ?) v CROSS JOIN records r ON r.key = v.column2 AND r.id = v.column3
"""
# Index into the ids asked for, key, fingerprint, bytes of the state, dots, facets (None: the expected ones).
_Known = tuple[int, int, int, int, str, str | None]

_read = msgspec.json.Decoder(list[int | str | None]).decode


class Tables:
    """The one writer. Called from one thread at a time; readers have connections of their own."""

    def __init__(self, path: str, *, write: bool) -> None:
        self.database = Database(path, application_id=APPLICATION_ID, cache_bytes=PAGE_CACHE_BYTES_MAX, write=write)
        if write:
            self.database.create(_SCHEMA)
            history.create(self.database)
            sizes.create(self.database)
            self.database.limit_wal(WAL_BYTES_TARGET)
        stored = self.database.row("SELECT data FROM checkpoint")
        self.checkpoint = Checkpoint() if stored is None else msgspec.msgpack.decode(stored[0], type=Checkpoint)
        #: Partition → bytes of its records; replaced by every flush, too.
        self.sizes = sizes.load(self.database, self.checkpoint)
        #: (partition, actor) → chain; replaced by every flush that adds to it, for readers look at it too.
        self.chains: dict[tuple[int, str], int] = {
            (partition, actor): chain for chain, partition, actor in self.database.rows("SELECT * FROM chains")
        }
        #: How many flushes there were: a reader that remembers something sees by it that it is old.
        self.flushes = self.database.number("SELECT flushes FROM counters")

    def flush(
        self, rows: Sequence[Row], forget: Sequence[str], checkpoint: Checkpoint, past: Past | None = None,
        rest: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """All of it or nothing, durable. A row replaces an older one of its id, also one that is to be forgotten."""
        latest = {row.id: row for row in rows}
        data = msgspec.msgpack.encode(checkpoint)
        with self.database.transaction(rest):
            flush = _Flush(self, list(latest.values()), self.flushes + 1)
            flush.forget([id for id in dict.fromkeys(forget) if id not in latest])
            flush.put()
            flush.write_indexes()
            if past is not None:
                history.write(self.database, past)
            grown = sizes.write(self.database, self.sizes, flush.sizes)
            self.database.run("DELETE FROM checkpoint")
            self.database.run("INSERT INTO checkpoint VALUES (?)", (data,))
        self.chains, self.sizes = flush.chains, grown
        self.flushes += 1
        self.checkpoint = msgspec.msgpack.decode(data, type=Checkpoint)

    def wipe(self, partitions: Sequence[int], records_max: int) -> int:
        """Drop up to that many records of these partitions, in one transaction; how many those were. Every record has
        a dot, so the index of dots knows them all."""
        chains = [chain for (partition, _), chain in self.chains.items() if partition in partitions]
        ids: list[str] = []
        for chain in chains:
            rows = self.database.rows(
                "SELECT r.id FROM dots d CROSS JOIN records r ON r.key = d.key WHERE d.chain = ? LIMIT ?",
                (chain, records_max - len(ids)),
            )
            ids += [id for (id,) in rows]
            if len(ids) >= records_max:
                break
        if ids:
            self.flush([], ids, self.checkpoint)
        return len(ids)

    def known(self, ids: Sequence[str], expected: Sequence[bytes | None]) -> Iterator[Iterator[_Known]]:
        """Those of the ids that have records, in the order of their keys, some at a time. `expected` are facets."""
        places = [place_of(id) for id in ids]
        order = sorted(range(len(ids)), key=places.__getitem__)
        found: list[Any] = []
        for start in range(0, len(order), _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            values: list[Any] = []
            for index in part:
                values += (index, places[index])
            found += _read(self._joined(_FIND_KEYS, "(?,?)", values, len(part)))
        found.sort()
        for start in range(0, len(found), _AT_ONCE):
            numbers = found[start : start + _AT_ONCE]
            values = []
            for number in numbers:
                index = number & _INDEX_MASK
                values += (index, number >> _INDEX_BITS, ids[index], expected[index])
            flat: Any = iter(_read(self._joined(_FIND_RECORDS, "(?,?,?,?)", values, len(numbers))))
            yield zip(flat, flat, flat, flat, flat, flat, strict=True)

    def _joined(self, sql: str, each: str, values: list[Any], count: int) -> str:
        """A query's rows in one text: stepping through them would ask for the interpreter's lock each time."""
        row = self.database.row(sql.replace("?", ",".join([each] * count)), values)
        assert row is not None
        return str(row[0])


class _Flush:
    """What one flush changes, collected by table, as flat lists of values: a flush makes few objects that the garbage
    collector would have to look at."""

    def __init__(self, tables: Tables, rows: list[Row], number: int) -> None:
        self.tables = tables
        self.database = tables.database
        self.rows = rows
        self.number = number
        self.chains = tables.chains.copy()
        self.new_chains: list[int | str] = []
        # By chain and by term; within one they mostly come in order.
        self.dots_out: dict[int, list[int]] = defaultdict(list)
        self.dots_in: dict[int, list[int]] = defaultdict(list)
        self.postings_out: dict[int, list[int]] = defaultdict(list)
        self.postings_in: dict[int, list[int]] = defaultdict(list)
        self.texts: dict[int, str | None] = {}  # of keys that may wait already
        self.new_texts: list[int | str] = []
        self.sizes: dict[int, int] = defaultdict(int)  # by how many bytes each partition grows

    def forget(self, ids: Sequence[str]) -> None:
        """Remove the records of these ids, where there are any."""
        keys: list[int] = []
        places: list[int] = []
        partitions = {chain: partition for (partition, _), chain in self.chains.items()} if ids else {}
        for some in self.tables.known(ids, [None] * len(ids)):
            for index, key, fingerprint, size, dots, old in some:
                assert old is not None
                self.sizes[partitions[int(dots.split(",", 1)[0])]] -= size
                keys.append(key)
                places += (place_of(ids[index]), key)
                self._move_dots(key, dots, "")
                for term, at in facets.postings_of(facets.decode(old)):
                    self.postings_out[term] += (term, at, key)
                if fingerprint != _NO_TEXT:
                    self.texts[key] = None
        self._delete("records", "(?)", keys)
        self._delete("ids", "(?,?)", places)

    def put(self) -> None:
        """Replace the records that are known, add those that are not."""
        rows, number = self.rows, self.number
        its = [facets.of_row(row, number) for row in rows]
        new = dict.fromkeys(range(len(rows)))
        for some in self.tables.known([row.id for row in rows], its):
            values: list[Any] = []
            for known in some:
                del new[known[0]]
                values += self._replaced(rows[known[0]], its[known[0]], known)
            self._write_records(values)
        # New ones get their keys in the order of time: a term's postings come in order, and so do most places.
        order = sorted(new, key=lambda index: rows[index].created)
        first = self.database.number("SELECT next_key FROM counters")
        for start in range(0, len(order), _AT_ONCE):
            values = []
            for key, index in enumerate(order[start : start + _AT_ONCE], first + start):
                values += self._added(rows[index], its[index], key)
            self._write_records(values)
        places = sorted((place_of(rows[index].id), key) for key, index in enumerate(order, first))
        self._insert("ids", "(?,?)", concatenate.from_iterable(places))
        self.database.run("UPDATE counters SET next_key = ?", (first + len(order),))

    def _replaced(self, row: Row, its: bytes, known: _Known) -> tuple[Any, ...]:
        _, key, old_fingerprint, old_size, old_dots, old = known
        self.sizes[row.partition] += len(row.state) - old_size
        dots = self._dots(row)
        if dots != old_dots:
            self._move_dots(key, old_dots, dots)
        if old is not None:
            had, has = facets.postings_of(facets.decode(old)), facets.postings_of(facets.decode(its))
            for term, at in had - has:
                self.postings_out[term] += (term, at, key)
            for term, at in has - had:
                self.postings_in[term] += (term, at, key)
        fingerprint = _fingerprint(row)
        if fingerprint != old_fingerprint:
            self.texts[key] = row.content if row.alive else None
        return key, row.id, fingerprint, dots, its, row.state

    def _added(self, row: Row, its: bytes, key: int) -> tuple[Any, ...]:
        self.sizes[row.partition] += len(row.state)
        dots = self._dots(row)
        self._move_dots(key, "", dots)
        at = row.created if row.alive else self.number
        postings = self.postings_in
        for term in facets.terms_of(row):
            postings[term] += (term, at, key)
        if row.alive:
            self.new_texts += (key, row.content)
            if row.expires is not None:
                postings[facets.EXPIRING] += (facets.EXPIRING, row.expires, key)
        return key, row.id, _fingerprint(row), dots, its, row.state

    def _dots(self, row: Row) -> str:
        """The row's version as "chain,n,chain,n, …"."""
        partition, chains, text = row.partition, self.chains, ""
        for actor, n in row.version.items():
            chain = chains.get((partition, actor))
            if chain is None:
                chain = chains[partition, actor] = len(chains) + 1
                self.new_chains += (chain, partition, actor)
            text = f"{text},{chain},{n}" if text else f"{chain},{n}"
        return text

    def _move_dots(self, key: int, before: str, after: str) -> None:
        had, has = _pairs(before), _pairs(after)
        for chain, n in had - has:
            self.dots_out[chain] += (chain, n, key)
        for chain, n in has - had:
            self.dots_in[chain] += (chain, n, key)

    def _write_records(self, values: list[Any]) -> None:
        self.database.run_many(
            "INSERT INTO records VALUES", "(?,?,?,?,?,?)",
            "ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, dots = excluded.dots,"
            " facets = excluded.facets, state = excluded.state", values,
        )  # fmt: skip

    def write_indexes(self) -> None:
        """The rest, table by table."""
        self._insert("chains", "(?,?,?)", self.new_chains)
        self._delete("dots", "(?,?,?)", _in_order(self.dots_out))
        self._insert("dots", "(?,?,?)", _in_order(self.dots_in))
        self._delete("postings", "(?,?,?)", _in_order(self.postings_out))
        self._insert("postings", "(?,?,?)", _in_order(self.postings_in))
        waiting = sorted(self.texts)
        again = self._delete("pending", "(?)", waiting)
        self._insert("pending", "(?,?)", concatenate.from_iterable((key, self.texts[key]) for key in waiting))
        self._insert("pending", "(?,?)", self.new_texts)
        more = len(self.texts) + len(self.new_texts) // 2 - again
        self.database.run("UPDATE counters SET flushes = ?, waiting = waiting + ?", (self.number, more))

    def _insert(self, table: str, each: str, values: Iterable[Any]) -> None:
        self.database.run_many(f"INSERT INTO {table} VALUES", each, "", values)

    def _delete(self, table: str, each: str, values: Iterable[Any]) -> int:
        """Delete the rows with these keys; how many there were."""
        return self.database.run_many(f"DELETE FROM {table} WHERE {_KEYS[table]} IN (VALUES", each, ")", values)


def _fingerprint(row: Row) -> int:
    """Tells whether the text index has to look at the content again. One in 2**32 changes goes unnoticed."""
    return crc32(row.content.encode()) if row.alive else _NO_TEXT


def _in_order(grouped: dict[int, list[int]]) -> Iterable[int]:
    return concatenate.from_iterable(grouped[group] for group in sorted(grouped))


def _pairs(dots: str) -> set[tuple[int, int]]:
    numbers = map(int, dots.split(",")) if dots else iter(())
    return set(zip(numbers, numbers, strict=True))
