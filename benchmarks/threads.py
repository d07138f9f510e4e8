"""What a thread costs: appends beside plain stores, and reading all of it. `python -m benchmarks.threads`, a minute or
two; `--entries 500` to see that it works.

A cluster of three nodes, 50 agents in one thread, each of whose entries has all 50 in its clock. Rounds of plain stores
and of appends alternate, with the same contents and as many under way, so that a busy machine is busy for both; each
figure is the median of its rounds. All appends go to one partition, and so to one coordinator; plain stores go to all
three nodes, and once more to ids of one partition only, for the share that this has.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from crdt_spine import Spine
from crdt_spine.core.placement import generated_id, placement_hash
from crdt_spine.supervisor import Supervisor
from crdt_spine.thread import Thread

AGENTS = 50
CONTENT = "The build on main is red since the dependency update; I have looked at the log and think it is ours. " * 3
READS = 5

Write = Callable[[], Awaitable[object]]


async def seconds_each(write: Write, count: int, at_once: int) -> float:
    """The time of one write, with so many of them under way, seconds."""
    left = iter(range(count))

    async def writer() -> None:
        for _ in left:
            await write()

    began = time.perf_counter()
    await asyncio.gather(*[writer() for _ in range(at_once)])
    return (time.perf_counter() - began) / count


async def conversation(spine: Spine, imported: int = 0) -> list[Thread]:
    """A thread as each of the agents has it, who have all read each other, and what was stored with the thread's name
    before: that lies in all partitions, and each entry after it must say so."""
    await spine.store_many({"content": CONTENT, "thread": "incident"} for _ in range(imported))
    threads = [spine.for_agent(f"agent-{number:02}").thread("incident") for number in range(AGENTS)]
    await asyncio.gather(*[thread.append("I am here.") for thread in threads])
    await asyncio.gather(*[thread.read() for thread in threads])
    return threads


async def compare(spine: Spine, threads: list[Thread], entries: int, rounds: int, at_once: int) -> None:
    """Print what a write costs, of each kind."""
    turns, numbers = itertools.cycle(threads), itertools.count()
    here = placement_hash("incident")

    def beside() -> str:
        return generated_id(here, time.time_ns() // 1_000_000, int.from_bytes(os.urandom(9)))

    writes: dict[str, Write] = {
        "plain store": lambda: spine.store(f"{CONTENT}{next(numbers)}"),
        "plain store, one partition": lambda: spine.store(f"{CONTENT}{next(numbers)}", id=beside()),
        "append": lambda: next(turns).append(f"{CONTENT}{next(numbers)}"),
    }
    found: dict[str, list[float]] = {name: [] for name in writes}
    for number in range(rounds):
        for name in list(writes) if number % 2 == 0 else reversed(list(writes)):
            found[name].append(await seconds_each(writes[name], entries // rounds, at_once))
    plain = statistics.median(found["plain store"])
    for name, times in found.items():
        median = statistics.median(times)
        print(
            f"{at_once:3} at once: {name:27} {median * 1e6:6,.0f} µs each, {1 / median:7,.0f} a second, "
            f"{median / plain:4.2f} × a plain store",
            flush=True,
        )


async def main(entries: int, rounds: int, at_once: list[int], imported: int, data: Path | None) -> None:
    """Print what was measured."""
    with tempfile.TemporaryDirectory(prefix="spine-threads-", dir=data) as folder:
        async with (
            Supervisor(Path(folder), nodes=3, nats_port=0, http_port=0) as supervisor,
            Spine.connect(supervisor.url, agent="bench", timeout=60) as spine,
        ):
            threads = await conversation(spine, imported)
            for number in at_once:
                await compare(spine, threads, entries // len(at_once), rounds, number)
            times = []
            for thread in threads[:READS]:
                began = time.perf_counter()
                memories = await thread.read()
                times.append(time.perf_counter() - began)
            clocks = {len(memory.clock) for memory in memories[imported + AGENTS :]}
            print(
                f"reading all {len(memories):,} entries: {statistics.median(times):.2f} s; agents in a clock: {clocks}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000, help="appended in all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--at-once", type=int, nargs="+", default=[64, 1])
    parser.add_argument("--imported", type=int, default=0, help="entries that were there before")
    parser.add_argument("--data", type=Path, help="a folder on the disk to be measured")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.entries, arguments.rounds, arguments.at_once, arguments.imported, arguments.data))
