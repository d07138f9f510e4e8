"""A conversation of two agents in a thread: each reads it in causal order, never an answer before its question.

    python examples/thread.py                                   one embedded node, in this process
    python examples/thread.py --server nats://127.0.0.1:4222    a cluster, such as `spine up --nodes 3` runs

What comes before what is told by vector clocks that the agents' side makes; nobody's wall clock has to be right.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets

from crdt_spine import Spine

HOUR = 3600.0


async def main(server: str | None) -> None:
    spine = Spine.connect(server, agent="reviewer") if server else Spine.open(":memory:", agent="reviewer")
    async with spine:
        name = f"pull-request-{secrets.token_hex(4)}"
        reviewer = spine.thread(name)
        coder = spine.for_agent("coder").thread(name)  # in a fleet it has a connection of its own

        # What an agent appends comes after everything it has read and written in the thread.
        question = await reviewer.append("Why is the retry bounded at two?", ttl=HOUR)
        await coder.read()
        answer = await coder.append("The quota is per key: a third one never succeeds.", ttl=HOUR)
        aside = await reviewer.append("The tests look good.", ttl=HOUR)  # without having read the answer

        for memory in await reviewer.read():
            print(f"{memory.agent:8} {memory.content}  {dict(memory.clock)}")

        print(f"the question is {reviewer.relation(question, answer)} the answer")
        print(f"answer and aside are {reviewer.relation(answer, aside)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A conversation of two agents in a thread.")
    parser.add_argument("--server", metavar="URL", help="a cluster's broker; without it, an embedded node")
    asyncio.run(main(parser.parse_args().server))
