"""The systems that the benchmark measures: they do what a target promises, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
import psutil
import pytest
from click.testing import CliRunner

from crdt_spine import Spine
from crdt_spine.bench.command import bench, choose
from crdt_spine.bench.driver import preload
from crdt_spine.bench.jetstream import JetStreamSystem, JetStreamTarget
from crdt_spine.bench.spine_system import SpineTarget
from crdt_spine.bench.workload import STANDARD, Operation, Workload

WRITE = Operation(True, "m-00007", "the build is red", ("topic-01", "kind-02"))
READ = Operation(False, "m-00007", "", ())


async def test_a_spine_target_stores_what_the_operation_says_and_misses_what_is_not_there(tmp_path: Path) -> None:
    async with Spine.open(tmp_path / "memories.db", agent="bench") as spine:
        target = SpineTarget(spine)
        with pytest.raises(LookupError):
            await target.read(READ)
        await target.write(WRITE)
        await target.read(READ)
        memory = await spine.get("m-00007")
        assert memory is not None
        assert (memory.content, memory.tags) == (WRITE.content, frozenset(WRITE.tags))


async def test_a_bench_against_a_running_cluster_leaves_its_memories_as_they_were(tmp_path: Path) -> None:
    async with Spine.open(tmp_path / "memories.db", agent="somebody") as spine:
        await spine.store("mine", id="m-00007")
        target = SpineTarget(spine, prefix="bench-1-")
        await preload(target, Workload(ids=300).preload())
        await target.read(READ)
        assert len((await spine.query(limit=1_000)).memories) == 301
        await target.delete_all()
        assert [memory.content for memory in (await spine.query()).memories] == ["mine"]


async def test_the_peer_is_three_servers_with_three_replicas_that_end_with_it(tmp_path: Path) -> None:
    async with JetStreamSystem(tmp_path, direct_get=True).running() as running:
        assert isinstance(running.target, JetStreamTarget)
        servers = {name: pid for name, pid in running.processes.items() if name != "client"}
        assert set(servers) == {"leader", "follower 1", "follower 2"}
        for pid in servers.values():
            for socket in psutil.Process(pid).net_connections("inet"):
                assert socket.laddr.ip == "127.0.0.1"
        with pytest.raises(nats.js.errors.KeyNotFoundError):
            await running.target.read(READ)
        for operation in islice(Workload(ids=20).preload(), 20):
            await running.target.write(operation)
        await running.target.write(WRITE)
        await running.target.read(READ)
        status = await running.target.bucket.status()
        assert status.values == 20
        assert status.stream_info.config.num_replicas == 3
        assert status.stream_info.config.allow_direct
        assert status.history == 1
    assert not any(psutil.pid_exists(pid) for pid in servers.values())
    assert not os.listdir(tmp_path), "its data is gone too"  # noqa: PTH208 (nothing else runs in this loop)


def test_the_peer_ends_even_when_the_benchmark_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crdt_spine.bench.command", "--system", "jetstream", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        try:
            me, servers = psutil.Process(program.pid), []
            while len(servers) < 3:
                assert program.poll() is None, "it ended before its servers were up"
                with contextlib.suppress(psutil.NoSuchProcess):  # a child may end while it is looked at
                    servers = [child for child in me.children() if "nats-server" in child.name()]
        finally:
            os.kill(program.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(servers, timeout=10)
    assert not alive


def test_the_command_measures_and_answers_in_json(tmp_path: Path) -> None:
    words = ["--system", "jetstream", "--write-share", "50", "--in-flight", "16", "--seconds", "0.3"]
    done = CliRunner().invoke(bench, [*words, "--quick", "--json", "--data", str(tmp_path)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    (cell,) = report["cells"]
    assert cell["system"] == "JetStream KV"
    assert cell["rounds"][0]["operations"] > 0
    assert cell["rounds"][0]["errors"] == {}
    assert set(cell["rounds"][0]["cpu_microseconds"]) == {"client", "leader", "follower 1", "follower 2"}
    assert report["machine"]["nats_server"].startswith("v2")


def test_a_bench_without_a_cluster_behind_the_server_says_which_and_exits_with_4() -> None:
    done = CliRunner().invoke(bench, ["--server", "nats://127.0.0.1:1", "--quick", "--write-share", "50"])
    assert done.exit_code == 4
    assert "127.0.0.1:1" in done.stderr


def test_without_options_the_standard_workloads_run_and_with_them_only_what_they_say() -> None:
    assert tuple(choose([], [], [], None, quick=False)) == STANDARD
    assert {(load.write_share, load.in_flight) for load in STANDARD if load.rate is None} == {
        (share, depth) for share in (0.5, 0.05, 1.0) for depth in (64, 256, 512)
    }
    assert [load.rate for load in STANDARD if load.rate is not None] == [15_000.0]
    (only,) = choose([0.05], [512], [], 3.0, quick=True)
    assert (only.write_share, only.in_flight, only.rate, only.seconds) == (0.05, 512, None, 3.0)
    (open_loop,) = choose([], [], [9_000.0], None, quick=False)
    assert (open_loop.write_share, open_loop.rate) == (0.5, 9_000.0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_bench_that_is_told_to_end_takes_its_memories_away(
    start_cluster: Callable[..., Awaitable[Any]],
) -> None:
    cluster = await start_cluster(nodes=1)
    (node,) = cluster.ids
    words = ["--server", cluster.url, "--seconds", "60", "--write-share", "100", "--in-flight", "16"]
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crdt_spine.bench.command", *words, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while (await cluster.status(node)).get("memories", 0) < 1_000:
                await asyncio.sleep(0.1)
            program.terminate()
            assert await program.wait() == 128 + signal.SIGTERM
    finally:
        if program.returncode is None:
            program.kill()
    assert (await cluster.status(node))["memories"] == 0
