"""Replaced versions and conflict receipts in the tables' database: what was, beside what is.

    versions   replaced states of memories      receipts   values lost to concurrent writes
    history    how many of them there are, and how many bytes they have

Both are logs in the order of writing (n). They are written in the transaction of a flush: what a crash loses, the
journal's replay finds again. Old rows go a few at a time, with each flush.

Nearly every write replaces a version, and hardly any is ever asked for. So a row has all versions that one flush brings
for one of some hundred buckets of memories, and who asks for a memory's looks through its bucket: writing costs little,
reading some milliseconds. A version that was written twice, by a replay, is found twice and shown once. Receipts are
rare, and have a row each, once.

The tables are made when a folder is opened; one that an earlier program wrote gets them then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from crdt_spine.core.conflicts import WHOLE, Place, Receipt, time_of
from crdt_spine.limits import (
    HISTORY_BYTES_MAX,
    HISTORY_ROWS_MAX,
    HISTORY_SECONDS_MAX,
    HISTORY_VERSIONS_MAX,
    RECEIPT_ROWS_MAX,
    RECEIPT_SECONDS_MAX,
    RECEIPTS_MAX,
)
from crdt_spine.storage.database import Database
from crdt_spine.storage.engine import Former, Past, Version
from crdt_spine.storage.places import place_of
from crdt_spine.storage.recent import Key, fold

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    n INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, since INTEGER NOT NULL, count INTEGER NOT NULL, state BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS versions_in ON versions (bucket, n);
CREATE TABLE IF NOT EXISTS receipts (
    n INTEGER PRIMARY KEY, place INTEGER NOT NULL, id TEXT NOT NULL, field TEXT NOT NULL, actor TEXT NOT NULL,
    dot INTEGER NOT NULL, since INTEGER NOT NULL, at INTEGER NOT NULL, state BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS receipts_of ON receipts (place, id, field, actor, dot);
CREATE INDEX IF NOT EXISTS receipts_at ON receipts (at);
CREATE TABLE IF NOT EXISTS history (kind TEXT PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO history VALUES ('versions', 0, 0), ('receipts', 0, 0);
"""
BUCKETS = 512
PRUNED_ROWS_MAX = 2_000  # by a flush, besides as many as it has added
_AT_ONCE = 256  # memories in one statement

Read = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Receipt).decode
_decode_versions = msgspec.msgpack.Decoder(list[Version]).decode


def create(database: Database) -> None:
    """Make the tables where they are missing."""
    if not present(database.rows):
        with database.transaction():
            database.run(_SCHEMA)


def present(read: Read) -> bool:
    """Are the tables there? Not in an earlier program's folder that is only read."""
    return bool(read("SELECT 1 FROM sqlite_schema WHERE name = 'history'", ()))


def write(database: Database, past: Past) -> None:
    """Within a transaction: add what is new, drop what is too old or too much."""
    oldest = past.now - (int(HISTORY_SECONDS_MAX * 1000) << 16)
    _write_versions(database, [version for version in past.versions if version.replaced >= oldest], oldest)
    ids, added = list(past.findings), 0
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        known = receipts_of(database.rows, some)
        changed: list[tuple[Any, ...]] = []
        for id in some:
            after = fold(known.get(id, {}).values(), past.findings[id])
            for key in known.get(id, {}).keys() - after.keys():
                where = "place = ? AND id = ? AND field = ? AND actor = ? AND dot = ?"
                _delete(database, "receipts", where, (place_of(id), id, *key))
            changed += [
                (place_of(id), id, *key, past.now, time_of(receipt), _encode(receipt))
                for key, receipt in after.items()
                if key not in known.get(id, {})
            ]
        added += _insert(database, "receipts (place, id, field, actor, dot, since, at, state)", changed)
        _keep_newest(database, "receipts", "at", {row[0] for row in changed}, RECEIPTS_MAX)
    oldest = past.now - (int(RECEIPT_SECONDS_MAX * 1000) << 16)
    _prune(database, "receipts", oldest, added, RECEIPT_ROWS_MAX, HISTORY_BYTES_MAX)


def wipe(database: Database, belongs: Callable[[str], bool], after: int, rows_max: int) -> int | None:
    """Drop the versions of the memories that `belongs` says from the first rows behind `after`, so many of them, in one
    transaction; the last row that was looked at. At the end None, and the receipts are gone too."""
    with database.transaction():
        found = database.rows("SELECT n, count, state FROM versions WHERE n > ? ORDER BY n LIMIT ?", (after, rows_max))
        for n, count, state in found:
            left = [version for version in _decode_versions(state) if not belongs(version.id)]
            if len(left) == count:
                continue
            new = _encode(left)
            if left:
                database.run("UPDATE versions SET count = ?, state = ? WHERE n = ?", (len(left), new, n))
            else:
                database.run("DELETE FROM versions WHERE n = ?", (n,))
            account = "UPDATE history SET rows = rows - ?, bytes = bytes - ? WHERE kind = 'versions'"
            database.run(account, (count - len(left), len(state) - (len(new) if left else 0)))
        if len(found) == rows_max:
            return int(found[-1][0])
        for (id,) in database.rows("SELECT DISTINCT id FROM receipts"):
            if belongs(id):
                _delete(database, "receipts", "place = ? AND id = ?", (place_of(id), id))
    return None


# -- reading -----------------------------------------------------------------------------------------------------------


def versions(read: Read, id: str) -> list[Former]:
    """The replaced versions of a memory, the newest ones, newest first."""
    found: dict[str, Former] = {}
    for (state,) in read("SELECT state FROM versions WHERE bucket = ? ORDER BY n DESC", (_bucket_of(id),)):
        for version in reversed(_decode_versions(state)):
            if version.id == id:
                found.setdefault(version.former.version, version.former)
        if len(found) >= HISTORY_VERSIONS_MAX:
            break
    return list(found.values())[:HISTORY_VERSIONS_MAX]


def receipts_of(read: Read, ids: Sequence[str]) -> dict[str, dict[Key, Receipt]]:
    """The receipts of these memories (at most some hundreds), by id and key."""
    marks = ", ".join(["(?, ?)"] * len(ids))
    values = [value for id in ids for value in (place_of(id), id)]
    found: dict[str, dict[Key, Receipt]] = {}
    if ids:
        for (state,) in read(f"SELECT state FROM receipts WHERE (place, id) IN (VALUES {marks})", values):
            receipt = _decode(state)
            found.setdefault(receipt.id, {})[receipt.key] = receipt
    return found


def receipts(read: Read, after: Place | None, limit: int) -> list[Receipt]:
    """A page of all receipts, the newest first."""
    beyond = "" if after is None else "AND at <= ? AND (at, id, field, actor, dot) < (?, ?, ?, ?, ?)"
    values = () if after is None else (after[0], *after)
    found = read(
        f"SELECT state FROM receipts WHERE field != '{WHOLE}' {beyond}"
        " ORDER BY at DESC, id DESC, field DESC, actor DESC, dot DESC LIMIT ?", (*values, limit),
    )  # fmt: skip
    return [_decode(state) for (state,) in found]


# -- within ------------------------------------------------------------------------------------------------------------


def _bucket_of(id: str) -> int:
    return place_of(id) % BUCKETS


def _write_versions(database: Database, added: Iterable[Version], oldest: int) -> None:
    """Add versions; drop the first rows where they are too old, or too much: not many more than were added."""
    buckets: dict[int, list[Version]] = {}
    for version in added:
        buckets.setdefault(_bucket_of(version.id), []).append(version)
    values: list[Any] = []
    count = size = 0
    for bucket, some in sorted(buckets.items()):
        state = _encode(some)
        values += (bucket, max([version.replaced for version in some]), len(some), state)
        count, size = count + len(some), size + len(state)
    database.run_many("INSERT INTO versions (bucket, since, count, state) VALUES", "(?, ?, ?, ?)", "", values)
    row = database.row("SELECT rows, bytes FROM history WHERE kind = 'versions'")
    assert row is not None
    count, size = row[0] + count, row[1] + size
    last, left = 0, len(buckets) + PRUNED_ROWS_MAX
    first = database.rows("SELECT n, since, count, length(state) FROM versions ORDER BY n LIMIT 1")
    while first and left > 0:
        for n, since, versions_in, length in first:
            if since >= oldest and count <= HISTORY_ROWS_MAX and size <= HISTORY_BYTES_MAX:
                left = 0
                break
            last, count, size = n, count - versions_in, size - length
        left -= len(first)
        sql = "SELECT n, since, count, length(state) FROM versions WHERE n > ? ORDER BY n LIMIT ?"
        first = database.rows(sql, (last, min(left, _AT_ONCE))) if left > 0 else []
    if last:
        database.run("DELETE FROM versions WHERE n <= ?", (last,))
    if (count, size) != row:
        database.run("UPDATE history SET rows = ?, bytes = ? WHERE kind = 'versions'", (count, size))


def _insert(database: Database, table: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Add rows that are not there; how many those are."""
    if not rows:
        return 0
    name = table.partition(" ")[0]
    last = database.number(f"SELECT coalesce(max(n), 0) FROM {name}")
    each = f"({', '.join('?' * len(rows[0]))})"
    database.run_many(f"INSERT OR IGNORE INTO {table} VALUES", each, "", [value for row in rows for value in row])
    return _count(database, name, "n > ?", (last,), 1)


def _delete(database: Database, table: str, where: str, values: Sequence[Any]) -> int:
    deleted = _count(database, table, where, values, -1)
    if deleted:
        database.run(f"DELETE FROM {table} WHERE {where}", values)
    return deleted


def _count(database: Database, table: str, where: str, values: Sequence[Any], sign: int) -> int:
    """Put rows that were added, or will be deleted, on the account; how many they are."""
    row = database.row(f"SELECT count(*), coalesce(sum(length(state)), 0) FROM {table} WHERE {where}", values)
    assert row is not None
    if row[0]:
        account = "UPDATE history SET rows = rows + ?, bytes = bytes + ? WHERE kind = ?"
        database.run(account, (sign * row[0], sign * row[1], table))
    return int(row[0])


def _keep_newest(database: Database, table: str, order: str, places: Iterable[int], most: int) -> None:
    """Drop what memories have more than `most`."""
    some = sorted(places)
    for start in range(0, len(some), _AT_ONCE):
        part = some[start : start + _AT_ONCE]
        rank = f"row_number() OVER (PARTITION BY place, id ORDER BY {order} DESC, n DESC)"
        ranked = f"SELECT n, {rank} AS rank FROM {table} WHERE place IN ({', '.join('?' * len(part))})"
        _delete(database, table, f"n IN (SELECT n FROM ({ranked}) WHERE rank > {most})", part)


def _prune(database: Database, table: str, oldest: int, added: int, rows_max: int, bytes_max: int) -> None:
    """Drop what is too old, and the first rows where there are too many; no more than a few at a time."""
    budget = added + PRUNED_ROWS_MAX
    edge = f"(SELECT max(n) FROM (SELECT n FROM {table} ORDER BY n LIMIT ?))"
    budget -= _delete(database, table, f"n <= {edge} AND since < ?", (budget, oldest))
    while budget > 0:
        row = database.row("SELECT rows, bytes FROM history WHERE kind = ?", (table,))
        assert row is not None
        over = max(row[0] - rows_max, _AT_ONCE if row[1] > bytes_max else 0)
        if over <= 0:
            return
        budget -= _delete(database, table, f"n <= {edge}", (min(over, budget, row[0]),)) or budget
