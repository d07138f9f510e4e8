"""since(vector): it reads by the index what changed, and not what exists; and it answers for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crdt_spine.storage.engine import Checkpoint, Row
from crdt_spine.storage.sqlite import SqliteEngine

MEMORIES = 20_000
ACTORS = ("r/a@1", "r/b@1", "r/c@1")


def row(number: int, version: dict[str, int], partition: int = 0) -> Row:
    return Row(
        id=f"{partition:04x}-{number:06d}", partition=partition, alive=True, agent="ann", thread=None, created=number,
        expires=None, tags=("even",), metadata={}, content="", version=version, state=b"x" * 400,
    )  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SqliteEngine]:
    engine = SqliteEngine.open(tmp_path)
    engine.flush([row(n, {ACTORS[n % 3]: n // 3 + 1}) for n in range(MEMORIES)], [], Checkpoint())
    yield engine
    engine.close()


def vector() -> dict[str, int]:
    """What everybody has who has the memories of the fixture."""
    return {actor: len(range(n, MEMORIES, 3)) for n, actor in enumerate(ACTORS)}


def test_since_reads_what_changed_and_little_of_the_tables(engine: SqliteEngine) -> None:
    have = vector()
    numbers = list(range(17, MEMORIES, MEMORIES // 20))
    changed = [row(n, {ACTORS[n % 3]: n // 3 + 1, ACTORS[0]: have[ACTORS[0]] + i}) for i, n in enumerate(numbers, 1)]
    engine.flush(changed, [], Checkpoint())
    rows, (_, pages) = engine.rows_read, engine.pages()
    found = engine.changed(0, have, None, 512)
    assert [id for id, _ in found] == [one.id for one in changed]
    assert engine.rows_read - rows == 2 * len(changed), "an index entry and a record for each"
    all_pages, read = engine.pages()
    assert 0 < read - pages <= 4 * len(changed) < all_pages / 10


def test_since_everything_reads_nothing_but_the_ends_of_the_index(engine: SqliteEngine) -> None:
    rows = engine.rows_read
    assert engine.changed(0, vector(), None, 512) == []
    assert engine.rows_read == rows
    assert engine.pages()[1] <= 12


def test_every_range_of_since_is_searched_by_the_index(engine: SqliteEngine) -> None:
    """No plan of its statements scans a table of records or dots."""
    asked: list[str] = []
    connection = engine._changes.database.connection
    connection.trace_v2(1, lambda event: asked.append(event["sql"]))
    engine.changed(0, {ACTORS[0]: MEMORIES // 3 - 9}, None, 512)
    connection.trace_v2(0, None)
    statements = [sql for sql in asked if "records" in sql]
    assert len(statements) >= 2
    for sql in statements:
        plan = [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {sql}", (0,) * sql.count("?"))]
        assert any("SEARCH" in step for step in plan)
        assert not [step for step in plan if step.startswith(("SCAN dots", "SCAN records", "SCAN r"))], plan


def test_since_never_expires(engine: SqliteEngine) -> None:
    """The index has the last dot of each actor and memory, so a vector of any age finds all that changed after it, and
    a memory that changes a thousand times takes one entry."""
    for time in range(1, 1_001, 100):
        engine.flush([row(0, {ACTORS[0]: MEMORIES + time})], [], Checkpoint())
    assert [id for id, _ in engine.changed(0, {}, None, MEMORIES)] == [row(n, {}).id for n in range(MEMORIES)]
    assert engine._tables.database.number("SELECT count(*) FROM dots") == MEMORIES
    assert [id for id, _ in engine.changed(0, vector(), None, 9)] == [row(0, {}).id]
