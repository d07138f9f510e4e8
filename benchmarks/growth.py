"""Three nodes become four under load: `python -m benchmarks.growth`; `--quick` to see that it works.

Three nodes as `spine up` runs them, each with all the data; operations are offered in an open loop while a fourth
node is started and added, as `spine cluster add` does it, until the change is over. Reported: how much moved, as a
share of all replicas' memories (a quarter is what a fourth node has to get), failed operations, seconds, and p99
before, while and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import yaml

from benchmarks.offered import lost, machine_load, offered, preloaded
from crdt_spine import Spine
from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent
from crdt_spine.cli.opening import run
from crdt_spine.core.messages import NodeInfo
from crdt_spine.reshaping import Aim, follow, propose
from crdt_spine.supervisor import Supervisor
from crdt_spine.supervisor.supervisor import node_command

NEWCOMER = "spine-4"
BEFORE_SECONDS = 8.0
AFTER_SECONDS = 8.0
CHANGE_SECONDS_MAX = 300.0


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def start_newcomer(supervisor: Supervisor, port: int) -> BoundProcess:
    """`spine node` for a node that the register does not name yet: it waits until it is added. Its file has the others'
    nodes and itself."""
    folder = supervisor.folder
    document = yaml.safe_load((folder / "cluster.yaml").read_text())
    document["cluster"]["nodes"].append({"id": NEWCOMER, "host": "127.0.0.1", "port": port, "zone": "zone-4"})
    file = folder / f"{NEWCOMER}.yaml"
    file.write_text(yaml.safe_dump(document))
    with (folder / f"{NEWCOMER}.log").open("wb") as log:
        command = node_command(NEWCOMER, file, folder / NEWCOMER, supervisor.url)
        return await spawn_bound_to_parent(command, output=log)


async def counts(spine: Spine, name: str) -> int:
    """A count of all nodes' reports, added up."""
    return sum(node.get("counts", {}).get(name, 0) for node in (await spine.status())["nodes"])


async def measure(rate: float, write_share: float, before: float, after: float, memories: int) -> dict[str, Any]:
    """Load, grow, count."""
    with tempfile.TemporaryDirectory(prefix="spine-growth-") as name:
        async with AsyncExitStack() as stack:
            supervisor = await stack.enter_async_context(Supervisor(Path(name), nodes=3, nats_port=0, http_port=0))
            spine = await stack.enter_async_context(Spine.connect(supervisor.url, agent="growth"))
            known = await preloaded(spine, memories)
            port = free_port()
            async with offered(spine, rate, write_share, known) as load:
                await asyncio.sleep(before)
                taken = await counts(spine, "sync_records_taken")
                began = time.perf_counter()
                process = await start_newcomer(supervisor, port)
                stack.push_async_callback(process.stop, 2.0)
                comes = NodeInfo(id=NEWCOMER, zone="zone-4", host="127.0.0.1", port=port)
                session: Any = spine._live
                async with asyncio.timeout(CHANGE_SECONDS_MAX):
                    async for _ in follow(session, await propose(session, Aim(kind="add", comes=comes))):
                        pass
                ended = time.perf_counter()
                taken = await counts(spine, "sync_records_taken") - taken
                await asyncio.sleep(after)
            report = await spine.status()
            replicas = sum(node.get("memories", 0) for node in report["nodes"])
            there = next((node for node in report["nodes"] if node["id"] == NEWCOMER), {})
            return {
                "machine": machine_load(),
                "offered a second": rate,
                "memories": memories + len(load.acknowledged),
                "the new node's share of all replicas, percent": round(100 * there.get("memories", 0) / replicas, 1),
                "records moved / all replicas, percent": round(100 * taken / replicas, 1),
                "seconds": round(ended - began, 1),
                "failed": load.errors(),
                "lost": await lost(spine, load.acknowledged),
                "p99 before": load.p99(began - before / 2, began),
                "p99 while": load.p99(began, ended),
                "p99 after": load.p99(ended + 1, ended + after),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=2_000.0, help="operations offered a second")
    parser.add_argument("--write-share", type=float, default=50.0, help="percent")
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    rate, memories, rounds = arguments.rate, arguments.memories, arguments.rounds
    before, after = BEFORE_SECONDS, AFTER_SECONDS
    if arguments.quick:
        rate, memories, rounds, before, after = min(rate, 200.0), 2_000, 1, 2.0, 2.0
    for number in range(rounds):
        found = run(measure(rate, arguments.write_share / 100, before, after, memories))
        print(json.dumps({"round": number + 1, **found}, indent=2), flush=True)


if __name__ == "__main__":
    main()
