"""Store, update, find and delete memories.

    python examples/quickstart.py                                   one embedded node, in this process
    python examples/quickstart.py --server nats://127.0.0.1:4222    a cluster, such as `spine up --nodes 3` runs

Everything below the first line of `main` is the same for both.
"""

from __future__ import annotations

import argparse
import asyncio

from crdt_spine import Spine, VersionConflict

HOUR = 3600.0


async def main(server: str | None) -> None:
    spine = Spine.connect(server, agent="reviewer-1") if server else Spine.open(":memory:", agent="reviewer-1")
    async with spine:
        # A memory is text with tags, metadata and a weight. With a ttl it goes by itself.
        memory = await spine.store(
            "The build on main is red since the dependency update.",
            tags=["ci", "build"],
            metadata={"commit": "4f1c2aa", "attempts": 3},
            importance=0.8,
            ttl=HOUR,
        )
        print(f"stored   {memory.id}")

        # Parts can be changed by several agents at once: each field, each metadata key and each tag merges by itself.
        await spine.update(memory.id, metadata={"cause": "flaky test"}, add_tags=["triaged"])

        # if_version refuses an update that would overwrite what this agent has not seen.
        try:
            await spine.update(memory.id, content="All is well.", if_version=memory.version)
        except VersionConflict:
            print("conflict the memory has changed since it was stored; read it again")

        read = await spine.get(memory.id)
        assert read is not None
        print(f"read     {read.content} {sorted(read.tags)} {dict(read.metadata)}")

        # Conditions are combined with and; a page has a cursor while there is more.
        page = await spine.query(tags=["ci"], metadata={"cause": "flaky test"}, text="red build", order="relevance")
        print(f"found    {len(page.memories)} by tag, metadata and words")

        print(f"deleted  {await spine.delete(memory.id)}, now {await spine.get(memory.id)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Store, update, find and delete memories.")
    parser.add_argument("--server", metavar="URL", help="a cluster's broker; without it, an embedded node")
    asyncio.run(main(parser.parse_args().server))
