"""A node whose clock is wrong takes no writes, says why, and goes on by itself once its clock is right."""

from __future__ import annotations

import asyncio
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from crdt_spine.core.messages import Store
from crdt_spine.errors import SpineError
from crdt_spine.supervisor.supervisor import node_command

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("wrong-clock")]

SECONDS_MAX = 30


def skewed_node(id: str, config: Path, folder: Path, url: str) -> list[str]:
    """A node whose clock is off by as many seconds as the name of a file in its folder says: `clock=-3`."""
    program = (
        "import sys, time, pathlib, threading; right = time.time_ns; off = [0];"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "def look():\n"
        "    while True:\n"
        "        off[0] = sum(int(file.name[6:]) for file in folder.glob('clock=*'))\n"
        "        time.sleep(0.05)\n"
        "threading.Thread(target=look, daemon=True).start()\n"
        "time.time_ns = lambda: right() + off[0] * 1_000_000_000\n"
        "from crdt_spine.cli.main import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program, *node_command(id, config, folder, url)[3:]]


async def problem(cluster: Any, node: str, said: bool) -> dict[str, Any]:
    """Wait until a node says that its clock is wrong, or no longer does; its report."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            status: dict[str, Any] = await cluster.status(node)
            if status["state"] == "up" and ("its clock is" in (status["problem"] or "")) is said:
                return status
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(("seconds", "words"), [(3, "ahead of"), (-3, "behind")])
async def test_a_node_whose_clock_is_wrong_takes_no_writes_until_it_is_right(
    start_cluster: Any, seconds: int, words: str
) -> None:
    cluster = await start_cluster(node_command=skewed_node)
    async with cluster.spine() as spine:
        await spine.store("all is well")
        wrong = cluster.folder / "spine-3" / f"clock={seconds}"
        wrong.touch()
        status = await problem(cluster, "spine-3", True)
        assert words in status["problem"]
        assert 500 < status["clock_ahead_milliseconds"] * (1 if seconds > 0 else -1) <= 6_000
        with pytest.raises(SpineError, match=f"the clock of node spine-3 is .* {words}"):
            await cluster.run_at("spine-3", Store, id=uuid.uuid4().hex, content="not taken", timeout=1.0)
        assert len(await spine.store_many({"content": f"{n}"} for n in range(50))) == 50, "the others take them"
        for node in ("spine-1", "spine-2"):
            assert (await cluster.status(node))["problem"] is None, "it is one against two"
        wrong.unlink()
        await problem(cluster, "spine-3", False)
        await cluster.run_at("spine-3", Store, id=uuid.uuid4().hex, content="taken", timeout=10.0)
    log = (cluster.folder / "spine-3" / "node.log").read_text(encoding="utf-8")
    assert log.count("the clock of spine-3 is") == log.count("agrees with the others again") == 1


async def test_a_node_whose_stamps_are_ahead_since_its_clock_was_wrong_takes_no_writes_until_then(
    start_cluster: Any,
) -> None:
    cluster = await start_cluster(node_command=skewed_node)

    async def says(words: str | None) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                found = (await cluster.status("spine-3")).get("problem")
                if found is None if words is None else words in (found or ""):
                    return
                await asyncio.sleep(0.1)

    async with cluster.spine() as spine:
        await spine.store("all is well")
        wrong = cluster.folder / "spine-3" / "clock=12"
        wrong.touch()
        ahead = datetime.now(UTC) + timedelta(seconds=6)
        async with asyncio.timeout(SECONDS_MAX):  # the file is looked for all 50 ms
            while (early := await cluster.get_at("spine-3", "early")) is None or early.updated_at < ahead:
                await cluster.run_at("spine-3", Store, id="early", content="stamped ahead", acks=1)
        await says("its clock is")
        wrong.unlink()
        await says("its stamps are")
        with pytest.raises(SpineError, match="the stamps of node spine-3 are"):
            await cluster.run_at("spine-3", Store, id=uuid.uuid4().hex, content="not taken", timeout=1.0)
        assert len(await spine.store_many({"content": f"{n}"} for n in range(50))) == 50, "the others take them"
        await says(None)
        await cluster.run_at("spine-3", Store, id=uuid.uuid4().hex, content="taken", timeout=10.0)
        async with asyncio.timeout(SECONDS_MAX):
            while (await cluster.contents_at("spine-1", ["early"]))["early"] != "stamped ahead":
                await asyncio.sleep(0.1)


async def test_what_a_node_with_a_wrong_clock_was_the_primary_of_is_done_by_others(start_cluster: Any) -> None:
    """It went on being named as the primary by all, and refused all that came."""
    cluster = await start_cluster(node_command=skewed_node)
    ids = [uuid.uuid4().hex for _ in range(6)]
    async with cluster.spine(timeout=10.0) as spine:
        for id in ids:
            await cluster.run_at("spine-3", Store, id=id, content="0", strong=True, timeout=10.0)
        wrong = cluster.folder / "spine-3" / "clock=3"
        wrong.touch()
        await problem(cluster, "spine-3", True)
        for id in ids:
            memory = await spine.get(id, consistency="strong")
            assert memory is not None and memory.content == "0"
            changed = await spine.update(id, content="1", if_version=memory.version)
            assert changed.content == "1"
        with pytest.raises(SpineError, match="the primary"):
            await cluster.run_at("spine-3", Store, id=ids[0], content="2", strong=True, timeout=1.0)
        wrong.unlink()
        await problem(cluster, "spine-3", False)
        for id in ids:
            memory = await spine.get(id, consistency="strong")
            assert memory is not None and memory.content == "1"
