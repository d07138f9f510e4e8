"""A gap is pulled when its time has come, however long a node would otherwise have nothing to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from crdt_spine.core import codec
from crdt_spine.core.messages import Change, Hello, NodeInfo, Store, SyncPage, encode
from crdt_spine.core.record import apply
from crdt_spine.core.registers import Origin
from crdt_spine.node.node import Node
from crdt_spine.node.ticket import Ticket
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.local import LocalTransport

NAMES = ("a", "b")
HELLO = Hello(
    cluster="test", region="local", node="a", state="up", nodes=[NodeInfo(id=name) for name in NAMES], partitions=4,
    factor=2, write_quorum=1,
)  # fmt: skip


class Losing(LocalTransport):
    """Loses the deltas while `loses`."""

    loses = False

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        if not (self.loses and ".delta." in subject):
            super().send(subject, payload, reply)


async def until(holds: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)
    assert holds(), what


async def test_a_gap_is_pulled_though_the_next_regular_look_is_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is announced after the last look of a minute is fetched once a delta would have been there."""
    transport = Losing()
    a, b = (Node(name, HELLO, SqliteEngine.open(":memory:"), transport) for name in NAMES)
    await asyncio.gather(a.start(), b.start())
    try:
        await until(lambda: a.state == b.state == "up", "both serve")
        for node in (a, b):
            await until(
                lambda node=node: node.replication.peers.alive() == {*NAMES} - {node.id}, "they know each other"
            )  # type: ignore[misc]
        monkeypatch.setattr("crdt_spine.node.replication.ANNOUNCE_SECONDS", 60.0)
        for module in ("replication", "peers"):
            monkeypatch.setattr(f"crdt_spine.node.{module}.PEER_SILENT_SECONDS_MAX", 600.0)
        for node in (a, b):  # both sleep for the minute now
            node.replication._collect_seconds = 60.0
            node.replication.pulling.look_again.set()
        await asyncio.sleep(0.05)
        for lap in range(2):
            transport.loses = True
            for number in range(4):
                operation = Store(i=0, id=f"m{lap}{number}", content="text")
                ticket = Ticket("nobody", operation, number)
                a.replica.write(number, operation, "me", "", time.time_ns() // 1_000_000, ticket)
            a.committer.touch()
            await a.committer.barrier()
            a.replication.announce()
            transport.loses = False
            await until(lambda: b.replica.durable == a.replica.durable, "the gap is closed")
        assert b.replication.counts["syncs"] >= 8
    finally:
        await asyncio.gather(a.stop(), b.stop())


async def test_what_a_node_that_is_gone_left_with_one_replica_comes_to_the_other() -> None:
    """It gave a page of a sync, and was lost before it gave the vector."""
    transport = LocalTransport()
    a, b = (Node(name, HELLO, SqliteEngine.open(":memory:"), transport) for name in NAMES)
    await asyncio.gather(a.start(), b.start())
    try:
        for node in (a, b):
            await until(
                lambda node=node: node.replication.peers.alive() == {*NAMES} - {node.id}, "they know each other"
            )  # type: ignore[misc]
            node.replication._collect_seconds = 0.2
        now = time.time_ns() // 1_000_000
        actor = "local/gone@1"
        record = apply(
            None,
            Change(id="m", time=now << 16, agent="me", alive=True, content="text"),
            Origin(now << 16, actor, 7, "me"),
        )
        page = SyncPage(partition=2, records=[("m", codec.to_json(record))], upto={actor: 9}, next="m", clock=0)
        b.replica.merge_page(page, encode(page), now)
        b.committer.touch()
        await until(lambda: a.replica.records.get("m") == record, "it came over")
        await until(lambda: a.replica.stranded == b.replica.stranded != {}, "both have the same")
        pulled = a.replication.counts["syncs"]
        for _ in range(3):
            b.replication.announce()
            await asyncio.sleep(0.1)
        assert a.replication.counts["syncs"] == pulled, "and it is not asked for again"
    finally:
        await asyncio.gather(a.stop(), b.stop())
