"""One node and its agent in one process: what `Spine.open` opens. The same node, the same messages, no broker."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from crdt_spine.core.messages import Hello, Level, NodeInfo
from crdt_spine.errors import ConfigError
from crdt_spine.locks.service import LockService
from crdt_spine.node.node import Node
from crdt_spine.node.register import new_cluster_id
from crdt_spine.session import Session
from crdt_spine.storage.engine import StorageUnusable
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.local import LocalLeases, LocalTransport

_HELLO = Hello(
    cluster="embedded",
    region="local",
    node="embedded",
    state="up",
    nodes=[NodeInfo(id="embedded")],
    partitions=64,
    factor=1,
    write_quorum=1,
)


async def _alone() -> frozenset[str]:
    return frozenset({_HELLO.node})


async def open_session(
    path: str | Path, agent: str, overrides: Mapping[str, Level] | None = None
) -> tuple[Session, Callable[[], Awaitable[None]]]:
    """The session with a node of its own on this file, and how to close both. `overrides`: the levels that tags demand.
    Raises ConfigError."""
    demanded = [((tag,), level) for tag, level in (overrides or {}).items()]
    # The id is for a new file; an old one has its own.
    hello = msgspec.structs.replace(_HELLO, overrides=demanded, cluster_id=new_cluster_id())
    try:
        engine = SqliteEngine.open(path)
    except StorageUnusable as error:
        raise ConfigError(str(error)) from error
    except OSError as error:  # a name that the file system does not take, say
        raise ConfigError(f"{path} can't be used: {error.strerror}; choose another path") from error
    transport = LocalTransport()
    locks = LockService(transport, hello.cluster, LocalLeases(time.monotonic), _alone)
    node = Node("embedded", hello, engine, transport)
    try:
        await node.start()
        await locks.start(lazily=True)
        session = await Session.discover(transport, agent)
    except BaseException:
        await locks.stop()
        await node.stop()
        await transport.close()
        raise

    async def closing() -> None:
        await session.close()
        await locks.stop()
        await node.stop()
        await transport.close()

    return session, closing
