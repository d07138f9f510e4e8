"""One node with a million memories: how fast they load, what the node keeps in memory, how soon it serves again after
kill -9. `python -m benchmarks.million`, some two minutes; `--memories 10000` to see that it works."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crdt_spine import Spine, SpineError
from crdt_spine.supervisor import Supervisor

CONTENT_CHARACTERS = 350
LOADERS = 8
AT_ONCE = 50  # memories in one store_many
UNFLUSHED = 18_000  # written right before the node is killed
WORDS = ("alpha", "beta", "gamma", "delta", "agent", "memory", "node", "build", "deploy", "error", "seven", "river")


def resident(pid: int) -> tuple[int, int]:
    """A process's resident memory, now and at most, in MB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) // 1024, int(fields["VmHWM"].split()[0]) // 1024


def memories(count: int) -> Iterator[list[dict[str, Any]]]:
    """That many, in batches."""
    dice = random.Random(3)
    for start in range(0, count, AT_ONCE):
        yield [
            {
                "content": " ".join(dice.choices(WORDS, k=70))[:CONTENT_CHARACTERS],
                "tags": [f"topic-{number % 50}", f"kind-{number % 7}"],
            }
            for number in range(start, min(start + AT_ONCE, count))
        ]


async def load(spine: Spine, count: int) -> None:
    """Store them as fast as the node takes them."""
    batches = memories(count)

    async def loader() -> None:
        for batch in batches:
            await spine.store_many(batch)

    await asyncio.gather(*[loader() for _ in range(LOADERS)])


async def main(count: int, data: Path | None) -> None:
    """Print what was measured."""
    with tempfile.TemporaryDirectory(prefix="spine-million-", dir=data) as folder:
        async with (
            Supervisor(Path(folder), nodes=1, nats_port=0, http_port=0) as supervisor,
            Spine.connect(supervisor.url, agent="loader", timeout=60) as spine,
        ):

            def pid() -> int:
                found = next(child.pid for child in supervisor.children if child.id == "spine-1")
                assert found is not None
                return found

            began = time.perf_counter()
            await load(spine, count)
            seconds = time.perf_counter() - began
            print(f"loaded {count:,} memories, {count / seconds:,.0f} a second", flush=True)
            print(f"resident memory: {resident(pid())[1]} MB at most", flush=True)
            for topic in range(20):
                await spine.query(tags=[f"topic-{topic}"])
                await spine.query(text="deploy error", limit=20, order="relevance")
            print(f"resident memory after 40 queries: {resident(pid())[0]} MB", flush=True)
            await load(spine, min(count, UNFLUSHED))
            os.kill(pid(), signal.SIGKILL)
            began = time.perf_counter()
            while True:
                try:
                    await spine.query(tags=["topic-3"], limit=1)
                    break
                except SpineError as error:
                    print(f"not yet: {error}", flush=True)
            print(f"serving again {time.perf_counter() - began:.1f} s after kill -9", flush=True)
            print(f"resident memory then: {resident(pid())[0]} MB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, help="a folder on the disk to be measured")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.memories, arguments.data))
