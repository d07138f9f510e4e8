"""What a lock costs that nobody else wants: `python -m benchmarks.locks`, half a minute; `--quick` to see that it
works.

A node and a lock service as `spine up` runs them; one agent, one operation after the other. Beside it, in the same run
and in turns, on the same broker (every message fsynced): one compare-and-set of a JetStream message, its round trip as
nats-py does it, and the pair that a lock without a service would be (compare-and-set, delete). Also how long it takes
until the next in line has it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.js.api import StreamConfig

from crdt_spine import Spine
from crdt_spine.cli.opening import run
from crdt_spine.supervisor import Supervisor, lock_service

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
                    subject = f"bench.{number}"
                    given = await timed(
                        "compare-and-set", lambda s=subject: js.publish(s, LEASE, headers={CONDITION: "0"})
                    )  # fmt: skip
                    erase = json.dumps({"seq": given.seq, "no_erase": True}).encode()
                    await timed("delete", lambda e=erase: client.request("$JS.API.STREAM.MSG.DELETE.bench", e))
                for _ in range(count):
                    number += 1
                    held = spine.lock(f"lock-{number}")
                    await timed("acquire", held.__aenter__)
                    await timed("release", lambda h=held: h.__aexit__(None, None, None))
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
    pair = found["compare-and-set"] + found["delete"]
    return {
        "median milliseconds": found,
        "acquire / compare-and-set": round(found["acquire"] / found["compare-and-set"], 2),
        "acquire and release / compare-and-set": round(
            (found["acquire"] + found["release"]) / found["compare-and-set"], 2
        ),
        "acquire and release / compare-and-set and delete": round((found["acquire"] + found["release"]) / pair, 2),
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
