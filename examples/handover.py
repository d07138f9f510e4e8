"""Hand work over from one agent to the next: the second one surely sees what the first one wrote and read.

    python examples/handover.py                                   an embedded node, one agent after the other
    python examples/handover.py --server nats://127.0.0.1:4222    a cluster, such as `spine up --nodes 3` runs

What is handed over is a thread's id and a token: a short text that says how much the first agent had seen. Whichever
replica the second agent asks, that replica has reached the token before it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
from pathlib import Path

from crdt_spine import Spine

HOUR = 3600.0


def opened(server: str | None, folder: Path, agent: str, token: str | None = None) -> Spine:
    """The same memories for each agent: a cluster, or a file that one process at a time has open."""
    if server is not None:
        return Spine.connect(server, agent=agent, token=token)
    return Spine.open(folder / "memories.db", agent=agent, token=token)


async def research(server: str | None, folder: Path, thread: str) -> str:
    """The first agent notes what it found; its token."""
    async with opened(server, folder, "researcher") as spine:
        await spine.store_many(
            [
                {
                    "content": "The adapter needs two retries at most.",
                    "tags": ["finding"],
                    "thread": thread,
                    "ttl": HOUR,
                },
                {"content": "Is the quota per key or per host?", "tags": ["question"], "thread": thread, "ttl": HOUR},
            ]
        )
        return spine.token


async def implement(server: str | None, folder: Path, thread: str, token: str) -> None:
    """The second agent goes on from there."""
    async with opened(server, folder, "coder", token) as spine:
        await spine.wait_for(token)  # not needed for being right: it only says early that the token can't be reached
        page = await spine.query(thread=thread, order="oldest")
        for memory in page.memories:
            print(f"{memory.agent}: {memory.content} {sorted(memory.tags)}")
        open_questions = await spine.query(thread=thread, tags=["question"], not_tags=["answered"])
        for question in open_questions.memories:
            await spine.update(question.id, add_tags=["answered"], metadata={"answer": "per key"})
            print(f"coder answered: {question.content}")


async def main(server: str | None) -> None:
    thread = f"carrier-adapter-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder:
        token = await research(server, Path(folder), thread)
        print(f"handed over: thread {thread}, a token of {len(token)} characters")
        await implement(server, Path(folder), thread, token)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Hand work over from one agent to the next.")
    parser.add_argument("--server", metavar="URL", help="a cluster's broker; without it, an embedded node")
    asyncio.run(main(parser.parse_args().server))
