"""A node comes back after 100,000 changes of a million memories: `python -m benchmarks.comeback`, some five minutes;
`--quick` to see that it works.

Three nodes, three replicas of everything; the memories are put into the tables beforehand (benchmarks/filled.py).
Agents ask for 500 operations a second in an open loop, half of them writes: while all is as usual, while a node is
away, and while it comes back. It is killed, memories at random are updated through the others, and it is started again.
Reported: seconds from its start until it has everything (its process's start included), and the agents' p99 in each of
these times, with the ratio to the usual one, and the median of what it is in each second, as a disk that others share
stands still now and then; what the processes took of the processors meanwhile.
Benchmarks/catchup.py says what a comeback costs in bytes and pages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from benchmarks.catchup import AWAY, CALM_SECONDS_MAX, Report, calm, change
from benchmarks.filled import filled
from benchmarks.offered import Offered, lost, machine_load, offered
from crdt_spine import Spine
from crdt_spine.bench.cpu import cpu_seconds
from crdt_spine.cli.opening import run
from crdt_spine.core.messages import Status
from crdt_spine.errors import SpineError
from crdt_spine.supervisor import Supervisor

READ_MAX = 50_000  # memories that are asked for, at random
USUAL_SECONDS = 20.0  # of load while nothing happens, and ...
AWAY_SECONDS = 10.0  # ... while the node is away
SETTLING_SECONDS = 3.0  # of load before that counts
AFTER_SECONDS = 5.0
LEVEL_SECONDS_MAX = 300.0
LOOK_SECONDS = 0.25
BEHIND_MAX = 200  # changes that are on their way at this load: a node that has all but so many is level


class Sizes(msgspec.Struct):
    """How large it all is: memories, changes that the node misses, operations a second, seconds of load before."""

    memories: int
    changes: int
    rate: float
    usual: float = USUAL_SECONDS
    away: float = AWAY_SECONDS


async def report_of(spine: Spine, node: str) -> Report:
    """One node's status, the others not asked."""
    session: Any = spine._live
    result = await session.run(Status(i=session.number()), (node,), use_token=False, timeout=5.0)
    found: Report = msgspec.json.decode(result.status)
    return found


async def level(spine: Spine, changes: int) -> Report:
    """Return once the node that was away serves and has what it missed: its status."""
    async with asyncio.timeout(LEVEL_SECONDS_MAX):
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                node = await report_of(spine, AWAY)
            except SpineError:
                continue
            near = node["state"] == "up" and node["replication_lag_changes"] <= BEHIND_MAX
            if near and node["counts"].get("sync_records_taken", 0) >= changes * 0.9:
                return node


async def prepared(sizes: Sizes, folder: Path, kept: Path | None) -> tuple[list[str], list[str]]:
    """Fill the folder, or copy what was filled before and kept: the ids that are to be changed, and those to read."""
    source = folder if kept is None else kept / f"{sizes.memories}-{sizes.changes}"
    names = source / "ids.json"
    if not names.exists():
        dice = Random(5)
        changed = set(dice.sample(range(sizes.memories), sizes.changes))
        read = set(dice.sample(range(sizes.memories), min(READ_MAX, sizes.memories)))
        ids = await filled(source, 3, sizes.memories, changed | read, say)
        names.write_bytes(msgspec.json.encode(([ids[n] for n in changed], [ids[n] for n in read])))
    if kept is not None:
        await asyncio.to_thread(shutil.copytree, source, folder, dirs_exist_ok=True)
    found: tuple[list[str], list[str]] = msgspec.json.decode(names.read_bytes(), type=tuple[list[str], list[str]])
    return found


async def measure(sizes: Sizes, folder: Path, kept: Path | None) -> dict[str, Any]:
    """Fill, load, kill, change, start again under load."""
    changed, read = await prepared(sizes, folder, kept)
    async with (
        Supervisor(folder, nodes=3, nats_port=0, http_port=0) as supervisor,
        Spine.connect(supervisor.url, agent="loader", timeout=60) as loader,
        Spine.connect(supervisor.url, agent="comeback") as spine,
    ):
        everyone = {node.id for node in supervisor.nodes}
        await calm(loader, everyone, CALM_SECONDS_MAX)
        await asyncio.to_thread(os.sync)  # else fsyncs wait for what was filled in
        say("load while nothing happens")
        async with offered(spine, sizes.rate, 0.5, read) as usual:
            await asyncio.sleep(SETTLING_SECONDS + sizes.usual)
        supervisor.set_node_restart(False)
        await supervisor.kill_node(AWAY)
        began = time.perf_counter()
        await change(loader, changed)
        say(f"changed {sizes.changes:,} memories in {time.perf_counter() - began:.0f} s")
        await calm(loader, everyone - {AWAY}, CALM_SECONDS_MAX)
        await asyncio.to_thread(os.sync)
        async with offered(spine, sizes.rate, 0.5, read) as work:
            await asyncio.sleep(SETTLING_SECONDS + sizes.away)
            began, before = time.perf_counter(), used(supervisor)
            supervisor.start_node(AWAY)
            node = await level(loader, sizes.changes)
            ended, after = time.perf_counter(), used(supervisor)
            await asyncio.sleep(AFTER_SECONDS)
        usual_seconds = usual.by_second(
            usual.begun + SETTLING_SECONDS, usual.begun + SETTLING_SECONDS + sizes.usual, usual.begun
        )
        level_seconds = work.by_second(began, ended, began)
        usual_second, level_second = median(usual_seconds), median(level_seconds)
        return {
            "machine": machine_load(),
            "memories": sizes.memories,
            "changes missed": sizes.changes,
            "seconds until level": round(ended - began, 1),
            "records it took": node["counts"].get("sync_records_taken", 0),
            "offered a second": sizes.rate,
            "failed": usual.errors() | work.errors(),
            "lost": await lost(spine, usual.acknowledged | work.acknowledged),
            "usual": latencies(usual, usual.begun + SETTLING_SECONDS, usual.begun + SETTLING_SECONDS + sizes.usual),
            "while it is away": latencies(work, work.begun + SETTLING_SECONDS, began),
            "until it is level": latencies(work, began, ended),
            "afterwards": latencies(work, ended, ended + AFTER_SECONDS),
            "p99 until it is level / usual": ratio(work, began, ended, usual),
            "median of the seconds' p99, usual": usual_second,
            "median of the seconds' p99, until it is level": level_second,
            "usual p99 by second": usual_seconds,
            "p99 by second": level_seconds,
            "processors used until it is level": {
                name: round((seconds - before.get(name, 0.0)) / (ended - began), 2) for name, seconds in after.items()
            },
        }


def latencies(load: Offered, since: float, until: float) -> dict[str, Any]:
    """Milliseconds, of everything and by kind."""
    return {
        "operations": sum(since <= due < until for due, _, _ in load.done),
        "p50": load.p99(since, until, percent=50.0),
        "p99": load.p99(since, until),
        "p99 of reads": load.p99(since, until, writes=False),
        "p99 of writes": load.p99(since, until, writes=True),
    }


def ratio(load: Offered, since: float, until: float, usual: Offered) -> float | None:
    """The p99 of this time beside the usual one."""
    here, there = load.p99(since, until), usual.p99(usual.begun + SETTLING_SECONDS, float("inf"))
    return round(here / there, 2) if here is not None and there else None


def median(seconds: dict[str, float | None]) -> float | None:
    """Of the seconds in which anything was done: one stall of the disk moves a p99 of everything, and not this."""
    known = [one for one in seconds.values() if one is not None]
    return round(statistics.median(known), 1) if known else None


def used(supervisor: Supervisor) -> dict[str, float]:
    """Processor seconds of each process so far."""
    pids = {child.id: child.pid for child in supervisor.children if child.pid is not None}
    found = {name: cpu_seconds(pid) for name, pid in pids.items()}
    return {"agents": time.process_time()} | {name: seconds for name, seconds in found.items() if seconds is not None}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=500.0, help="operations offered a second meanwhile")
    parser.add_argument("--data", type=Path, help="a folder on the disk to be used")
    parser.add_argument("--keep", type=Path, help="a folder where filled data stays, to be copied the next time")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    sizes = Sizes(arguments.memories, arguments.changes, arguments.rate)
    if arguments.quick:
        sizes = Sizes(5_000, 1_000, min(arguments.rate, 100.0), 3.0, 3.0)
    with tempfile.TemporaryDirectory(prefix="spine-comeback-", dir=arguments.data) as folder:
        print(json.dumps(run(measure(sizes, Path(folder), arguments.keep)), indent=2))


if __name__ == "__main__":
    main()
