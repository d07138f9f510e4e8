"""A node that is to end ends, whatever its parts are doing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from crdt_spine.embedded import _HELLO
from crdt_spine.node.node import Node
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.local import LocalTransport


async def test_a_part_that_swallows_a_cancellation_is_told_again(tmp_path: Path) -> None:
    """A request that is answered in the moment in which its caller is cancelled gives its answer (asyncio.wait_for)."""
    transport = LocalTransport()
    node = Node("embedded", _HELLO, SqliteEngine.open(tmp_path / "memories.db"), transport)
    await node.start()
    began = asyncio.Event()

    async def deaf() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        await asyncio.sleep(60)

    node._run(deaf())
    await began.wait()
    async with asyncio.timeout(20):
        await node.stop()
    await transport.close()
