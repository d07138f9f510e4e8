"""A short chaos run: real processes, all kinds of faults, and everything that agents did and saw checked afterwards.

Longer ones: `make chaos`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos.agents import PREFIX_LAST
from chaos.cluster import Cluster
from chaos.faults import FAULTS
from chaos.history import History
from chaos.link import Link
from chaos.reshape import carry_out

from crdt_spine import Spine
from crdt_spine.reshaping import Aim
from crdt_spine.transport.nats import NatsTransport

pytestmark = pytest.mark.xdist_group("chaos")

SECONDS = 18.0
ROUNDS_MAX = 5  # of a run that is to show something


def _run_module() -> Any:
    path = Path(__file__).with_name("run.py")
    spec = importlib.util.spec_from_file_location("chaos_run", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(240)
async def test_everything_holds_through_faults_of_all_kinds(tmp_path: Path) -> None:
    run = _run_module()
    violations, faults = await run.chaos(
        tmp_path / "run", seed="2", seconds=SECONDS, faults=tuple(FAULTS), nodes=3, say=False
    )
    history = History.read(sorted((tmp_path / "run" / "history").glob("*.jsonl")))
    assert violations == [], f"{len(violations)} violations; the history is in {tmp_path / 'run' / 'history'}"
    assert sum(faults.values()) >= 3, f"too little went wrong: {faults}"
    done = [op for op in history.ops if op.outcome == "ok"]
    assert {op.do for op in done} == {"store", "update", "delete", "get", "query", "append", "read"}
    # Every agent was at work, however fast the machine is; some do more than is done before the first fault.
    assert len({op.session.partition("/")[0] for op in done} - {"observer"}) == run.AGENTS, "there was hardly any load"
    assert any(told.id.startswith(PREFIX_LAST) for told in history.told)


@pytest.mark.timeout(400)
async def test_writes_that_are_taken_late_are_noticed(tmp_path: Path) -> None:
    """A rule less: nodes that were stopped take what was asked of them long ago. Not in every run, if the machine is
    busy: the more are made until it shows."""
    violations: list[str] = []
    for seed in range(1, ROUNDS_MAX + 1):
        violations, faults = await _run_module().chaos(
            tmp_path / f"run-{seed}", seed=f"{seed}", seconds=14.0, faults=("stop",), nodes=3, say=False,
            without="deadlines",
        )  # fmt: skip
        assert faults["stop"], "nothing went wrong"
        if any(violation.startswith("sessions: ") for violation in violations):
            return
    pytest.fail(f"nothing showed in {ROUNDS_MAX} runs: {violations}")


async def test_a_link_can_be_cut_and_stall(broker: Any, eventually: Any) -> None:
    link = await Link.open("link", broker.port)
    transport = await NatsTransport.connect(link.url, "test")
    told: list[bytes] = []
    await transport.subscribe("x", lambda message: told.append(message.payload))
    other = await NatsTransport.connect(broker.url, "other")
    try:

        async def hears(word: bytes) -> None:
            async with asyncio.timeout(30):
                while word not in told:
                    other.send("x", word)
                    await asyncio.sleep(0.05)

        await hears(b"before")
        link.set("cut")
        await eventually(lambda: not transport.connected, what="the cut is noticed")
        link.set("pass")
        await eventually(lambda: transport.connected, what="it connects again")
        await hears(b"after the cut")
        link.set("stall-in")
        other.send("x", b"late")
        await asyncio.sleep(0.3)
        assert b"late" not in told, "the direction stands still"
        link.set("pass")
        await eventually(lambda: b"late" in told, what="what was sent comes late")
        link.set("half-open")
        other.send("x", b"lost")
        await asyncio.sleep(0.3)
        assert transport.connected, "nobody is told"
        link.set("pass")
        await hears(b"on a new connection")
        assert b"lost" not in told, "the old one turned out to be dead"
    finally:
        await transport.close()
        await other.close()
        await link.close()


async def test_a_subscriber_that_does_nothing_else_follows_what_moves(tmp_path: Path) -> None:
    """Its session sends nothing, so no answer tells it of a new epoch: a feed that is refused has to."""
    cluster = Cluster(tmp_path, 3)
    await cluster.start()
    try:
        async with Spine.connect(cluster.url, agent="idle") as idle, idle.subscribe(tags=["news"]) as updates:
            newcomer = await cluster.newcomer()
            async with asyncio.timeout(60):
                await carry_out(cluster, Aim(kind="add", comes=newcomer.info))
            stored = await cluster.observer.store_many([{"content": f"{n}", "tags": ["news"]} for n in range(300)])
            told = set()
            async with asyncio.timeout(60):
                while len(told) < len(stored):
                    told.add((await anext(updates)).memory.id)
            assert told == {memory.id for memory in stored}
    finally:
        await cluster.stop()


async def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path, eventually: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("run.py")), "--seconds", "60", "--faults", "delay",
        stdout=asyncio.subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:

        def children() -> list[psutil.Process]:
            try:
                return psutil.Process(process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                return []

        await eventually(lambda: len(children()) >= 7, seconds=60, what="broker, nodes and agents run")
        those = children()
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()

    def gone(one: psutil.Process) -> bool:
        try:
            return not one.is_running() or one.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    await eventually(lambda: all(gone(one) for one in those), seconds=20, what="all of it ends")
