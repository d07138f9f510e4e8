"""What an operation costs in clusters of 3, 4 and 8 nodes: `python -m benchmarks.nodes`; `--quick` to see that it
works.

The same load in an open loop (2,000 operations a second, half of them writes, one agent's process), factor 3, write
quorum 2, every node a process of its own. Reported: CPU microseconds per operation of all processes, of nodes, broker
and client apart, as medians over the rounds, and their ratio to three nodes; and what a cluster costs in a second in
which nobody asks anything. Rounds take turns, so that an hour in which the machine is slower does not look like a
larger cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.offered import machine_load
from crdt_spine import Spine
from crdt_spine.bench.cpu import CpuMeter
from crdt_spine.bench.driver import measure, preload
from crdt_spine.bench.spine_system import SpineTarget
from crdt_spine.bench.workload import Workload
from crdt_spine.cli.opening import run
from crdt_spine.supervisor import Supervisor

IDLE_SECONDS = 6.0
CALM_SECONDS = 12.0  # until what was loaded is in the tables


async def one_round(nodes: int, workload: Workload, idle: float, calm: float) -> dict[str, Any]:
    """A fresh cluster of so many nodes: idle, then under load."""
    with tempfile.TemporaryDirectory(prefix="spine-nodes-") as folder:
        async with (
            Supervisor(Path(folder), nodes=nodes, nats_port=0, http_port=0) as supervisor,
            Spine.connect(supervisor.url, agent="nodes") as spine,
        ):
            pids = {child.id: child.pid for child in supervisor.children if child.pid is not None}
            target = SpineTarget(spine)
            await preload(target, workload.preload())
            await asyncio.sleep(calm)
            meter = CpuMeter(pids)
            meter.start()
            await asyncio.sleep(idle)
            asleep = meter.stop()
            found = await measure(target, workload, {"client": os.getpid(), **pids})
            each = found.cpu_microseconds
            return {
                "nodes": nodes,
                "done": found.operations,
                "errors": found.errors,
                "total": found.cpu_microseconds_total,
                "client": each["client"],
                "broker": each["broker"],
                "all nodes": sum(each[node.id] for node in supervisor.nodes),
                "idle, a node, ms/s": 1e3 * sum(asleep.seconds[n.id] for n in supervisor.nodes) / nodes / idle,
                "idle, broker, ms/s": 1e3 * asleep.seconds["broker"] / idle,
                "others' cores": found.others_cores or 0.0,
            }


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each size: medians, and the ratio to the smallest one of the same round."""
    rows = []
    for nodes in sorted({one["nodes"] for one in rounds}):
        mine = [one for one in rounds if one["nodes"] == nodes]
        row: dict[str, Any] = {"nodes": nodes, "errors": sum(sum(one["errors"].values()) for one in mine)}
        for name in ("total", "client", "broker", "all nodes", "idle, a node, ms/s", "idle, broker, ms/s"):
            row[name] = round(statistics.median(one[name] for one in mine), 1)
        row["others' cores"] = round(max(one["others' cores"] for one in mine), 2)
        rows.append(row)
    sizes = len(rows)
    turns = [{one["nodes"]: one["total"] for one in rounds[i : i + sizes]} for i in range(0, len(rounds), sizes)]
    for row in rows:
        ratios = [turn[row["nodes"]] / turn[rows[0]["nodes"]] for turn in turns]
        row["ratio"] = round(statistics.median(ratios), 3)
        row["ratios"] = [round(ratio, 2) for ratio in ratios]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 4, 8])
    parser.add_argument("--rate", type=float, default=2_000.0, help="operations offered a second")
    parser.add_argument("--write-share", type=float, default=50.0, help="percent")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    rate, seconds, rounds, idle, calm, ids = (
        arguments.rate,
        arguments.seconds,
        arguments.rounds,
        IDLE_SECONDS,
        CALM_SECONDS,
        20_000,
    )
    if arguments.quick:
        rate, seconds, rounds, idle, calm, ids = min(rate, 200.0), 2.0, 1, 1.0, 0.5, 300
    workload = Workload(write_share=arguments.write_share / 100, rate=rate, seconds=seconds, ids=ids)
    found = []
    for _ in range(rounds):
        for nodes in arguments.nodes:
            found.append(run(one_round(nodes, workload, idle, calm)))
            print(json.dumps(found[-1]), machine_load(), flush=True)
    for row in summary(found):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
