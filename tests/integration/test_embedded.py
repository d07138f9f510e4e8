"""One node in the agent's own process: its file, who else may have it, and what survives."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from crdt_spine import ConfigError, ConnectionFailed, InvalidInput, Memory, Spine

RunScript = Callable[..., Awaitable[asyncio.subprocess.Process]]

#: Stores memories on and on; prints the id of each once it is acknowledged.
WRITER = """
import asyncio, sys
from crdt_spine import Spine

async def main():
    async with Spine.open(sys.argv[1], agent="writer") as spine:
        print("open", flush=True)
        n = 0
        while True:
            stored = await spine.store_many({"content": f"memory {n + i}", "tags": ["t"]} for i in range(20))
            n += 20
            for memory in stored:
                print(memory.id, memory.content, flush=True)

asyncio.run(main())
"""


async def everything(spine: Spine) -> dict[str, Memory]:
    page = await spine.query(limit=1000)
    memories = list(page.memories)
    while page.cursor is not None:
        page = await spine.query(limit=1000, cursor=page.cursor)
        memories += page.memories
    assert len({memory.id for memory in memories}) == len(memories)
    return {memory.id: memory for memory in memories}


async def test_a_file_opened_again_has_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "memories.db"
    async with Spine.open(path, agent="ada") as spine:
        stored = await spine.store_many(
            {"content": f"memory {n}", "tags": ["t", f"t{n % 3}"], "metadata": {"n": n}, "thread": "talk"}
            for n in range(300)
        )
        changed = await spine.update(stored[1].id, content="changed", add_tags=["new"], ttl=1000)
        await spine.delete(stored[0].id)
        token = spine.token
    for _ in range(2):
        async with Spine.open(str(path), agent="bert", token=token) as spine:
            assert await everything(spine) == {m.id: m for m in [changed, *stored[2:]]}
            assert await spine.get(stored[0].id) is None
            assert {m.id for m in (await spine.query(text="changed")).memories} == {changed.id}
            async with spine.subscribe(tags=["t"], token=token) as updates:
                new = await spine.store("new", tags=["t"])
                assert (await anext(updates)).memory == new
            await spine.delete(new.id)
            token = spine.token


async def test_a_process_killed_in_the_middle_leaves_everything_it_acknowledged(
    tmp_path: Path, run_script: RunScript
) -> None:
    path = tmp_path / "memories.db"
    acknowledged: dict[str, str] = {}
    for round in range(3):
        process = await run_script(WRITER, str(path))
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        while len(acknowledged) < 400 * (round + 1):
            id, content = (await process.stdout.readline()).decode().rstrip("\n").split(" ", 1)
            acknowledged[id] = content
        os.kill(process.pid, signal.SIGKILL)
        rest = (await process.stdout.read()).decode().splitlines(keepends=True)
        acknowledged |= {line.split(" ", 1)[0]: line.rstrip("\n").split(" ", 1)[1] for line in rest if line[-1] == "\n"}
        await process.wait()
    async with Spine.open(path, agent="reader") as spine:
        found = await everything(spine)
        assert {id: found[id].content for id in acknowledged if id in found} == acknowledged


async def test_a_second_opener_is_refused_while_the_first_one_lives(tmp_path: Path, run_script: RunScript) -> None:
    path = tmp_path / "memories.db"
    async with Spine.open(path, agent="ada") as spine:
        with pytest.raises(ConfigError, match=r"memories\.db"):
            await Spine.open(path, agent="bert").__aenter__()
        await spine.store("still mine", id="x")
    process = await run_script(WRITER, str(path))
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    with pytest.raises(ConfigError):
        await Spine.open(path, agent="ada").__aenter__()
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    async with Spine.open(path, agent="ada") as spine:
        assert await spine.get("x") is not None


async def test_memory_keeps_nothing_and_shares_nothing() -> None:
    async with Spine.open(":memory:", agent="ada") as one, Spine.open(":memory:", agent="ada") as other:
        stored = await one.store_many({"content": f"word{n}", "tags": ["t"]} for n in range(200))
        assert await one.get(stored[7].id) == stored[7]
        assert len((await one.query(tags=["t"], limit=1000)).memories) == 200
        assert len((await one.query(text="word7")).memories) == 1
        assert (await other.query()).memories == []
        async with one.subscribe(tags=["t"]) as updates:
            await one.delete(stored[0].id)
            assert (await anext(updates)).kind == "deleted"
    async with Spine.open(":memory:", agent="ada") as again:
        assert (await again.query()).memories == []


async def test_a_name_that_the_file_system_does_not_take_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "x" * 300 + ".db"):
        with pytest.raises(ConfigError, match="File name too long; choose another path"):
            await Spine.open(tmp_path / name, agent="ada").__aenter__()


async def test_what_is_no_memory_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but mine " * 100)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for path in (text, foreign, text / "below"):
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(ConfigError, match=path.name):
            await Spine.open(path, agent="ada").__aenter__()
        assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("path", [None, 5, b"bytes", "", "a\0b", "x" * 5000, ["list"]])
async def test_an_odd_path_is_refused_at_once(path: object) -> None:
    with pytest.raises(InvalidInput, match="path"):
        Spine.open(path, agent="ada")  # type: ignore[arg-type]


async def test_a_spine_is_entered_once_and_can_be_opened_again(tmp_path: Path) -> None:
    spine = Spine.open(tmp_path / "memories.db", agent="ada")
    async with spine:
        await spine.store("x", id="x")
        with pytest.raises(InvalidInput, match="open already"):
            await spine.__aenter__()
        assert await spine.get("x") is not None
    async with spine:
        assert await spine.get("x") is not None
    await spine.close()


async def test_operations_under_way_when_a_spine_closes_end_with_an_error_or_an_answer(tmp_path: Path) -> None:
    async with Spine.open(tmp_path / "memories.db", agent="ada") as spine:
        tasks = [asyncio.create_task(spine.store(f"{n}", id=f"{n}")) for n in range(2000)]
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Memory | ConnectionFailed) for result in results)
    async with Spine.open(tmp_path / "memories.db", agent="ada") as spine:
        for result in results:
            if isinstance(result, Memory):
                assert await spine.get(result.id) == result
