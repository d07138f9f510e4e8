"""Three agents write one text at the same time; nobody's words are lost.

    python examples/document.py                                   one embedded node, in this process
    python examples/document.py --server nats://127.0.0.1:4222    a cluster, such as `spine up --nodes 3` runs

A text has an index by bytes of UTF-8, and `len(text)` counts them.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid

import pycrdt

from crdt_spine import Spine


async def add(spine: Spine, id: str, line: str) -> None:
    # A block has a document of its own, with the newest state; what it changes is merged when it is left.
    async with spine.document(id) as doc:
        text = doc.get("content", type=pycrdt.Text)
        text.insert(len(text), f"- {line} ({spine.agent})\n")


async def main(server: str | None) -> None:
    spine = Spine.connect(server, agent="planner") if server else Spine.open(":memory:", agent="planner")
    async with spine:
        id = f"plan-{uuid.uuid4()}"
        await spine.store("Plan for today\n", id=id, tags=["plan"])
        await asyncio.gather(
            add(spine, id, "measure first"),
            add(spine.for_agent("tester"), id, "write the failing test"),
            add(spine.for_agent("reviewer"), id, "read the diff"),
        )
        memory = await spine.get(id)
        assert memory is not None
        print(memory.content, end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Three agents write one text at the same time.")
    parser.add_argument("--server", metavar="URL", help="a cluster's broker; without it, an embedded node")
    asyncio.run(main(parser.parse_args().server))
