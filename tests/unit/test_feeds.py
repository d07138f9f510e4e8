"""What a feed tells, at the edges: where it begins."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Delete, Delta, FeedBatch, FeedOpen, Store, encode
from crdt_spine.core.replica import Replica
from crdt_spine.core.selection import Selection
from crdt_spine.core.turn import Event
from crdt_spine.node.committer import Committer
from crdt_spine.node.feeds import Feeds, _kind
from crdt_spine.storage.records import RecordStore
from crdt_spine.storage.sqlite import SqliteEngine

NOW = 1_700_000_000_000
decode = msgspec.json.Decoder(FeedBatch).decode


class Outbox:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.batches: list[FeedBatch] = []

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        self.batches.append(decode(payload))


async def test_what_a_subscriber_wrote_before_is_no_news_though_its_node_did_not_have_it() -> None:
    """A memory stored right before a subscription was told as its first update, where the feed's node got it late."""
    engine, other = SqliteEngine.open(":memory:"), SqliteEngine.open(":memory:")
    source = Replica("a", "r/a@1", RecordStore(other), HybridClock(), {0: ("b",)}, 1)
    for number in (1, 2):
        store = Store(i=number, id=f"m{number}", content="x", tags=("t",))
        source.write(0, store, "agent", f"s-{number}", NOW, None)
    (_, raw), *_ = source.end_turn().deltas
    both = msgspec.json.decode(raw, type=Delta)
    replica = Replica("b", "r/b@1", RecordStore(engine), HybridClock(), {0: ("a",)}, 1)
    outbox: Any = Outbox()
    committer = Committer(replica, engine, lambda turn, done: feeds.settled(turn.events), 0)
    feeds = Feeds(replica, RecordStore(engine), committer, outbox, lambda: 0.0)
    running = asyncio.create_task(committer.run())
    feeds.command(
        FeedOpen(
            feed="f", inbox="i", selection=Selection(tags=("t",)), partitions=(0,), credit=9, floor={0: {"r/a@1": 1}}
        )
    )
    replica.receive(both, encode(both), NOW)
    committer.touch()
    async with asyncio.timeout(5):
        await committer.barrier()
    assert [update.id for batch in outbox.batches for update in batch.updates] == ["m2"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    feeds.close()
    committer.close()
    engine.close()
    other.close()


def test_a_deletion_that_came_by_sync_is_told_though_the_node_never_had_the_memory() -> None:
    """A feed moved to a node that had missed memory and deletion; a sync brought the tombstone, nobody was told."""
    engine = SqliteEngine.open(":memory:")
    kept = RecordStore(engine)
    source = Replica("a", "r/a@1", kept, HybridClock(), {0: ("b",)}, 1)
    source.write(0, Store(i=1, id="m", content="x", tags=("t",)), "agent", "s-1", NOW, None)
    source.write(0, Delete(i=2, id="m"), "agent", "s-2", NOW, None)
    tombstone = kept.get("m")
    assert tombstone is not None
    event = Event(0, None, tombstone, "", 0)
    assert _kind(event, Selection(tags=("t",))) == "deleted"
    assert _kind(event, Selection(tags=("other",))) is None
    engine.close()
