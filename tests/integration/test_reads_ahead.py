"""A sync that broke off has brought a memory whose change its replica's vector does not have yet. Who is shown it
must not see less of it elsewhere: the answer's token covers the memory, too."""

from __future__ import annotations

import asyncio

import pytest

from crdt_spine.core import codec
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Change, Get, Hello, NodeInfo, Query, SyncPage, encode
from crdt_spine.core.record import apply
from crdt_spine.core.registers import Origin
from crdt_spine.core.selection import Selection
from crdt_spine.node.node import Node
from crdt_spine.session import Session
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.local import LocalTransport

HELLO = Hello(
    cluster="ahead", region="local", node="a", state="up", nodes=[NodeInfo(id="a")], partitions=4, factor=1,
    write_quorum=1,
)  # fmt: skip


@pytest.mark.timeout(30)
async def test_who_is_shown_more_than_a_replicas_vector_has_takes_it_along_in_its_token() -> None:
    transport = LocalTransport()
    node = Node("a", HELLO, SqliteEngine.open(":memory:"), transport)
    await node.start()
    session, other = await Session.discover(transport, "reader"), await Session.discover(transport, "other")
    try:
        number = Layout(HELLO).partition_of("memory")
        change = Change(id="memory", time=HybridClock().tick(1), agent="writer", alive=True, content="text")
        record = apply(None, change, Origin(change.time, "local/b@1", 7, "writer"))
        page = SyncPage(
            partition=number, records=[("memory", codec.to_json(record))], upto={"local/b@1": 9}, next="memory"
        )
        node.replica.merge_page(page, encode(page), 1)
        node.committer.touch()
        await node.committer.durable()
        assert node.replica.durable[number] == {}
        result = await session.on_memory(Get(i=session.number(), id="memory"), "memory")
        assert b'"text"' in bytes(result.memory)
        assert session.vectors[number] == {"local/b@1": 7}
        (found,) = await other.query(Query(i=0, selection=Selection()))
        assert [hit.id for hit in found.hits or ()] == ["memory"]
        assert other.vectors[number] == {"local/b@1": 7}
    finally:
        await session.close()
        await other.close()
        await asyncio.wait_for(node.stop(), 10)
        await transport.close()
