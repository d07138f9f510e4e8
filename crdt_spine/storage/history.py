"""Replaced versions and conflict receipts in the tables' database: what was, beside what is.

    versions   a memory's replaced states       receipts   values lost to concurrent writes
    history    how many rows and bytes both have

Both are logs in the order of writing (n), with an index by memory. They are written in the transaction of a flush: what
a crash loses, the journal's replay finds again, and a row that is there already is not written twice. Old rows go a few
at a time, with each flush; what is too many of one memory goes at once.

The tables are made when a folder is opened; one that an earlier program wrote gets them then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from crdt_spine.core.conflicts import WHOLE, Receipt
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
from crdt_spine.storage.engine import Former, Past
from crdt_spine.storage.places import place_of
from crdt_spine.storage.recent import Key, fold, from_bytes

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    n INTEGER PRIMARY KEY, place INTEGER NOT NULL, id TEXT NOT NULL, since INTEGER NOT NULL, mark INTEGER NOT NULL,
    state BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS versions_of ON versions (place, id, since, mark);
CREATE TABLE IF NOT EXISTS receipts (
    n INTEGER PRIMARY KEY, place INTEGER NOT NULL, id TEXT NOT NULL, field TEXT NOT NULL, actor TEXT NOT NULL,
    dot INTEGER NOT NULL, since INTEGER NOT NULL, at INTEGER NOT NULL, state BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS receipts_of ON receipts (place, id, field, actor, dot);
CREATE INDEX IF NOT EXISTS receipts_at ON receipts (at);
CREATE TABLE IF NOT EXISTS history (kind TEXT PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO history VALUES ('versions', 0, 0), ('receipts', 0, 0);
"""
PRUNED_ROWS_MAX = 2_000  # by a flush, besides as many as it has added
_AT_ONCE = 256  # memories in one statement

#: Where a page of receipts goes on: (time, id, field, actor, n) of the last one shown.
Place = tuple[int, str, str, str, int]
Read = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Receipt).decode


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
    rows = [(place_of(v.id), v.id, v.replaced, v.mark, v.state) for v in past.versions if v.replaced >= oldest]
    added = _insert(database, "versions (place, id, since, mark, state)", rows)
    _keep_newest(database, "versions", "since", {row[0] for row in rows}, HISTORY_VERSIONS_MAX)
    _prune(database, "versions", oldest, added, HISTORY_ROWS_MAX, HISTORY_BYTES_MAX)
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


# -- reading -----------------------------------------------------------------------------------------------------------


def versions(read: Read, id: str) -> list[Former]:
    """The replaced versions of a memory, the newest first."""
    found = read(
        "SELECT state FROM versions WHERE place = ? AND id = ? ORDER BY since DESC, n DESC", (place_of(id), id)
    )
    return [from_bytes(state) for (state,) in found]


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


def time_of(receipt: Receipt) -> int:
    """When there were both values: the hybrid time of the later write."""
    return max(receipt.loser.time, receipt.winner.time)


def place_in(receipt: Receipt) -> Place:
    """Where a receipt stands among all."""
    return time_of(receipt), receipt.id, *receipt.key


# -- within ------------------------------------------------------------------------------------------------------------


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
