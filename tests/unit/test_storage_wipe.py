"""A partition that is dropped leaves nothing behind: records, indexes, text, history, receipts, memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crdt_spine.core.conflicts import Receipt
from crdt_spine.core.messages import Change
from crdt_spine.core.record import Record, apply
from crdt_spine.core.registers import Origin
from crdt_spine.core.selection import Selection
from crdt_spine.storage.engine import Checkpoint, PartitionSummary
from crdt_spine.storage.records import RecordStore
from crdt_spine.storage.sqlite import SqliteEngine

NOW = 1_763_000_000_000 << 16


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SqliteEngine]:
    opened = SqliteEngine.open(tmp_path / "data")
    yield opened
    opened.close()


def partition(id: str) -> int:
    return int(id[0])


def written(id: str, n: int, content: str, before: Record | None = None) -> Record:
    change = Change(id=id, time=NOW + n, agent="ada", content=content, alive=True, add=("tag",))
    return apply(before, change, Origin(NOW + n, "r/a@1", n, "ada"))


def receipt(id: str, n: int) -> Receipt:
    return Receipt(
        id, "content", "lost", "kept", Origin(NOW + n, "r/a@1", n, "ada"), Origin(NOW + n + 1, "r/b@1", n, "bo")
    )


def filled(engine: SqliteEngine, count: int) -> RecordStore:
    """Memories `0-…` and `1-…`, each replaced once, in the tables and their indexes, with a receipt each."""
    store, n = RecordStore(engine), 0
    for round in ("old", "new"):
        for number in (0, 1):
            for index in range(count):
                n += 1
                id = f"{number}-{index}"
                before = store.get(id)
                record = written(id, n, f"{round} words {id}", before)
                if before is not None:
                    store.replace(before, record)
                    store.find([receipt(id, n)])
                store.put(number, record)
    flush(store)
    while engine.index_text(1_000):
        pass
    return store


def flush(store: RecordStore) -> None:
    one = store.begin_flush(Checkpoint(7, {1: PartitionSummary({"r/a@1": 9})}, {"own": "extra"}), NOW)
    store.write_flush(one)
    store.end_flush(one, True)


def selected(engine: SqliteEngine) -> set[str]:
    return {found.id for found in engine.select(Selection(tags=("tag",)), "newest", 1_000, None, None, 0)}


def searched(engine: SqliteEngine) -> set[str]:
    found = engine.search("words", Selection(), "newest", 1_000, None, None, 0)
    return {hit.id for _, hit in found}


def test_a_wiped_partition_is_found_by_nothing_and_the_others_stay(engine: SqliteEngine) -> None:
    filled(engine, 40)
    kept = {f"1-{index}" for index in range(40)}
    assert selected(engine) == searched(engine) > kept
    rounds = 0
    while engine.wipe([0], 15):
        rounds += 1
    after: int | None = 0
    while after is not None:
        after = engine.wipe_past(lambda id: partition(id) == 0, after, 3)
    while engine.index_text(1_000):
        pass
    assert rounds == 3  # of 15, 15 and 10 records
    assert selected(engine) == searched(engine) == kept
    assert engine.changed(0, {}, None, 100) == []
    assert len(engine.changed(1, {}, None, 100)) == 40
    assert engine.get("0-1") is None and engine.get("1-1") is not None
    assert engine.versions("0-1") == []
    assert [former.content for former in engine.versions("1-1")] == ["old words 1-1"]
    assert {one.id for one in engine.receipts(None, 1_000)} == kept
    assert engine.checkpoint == Checkpoint(7, {1: PartitionSummary({"r/a@1": 9})}, {"own": "extra"})


def test_the_account_of_the_history_is_right_after_a_wipe(engine: SqliteEngine) -> None:
    filled(engine, 40)
    after: int | None = 0
    while after is not None:
        after = engine.wipe_past(lambda id: partition(id) == 0, after, 3)
    database: Any = engine._tables.database
    for kind, count in (("versions", "sum(count)"), ("receipts", "count(*)")):
        there = database.row(f"SELECT {count}, sum(length(state)) FROM {kind}")
        assert database.row("SELECT rows, bytes FROM history WHERE kind = ?", (kind,)) == there
    assert database.number("SELECT rows FROM history WHERE kind = 'versions'") == 40


def test_a_store_forgets_what_is_in_memory_and_does_not_look_into_what_is_being_wiped(engine: SqliteEngine) -> None:
    store = filled(engine, 5)
    record = written("0-new", 100, "dirty")
    store.put(0, record)
    store.replace(record, written("0-new", 101, "dirtier", record))
    store.find([receipt("0-new", 102)])
    store.put(1, written("1-new", 103, "dirty"))
    assert store.get("0-1") is not None  # it is in the cache now
    store.forget(lambda id: partition(id) == 0)
    store.ignored = lambda id: partition(id) == 0
    assert store.get("0-new") is None and store.get("0-1") is None
    assert store.get("1-new") is not None and store.get("1-1") is not None
    flush(store)
    assert engine.get("0-new") is None and engine.versions("0-new") == []
    assert engine.get("1-new") is not None
    assert store.dirty_bytes == 0
