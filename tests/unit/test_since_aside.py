"""A page for another replica, read in a thread of its own: whatever happens meanwhile, it misses nothing that was there
when it was asked for."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crdt_spine.core import codec, writes
from crdt_spine.core.messages import Edit, Store
from crdt_spine.core.record import Record, apply
from crdt_spine.core.registers import Origin
from crdt_spine.storage.engine import Checkpoint
from crdt_spine.storage.records import RecordStore
from crdt_spine.storage.sqlite import SqliteEngine

ACTOR = "r/a@1"
MEMORIES = 60


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    engine = SqliteEngine.open(tmp_path)
    yield RecordStore(engine)
    engine.close()


def change(store: RecordStore, id: str, n: int) -> None:
    before = store.get(id)
    if before is None:
        made = writes.store(Store(i=0, id=id, content=f"content {n}"), None, n << 16, "ada", "")
    else:
        made = writes.edit(Edit(i=0, id=id, content=f"content {n}"), before, n << 16, "ada", "")
    store.put(0, apply(before, made, Origin(n << 16, ACTOR, n, "ada")))


def flush(store: RecordStore) -> None:
    under_way = store.begin_flush(Checkpoint())
    store.write_flush(under_way)
    assert not under_way.dropped, "what nobody needs any more is freed in the flush's thread"
    store.end_flush(under_way, True)


def decoded(page: list[tuple[str, Record | bytes]]) -> list[Record]:
    return [codec.from_bytes(id, one) if isinstance(one, bytes) else one for id, one in page]


@pytest.mark.parametrize("seed", range(8))
def test_what_happens_while_it_is_read_takes_nothing_away(store: RecordStore, seed: int) -> None:
    dice = random.Random(seed)
    ids = [f"m-{k:03d}" for k in range(MEMORIES)]
    n = 0

    def some_changes() -> None:
        nonlocal n
        for id in dice.sample(ids, 20):
            n += 1
            change(store, id, n)

    for _ in range(4):
        some_changes()
        if dice.random() < 0.7:
            flush(store)
    have, upto = {ACTOR: n // 2}, n
    promised = {record.id: record for record in store.changed(0, have, None, MEMORIES)}
    assert promised
    after: str | None = None
    found: dict[str, Record] = {}
    while True:
        read = store.since(0, have, after, 7)
        for _ in range(dice.randrange(3)):
            dice.choice((some_changes, lambda: flush(store)))()
        page: list[tuple[str, Record | bytes]] = []
        reader = threading.Thread(target=lambda: page.extend(read()))  # noqa: B023
        reader.start()
        reader.join()
        found.update((record.id, record) for record in decoded(page))
        if len(page) < 7:
            break
        after = page[-1][0]
    for id, record in promised.items():
        assert found[id].version[ACTOR] >= record.version[ACTOR], "as it was, or newer"
    assert all(found[id] == promised[id] for id in promised if found[id].version[ACTOR] <= upto)


def test_what_gets_into_the_tables_right_after_they_were_read_is_on_the_page(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(store, "m-1", 1)
    flush(store)
    change(store, "m-2", 2)
    read = store.engine.since

    def since(*asked: Any) -> list[tuple[str, bytes]]:
        found = read(*asked)
        flush(store)
        return found

    monkeypatch.setattr(store.engine, "since", since)
    assert [id for id, _ in store.since(0, {}, None, 10)()] == ["m-1", "m-2"]


def test_what_was_dropped_is_not_read_from_the_tables_that_have_it_still(store: RecordStore) -> None:
    for n, id in enumerate(("m-1", "m-2", "m-3"), 1):
        change(store, id, n)
    flush(store)
    store.drop(0, "m-2")
    assert [id for id, _ in store.since(0, {}, None, 10)()] == ["m-1", "m-3"]


def test_it_does_not_wait_for_a_flush(store: RecordStore) -> None:
    change(store, "m-1", 1)
    flush(store)
    change(store, "m-2", 2)
    pages: list[list[str]] = []

    def rest() -> None:
        """Within the flush's transaction."""
        pages.append([id for id, _ in store.since(0, {}, None, 10)()])

    under_way = store.begin_flush(Checkpoint())
    store.write_flush(under_way, rest)
    store.end_flush(under_way, True)
    assert pages
    assert all(page == ["m-1", "m-2"] for page in pages)
