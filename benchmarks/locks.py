"""What a lock costs that nobody else wants: `python -m benchmarks.locks`, half a minute; `--quick` to see that it
works.

A node and a lock service as `spine up` runs them; one agent, one operation after the other: locks of names that nobody
had before, and the same lock over and over. Beside it, in the same run and in turns, on the same broker (every message
fsynced): one compare-and-set of a JetStream message, its round trip as nats-py does it. Also how long it takes until
the next in line has it. What counts are the ratios of medians; other work on the machine lengthens both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.js.api import StreamConfig

from crdt_spine import Spine
from crdt_spine.cli.opening import run
from crdt_spine.supervisor import Supervisor, lock_service

SET = "compare-and-set"
CONDITION = "Nats-Expected-Last-Subject-Sequence"
LEASE = b"x" * 120  # as long as a lease is


async def measured(rounds: int, count: int) -> dict[str, Any]:
    """Median milliseconds of each."""
    times: dict[str, list[float]] = {}

    async def timed(what: str, work: Callable[[], Awaitable[Any]]) -> Any:
        begun = time.perf_counter()
        result = await work()
        times.setdefault(what, []).append((time.perf_counter() - begun) * 1000)
        return result

    with tempfile.TemporaryDirectory(prefix="spine-locks-") as folder:
        async with (
            Supervisor(Path(folder), nodes=1, nats_port=0, http_port=0, services=(lock_service(),)) as supervisor,
            Spine.connect(supervisor.url, agent="bench") as spine,
            Spine.connect(supervisor.url, agent="next") as other,
        ):
            client = Client()
            await client.connect(supervisor.url)
            js = client.jetstream()
            await js.add_stream(StreamConfig(name="bench", subjects=["bench.>"], max_msgs_per_subject=1))
            async with spine.lock("warm"):
                pass
            number = 0
            for _ in range(rounds):
                for _ in range(count):
                    number += 1
                    await timed(SET, partial(js.publish, f"bench.{number}", LEASE, headers={CONDITION: "0"}))
                    for kind, name in (("", f"lock-{number}"), (" again", "again")):
                        held = spine.lock(name)
                        await timed(f"acquire{kind}", held.__aenter__)
                        await timed(f"release{kind}", partial(held.__aexit__, None, None, None))
                for _ in range(max(1, count // 10)):
                    held = spine.lock("contended")
                    await held.__aenter__()
                    waiting = asyncio.create_task(other.lock("contended").__aenter__())
                    while not any(lock.waiters for lock in await spine.locks()):
                        await asyncio.sleep(0.005)
                    begun = time.perf_counter()
                    await held.__aexit__(None, None, None)
                    lease = await waiting
                    times.setdefault("next in line has it", []).append((time.perf_counter() - begun) * 1000)
                    await lease.release()
            await client.close()
    found = {what: round(statistics.median(ones), 3) for what, ones in times.items()}
    return {
        "median milliseconds": found,
        **{f"{what} / {SET}": round(found[what] / found[SET], 2) for what in ("acquire", "release")},
        f"acquire and release / {SET}": round((found["acquire"] + found["release"]) / found[SET], 2),
        f"the same lock again, acquire and release / {SET}": round(
            (found["acquire again"] + found["release again"]) / found[SET], 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="see that it works")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200, help="of each, a round")
    options = parser.parse_args()
    rounds, count = (1, 20) if options.quick else (options.rounds, options.count)
    print(json.dumps(run(measured(rounds, count)), indent=2))


if __name__ == "__main__":
    main()
