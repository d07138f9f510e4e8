"""A node that was away is sent what changed, and little beside it: what `python -m benchmarks.catchup` shows at a size
where the tables count, here with few memories."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from crdt_spine.core import codec, writes
from crdt_spine.core.messages import Edit, Store
from crdt_spine.core.record import apply
from crdt_spine.core.registers import Origin

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("catchup")]

MEMORIES = 1_500
CHANGED = 300
CONTENT = "words of a memory " * 19
NOW = 1_763_000_000_000 << 16


def record_bytes(id: str) -> int:
    """What one of the changed records weighs in a page: stored at one node, updated at another."""
    stored = writes.store(Store(i=0, id=id, content=CONTENT, tags=("a", "b")), None, NOW, "tester", "")
    record = apply(None, stored, Origin(NOW, "region-1/spine-1@m3x9k2ab", 1, "tester"))
    updated = writes.edit(Edit(i=0, id=id, content=CONTENT), record, NOW + 1, "tester", "")
    record = apply(record, updated, Origin(NOW + 1, "region-1/spine-2@m3x9k2ac", 1, "tester"))
    return len(f'["{id}",],') + len(bytes(codec.to_json(record)))


@pytest.mark.timeout(90)
async def test_catching_up_transfers_what_changed_and_little_more(
    start_cluster: Callable[..., Awaitable[Any]],
) -> None:
    cluster = await start_cluster()
    async with cluster.spine(timeout=30) as spine:
        stored = await spine.store_many([{"content": CONTENT, "tags": ["a", "b"]} for _ in range(MEMORIES)])
        reports: dict[str, Any] = {}

        async def until(done: Callable[[], bool], what: str) -> None:
            async with asyncio.timeout(30):
                while not (reports and done()):
                    reports.update({node: await cluster.status(node) for node in cluster.ids})
                    await asyncio.sleep(0.05)

        await until(lambda: all(r.get("memories") == MEMORIES for r in reports.values()), "everybody has everything")
        await cluster.kill("spine-3")
        changed = stored[:: MEMORIES // CHANGED]
        await asyncio.gather(*[spine.update(memory.id, content=CONTENT) for memory in changed])
        before = {node: dict(reports[node]["counts"]) for node in ("spine-1", "spine-2")}
        await cluster.bring_back("spine-3")
        await until(
            lambda: (
                reports["spine-3"].get("counts", {}).get("sync_records_taken", 0) >= CHANGED
                and reports["spine-3"]["replication_lag_changes"] == 0
            ),
            "it has caught up",
        )
    taken, name = reports["spine-3"]["counts"], "sync_records_sent"
    sent = sum(reports[node]["counts"].get(name, 0) - counts.get(name, 0) for node, counts in before.items())
    assert CHANGED <= sent <= CHANGED * 1.2, "what has not changed is not sent, nor is much sent twice"
    transferred = taken["sync_bytes_taken"] + taken["sync_bytes_asked"]
    assert transferred <= 1.3 * sum(record_bytes(memory.id) for memory in changed)
    assert taken["sync_operation_bytes_taken"] < transferred / 5
