"""A replica that was away for too long: the others go on without it, and it begins anew, whatever happens on the road.

Real nodes on a real broker. While it is away, the node runs beside a broker of its own, as if it were behind a cut
network, and takes a write that nobody else ever has.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from rich.console import Console

from crdt_spine import Spine
from crdt_spine.broker.server import EmbeddedBroker
from crdt_spine.cli.status_view import cluster_view
from crdt_spine.interchange import FieldMap
from crdt_spine.supervisor.supervisor import node_command
from tests.conftest import free_port

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("retirement")]

Cluster = Any
RETIREMENT_SECONDS = 9
AWAY = "spine-3"
OTHERS = ("spine-1", "spine-2")

CLUSTER_FILE = """
cluster:
  name: spine
  nodes:
    - {id: spine-1, host: 127.0.0.1, port: %d, zone: a}
    - {id: spine-2, host: 127.0.0.1, port: %d, zone: b}
    - {id: spine-3, host: 127.0.0.1, port: %d, zone: c}
  limits: {replica_retirement: %g, tombstone_seconds: 0.5}
"""

#: A node that announces and fills its tables more often, and dies once at each of several moments of beginning anew.
PROGRAM = """
import os, pathlib, signal, sys
from crdt_spine.node import flusher, replication, reseeding
from crdt_spine.storage import folder
from crdt_spine.cli.main import main
flusher.FLUSH_SECONDS = replication.ANNOUNCE_SECONDS = reseeding.ANNOUNCE_SECONDS = 0.4
deaths = pathlib.Path(sys.argv.pop(1))

def mortal(owner, name, moment):
    method = getattr(owner, name)
    def dies(*arguments):
        if moment == "after":
            method(*arguments)
        try:
            (deaths / f"{name}-{moment}").touch(exist_ok=False)
        except FileExistsError:
            return None if moment == "after" else method(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, dies)

if deaths.is_dir():
    mortal(reseeding._Lines, "add", "after")
    mortal(folder.Files, "discard", "before")
    mortal(folder.Files, "discard", "after")
    remove = folder.Files.remove_discarded
    def half(self):
        if self.discarded.exists() and not (deaths / "half").exists():
            (deaths / "half").touch()
            self.tables.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.discarded.exists() and not (deaths / "removed").exists():
            remove(self)
            (deaths / "removed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        remove(self)
    folder.Files.remove_discarded = half
sys.exit(main())
"""
DEATHS = {"add-after", "discard-before", "discard-after", "half", "removed"}


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    """A folder with the deaths that were died; none is where it is not made."""
    return tmp_path / "deaths"


@pytest.fixture
def command(deaths: Path) -> Callable[[str, Path, Path, str], list[str]]:
    def mortal(id: str, config: Path, folder: Path, url: str) -> list[str]:
        mine = deaths if id == AWAY else deaths / "never"
        return [sys.executable, "-c", PROGRAM, str(mine), *node_command(id, config, folder, url)[3:]]

    return mortal


def prepared(folder: Path, retirement_seconds: float) -> Path:
    folder.mkdir()
    (folder / "cluster.yaml").write_text(CLUSTER_FILE % (free_port(), free_port(), free_port(), retirement_seconds))
    return folder


async def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition that may have to be awaited."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"not within {seconds:g} s: {what}")


async def everywhere(cluster: Cluster, expected: dict[str, str | None]) -> None:
    for node in cluster.ids:

        async def same(node: str = node) -> bool:
            return bool(await cluster.contents_at(node, expected) == expected)

        await until(same, f"{node} has what it should")


async def stored(spine: Spine, count: int, mark: str) -> dict[str, str]:
    memories = await spine.store_many({"content": f"content {n}", "tags": [mark]} for n in range(count))
    return {memory.id: memory.content for memory in memories}


async def shown(spine: Spine) -> str:
    """What `spine status` prints."""
    console = Console(file=io.StringIO(), width=200)
    console.print(cluster_view(await spine.status()))
    return cast("io.StringIO", console.file).getvalue()


async def write_beside(cluster: Cluster, broker: EmbeddedBroker, command: Any, changed: str, deleted: str) -> str:
    """Run the node that is away on a broker of its own; the id of the memory that it takes there. It ends by a kill."""
    config, folder = cluster.folder / "cluster.yaml", cluster.folder / AWAY
    program = command(AWAY, config, folder, broker.url)
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == f"ready {AWAY}\n".encode()
        async with Spine.connect(broker.url, agent="cut-off", consistency="eventual") as spine:
            memory = await spine.store("only here", tags=["lonely"], metadata={"n": 7}, importance=0.9)
            await spine.update(changed, importance=0.1)
            assert await spine.delete(deleted)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    return memory.id


async def test_a_replica_that_was_away_for_too_long_begins_anew_whenever_it_is_killed(
    start_cluster: Any, command: Any, deaths: Path, broker: EmbeddedBroker, tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    cluster = await start_cluster(node_command=command, folder=prepared(tmp_path / "data", RETIREMENT_SECONDS))
    async with cluster.spine() as spine:
        memories = await stored(spine, 60, mark)
        await everywhere(cluster, memories)  # type: ignore[arg-type]
        before = await cluster.status(AWAY)
        await cluster.kill(AWAY)
        gone, stay = list(memories)[:30], list(memories)[30:]
        lonely = await write_beside(cluster, broker, command, changed=gone[0], deleted=stay[0])
        shutil.copytree(cluster.folder / AWAY, tmp_path / "old disk")
        assert all(await asyncio.gather(*[spine.delete(id) for id in gone]))

        async def waited_for() -> bool:
            statuses = [await cluster.status(node) for node in OTHERS]
            return all(AWAY in status["tombstones_wait_for"] for status in statuses)

        await until(waited_for, "it is said for whom tombstones stay")
        status = await cluster.status("spine-1")
        assert status["tombstones"] == 30 and status["oldest_tombstone_seconds"] > 0
        assert "up to 30 tombstones on a node, the oldest" in await shown(spine)
        assert f"they wait for {AWAY}, silent for" in await shown(spine)

        async def forgotten() -> bool:
            statuses = [await cluster.status(node) for node in OTHERS]
            return all(status["retired"] and not status["tombstones"] for status in statuses)

        await until(forgotten, "it is retired, and nobody waits for it")
        status = await cluster.status("spine-1")
        assert status["retired"] == [before["actor"]], "by the name under which its disk began"
        assert status["tombstones_wait_for"] == {}
        assert f"retired: {before['actor']}" in await shown(spine)

        Path.mkdir(deaths)
        cluster.supervisor.start_node(AWAY)
        cluster.supervisor.set_node_restart(True)
        expected = dict.fromkeys(gone) | {id: memories[id] for id in stay} | {lonely: None}

        async def back() -> bool:
            status = await cluster.status(AWAY)
            return bool(status["state"] == "up" and status["retired"] and status["memories"] == len(stay))

        await until(back, "it serves again")
        assert set(os.listdir(deaths)) == DEATHS  # noqa: PTH208
        await everywhere(cluster, expected)
        status = await cluster.status(AWAY)
        assert status["problem"] is None and status["actor"] not in (before["actor"], *status["retired"])

        files = {path.name: path for path in (cluster.folder / AWAY).glob("refused-*")}
        assert len(files) == 2 and not any(name.endswith(".part") for name in files)
        lines = sorted(files.items(), key=lambda item: "deletions" in item[0])
        found = [FieldMap().arguments(line, datetime.now(UTC)) for line in lines[0][1].read_bytes().splitlines()]
        kept = {one["id"]: one for one in found if one is not None}
        assert kept.keys() == {lonely, gone[0]}
        assert kept[lonely]["content"] == "only here" and kept[lonely]["metadata"] == {"n": 7}
        assert [msgspec.json.decode(line) for line in lines[1][1].read_bytes().splitlines()] == [{"id": stay[0]}]

        await spine.store(**{key: kept[lonely][key] for key in ("id", "content", "tags", "metadata", "importance")})
        expected[lonely] = "only here"
        await everywhere(cluster, expected)

        # The old disk once more: its name is remembered.
        await cluster.kill(AWAY)
        shutil.rmtree(cluster.folder / AWAY)
        shutil.copytree(tmp_path / "old disk", cluster.folder / AWAY)
        cluster.supervisor.start_node(AWAY)
        cluster.supervisor.set_node_restart(True)

        async def back_again() -> bool:
            again = await cluster.status(AWAY)
            return bool(again["state"] == "up" and again["memories"] == len(stay) + 1)

        await until(back_again, "it serves again")
        await everywhere(cluster, expected)


async def test_a_replica_that_is_back_in_time_just_catches_up(start_cluster: Any, command: Any, tmp_path: Path) -> None:
    cluster = await start_cluster(node_command=command, folder=prepared(tmp_path / "data", 3_600))
    async with cluster.spine() as spine:
        memories = await stored(spine, 20, uuid.uuid4().hex)
        await everywhere(cluster, memories)  # type: ignore[arg-type]
        before = await cluster.status(AWAY)
        await cluster.kill(AWAY)
        gone = list(memories)[:10]
        assert all(await asyncio.gather(*[spine.delete(id) for id in gone]))

        async def waited_for() -> bool:
            status = await cluster.status("spine-1")
            return bool(status["tombstones_wait_for"].get(AWAY, 0) > 4)

        await until(waited_for, "tombstones stay for it")
        status = await cluster.status("spine-1")
        assert (status["tombstones"], status["retired"]) == (10, [])
        await cluster.bring_back(AWAY)
        await everywhere(cluster, memories | dict.fromkeys(gone))
        status = await cluster.status(AWAY)
        assert (status["actor"], status["retired"]) == (before["actor"], [])
        assert status["counts"].get("whole_syncs", 0) == 0
        assert not list((cluster.folder / AWAY).glob("refused-*"))

        async def forgotten() -> bool:
            return not any([(await cluster.status(node))["tombstones"] for node in cluster.ids])

        await until(forgotten, "nobody waits any more")
