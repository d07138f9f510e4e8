"""One node and its agent in one process: what `Spine.open` opens. The same node, the same messages, no broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from crdt_spine.core.messages import Hello, NodeInfo
from crdt_spine.errors import ConfigError
from crdt_spine.node.node import Node
from crdt_spine.session import Session
from crdt_spine.storage.engine import StorageUnusable
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.local import LocalTransport

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


async def open_session(path: str | Path, agent: str) -> tuple[Session, Callable[[], Awaitable[None]]]:
    """The session with a node of its own on this file, and how to close both. Raises ConfigError."""
    try:
        engine = SqliteEngine.open(path)
    except StorageUnusable as error:
        raise ConfigError(str(error)) from error
    except OSError as error:  # a name that the file system does not take, say
        raise ConfigError(f"{path} can't be used: {error.strerror}; choose another path") from error
    transport = LocalTransport()
    node = Node("embedded", _HELLO, engine, transport)
    try:
        await node.start()
        session = await Session.discover(transport, agent)
    except BaseException:
        await node.stop()
        await transport.close()
        raise

    async def closing() -> None:
        await session.close()
        await node.stop()
        await transport.close()

    return session, closing
