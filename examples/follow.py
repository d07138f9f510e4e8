"""Follow what other agents write, stop, and go on later where it stopped.

python examples/follow.py                                   one embedded node, in this process
python examples/follow.py --server nats://127.0.0.1:4222    a cluster, such as `spine up --nodes 3` runs
"""

from __future__ import annotations

import argparse
import asyncio

from crdt_spine import Spine

HOUR = 3600.0


async def main(server: str | None) -> None:
    builder = Spine.connect(server, agent="builder") if server else Spine.open(":memory:", agent="builder")
    async with builder:
        # Two agents of one process can share a connection; agents elsewhere connect by themselves.
        on_call = builder.for_agent("on-call")

        # A subscription begins with what happens after it was made.
        token = ""
        async with on_call.subscribe(tags=["deploy"], agent="builder") as updates:
            first = await builder.store("Deploying 4.2 to staging.", tags=["deploy"], ttl=HOUR)
            await builder.update(first.id, metadata={"state": "done"})
            async for update in updates:
                print(f"{update.kind:8} {update.memory.content} {dict(update.memory.metadata)}")
                token = update.token  # resumes right after this update; keep it wherever it survives a restart
                if update.memory.metadata.get("state") == "done":
                    break

        # Nobody is listening now.
        await builder.store("Deploying 4.2 to production.", tags=["deploy"], ttl=HOUR)
        await builder.store("Lunch at noon.", tags=["social"], ttl=HOUR)

        # With the token nothing that was stored or updated meanwhile is missed, and nothing comes twice.
        async with on_call.subscribe(tags=["deploy"], agent="builder", token=token) as updates:
            async for update in updates:
                print(f"{update.kind:8} {update.memory.content} (missed while away)")
                break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Follow what other agents write, stop, and go on later.")
    parser.add_argument("--server", metavar="URL", help="a cluster's broker; without it, an embedded node")
    asyncio.run(main(parser.parse_args().server))
