"""What a node that was away costs the others: `python -m benchmarks.catchup`, with a million memories some ten minutes;
`--memories 20000` to see that it works.

Three nodes, three replicas of everything. One is killed, 1,000 memories at random are updated through the others, and
it is started again. It replays its journal, shakes hands, hears what it misses and asks for it: since(its vectors).

- **transferred**: all bytes of the sync pages that it took, the operation ids in them and its own requests included,
  beside the bytes of those 1,000 records in the form in which pages carry them. Announcements are not in it: they come
  once a second whatever happens.
- **read**: the pages of 4 KiB that the other two fetched from their tables to answer, one that was fetched twice
  counted twice, beside the pages that one node's tables have. The flush of the updates has emptied their caches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.million import AT_ONCE, LOADERS, memories
from crdt_spine import Spine
from crdt_spine.core import codec
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.supervisor import Supervisor

AWAY = "spine-3"
CALM_SECONDS_MAX = 900.0  # until everything loaded is in the tables and at every node
CATCH_UP_SECONDS_MAX = 120.0
UPDATES_AT_ONCE = 64

Report = dict[str, Any]
Nodes = dict[str, Report]


async def load(spine: Spine, count: int, wanted: int) -> list[str]:
    """Store so many memories; the ids of `wanted` of them, at random."""
    dice = random.Random(5)
    numbers = set(dice.sample(range(count), wanted))
    chosen: list[str] = []
    batches = enumerate(memories(count))

    async def loader() -> None:
        for index, batch in batches:
            for number, memory in enumerate(await spine.store_many(batch), index * AT_ONCE):
                if number in numbers:
                    chosen.append(memory.id)

    await asyncio.gather(*[loader() for _ in range(LOADERS)])
    return chosen


async def change(spine: Spine, ids: list[str]) -> None:
    """Update each: half of them a new content of the same length, half a tag or a number."""
    dice = random.Random(7)
    limit = asyncio.Semaphore(UPDATES_AT_ONCE)
    contents = [memory["content"] for batch in memories(len(ids)) for memory in batch]

    async def update(id: str, content: str) -> None:
        async with limit:
            match dice.randrange(4):
                case 0:
                    await spine.update(id, add_tags=["reviewed"])
                case 1:
                    await spine.update(id, importance=0.9, metadata={"state": "done"})
                case _:
                    await spine.update(id, content=content)

    await asyncio.gather(*[update(id, content) for id, content in zip(ids, contents, strict=True)])


async def report(spine: Spine) -> Nodes:
    """Every node's status."""
    return {node["id"]: node for node in (await spine.status())["nodes"]}


async def calm(spine: Spine, nodes: set[str], seconds: float) -> Nodes:
    """Wait until these nodes have everything, in their tables; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            found = await report(spine)
            asked = [found[node] for node in nodes]
            if all(
                one["state"] == "up" and not (one["replication_lag_changes"] or one["unflushed"] or one["text_backlog"])
                for one in asked
            ):
                return found
            await asyncio.sleep(0.5)


async def caught_up(spine: Spine, changes: int) -> Nodes:
    """Wait until the node that was away has them; raises TimeoutError."""
    async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
        while True:
            found = await report(spine)
            node = found[AWAY]
            level = node["state"] == "up" and not node["replication_lag_changes"]
            if level and node["counts"].get("sync_records_taken", 0) >= changes:
                return found
            await asyncio.sleep(0.1)


def record_bytes(folder: Path, ids: list[str]) -> int:
    """What these records weigh in a page, from a node's tables: `["id",state],` each."""
    engine = SqliteEngine.open(folder)
    try:
        states = {id: engine.get(id) for id in ids}
    finally:
        engine.close()
    encoded = {id: codec.to_json(codec.from_bytes(id, state or b"")) for id, state in states.items()}
    return sum(len(f'["{id}",],') + len(bytes(state)) for id, state in encoded.items())


async def measure(count: int, changes: int, folder: Path, say: Any) -> Report:
    """Load, kill, change, start again; what it took."""
    async with (
        Supervisor(folder, nodes=3, nats_port=0, http_port=0) as supervisor,
        Spine.connect(supervisor.url, agent="loader", timeout=60) as spine,
    ):
        everyone = {node.id for node in supervisor.nodes}
        began = time.perf_counter()
        ids = await load(spine, count, changes)
        say(f"loaded {count:,} memories, {count / (time.perf_counter() - began):,.0f} a second")
        await calm(spine, everyone, CALM_SECONDS_MAX)
        say(f"all of it in the tables after {time.perf_counter() - began:.0f} s")
        supervisor.set_node_restart(False)
        await supervisor.kill_node(AWAY)
        await change(spine, ids)
        before = await calm(spine, everyone - {AWAY}, CALM_SECONDS_MAX)
        began = time.perf_counter()
        supervisor.start_node(AWAY)
        after = await caught_up(spine, changes)
        seconds = time.perf_counter() - began
        after = await calm(spine, everyone, CALM_SECONDS_MAX)

    def more(name: str) -> int:
        sources = everyone - {AWAY}
        return sum(after[node]["counts"].get(name, 0) - before[node]["counts"].get(name, 0) for node in sources)

    taken = after[AWAY]["counts"]
    records = record_bytes(folder / "spine-1", ids)
    transferred = taken["sync_bytes_taken"] + taken["sync_bytes_asked"]
    pages = min(after[node]["counts"]["tables_pages"] for node in everyone)
    read = more("since_pages_read")
    return {
        "memories": count,
        "changed": changes,
        "seconds until caught up, its start included": round(seconds, 1),
        "records sent": more("sync_records_sent"),
        "record bytes": records,
        "transferred bytes": transferred,
        "of them operation ids": taken["sync_operation_bytes_taken"],
        "of them requests": taken["sync_bytes_asked"],
        "transferred / records": round(transferred / records, 3),
        "table pages of a node": pages,
        "table megabytes of a node": round(pages * 4096 / 1e6),
        "table pages read by both sources": read,
        "read / table pages, percent": round(100 * read / pages, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=1_000)
    parser.add_argument("--data", type=Path, help="a folder on the disk to be used")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    def say(line: str) -> None:
        if not arguments.json:
            print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="spine-catchup-", dir=arguments.data) as folder:
        found = asyncio.run(measure(arguments.memories, arguments.changes, Path(folder), say))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:<46} {value:>14,}")


if __name__ == "__main__":
    main()
