"""Folders that a benchmark has filled are those of a cluster that agents could have filled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.filled import filled
from crdt_spine import Spine
from crdt_spine.supervisor import Supervisor

MEMORIES = 300


@pytest.mark.timeout(120)
async def test_every_node_has_all_of_it_and_agents_go_on_from_there(tmp_path: Path) -> None:
    ids = await filled(tmp_path, 3, MEMORIES, {0, 150, 299}, lambda line: None)
    async with (
        Supervisor(tmp_path, nodes=3, nats_port=0, http_port=0) as supervisor,
        Spine.connect(supervisor.url, agent="tester", timeout=30) as spine,
    ):
        for number, id in ids.items():
            memory = await spine.get(id)
            assert memory is not None
            assert set(memory.tags) == {f"topic-{number % 50}", f"kind-{number % 7}"}
            changed = await spine.update(id, content="other words entirely")
            assert changed.created_at == memory.created_at
        assert len((await spine.query(tags=["topic-3"], limit=100)).memories) == MEMORIES // 50
        assert {memory.id for memory in (await spine.query(text="entirely", limit=100)).memories} == set(ids.values())
        await spine.store("one more")
        async with asyncio.timeout(60):
            while True:
                nodes = (await spine.status())["nodes"]
                if all(node.get("memories") == MEMORIES + 1 and not node["replication_lag_changes"] for node in nodes):
                    break
                await asyncio.sleep(0.1)
        taken = sum(node["counts"].get("sync_records_taken", 0) for node in nodes)
        assert taken < MEMORIES / 4, "they had it before, but for what came late"
