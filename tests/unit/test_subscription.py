"""What a subscriber is told by feeds that tell too much."""

from __future__ import annotations

from pathlib import Path

import msgspec

from crdt_spine import Spine
from crdt_spine.core.messages import FeedBatch, FeedUpdate, encode
from crdt_spine.transport.base import Message


async def test_who_is_behind_is_not_told_again_of_a_write_that_a_second_coordinator_repeated(tmp_path: Path) -> None:
    """A retry gave the write a second dot; the feed, which reads what there is by now, takes the version for news."""
    async with Spine.open(tmp_path, agent="a") as spine, spine.subscribe() as updates:
        await spine.store("text", id="m")
        assert (await anext(updates)).memory.content == "text"
        (source,) = updates._sources.values()
        number = next(number for number, position in updates._positions.items() if position)
        position = updates._positions[number]

        def tell(content: str, n: int) -> None:
            memory = {
                "id": "m", "content": content, "agent": "a", "created_at": "2026-01-01T00:00:00Z",
                "updated_at": "2026-01-01T00:00:00Z", "version": f"other:{n}",
            }  # fmt: skip
            update = FeedUpdate(
                partition=number, kind="stored", memory=msgspec.Raw(msgspec.json.encode(memory)), id="m",
                version={**position, "r/other@1": n}, position=position,
            )  # fmt: skip
            batch = FeedBatch(feed=source.id, number=source.expected, updates=[update])
            updates._take(Message(f"x.{source.id}", encode(batch), "", False))

        taken = source.taken
        tell("text", 1)
        assert updates._queue.empty()
        assert source.taken == taken + 1  # it counts as taken all the same, or the feed would wait
        tell("other text", 2)
        assert (await anext(updates)).memory.content == "other text"
