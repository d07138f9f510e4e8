"""A node dies under load: `python -m benchmarks.failover`, some forty seconds a round; `--quick` to see that it
works.

Three nodes as `spine up` runs them, 5,000 operations a second offered (half of them writes, unless `--write-share`
says otherwise) by one agent's process in an open loop. After ten seconds one node is killed with SIGKILL; the
supervisor starts it again after its usual pause. Reported: acknowledged writes that are not at every node afterwards,
operations that failed at the agent, the p99 of each second around the kill, and after how many seconds it is as quiet
as before (at most twice the median p99 of the seconds before, from there on).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.offered import Offered, lost, machine_load, offered, preloaded
from crdt_spine import Spine
from crdt_spine.cli.opening import run
from crdt_spine.supervisor import Supervisor

VICTIM = "spine-2"
BEFORE_SECONDS = 10.0
AFTER_SECONDS = 15.0


async def one_round(rate: float, write_share: float, before: float, after: float, memories: int) -> dict[str, Any]:
    """A fresh cluster, the load, the kill."""
    with tempfile.TemporaryDirectory(prefix="spine-failover-") as folder:
        async with (
            Supervisor(Path(folder), nodes=3, nats_port=0, http_port=0) as supervisor,
            Spine.connect(supervisor.url, agent="failover") as spine,
        ):
            known = await preloaded(spine, memories)
            async with offered(spine, rate, write_share, known) as load:
                await asyncio.sleep(before)
                killed = time.perf_counter()
                await supervisor.kill_node(VICTIM)
                await asyncio.sleep(after)
            return {
                "machine": machine_load(),
                "offered a second": rate,
                "done a second": round(len(load.done) / (before + after)),
                "acknowledged writes": len(load.acknowledged),
                "lost": await lost(spine, load.acknowledged),
                "errors": load.errors(),
                "p99 before": load.p99(killed - before / 2, killed),
                "p99 of the second after": load.p99(killed, killed + 1),
                "seconds until quiet": quiet_after(load, killed, before, after),
                "p99 by second": load.by_second(killed - min(before, 5), killed + after, killed),
            }


def quiet_after(load: Offered, moment: float, before: float, after: float) -> int | None:
    """From which second on every one is as quiet as before; None: not any more."""
    usual = [p99 for n in range(1, int(before / 2) + 1) if (p99 := load.p99(moment - n, moment - n + 1)) is not None]
    if not usual:
        return None
    bound = 2 * statistics.median(usual)
    for n in range(int(after) - 1, -1, -1):
        p99 = load.p99(moment + n, moment + n + 1)
        if p99 is None or p99 > bound:
            return n + 1 if n + 1 < int(after) else None
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=5_000.0, help="operations offered a second")
    parser.add_argument("--write-share", type=float, default=50.0, help="percent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    rate, rounds, before, after = arguments.rate, arguments.rounds, BEFORE_SECONDS, AFTER_SECONDS
    memories = 20_000
    if arguments.quick:
        rate, rounds, before, after, memories = min(rate, 300.0), 1, 3.0, 5.0, 500
    for number in range(rounds):
        found = run(one_round(rate, arguments.write_share / 100, before, after, memories))
        print(json.dumps({"round": number + 1, **found}, indent=2), flush=True)


if __name__ == "__main__":
    main()
