"""A folder that is to be found empty: whenever it is interrupted, nothing half is ever looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crdt_spine.storage.engine import Checkpoint
from crdt_spine.storage.folder import Files
from crdt_spine.storage.sqlite import SqliteEngine


def filled(path: Path) -> SqliteEngine:
    engine = SqliteEngine.open(path)
    engine.append(b"row")
    engine.flush([], [], Checkpoint(through=1, extra={"incarnation": "old"}))
    return engine


@pytest.mark.parametrize("name", ["folder", "file.db"])
def test_what_is_discarded_is_gone_at_the_next_opening_and_not_before(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    engine = filled(path)
    beside = engine.beside("refused-x.jsonl")
    assert beside is not None
    beside.write_text("kept")
    engine.discard()
    engine.append(b"still there")
    assert engine.checkpoint.extra == {"incarnation": "old"}
    engine.close()
    engine = SqliteEngine.open(path)
    assert engine.checkpoint == Checkpoint() and not list(engine.journal_rows(0))
    assert beside.read_text() == "kept"
    engine.append(b"new")
    engine.close()
    engine = SqliteEngine.open(path)
    assert [row for _, row in engine.journal_rows(0)] == [b"new"], "it was discarded once"
    engine.close()


def test_a_crash_while_files_are_removed_leaves_the_rest_to_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = filled(tmp_path / "data")
    engine.discard()
    engine.close()
    unlink, left = Path.unlink, 0

    def unlink_some(self: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        unlink(self, missing_ok=missing_ok)

    for allowed in range(9):
        left = allowed
        with monkeypatch.context() as crash, pytest.raises(KeyboardInterrupt):
            crash.setattr(Path, "unlink", unlink_some)
            SqliteEngine.open(tmp_path / "data")
        if allowed < 8:
            assert "discarded" in os.listdir(tmp_path / "data")  # noqa: PTH208
    engine = SqliteEngine.open(tmp_path / "data")
    assert engine.checkpoint == Checkpoint() and not list(engine.journal_rows(0))
    engine.close()


def test_an_engine_in_memory_has_nothing_beside_it() -> None:
    engine = SqliteEngine.open(":memory:")
    assert engine.beside("x") is None
    engine.discard()
    engine.close()


def test_a_file_that_cannot_be_removed_is_tried_again(tmp_path: Path) -> None:
    files = Files(*[tmp_path / name for name in ("tables.db", "journal.db", "lock", "discarded")])
    files.discard()
    files.tables.mkdir()
    with pytest.raises(OSError):
        files.remove_discarded()
    assert files.discarded.exists()
    files.tables.rmdir()
    files.remove_discarded()
    assert not files.discarded.exists()
