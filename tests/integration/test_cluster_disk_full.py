"""A full disk: writes say so within their timeout, reads go on, nothing acknowledged is lost, and it goes on by itself
once there is room."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crdt_spine import QuorumFailed, Spine, SpineError
from crdt_spine.core.messages import Query
from crdt_spine.core.selection import Selection
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.supervisor.supervisor import node_command

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("cluster_disk_full")]

Cluster = Any
ROOM = 1 << 40
LATE_SECONDS_MAX = 10.0  # behind a call's timeout, on a busy machine

#: A node whose files may not grow any more as long as there is a file "full" beside them.
LIMITED_NODE = """
import pathlib, sys, threading, time
from crdt_spine.storage.sqlite import SqliteEngine

folder = pathlib.Path(sys.argv[sys.argv.index("--data") + 1])
opened = SqliteEngine.open

def watch(engine):
    full = False
    while True:
        if (folder / "full").exists() != full:
            full = not full
            engine.limit_bytes(*((1, 1) if full else (1 << 40, 1 << 40)))
        time.sleep(0.01)

def open(*arguments, **options):
    engine = opened(*arguments, **options)
    threading.Thread(target=watch, args=(engine,), daemon=True).start()
    return engine

SqliteEngine.open = open
from crdt_spine.cli.main import main
sys.exit(main())
"""


def limited_node(id: str, config: Path, folder: Path, url: str) -> list[str]:
    return [sys.executable, "-c", LIMITED_NODE, *node_command(id, config, folder, url)[3:]]


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex}"


async def until_state(cluster: Cluster, node: str, state: str, spine: Spine | None = None) -> None:
    """Wait for a node's state. That its disk is full a node finds out when it writes: `spine`, if any, writes on."""
    async with asyncio.timeout(40):
        while (await cluster.status(node))["state"] != state:
            if spine is not None:
                with contextlib.suppress(QuorumFailed):
                    await spine.store("is there room?")
            await asyncio.sleep(0.05)


async def fill(spine: Spine, mark: str) -> dict[str, str]:
    """Store until the disk is full; what was acknowledged."""
    acknowledged: dict[str, str] = {}
    for n in range(10_000):
        content = f"{n} " + "x" * 10_000
        started = time.monotonic()
        try:
            memory = await spine.store(content, tags=[mark])
        except QuorumFailed as error:
            assert time.monotonic() - started < spine._live.timeout + LATE_SECONDS_MAX
            assert error.outcome == "unknown", "it was taken before the disk was found full"
            return acknowledged
        acknowledged[memory.id] = content
    raise AssertionError("the disk never was full")


async def test_one_full_node_of_three_holds_nobody_up(start_cluster: Any, mark: str) -> None:
    cluster = await start_cluster(node_command=limited_node)
    async with cluster.spine() as spine, cluster.spine("reader") as reader:
        before = await spine.store_many({"content": "x" * 300, "tags": [mark]} for _ in range(300))
        await spine.wait_for(spine.token)
        (cluster.folder / "spine-1" / "full").touch()
        async with reader.subscribe(tags=[mark]) as updates:
            # Within the call's timeout: the others take what the full one can't.
            stored = await spine.store_many({"content": "y" * 300, "tags": [mark]} for _ in range(300))
            async with asyncio.timeout(30):
                told = {(await anext(updates)).memory.id for _ in range(300)}
            assert told == {memory.id for memory in stored}
        await until_state(cluster, "spine-1", "full", spine)

        # The full node still answers for what it has.
        assert None not in (await cluster.contents_at("spine-1", [memory.id for memory in before])).values()
        latest = max(memory.created_at for memory in before)
        known = Selection(tags=(mark,), until=int(latest.timestamp() * 1000 + 1) << 16)
        page = await cluster.run_at("spine-1", Query, selection=known, limit=1000)
        assert {hit.id for hit in page.hits} == {memory.id for memory in before}

        # And with room again it catches up, without being started anew.
        pid = cluster.pid("spine-1")
        (cluster.folder / "spine-1" / "full").unlink()
        await until_state(cluster, "spine-1", "up")
        async with asyncio.timeout(30):
            while None in (await cluster.contents_at("spine-1", [memory.id for memory in stored])).values():
                await asyncio.sleep(0.1)
        assert cluster.pid("spine-1") == pid
        await spine.store("goes on", tags=[mark])


async def test_two_full_nodes_of_three_take_no_quorum_writes_and_say_so(start_cluster: Any, mark: str) -> None:
    cluster = await start_cluster(node_command=limited_node)
    async with cluster.spine(timeout=1.5) as spine:
        before = await spine.store_many({"content": "x" * 300, "tags": [mark]} for _ in range(100))
        for node in ("spine-1", "spine-2"):
            (cluster.folder / node / "full").touch()
        acknowledged = await fill(spine, mark)
        await until_state(cluster, "spine-1", "full", spine)
        await until_state(cluster, "spine-2", "full", spine)
        async with asyncio.timeout(40):  # spine-3 hears of it with the next announcement
            for n in itertools.count():
                refused = f"{mark}-refused-{n}"
                with pytest.raises(QuorumFailed, match=r"quorum|disk") as failed:
                    await spine.store("refused", id=refused)
                if failed.value.outcome == "not applied":
                    break
        for memory in before:
            assert await spine.get(memory.id) == memory
        for node in ("spine-1", "spine-2"):
            (cluster.folder / node / "full").unlink()
        await until_state(cluster, "spine-1", "up")
        await until_state(cluster, "spine-2", "up")
        async with asyncio.timeout(20):
            while True:
                try:
                    await spine.store("goes on", tags=[mark])
                    break
                except SpineError:
                    await asyncio.sleep(0.1)
        for id, content in acknowledged.items():
            memory = await spine.get(id)
            assert memory is not None
            assert memory.content == content
        assert await spine.get(refused) is None


async def check_full(spine: Spine, acknowledged: dict[str, str], mark: str) -> None:
    """Reads go on, writes are refused in words."""
    found = (await spine.query(tags=[mark], limit=1000)).memories
    assert next(reversed(acknowledged)) in {memory.id for memory in found}, "the newest comes first"
    for id, content in acknowledged.items():
        memory = await spine.get(id)
        assert memory is not None
        assert memory.content == content
    assert (await spine.status())["nodes"][0]["state"] == "full"
    for attempt in (spine.store("refused"), spine.update(next(iter(acknowledged)), content="refused")):
        started = time.monotonic()
        with pytest.raises(QuorumFailed, match="disk of node embedded is full") as failed:
            await attempt
        assert failed.value.outcome == "not applied"
        assert time.monotonic() - started < spine._live.timeout + LATE_SECONDS_MAX


async def goes_on(spine: Spine) -> None:
    async with asyncio.timeout(15):
        while (await spine.status())["nodes"][0]["state"] != "up":
            await asyncio.sleep(0.05)
    stored = await spine.store("there is room", id="room")
    assert await spine.get("room") == stored


async def still_there(path: Path, acknowledged: dict[str, str]) -> None:
    async with Spine.open(path, agent="ada") as spine:
        for id, content in acknowledged.items():
            memory = await spine.get(id)
            assert memory is not None
            assert memory.content == content


async def test_a_full_embedded_node_reads_on_and_goes_on(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[SqliteEngine] = []
    opened = SqliteEngine.open

    def remember(path: Any, **options: Any) -> SqliteEngine:
        engines.append(opened(path, **options))
        return engines[-1]

    monkeypatch.setattr(SqliteEngine, "open", remember)
    async with Spine.open(tmp_path / "memories.db", agent="ada") as spine:
        spine._live.timeout = 1.0
        acknowledged: dict[str, str] = {}
        for round in range(2):
            some = await spine.store_many({"content": f"{round} {n}", "tags": [mark]} for n in range(200))
            acknowledged |= {memory.id: memory.content for memory in some}
            engines[0].limit_bytes(1, 1)
            acknowledged |= await fill(spine, mark)
            await check_full(spine, acknowledged, mark)
            engines[0].limit_bytes(ROOM, ROOM)
            await goes_on(spine)
    await still_there(tmp_path / "memories.db", acknowledged)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system, and not everywhere")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_file_system_without_space_is_a_full_disk(small_disk: Path, mark: str) -> None:
    path = small_disk / "memories.db"
    async with Spine.open(path, agent="ada") as spine:
        spine._live.timeout = 1.0
        acknowledged = await fill(spine, mark)
        await check_full(spine, acknowledged, mark)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)  # noqa: ASYNC221
        await goes_on(spine)
    await still_there(path, acknowledged)
