"""Replaced versions and conflict receipts in the tables: what is kept, for how long, and that a crash loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crdt_spine.core.conflicts import Finding, Receipt, Withdrawal, place_in
from crdt_spine.core.messages import Change
from crdt_spine.core.record import Record, apply
from crdt_spine.core.registers import Origin
from crdt_spine.limits import HISTORY_SECONDS_MAX, HISTORY_VERSIONS_MAX, RECEIPT_SECONDS_MAX, RECEIPTS_MAX
from crdt_spine.storage import history
from crdt_spine.storage.database import Database
from crdt_spine.storage.engine import Checkpoint, Past, StorageFull, Version
from crdt_spine.storage.recent import former_of, versions_of
from crdt_spine.storage.records import RecordStore
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.storage.tables import APPLICATION_ID

NOW = 1_763_000_000_000 << 16
SECOND = 1_000 << 16


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    opened = SqliteEngine.open(tmp_path / "data")
    yield opened
    opened.close()


def written(content: str | None, n: int, id: str = "m", before: Record | None = None, **fields: Any) -> Record:
    """A record whose n-th change was made n seconds after the beginning."""
    alive = True if before is None else fields.pop("alive", None)
    change = Change(id=id, time=NOW + n * SECOND, agent="ada", content=content, alive=alive, **fields)
    return apply(before, change, Origin(change.time, "r/a@1", n, "ada"))


def write(store: RecordStore, record: Record) -> Record:
    """As the core does it with a change of the node's own."""
    before = store.get(record.id)
    if before is not None:
        store.replace(before, record)
    store.put(0, record)
    return record


def flush(store: RecordStore, now: int = NOW) -> None:
    one = store.begin_flush(Checkpoint(), now)
    store.write_flush(one)
    store.end_flush(one, True)


def contents(engine: Any, id: str = "m") -> list[str]:
    return [former.content for former in engine.versions(id)]


def receipt(n: int, id: str = "m", field: str = "content", lost: str = "lost") -> Receipt:
    return Receipt(id, field, lost, "kept", Origin(NOW + n, "r/b@1", n, "bob"), Origin(NOW + n + 1, "r/a@1", n, "ada"))


def rows(engine: Any, table: str) -> tuple[int, int]:
    """What there is, having made sure that the account says so."""
    database: Database = engine._tables.database
    count = "coalesce(sum(count), 0)" if table == "versions" else "count(*)"
    real = database.row(f"SELECT {count}, coalesce(sum(length(state)), 0) FROM {table}")
    assert real == database.row("SELECT rows, bytes FROM history WHERE kind = ?", (table,))
    assert real is not None
    return real


# -- versions --------------------------------------------------------------------------------------------------------


def test_what_was_replaced_before_and_after_a_flush_is_kept_newest_first(engine: Any) -> None:
    store = RecordStore(engine)
    record = write(store, written("one", 1))
    record = write(store, written("two", 2, before=record))
    flush(store)
    assert contents(engine) == ["one"]
    record = write(store, written("three", 3, before=record))
    record = write(store, written(None, 4, before=record, alive=False))
    write(store, written("born again", 5))
    assert [older.text for older, _ in versions_of(store.recent.replaced["m"])] == ["two", "three"]
    flush(store)
    assert contents(engine) == ["three", "two", "one"]
    assert not store.recent and not store.flushing_recent


def test_a_version_that_looks_like_the_next_one_is_not_kept(engine: Any) -> None:
    store = RecordStore(engine)
    record = write(store, written("one", 1))
    record = write(store, written(None, 2, before=record, remove={"tag": ()}))
    write(store, written("two", 3, before=record))
    flush(store)
    assert [former.version.partition("~")[2] for former in engine.versions("m")] == ["r/a@1:2"]


def test_of_one_memory_the_newest_versions_are_kept(engine: Any) -> None:
    store = RecordStore(engine)
    record = write(store, written("1", 1))
    write(store, written("other", 1, id="other"))
    write(store, written("another", 2, id="other", before=store.get("other")))
    for n in range(2, 60):
        record = write(store, written(str(n), n, before=record))
        if n % 7 == 0:
            flush(store)
    flush(store)
    newest = [str(n) for n in range(58, 58 - HISTORY_VERSIONS_MAX, -1)]
    assert contents(engine) == newest
    assert contents(engine, "other") == ["other"]
    rows(engine, "versions")


def test_what_waits_for_a_flush_is_bounded_and_weighed(engine: Any) -> None:
    store = RecordStore(engine)
    record = write(store, written("x" * 1_000_000, 1))
    before = store.behind()
    for n in range(2, 100):
        record = write(store, written(f"{n} " + "x" * 1_000_000, n, before=record))
    assert len(store.recent.replaced["m"]) == HISTORY_VERSIONS_MAX
    assert before + 0.1 < store.behind() < 0.3
    flush(store)
    assert store.behind() == 0


def test_a_version_is_forgotten_some_days_after_it_was_replaced(engine: Any) -> None:
    store = RecordStore(engine)
    record = write(store, written("one", 1))
    write(store, written("two", 100, before=record))
    flush(store, NOW)
    later = NOW + (100 + HISTORY_SECONDS_MAX) * SECOND
    flush(store, later)
    assert contents(engine) == ["one"]
    flush(store, later + SECOND)
    assert contents(engine) == []
    engine.flush([], [], Checkpoint(), Past(sample(5), {}, later + SECOND))  # it comes from a node that was away
    assert rows(engine, "versions") == (0, 0)


def test_a_node_keeps_so_many_versions_and_bytes_in_all(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORY_ROWS_MAX", 300)
    monkeypatch.setattr(history, "PRUNED_ROWS_MAX", 50)
    versions = sample(1_000)
    for start in range(0, 1_000, 10):
        engine.flush([], [], Checkpoint(), Past(versions[start : start + 10], {}, NOW))
    assert 290 <= rows(engine, "versions")[0] <= 300
    assert engine.versions("m0689") == [] and len(engine.versions("m0999")) == len(engine.versions("m0710")) == 1
    monkeypatch.setattr(history, "HISTORY_BYTES_MAX", 1_000)
    for _ in range(20):  # a few at a time
        count = rows(engine, "versions")[0]
        engine.flush([], [], Checkpoint(), Past([], {}, NOW))
        assert 0 <= count - rows(engine, "versions")[0] <= 60
    assert 0 < rows(engine, "versions")[1] <= 1_000
    assert contents(engine, "m0999") == ["text"]


def test_versions_that_a_replay_wrote_again_are_shown_once(engine: Any) -> None:
    for _ in range(2):
        engine.flush([], [], Checkpoint(), Past(sample(1_000), {}, NOW))
    assert contents(engine, "m0000") == contents(engine, "m0999") == ["text"]
    rows(engine, "versions")


def sample(count: int) -> list[Version]:
    return [Version(f"m{n:04}", NOW + n, former_of(written("text", 1, id=f"m{n:04}"))) for n in range(count)]


def test_a_flush_that_fails_keeps_everything_for_the_next_one(engine: Any) -> None:
    store = RecordStore(engine)
    record = write(store, written("one", 1))
    record = write(store, written("two", 2, before=record))
    store.find([receipt(1)])
    one = store.begin_flush(Checkpoint(), NOW)
    record = write(store, written("three", 3, before=record))
    store.find([receipt(2)])
    store.end_flush(one, False)
    assert len(store.recent.replaced["m"]) == 2 and len(store.recent.findings["m"]) == 2
    engine.limit_bytes(0, 0)
    write(store, written("x" * 300_000, 4, before=record))
    one = store.begin_flush(Checkpoint(), NOW)
    with pytest.raises(StorageFull):
        store.write_flush(one)
    store.end_flush(one, False)
    engine.limit_bytes(1 << 30, 1 << 30)
    flush(store)
    assert contents(engine) == ["three", "two", "one"]
    assert engine.receipts(None, 9) == [receipt(2), receipt(1)]


# -- receipts --------------------------------------------------------------------------------------------------------


def found(engine: Any, *findings: Finding, now: int = NOW) -> None:
    by_id: dict[str, list[Finding]] = {}
    for finding in findings:
        by_id.setdefault(finding.id, []).append(finding)
    engine.flush([], [], Checkpoint(), Past([], by_id, now))


def test_a_receipt_is_written_once_and_goes_when_it_is_withdrawn(engine: Any) -> None:
    found(engine, receipt(1), receipt(2, field="importance"), receipt(1, id="other"))
    found(engine, receipt(1))
    assert rows(engine, "receipts")[0] == 3
    found(engine, Withdrawal("m", ("content",), {"r/b@1": 1}), receipt(4))
    assert engine.receipts_of(["m", "other", "none"]) == {
        "m": {receipt(4).key: receipt(4), receipt(2, field="importance").key: receipt(2, field="importance")},
        "other": {receipt(1).key: receipt(1, id="other")},
    }
    rows(engine, "receipts")
    found(engine, receipt(9), Withdrawal("m", ("content",), {"r/b@1": 9}))  # found and withdrawn between two flushes
    assert receipt(9) not in engine.receipts(None, 99)


def test_receipts_come_in_pages_newest_first(engine: Any) -> None:
    all_of_them = [receipt(n, id=f"m{n % 7}") for n in range(1, 50)]
    found(engine, *all_of_them, receipt(51, field=""))
    page = engine.receipts(None, 20)
    pages = [*page]
    while page := engine.receipts(place_in(page[-1]), 20):
        pages += page
    assert pages == all_of_them[::-1]


def test_receipts_are_bounded_by_memory_by_age_and_in_all(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found(engine, *[receipt(n) for n in range(1, 200)])
    assert [one.loser.n for one in engine.receipts(None, 999)] == list(range(199, 199 - RECEIPTS_MAX, -1))
    # Both writes are old: what counts is when the conflict was found.
    found(engine, receipt(1, id="old"), now=NOW + RECEIPT_SECONDS_MAX * SECOND)
    assert rows(engine, "receipts")[0] == RECEIPTS_MAX + 1
    found(engine, now=NOW + (RECEIPT_SECONDS_MAX + 1) * SECOND)
    assert engine.receipts(None, 999) == [receipt(1, id="old")]
    monkeypatch.setattr(history, "RECEIPT_ROWS_MAX", 10)
    found(engine, *[receipt(n, id=f"m{n}") for n in range(1, 100)])
    assert [one.id for one in engine.receipts(None, 999)] == [f"m{n}" for n in range(99, 89, -1)]
    rows(engine, "receipts")


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_an_earlier_program_gets_the_tables_and_keeps_its_memories(tmp_path: Path) -> None:
    make_earlier(tmp_path / "data")
    held = SqliteEngine.open(tmp_path / "data")
    looking = SqliteEngine.open(tmp_path / "data", read_only_ok=True)
    store = RecordStore(held)
    record = store.get("m")
    assert record is not None and record.content is not None and record.content.value == "one"
    write(store, written("two", 2, before=record))
    flush(store)
    assert contents(held) == contents(looking) == ["one"]
    looking.close()
    held.close()
    again = SqliteEngine.open(tmp_path / "data")
    assert contents(again) == ["one"]
    again.close()


def test_a_folder_of_an_earlier_program_that_is_only_read_has_no_history(tmp_path: Path) -> None:
    make_earlier(tmp_path / "data")
    from crdt_spine.storage.folder import Lock, files_of

    lock = Lock(files_of(tmp_path / "data"))
    looking = SqliteEngine.open(tmp_path / "data", read_only_ok=True)
    assert looking.versions("m") == [] and looking.receipts(None, 9) == [] and looking.receipts_of(["m"]) == {}
    assert looking.get("m") is not None
    looking.close()
    lock.release()


def make_earlier(path: Path) -> None:
    """A folder with one memory and without the tables that this program has more."""
    engine = SqliteEngine.open(path)
    store = RecordStore(engine)
    write(store, written("one", 1))
    flush(store)
    engine.close()
    database = Database(str(path / "tables.db"), application_id=APPLICATION_ID, cache_bytes=1 << 20, write=True)
    for table in ("versions", "receipts", "history"):
        database.run(f"DROP TABLE {table}")
    database.close()
