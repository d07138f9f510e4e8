"""`spine import` and `spine export` on embedded databases."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crdt_spine.cli.intake import Intake
from crdt_spine.cli.lines import CHUNK_BYTES, Line, Lines
from crdt_spine.cli.main import main
from crdt_spine.errors import SpineError
from crdt_spine.interchange import FieldMap
from crdt_spine.limits import IMPORT_LINE_BYTES_MAX
from crdt_spine.memory import Memory
from crdt_spine.spine import Spine

SPINE = [sys.executable, "-m", "crdt_spine.cli.main"]

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("SPINE_SERVER", "SPINE_AGENT", "SPINE_SESSION", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return str(tmp_path / "memories.db")


@pytest.fixture
def spine(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """`spine("import", …)` in this process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        code = main(arguments)
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return subprocess.CompletedProcess(arguments, code, captured.out, captured.err)

    return run


def write(path: Path, *rows: Any) -> str:
    """A file of these rows; bytes are lines as they are."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else msgspec.json.encode(row)) + b"\n" for row in rows))
    return str(path)


def memories(spine: Run, database: str) -> list[dict[str, Any]]:
    """What is there, without what each database decides for itself."""
    shown = msgspec.json.decode(spine("query", "--path", database, "--all", "--order", "oldest", "--json").stdout)
    return [{k: v for k, v in memory.items() if k not in ("version", "updated_at")} for memory in shown["memories"]]


# -- import ------------------------------------------------------------------------------------------------------


def test_foreign_fields_are_mapped_and_agents_and_metadata_kept(spine: Run, database: str, tmp_path: Path) -> None:
    file = write(
        tmp_path / "talk.jsonl",
        {"text": "hello", "speaker": "ann", "labels": ["a", "b"], "when": "2024-01-31T12:00:00Z", "turn": 1},
        {"text": "hi", "speaker": "bob", "labels": "a", "when": "2024-01-31T12:00:01Z", "turn": 2},
        {"text": "who was that?", "when": "2024-01-31T12:00:02Z"},
    )
    maps = ["content=text", "agent=speaker", "tags=labels", "created_at=when"]
    options = [word for one in maps for word in ("--map", one)]
    ran = spine("import", file, *options, "--path", database, "--agent", "importer", "--json")
    assert (ran.returncode, ran.stderr) == (0, b"")
    summary = msgspec.json.decode(ran.stdout)
    assert (summary["stored"], summary["failed"], summary["expired"]) == (3, 0, 0)
    assert summary["seconds"] > 0
    found = [(m["content"], m["agent"], m["tags"], m["metadata"], m["created_at"]) for m in memories(spine, database)]
    assert found == [
        ("hello", "ann", ["a", "b"], {"turn": 1}, "2024-01-31T12:00:00Z"),
        ("hi", "bob", ["a"], {"turn": 2}, "2024-01-31T12:00:01Z"),
        ("who was that?", "importer", [], {}, "2024-01-31T12:00:02Z"),
    ]
    again = spine("import", file, *options, "--only-mapped", "--path", database)
    assert again.returncode == 0
    assert b"3 stored, 0 failed" in again.stdout
    assert [m["metadata"] for m in memories(spine, database)].count({}) == 4


def test_a_broken_line_is_reported_with_its_number_and_the_rest_goes_on(
    spine: Run, database: str, tmp_path: Path
) -> None:
    file = write(
        tmp_path / "broken.jsonl",
        {"content": "first"}, b"{broken", b"", b"[1]", {"content": ""}, {"content": "x", "importance": 7},
        b'{"content": "\xff"}', b'{"content": "' + b"y" * IMPORT_LINE_BYTES_MAX + b'"}', {"nothing": 1},
        {"content": "over", "expires_at": "2020-01-01T00:00:00Z"}, {"content": "last"},
    )  # fmt: skip
    ran = spine("import", file, "--path", database)
    assert ran.returncode == 1
    reported = ran.stderr.decode().splitlines()
    assert [line.split(":")[1].strip() for line in reported] == [f"line {number}" for number in (2, 4, 5, 6, 7, 8, 9)]
    assert b"2 stored, 7 failed, 1 had expired" in ran.stdout
    assert [memory["content"] for memory in memories(spine, database)] == ["first", "last"]
    as_json = [
        msgspec.json.decode(line) for line in spine("import", file, "--path", database, "--json").stderr.splitlines()
    ]
    assert [(error["error"], error["line"]) for error in as_json] == [
        ("InvalidInput", number) for number in (2, 4, 5, 6, 7, 8, 9)
    ]


def test_a_number_too_large_for_a_float_is_one_bad_line_and_does_not_end_the_import(
    spine: Run, database: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "large.jsonl", b'{"content": "a", "ttl": 1' + b"0" * 400 + b"}", {"content": "last"})
    ran = spine("import", file, "--path", database)
    assert ran.returncode == 1
    assert ran.stderr.startswith(b"error: line 1: ttl must be a number of seconds above 0")
    assert [memory["content"] for memory in memories(spine, database)] == ["last"]


def test_the_names_of_fields_in_a_reason_can_not_command_a_terminal(spine: Run, database: str, tmp_path: Path) -> None:
    file = write(tmp_path / "rude.jsonl", {"\x1b]0;mine\x07": 1})
    ran = spine("import", file, "--path", database)
    assert ran.returncode == 1
    assert "the fields are ␛]0;mine␇".encode() in ran.stderr
    assert b"\x1b]" not in ran.stderr


async def test_of_lines_with_the_same_id_the_last_one_stays_although_an_earlier_one_is_held_up(database: str) -> None:
    class HeldUp(Spine):
        """As the spine it was made from, but the content "old" gets nowhere until "other" is stored."""

        other_stored = asyncio.Event()

        async def store(self, content: str, **arguments: Any) -> Memory:
            if content == "old":
                await self.other_stored.wait()
            memory = await super().store(content, **arguments)
            if content == "other":
                self.other_stored.set()
            return memory

    def failed(line: int, error: SpineError) -> None:
        raise AssertionError((line, error))

    async def batches() -> AsyncIterator[list[Line]]:
        contents = [("m", "old"), ("m", "new"), ("n", "other")]
        yield [(n, msgspec.json.encode({"id": id, "content": content})) for n, (id, content) in enumerate(contents, 1)]

    async with HeldUp.open(database, agent="importer") as spine:
        assert isinstance(spine, HeldUp)
        intake = Intake(spine, FieldMap(), failed)
        await intake.run(batches())
        assert (intake.stored, intake.failed) == (3, 0)
        found = await spine.get("m")
        assert found is not None
        assert found.content == "new"


async def test_lines_are_numbered_whatever_the_chunks_and_those_that_are_too_long_are_passed_over() -> None:
    long, longest = b"x" * (CHUNK_BYTES + 10), b"y" * (3 * CHUNK_BYTES)
    text = b"\n".join([b"a", b"", long, longest, b"b" * 99, longest, b"last"])
    expected: list[Line] = [
        (1, b"a"), (2, b""), (3, long), (4, None), (5, b"b" * 99), (6, None), (7, b"last"),
    ]  # fmt: skip

    async def read(data: bytes) -> tuple[list[Line], int]:
        reading, writing = os.pipe()
        feeding = asyncio.create_task(asyncio.to_thread(feed, writing, data))
        lines = Lines(reading, 2 * CHUNK_BYTES)
        found = [line async for batch in lines for line in batch]
        await feeding
        os.close(reading)
        return found, lines.bytes_read

    def feed(writing: int, data: bytes) -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)

    for ending in (b"", b"\n"):
        assert await read(text + ending) == (expected, len(text + ending))
    assert (await read(text + b"\n" + longest))[0] == [*expected, (8, None)]
    assert (await read(b""))[0] == []


# -- export ------------------------------------------------------------------------------------------------------


def test_what_is_exported_imports_again_to_the_same_memories(spine: Run, database: str, tmp_path: Path) -> None:
    rows = [
        {
            "content": f"memory {number} ünï\n\u2028", "agent": f"agent-{number % 5}",
            "tags": ["all", f"t{number % 3}"],
            "metadata": {"n": number, "deep": {"a": [1, None, "x"]}, "content": "a key like a field"},
            "importance": number % 10 / 10, "created_at": f"2024-01-01T00:{number // 60 % 60:02}:{number % 60:02}Z",
            **({"thread": "t"} if number % 2 else {}), **({"id": f"own {number}"} if number % 7 == 0 else {}),
        }
        for number in range(1_500)
    ]  # fmt: skip
    assert spine("import", write(tmp_path / "in.jsonl", *rows), "--path", database).returncode == 0
    spine("store", "expires", "--ttl", "1h", "--path", database)
    exported = str(tmp_path / "out.jsonl")
    ran = spine("export", exported, "--path", database)
    assert ran.returncode == 0
    assert b"1,501 exported" in ran.stdout

    copy = str(tmp_path / "copy.db")
    assert spine("import", exported, "--path", copy, "--json").returncode == 0
    before, after = memories(spine, database), memories(spine, copy)
    lifetimes = before[-1].pop("expires_at"), after[-1].pop("expires_at")
    assert before == after
    assert lifetimes[0][:16] == lifetimes[1][:16]
    assert spine("export", "--path", copy, "--tag", "t1", "--agent", "agent-1").stdout.count(b"\n") == 100


def test_an_export_that_fails_leaves_the_file_as_it_was(spine: Run, database: str, tmp_path: Path) -> None:
    spine("store", "x", "--path", database)
    file = tmp_path / "out.jsonl"
    file.write_text("before")
    failed = spine("export", str(file), "--server", "nats://127.0.0.1:1", "--timeout", "0.1")
    assert failed.returncode == 4
    assert file.read_text() == "before"
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.jsonl"]
    assert spine("export", str(file), "--path", database).returncode == 0
    assert msgspec.json.decode(file.read_bytes())["content"] == "x"
    missing = spine("export", str(tmp_path / "no" / "where"), "--path", database)
    assert missing.returncode == 1
    assert missing.stderr == f"error: {tmp_path / 'no' / 'where'}: No such file or directory\n".encode()
    assert spine("export", os.devnull, "--path", database).returncode == 0
    assert Path(os.devnull).is_char_device()


def test_a_reader_that_leaves_ends_the_output_quietly(spine: Run, database: str, tmp_path: Path) -> None:
    rows = [{"content": "x" * 500} for _ in range(1_500)]
    assert spine("import", write(tmp_path / "in.jsonl", *rows), "--path", database).returncode == 0
    for arguments in (["export"], ["query", "--all"], ["query", "--all", "--json"]):
        with subprocess.Popen(
            [*SPINE, *arguments, "--path", database], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as writing:
            assert writing.stdout is not None
            assert writing.stderr is not None
            assert writing.stdout.read(100)
            writing.stdout.close()
            assert writing.stderr.read() == b""
            assert writing.wait(10) == 141
