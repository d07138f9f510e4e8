"""What an operator sees of replicas that are down: how far behind they are, and which operations failed for them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from crdt_spine import QuorumFailed
from crdt_spine.core.messages import Get, Store
from tests.conftest import free_port

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("dead_replicas"),
    pytest.mark.timeout(120),
]

StartCluster = Callable[..., Awaitable[Any]]
PARTITIONS = 8


def folder(path: Path) -> Path:
    """A folder as `spine up` makes it, of three nodes whose reads ask two of them."""
    path.mkdir()
    cluster = {
        "name": "dead", "region": "local", "partitions": PARTITIONS,
        "nodes": [{"id": f"spine-{n}", "host": "127.0.0.1", "port": free_port()} for n in (1, 2, 3)],
        "replication": {"factor": 3, "write_quorum": 2, "read_quorum": 2},
    }  # fmt: skip
    (path / "cluster.yaml").write_text(yaml.safe_dump({"cluster": cluster}))
    return path


async def shown(cluster: Any, *options: str) -> str:
    """What `spine status` prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crdt_spine.cli.main", "status", "--server", cluster.url, *options,
        env={**os.environ, "COLUMNS": "160"}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(40):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    return output.decode()


async def test_a_dead_replica_had_no_lag_and_an_ordinary_failed_quorum_was_not_counted_or_often(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    cluster = await start_cluster(nodes=3, folder=folder(tmp_path / "dead"))

    async def said(*nodes: str) -> dict[str, dict[str, Any]]:
        return {node: await cluster.status(node) for node in nodes}

    async def until(done: Callable[[dict[str, Any]], bool], *nodes: str) -> None:
        async with asyncio.timeout(40):
            while not done(await said(*nodes)):
                await asyncio.sleep(0.1)

    async def lags() -> tuple[dict[str, Any], dict[str, Any]]:
        """The cluster's report, and its nodes by id."""
        report = await spine.status()
        return report, {node["id"]: node for node in report["nodes"]}

    async def failures(*nodes: str) -> int:
        return sum(one["quorum_failures"] for one in (await said(*nodes)).values())

    async with cluster.spine(timeout=20.0) as spine, cluster.spine(timeout=1.5) as hasty:
        await spine.store_many([{"content": f"{n}"} for n in range(40)])
        await spine.store("kept", id="kept")
        await until(lambda nodes: all(one["memories"] == 41 for one in nodes.values()), *cluster.ids)
        assert await failures(*cluster.ids) == 0

        # One is dead. It has all that there was before.
        await until(
            lambda nodes: not any(n["peers"]["spine-3"]["behind"] for n in nodes.values()), "spine-1", "spine-2"
        )
        await cluster.kill("spine-3")
        await until(lambda nodes: not any(n["peers"]["spine-3"]["alive"] for n in nodes.values()), "spine-1", "spine-2")
        dead = (await lags())[1]["spine-3"]
        assert (dead["state"], dead["replication_lag_changes"], dead["behind"]) == ("down", 0, {})
        assert dead["replication_lag_seconds"] == 0
        assert dead["silent_seconds"] > 2
        assert dead["problem"] == "node spine-3 is not there", "known at once, not when time is over"
        await spine.store_many([{"content": f"new {n}"} for n in range(60)])

        # What one operation asks of two nodes, neither of which reaches three, is one failure.
        session = hasty.session
        read = Get(i=session.number(), id="kept", reads=3)
        write = Store(i=session.number(), id="three", content="x", acks=3)
        before = await failures("spine-1", "spine-2")
        for failed in await asyncio.gather(
            *[session.run(operation, ("spine-1", "spine-2")) for operation in (read, write)], return_exceptions=True
        ):
            assert isinstance(failed, QuorumFailed)
            assert (failed.acks, failed.needed, failed.missing) == (2, 3, ("spine-3",))
        assert await failures("spine-1", "spine-2") == before + 2

        # Two are dead.
        await cluster.kill("spine-2")
        await until(lambda nodes: not nodes["spine-1"]["peers"]["spine-2"]["alive"], "spine-1")
        await asyncio.gather(*[spine.store(f"{n}", consistency="eventual") for n in range(300)])
        report, nodes = await lags()
        assert {id: node["replication_lag_changes"] for id, node in nodes.items()} == {
            "spine-1": 0, "spine-2": 300, "spine-3": 360
        }  # fmt: skip
        assert nodes["spine-3"]["replication_lag_seconds"] == nodes["spine-3"]["silent_seconds"] > 2
        assert nodes["spine-1"]["peers"]["spine-3"]["lag_changes"] == 360
        partitions = report["by_partition"].values()
        for id in ("spine-2", "spine-3"):
            assert sum(one["behind"][id] for one in partitions) == nodes[id]["replication_lag_changes"]
        assert all(one["lag_changes"] == one["behind"]["spine-3"] and one["lag_seconds"] > 2 for one in partitions)
        table = await shown(cluster)
        assert "● down" in table
        assert re.search(r"spine-2 .* 300 changes, \d", table), table
        assert re.search(r"spine-3 .* 360 changes, \d", table), table

        # Operations that raise QuorumFailed are counted, each once.
        before = await failures("spine-1")
        raised = await asyncio.gather(
            *[hasty.store("x", id=f"new-{n}") for n in range(3)], hasty.delete("kept"), hasty.get("kept"),
            hasty.store("x", id="kept", consistency="strong"), return_exceptions=True,
        )  # fmt: skip
        assert all(isinstance(one, QuorumFailed) for one in raised), raised
        assert await failures("spine-1") == before + 6

        # Back, they have no lag.
        await cluster.bring_back("spine-2", "spine-3")
        await until(lambda nodes: all(one.get("memories") == 401 for one in nodes.values()), *cluster.ids)
        await until(lambda nodes: not any(one["replication_lag_changes"] for one in nodes.values()), *cluster.ids)
        assert all(node["state"] == "up" and "silent_seconds" not in node for node in (await lags())[1].values())
