"""Bytes per partition: what is counted while records come, change and go is what is there."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest

from crdt_spine.storage.engine import Checkpoint, PartitionSummary, Row
from crdt_spine.storage.sqlite import SqliteEngine


def row(id: str, partition: int, n: int, size: int, *, alive: bool = True) -> Row:
    return Row(
        id=id, partition=partition, alive=alive, agent="a", thread=None, created=n, expires=None, tags=("t",),
        metadata={}, content="words", version={"r/n@1": n}, state=bytes(size),
    )  # fmt: skip


def counted(path: Path) -> dict[int, int]:
    """By looking at all records."""
    with apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) as connection:
        sums: dict[int, int] = {}
        for partition, size in connection.execute(
            "SELECT c.partition, length(r.state) FROM records r JOIN chains c ON c.chain = CAST(r.dots AS INTEGER)"
        ):
            sums[partition] = sums.get(partition, 0) + size
        return sums


@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_those_of_the_records_that_are_there(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "memories.db"
    engine = SqliteEngine.open(path)
    for n in range(1, 30):
        rows = [
            row(f"id-{k}", k % 3, n, chance.randrange(5_000), alive=chance.random() < 0.8)
            for k in chance.sample(range(40), 8)
        ]
        gone = [f"id-{k}" for k in chance.sample(range(60), 5)]
        engine.flush(rows, gone, Checkpoint(partitions={p: PartitionSummary({}, 1) for p in range(3)}))
        assert {number: size for number, size in engine.sizes().items() if size} == counted(path)
        if chance.random() < 0.2:
            engine.close()
            engine = SqliteEngine.open(path)
            assert {number: size for number, size in engine.sizes().items() if size} == counted(path)
    engine.close()


def test_a_folder_of_an_earlier_version_begins_with_an_estimate_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "memories.db"
    engine = SqliteEngine.open(path)
    summaries = {0: PartitionSummary({}, 30), 1: PartitionSummary({}, 10)}
    engine.flush([row(f"id-{k}", k % 4 == 3, 1, 1_000) for k in range(40)], [], Checkpoint(partitions=summaries))
    engine.close()
    with apsw.Connection(str(path)) as connection:
        connection.execute("DROP TABLE sizes")
    engine = SqliteEngine.open(path)
    estimated = engine.sizes()
    assert estimated[0] == pytest.approx(3 * estimated[1], abs=3)
    assert sum(estimated.values()) >= 40 * 1_000 * 0.5
    engine.flush([row("more", 1, 2, 500)], [], Checkpoint(partitions=summaries))
    engine.close()
    engine = SqliteEngine.open(path)
    assert engine.sizes() == {0: estimated[0], 1: estimated[1] + 500}
    engine.close()
