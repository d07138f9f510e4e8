"""The process of one node: `spine node`. Everything that ends it, and with which exit code, is here."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from crdt_spine.config import ClusterConfig, LimitsConfig, load
from crdt_spine.core.messages import Hello, NodeInfo
from crdt_spine.errors import ConfigError, ConnectionFailed
from crdt_spine.http.address import listen, url_of
from crdt_spine.http.listener import Listener
from crdt_spine.http.pages import Pages
from crdt_spine.node.node import Node
from crdt_spine.node.reseeding import Retired
from crdt_spine.storage.engine import StorageFull, StorageUnusable
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.nats import NatsTransport

log = logging.getLogger(__name__)

BROKER_SECONDS_MAX = 30.0  # how long a starting node waits for its broker
# Records are trees of values: the cycle collector finds nothing in them, and looking through all of them each time took
# a fifth of the processor. It still runs, for what asyncio's tracebacks leave behind.
GC_THRESHOLDS = (100_000, 50, 100)
SWITCH_SECONDS = 0.001  # how long a thread may keep the interpreter while the event loop waits for it


def run_node(config: Path, id: str, data: Path, server: str) -> int:
    """Run a node until SIGINT or SIGTERM; its exit code. Prints `ready ID` on stdout once it serves."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        cluster = load(config)
        hello = hello_of(cluster, id)
        me = next(node for node in cluster.nodes if node.id == id)
        sockets = listen(me.host, me.port, f"give node {id} another port in {config}")  # before anything is written
        urls = {node.id: url_of(node.host, node.port) for node in cluster.nodes}
        data.parent.mkdir(parents=True, exist_ok=True)
        engine = SqliteEngine.open(data)
        try:
            import uvloop

            runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        except ImportError:
            runner = asyncio.Runner()
        with runner:
            return runner.run(_serve(hello, id, data, engine, server, sockets, urls, cluster.limits))
    except (ConfigError, StorageFull, StorageUnusable, OSError) as error:
        print(f"node {id}: {error}", file=sys.stderr, flush=True)
        return 4 if isinstance(error, ConnectionFailed) else 1


def hello_of(config: ClusterConfig, id: str) -> Hello:
    """The cluster's description as its node `id` tells it. Raises ConfigError where the file does not have the node."""
    names = [node.id for node in config.nodes]
    if id not in names:
        raise ConfigError(f"there is no node {id!r} in the configuration; it has {', '.join(names)}")
    return Hello(
        cluster=config.name,
        region=config.region,
        node=id,
        state="starting",
        nodes=[NodeInfo(id=node.id, zone=node.zone) for node in config.nodes],
        partitions=config.partitions,
        factor=config.replication.factor,
        write_quorum=config.replication.write_quorum,
        placement=config.placement,
        default_level=config.consistency.default,
        overrides=[(tuple(override.tags), override.model) for override in config.consistency.overrides],
    )


class _Front:
    """What the HTTP listener is told of the node, which is not there yet when the listener begins."""

    def __init__(self, id: str, zone: str | None) -> None:
        self.node: Node | None = None
        self._id = id
        self._zone = zone

    def state(self) -> str:
        return "starting" if self.node is None else self.node.state

    async def report(self) -> bytes:
        if self.node is not None:
            return bytes(await self.node.status())
        return msgspec.json.encode({"id": self._id, "state": self.state(), "zone": self._zone, "pid": os.getpid()})


async def _serve(
    hello: Hello,
    id: str,
    data: Path,
    engine: SqliteEngine,
    server: str,
    sockets: Sequence[socket.socket],
    urls: Mapping[str, str],
    limits: LimitsConfig,
) -> int:
    """Answer over HTTP from here on, also while the broker is not there and the node recovers."""
    front = _Front(id, next(node.zone for node in hello.nodes if node.id == id))
    listener = Listener(sockets, Pages(id, front.state, front.report, urls).answer)
    await listener.start()
    try:
        log.info("node %s shows its state at %s", id, urls[id])
        while (code := await _serve_node(hello, id, engine, server, front, limits)) is None:
            front.node = None
            engine = SqliteEngine.open(data)
        return code
    finally:
        listener.close()


async def _serve_node(
    hello: Hello, id: str, engine: SqliteEngine, server: str, front: _Front, limits: LimitsConfig
) -> int | None:
    """The exit code, or None: the node was retired, and a new one is to begin on the folder, which is empty now."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    transport = await NatsTransport.connect(server, f"spine node {id}", BROKER_SECONDS_MAX)
    zone = next(node.zone for node in hello.nodes if node.id == id)
    front.node = node = Node(id, hello, engine, transport, zone=zone, limits=limits)
    stopping = asyncio.create_task(stop.wait())
    closed = asyncio.create_task(transport.closed.wait())
    try:
        await node.start()
        print(f"ready {id}", flush=True)
        assert node.failed is not None
        await asyncio.wait((stopping, closed, node.failed), return_when=asyncio.FIRST_COMPLETED)
        if closed.done():
            log.critical("node %s can't go on: the broker at %s has closed the connection for good", id, transport.url)
            return 1
        if node.failed.done() and isinstance(node.failed.exception(), Retired) and not stop.is_set():
            log.warning("node %s begins anew", id)
            return None
        if node.failed.done():
            log.critical("node %s can't go on", id, exc_info=node.failed.exception())
            return 1
        return 0
    finally:
        stopping.cancel()
        closed.cancel()
        await node.stop()
        await transport.close()
