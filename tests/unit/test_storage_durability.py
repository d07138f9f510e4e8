"""What the engine keeps when its process is killed, its disk is full, or somebody else has its files."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from crdt_spine.core.selection import Selection
from crdt_spine.storage.engine import Checkpoint, Row, StorageFull, StorageUnusable
from crdt_spine.storage.sqlite import SqliteEngine

EVERYTHING = Selection()


def memory(number: int, version: int, content: str = "", state: bytes = b"") -> Row:
    return Row(
        id=f"m{number:04}", partition=0, alive=True, agent="ann", thread=None, created=number, expires=None,
        tags=(f"tag{version % 3}",), metadata={}, content=content, version={"a": version}, state=state,
    )  # fmt: skip


# -- killed ----------------------------------------------------------------------------------------------------------

#: Appends in one thread; flushes, prunes and indexes text in another one. Every row says how far the writing was, and
#: is said on stdout once it is durable; every flush writes all records anew.
WRITER = """
import os, sys, threading
from crdt_spine.storage.engine import Checkpoint, Row
from crdt_spine.storage.sqlite import SqliteEngine
engine = SqliteEngine.open(sys.argv[1])
through = engine.checkpoint.through
for through, row in engine.journal_rows(through):
    pass
os.write(1, b"ready\\n")
last = through
def write():
    global last
    while True:
        last = engine.append(b"%d" % (last + 1) + b"." * (last * 997 % 30_000))
        os.write(1, b"appended %d\\n" % last)
threading.Thread(target=write, daemon=True).start()
while True:
    through = last
    rows = [
        Row(id=f"m{n:04}", partition=0, alive=True, agent="ann", thread=None, created=through * 1000 + n, expires=None,
            tags=(f"tag{through % 3}",), metadata={}, content=f"word{through}", version={"a": through * 1000 + n + 1},
            state=b"%d" % through)
        for n in range(through % 50, 150)
    ]
    gone = [f"m{n:04}" for n in range(through % 50)]
    engine.flush(rows, gone, Checkpoint(through=through, extra={"rows": len(rows)}))
    os.write(1, b"flushed %d\\n" % through)
    engine.prune(through - 20)
    engine.index_text(40)
"""


def test_a_killed_process_loses_nothing_that_it_was_told_is_durable(tmp_path: Path) -> None:
    rolls = random.Random(7)
    flushed = 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            said: dict[str, int] = {"appended": 0, "flushed": 0}
            assert process.stdout is not None
            for count, line in enumerate(process.stdout):
                word, _, number = line.partition(" ")
                said[word] = int(number or 0)
                if count >= 60 and said["flushed"]:
                    break
            time.sleep(rolls.random() * 0.02)  # to be killed anywhere
        finally:
            process.kill()
            for line in process.stdout or ():
                word, _, number = line.partition(" ")
                said[word] = int(number or 0)
            process.wait()
        engine = SqliteEngine.open(tmp_path)
        through = engine.checkpoint.through
        assert through >= said["flushed"]
        rows = list(engine.journal_rows(through))
        assert [sequence for sequence, _ in rows] == list(range(through + 1, through + len(rows) + 1))
        assert through + len(rows) >= said["appended"]
        assert all(row.rstrip(b".") == b"%d" % sequence for sequence, row in rows)
        # The tables are of the checkpoint's flush, all of them.
        hits = list(engine.select(EVERYTHING, "oldest", 1000, None, None, 0))
        assert [hit.id for hit in hits] == [f"m{n:04}" for n in range(through % 50, 150)]
        assert {hit.state for hit in hits} == {b"%d" % through}
        assert len(hits) == engine.checkpoint.extra["rows"]
        assert len(list(engine.select(Selection(tags=(f"tag{through % 3}",)), "newest", 999, None, None, 0))) == len(
            hits
        )
        assert len(engine.changed(0, {"a": through * 1000}, None, 999)) == len(engine.changed(0, {}, None, 999))
        assert engine.get(f"m{through % 50:04}") == b"%d" % through
        while engine.index_text(1000):
            pass
        assert len(engine.search(f"word{through}", EVERYTHING, "newest", 999, None, None, 0)) == len(hits)
        assert engine.search(f"word{flushed}", EVERYTHING, "newest", 9, None, None, 0) == [] or flushed == through
        flushed = through
        engine.close()
    assert flushed > 100


def test_pruning_and_indexing_leave_commits_durable(tmp_path: Path) -> None:
    """Both do without an fsync of their own. That must not stay so for what comes after them."""
    engine = SqliteEngine.open(tmp_path)
    engine.flush([memory(1, 1, "words")], [], Checkpoint())
    engine.index_text(1)
    engine.prune(engine.append(b"x"))
    full = 2
    assert engine._journal.database.number("PRAGMA synchronous") == full
    assert engine._tables.database.number("PRAGMA synchronous") == full
    engine.close()


# -- full ------------------------------------------------------------------------------------------------------------


def test_a_full_journal_takes_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path)
    engine.limit_bytes(1_000_000, 1 << 40)
    last = 0
    with pytest.raises(StorageFull, match=r"journal\.db: no space left"):
        while True:
            last = engine.append(b"x" * 30_000)
    with pytest.raises(StorageFull, match="no space left"):
        engine.append(b"x" * 30_000)
    assert [sequence for sequence, _ in engine.journal_rows(0)] == list(range(1, last + 1))
    engine.prune(last // 2)
    assert engine.append(b"y" * 30_000) == last + 1
    engine.close()


def test_a_flush_that_finds_no_room_changes_nothing(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path)
    engine.flush([memory(n, n + 1, f"apple {n}", b"old") for n in range(100)], [], Checkpoint(through=1))
    engine.index_text(50)
    waiting = engine.index_text(0)
    engine.limit_bytes(1 << 40, 300_000)
    many = [memory(n, n + 1000, "pear " * 50, b"new" * 100) for n in range(5_000)]
    for _ in range(2):
        with pytest.raises(StorageFull, match=r"tables\.db: no space left"):
            engine.flush(many, ["m0003"], Checkpoint(through=2))
    assert engine.checkpoint.through == 1
    assert {hit.state for hit in engine.select(EVERYTHING, "oldest", 1000, None, None, 0)} == {b"old"}
    assert len(engine.changed(0, {}, None, 1000)) == 100
    assert engine.index_text(0) == waiting
    engine.flush([memory(3, 5000, "plum", b"newer")], [], Checkpoint(through=2))  # there is room for a little
    engine.limit_bytes(1 << 40, 1 << 40)
    engine.flush(many, [], Checkpoint(through=3))
    assert engine.get("m0003") == b"new" * 100
    engine.close()
    engine = SqliteEngine.open(tmp_path)
    assert engine.checkpoint.through == 3
    assert len(list(engine.select(EVERYTHING, "oldest", 9999, None, None, 0))) == 5_000
    engine.close()


def test_an_actor_first_seen_in_a_flush_that_failed_is_known_after_the_next_one(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path)
    engine.flush([memory(1, 1)], [], Checkpoint())
    other = msgspec.structs.replace(memory(2, 1, state=b"x" * 1_000_000), version={"b": 1, "c": 1})
    engine.limit_bytes(1 << 40, 300_000)
    with pytest.raises(StorageFull):
        engine.flush([other], [], Checkpoint())
    engine.limit_bytes(1 << 40, 1 << 40)
    engine.flush([other, msgspec.structs.replace(memory(3, 1), version={"c": 2})], [], Checkpoint())
    for _ in range(2):
        assert [id for id, _ in engine.changed(0, {"a": 1, "b": 1}, None, 9)] == ["m0002", "m0003"]
        assert [id for id, _ in engine.changed(0, {"a": 1, "c": 2}, None, 9)] == ["m0002"]
        engine.close()
        engine = SqliteEngine.open(tmp_path)
    engine.close()


#: Runs on a disk of two megabytes: fills it by appending and by flushing, then makes room, then goes on.
ON_A_SMALL_DISK = """
import os, sys
from pathlib import Path
from crdt_spine.core.selection import Selection
from crdt_spine.storage.engine import Checkpoint, Row, StorageFull
from crdt_spine.storage.sqlite import SqliteEngine
disk = Path(sys.argv[1])
ballast = disk / "ballast"
ballast.write_bytes(b"x" * 600_000)
engine = SqliteEngine.open(disk / "node")
def rows(state, count):
    return [Row(id=f"m{n}", partition=0, alive=True, agent="ann", thread=None, created=n, expires=None, tags=(),
                metadata={}, content="", version={"a": n + 1}, state=state) for n in range(count)]
engine.flush(rows(b"old", 10), [], Checkpoint(through=1))
last, full = 0, 0
try:
    while True:
        engine.flush(rows(os.urandom(500), 500), [], Checkpoint(through=last))
        last = engine.append(b"x" * 20_000)
except StorageFull:
    full += 1
through = engine.checkpoint.through
for attempt in range(3):
    try:
        while True:
            last = engine.append(b"x" * 20_000)
    except StorageFull:
        full += 1
    try:
        engine.flush(rows(b"bad" * 200, 2000), [], Checkpoint(through=9999))
    except StorageFull:
        full += 1
assert full == 7, full
assert engine.checkpoint.through == through
assert [s for s, _ in engine.journal_rows(0)] == list(range(1, last + 1))
ballast.unlink()
assert engine.append(b"y") == last + 1
engine.flush(rows(b"new", 20), [], Checkpoint(through=last + 1))
engine.close()
engine = SqliteEngine.open(disk / "node")
assert engine.checkpoint.through == last + 1
assert [s for s, _ in engine.journal_rows(last)] == [last + 1]
assert engine.get("m19") == b"new"
engine.close()
print("done")
"""


def test_a_full_disk_is_reported_and_survived(tmp_path: Path) -> None:
    # A mount namespace of its own: the small disk goes away with the process.
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    script = f"mount -t tmpfs -o size=2m tmpfs '{tmp_path}' && exec '{sys.executable}' -c \"$0\" '{tmp_path}'"
    command = ["unshare", "-rm", "sh", "-c", script, ON_A_SMALL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# -- not ours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "memories.db"])
def test_a_path_in_use_is_refused_with_the_holders_process_id(tmp_path: Path, name: str) -> None:
    script = "import sys; from crdt_spine.storage.sqlite import SqliteEngine\n" \
             "engine = SqliteEngine.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"  # fmt: skip
    path = tmp_path / name
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StorageUnusable, match=rf"{name}.* is in use by process {process.pid}\b"):
            SqliteEngine.open(path)
        reader = SqliteEngine.open(path, read_only_ok=True)
        assert not reader.writable
        assert reader.get("m") is None
        with pytest.raises(StorageUnusable):
            reader.append(b"x")
        with pytest.raises(StorageUnusable):
            reader.flush([memory(1, 1)], [], Checkpoint())
        reader.close()
    finally:
        process.kill()
        process.wait()
    SqliteEngine.open(path).close()


def test_the_same_process_can_not_open_it_twice_but_again(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path)
    with pytest.raises(StorageUnusable, match=str(os.getpid())):
        SqliteEngine.open(tmp_path)
    engine.append(b"x")
    engine.close()
    engine.close()
    SqliteEngine.open(tmp_path).close()


def test_a_reader_beside_the_writer_sees_what_is_committed(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path)
    engine.flush([memory(1, 1, state=b"one")], [], Checkpoint())
    reader = SqliteEngine.open(tmp_path, read_only_ok=True)
    assert reader.get("m0001") == b"one"
    engine.flush([memory(1, 2, state=b"two")], [], Checkpoint())
    assert reader.get("m0001") == b"two"
    reader.close()
    engine.close()


def test_a_path_that_can_not_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageUnusable, match="can't be written to: Not a directory"):
        SqliteEngine.open(tmp_path / "file" / "node")


def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(StorageUnusable, match="can't be written to: Permission denied"):
        SqliteEngine.open(tmp_path / "node")


@pytest.mark.parametrize("name", ["tables.db", "journal.db"])
def test_another_programs_file_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"certainly no database " * 500)
    with pytest.raises(StorageUnusable, match=rf"{name} can't be used: .*not a database"):
        SqliteEngine.open(tmp_path)
    (tmp_path / name).unlink()
    other = apsw.Connection(str(tmp_path / name))
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StorageUnusable, match=rf"{name} is another program's file"):
        SqliteEngine.open(tmp_path)


def test_the_journal_is_not_taken_for_the_tables(tmp_path: Path) -> None:
    SqliteEngine.open(tmp_path).close()
    shutil.copy(tmp_path / "journal.db", tmp_path / "tables.db")
    with pytest.raises(StorageUnusable, match="another program's file"):
        SqliteEngine.open(tmp_path)


def test_a_file_of_another_format_is_refused_by_number(tmp_path: Path) -> None:
    SqliteEngine.open(tmp_path).close()
    tables = apsw.Connection(str(tmp_path / "tables.db"))
    tables.execute("PRAGMA user_version = 99")
    tables.close()
    with pytest.raises(StorageUnusable, match="storage format 99 and this program knows format 1"):
        SqliteEngine.open(tmp_path)


# -- side by side ----------------------------------------------------------------------------------------------------


def test_appends_and_reads_go_on_while_a_flush_is_under_way(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path)
    engine.flush([memory(n, n + 1, state=b"0") for n in range(2_000)], [], Checkpoint())
    running = threading.Event()
    ended = threading.Event()

    def write() -> None:
        for version in range(1, 6):
            rows = [memory(n, version * 10_000 + n, f"word{version}", b"%d" % version) for n in range(10_000)]
            running.set()
            engine.flush(rows, [], Checkpoint(through=version))
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    running.wait()
    appended = 0
    seen: list[int] = []
    while not ended.is_set():
        appended = engine.append(b"x" * 1_000)
        state = engine.get("m0007")
        assert state is not None
        seen.append(int(state))
        states: set[Any] = {hit.state for hit in engine.select(EVERYTHING, "newest", 30, None, None, 0)}
        assert len(states) == 1, "half a flush was seen"
    thread.join()
    assert appended > 20, "appends waited for the flushes"
    assert seen == sorted(seen)
    assert engine.get("m0007") == b"5"
    engine.close()
