"""A steady load from a timetable, and what came of each operation, second by second: for benchmarks in which
something happens meanwhile.

An open loop, as in crdt_spine/bench/driver.py: latency counts from when an operation should have started, so a stall
shows in everything that was due meanwhile. Reads are of memories that were there before; each write stores a new
memory, so that afterwards it can be counted which of the acknowledged ones are there.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from crdt_spine import SpineError
from crdt_spine.bench.driver import percentile
from crdt_spine.bench.workload import Workload
from crdt_spine.core.messages import Query
from crdt_spine.core.selection import Selection
from crdt_spine.spine import Spine

TICK_SECONDS = 0.001
IN_FLIGHT_MAX = 4_096  # then the load waits, and its latencies show it
LOADED = 20_000
DRAIN_SECONDS_MAX = 30.0


class Offered:
    """What was offered so far. `done` has (when it was due, seconds it took, was it a write) of what succeeded,
    `failed` when it was due and the error; `acknowledged` are the ids of the writes that were."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.done: list[tuple[float, float, bool]] = []
        self.failed: list[tuple[float, str]] = []
        self.acknowledged: set[str] = set()
        self.known: list[str] = []  # what reads ask for

    def p99(self, since: float, until: float, *, writes: bool | None = None, percent: float = 99.0) -> float | None:
        """Of what was due in this time, in milliseconds; None of nothing. Of `writes` alone, or of reads. What failed
        counts for nothing here."""
        took = sorted(seconds for due, seconds, write in self.done if since <= due < until and writes in (None, write))
        return round(percentile(took, percent) * 1e3, 1) if took else None

    def by_second(self, since: float, until: float, moment: float) -> dict[str, float | None]:
        """The p99 of each second, named by its distance from `moment`."""
        seconds = range(round(since - moment), round(until - moment))
        return {f"{n:+d}": self.p99(moment + n, moment + n + 1) for n in seconds}

    def errors(self, since: float = 0.0, until: float = float("inf")) -> dict[str, int]:
        """How many failed, by what they said."""
        return dict(Counter(error for due, error in self.failed if since <= due < until))


@asynccontextmanager
async def offered(spine: Spine, rate: float, write_share: float, known: Iterable[str]) -> AsyncIterator[Offered]:
    """Offer so many operations a second for as long as the block runs; all of them are over when it ends."""
    load = Offered()
    load.known = list(known)
    stop = asyncio.Event()
    offering = asyncio.create_task(_offer(spine, rate, write_share, load, stop))
    try:
        yield load
    finally:
        stop.set()
        await offering


async def _offer(spine: Spine, rate: float, write_share: float, load: Offered, stop: asyncio.Event) -> None:
    dice = random.Random(11)
    words = [operation.content for operation in Workload(ids=2_048).preload()]
    clock = time.perf_counter
    begun = load.begun = clock()
    running: set[asyncio.Task[None]] = set()

    async def one(due: float, write: bool, choice: int) -> None:
        try:
            if write:
                memory = await spine.store(words[choice % len(words)], tags=("offered", f"kind-{choice % 12}"))
                load.acknowledged.add(memory.id)
            elif await spine.get(load.known[choice % len(load.known)]) is None:
                raise LookupError("a memory that was there is not found")
        except (SpineError, LookupError) as error:
            load.failed.append((due, f"{type(error).__name__}: {error}"[:120]))
        else:
            load.done.append((due, clock() - due, write))

    count, owed = 0, 0.5
    while not stop.is_set():
        await asyncio.sleep(TICK_SECONDS)
        now = clock()
        while (due := begun + count / rate) <= now and len(running) < IN_FLIGHT_MAX:
            count += 1
            owed += write_share
            write = owed >= 1
            owed -= write
            task = asyncio.create_task(one(due, write, dice.getrandbits(30)))
            running.add(task)
            task.add_done_callback(running.discard)
    if running:
        await asyncio.wait(running, timeout=DRAIN_SECONDS_MAX)
    for task in running:
        task.cancel()
        load.failed.append((clock(), "never answered"))


async def preloaded(spine: Spine, count: int = LOADED) -> list[str]:
    """Store so many memories to be read; their ids."""
    operations = iter(Workload(ids=count).preload())
    ids: list[str] = []

    async def caller() -> None:
        for operation in operations:
            memory = await spine.store(operation.content, tags=operation.tags)
            ids.append(memory.id)

    await asyncio.gather(*[caller() for _ in range(128)])
    return ids


def machine_load() -> str:
    """How busy the machine is, this program included; much above its cores, and figures say little."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


async def ids_at(spine: Spine, node: str, tag: str = "offered") -> set[str]:
    """The ids of all memories with this tag that one node has, asked alone."""
    session: Any = spine._live
    held = tuple(number for number, nodes in session.layout.replicas.items() if node in nodes)
    found: set[str] = set()
    after: tuple[int, str] | None = None
    while True:
        query = Query(
            i=session.number(), selection=Selection(tags=(tag,)), order="oldest", limit=1_000, after=after,
            partitions=held,
        )  # fmt: skip
        page = await session.run(query, (node,), use_token=False, timeout=20.0)
        found.update(hit.id for hit in page.hits)
        if not page.more:
            return found
        after = (page.hits[-1].created, page.hits[-1].id)


async def lost(spine: Spine, acknowledged: set[str], seconds: float = 60.0) -> int:
    """How many of these memories are not at every node that is to have them, once nodes had time to catch up."""
    deadline = time.perf_counter() + seconds
    while True:
        session: Any = spine._live
        layout = session.layout
        missing: set[str] = set()
        try:
            there = {node.id: await ids_at(spine, node.id) for node in session.hello.nodes}
        except SpineError:
            if time.perf_counter() > deadline:
                raise
            await asyncio.sleep(0.5)
            continue
        for id in acknowledged:
            if any(id not in there[node] for node in layout.replicas[layout.partition_of(id)]):
                missing.add(id)
        if not missing or time.perf_counter() > deadline:
            return len(missing)
        await asyncio.sleep(0.5)
