"""A node comes back after 100,000 changes of a million memories: `python -m benchmarks.comeback`, some twenty
minutes; `--quick` to see that it works.

Three nodes, three replicas of everything. One is killed, memories at random are updated through the others, and it is
started again while agents go on (500 operations a second in an open loop, half of them writes). Reported: seconds
from its start until it has everything (its process's start included), and the agents' p99 before it started and until
it was level. Benchmarks/catchup.py says what it costs in bytes and pages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.catchup import AWAY, CALM_SECONDS_MAX, calm, change, load, report
from benchmarks.offered import lost, machine_load, offered
from crdt_spine import Spine
from crdt_spine.cli.opening import run
from crdt_spine.supervisor import Supervisor

BEFORE_SECONDS = 10.0
LEVEL_SECONDS_MAX = 300.0
BEHIND_MAX = 200  # changes that are on their way at this load: a node that has all but so many is level


async def level(spine: Spine, changes: int) -> None:
    """Return once the node that was away serves and has what it missed."""
    async with asyncio.timeout(LEVEL_SECONDS_MAX):
        while True:
            node = (await report(spine))[AWAY]
            up = node["state"] == "up" and node["replication_lag_changes"] <= BEHIND_MAX
            if up and node["counts"].get("sync_records_taken", 0) >= changes * 0.9:
                return
            await asyncio.sleep(0.1)


async def measure(count: int, changes: int, rate: float, before: float, folder: Path) -> dict[str, Any]:
    """Load, kill, change, start again under load."""
    async with (
        Supervisor(folder, nodes=3, nats_port=0, http_port=0) as supervisor,
        Spine.connect(supervisor.url, agent="loader", timeout=60) as loader,
        Spine.connect(supervisor.url, agent="comeback") as spine,
    ):
        everyone = {node.id for node in supervisor.nodes}
        ids = await load(loader, count, changes)
        await calm(loader, everyone, CALM_SECONDS_MAX)
        supervisor.set_node_restart(False)
        await supervisor.kill_node(AWAY)
        await change(loader, ids)
        await calm(loader, everyone - {AWAY}, CALM_SECONDS_MAX)
        async with offered(spine, rate, 0.5, ids) as work:
            await asyncio.sleep(before)
            began = time.perf_counter()
            supervisor.start_node(AWAY)
            await level(loader, changes)
            ended = time.perf_counter()
            await asyncio.sleep(2.0)
        found = (await report(loader))[AWAY]["counts"]
        return {
            "machine": machine_load(),
            "memories": count,
            "changes missed": changes,
            "seconds until level": round(ended - began, 1),
            "records it took": found.get("sync_records_taken", 0),
            "offered a second": rate,
            "failed": work.errors(),
            "lost": await lost(spine, work.acknowledged),
            "p99 before": work.p99(began - before * 0.8, began),
            "p99 until level": work.p99(began, ended),
            "p99 by second": work.by_second(began, ended, began),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=500.0, help="operations offered a second meanwhile")
    parser.add_argument("--data", type=Path, help="a folder on the disk to be used")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    count, changes, rate, before = arguments.memories, arguments.changes, arguments.rate, BEFORE_SECONDS
    if arguments.quick:
        count, changes, rate, before = 5_000, 1_000, min(rate, 100.0), 3.0
    with tempfile.TemporaryDirectory(prefix="spine-comeback-", dir=arguments.data) as folder:
        print(json.dumps(run(measure(count, changes, rate, before, Path(folder))), indent=2))


if __name__ == "__main__":
    main()
