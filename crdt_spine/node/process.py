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
from collections.abc import Sequence
from pathlib import Path

import msgspec

from crdt_spine.config import ClusterConfig, NodeConfig, load
from crdt_spine.core.membership import Member, Membership
from crdt_spine.core.messages import Hello, NodeInfo
from crdt_spine.core.subjects import Subjects
from crdt_spine.errors import ConfigError, ConnectionFailed
from crdt_spine.http.address import listen, url_of
from crdt_spine.http.listener import Listener
from crdt_spine.http.pages import Pages
from crdt_spine.node.agreement import agree, belongs
from crdt_spine.node.claim import NodeClaim
from crdt_spine.node.node import Node
from crdt_spine.node.recovery import check_folder
from crdt_spine.node.register import KEY, Register, TakenOut, beginning, bucket_of, entered, new_cluster_id, saved_in
from crdt_spine.node.reseeding import Retired
from crdt_spine.node.seats import Removed
from crdt_spine.storage.engine import StorageFull, StorageUnusable
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.nats import NatsTransport

log = logging.getLogger(__name__)

SERVER = "nats://127.0.0.1:4222"  # where nothing says which broker
BROKER_SECONDS_MAX = 30.0  # how long a starting node waits for its broker
LEFT_SECONDS = 1.0  # how long a node that was removed goes on, for those who have not heard of it
# Records are trees of values: the cycle collector finds nothing in them, and looking through all of them each time took
# a fifth of the processor. It still runs, for what asyncio's tracebacks leave behind.
GC_THRESHOLDS = (100_000, 50, 100)
SWITCH_SECONDS = 0.001  # how long a thread may keep the interpreter while the event loop waits for it


def run_node(config: Path, id: str, data: Path, server: str | None) -> int:
    """Run a node until SIGINT or SIGTERM, or until the cluster goes on without it; its exit code. Prints `ready ID` on
    stdout once it serves. `server`: the broker's address, or several with commas between; None: those of the file, or
    the usual one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        cluster = load(config)
        hello = hello_of(cluster, id)
        me = next(node for node in cluster.nodes if node.id == id)
        sockets = listen(me.host, me.port, f"give node {id} another port in {config}")  # before anything is written
        data.parent.mkdir(parents=True, exist_ok=True)
        engine = SqliteEngine.open(data)
        try:
            import uvloop

            runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        except ImportError:
            runner = asyncio.Runner()
        with runner:
            url = server or ",".join(cluster.nats.urls) or SERVER
            return runner.run(_serve(_Start(cluster, config, me, hello, data, url), engine, sockets))
    except TakenOut as told:
        print(told, flush=True)
        return 0
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
        nodes=[
            NodeInfo(id=node.id, zone=node.zone, host=node.host, port=node.port, role=node.role)
            for node in config.nodes
        ],
        partitions=config.partitions,
        factor=config.replication.factor,
        write_quorum=config.replication.write_quorum,
        read_quorum=config.replication.read_quorum,
        placement=config.placement,
        default_level=config.consistency.default,
        overrides=[(tuple(override.tags), override.model) for override in config.consistency.overrides],
        lock_ttl_seconds=config.locks.ttl_seconds,
        lock_ttl_seconds_max=config.locks.ttl_seconds_max,
        lock_replicas=config.locks.replicas or 0,
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


class _Start(msgspec.Struct, frozen=True):
    """What a node was told when it was started."""

    cluster: ClusterConfig
    file: Path
    me: NodeConfig
    hello: Hello
    data: Path
    server: str


async def _serve(start: _Start, engine: SqliteEngine, sockets: Sequence[socket.socket]) -> int:
    """Answer over HTTP from here on, also while the broker is not there and the node recovers."""
    id = start.me.id
    front = _Front(id, start.me.zone)
    urls = {node.id: url_of(node.host, node.port) for node in start.cluster.nodes}
    listener = Listener(sockets, Pages(id, front.state, front.report, urls).answer)
    await listener.start()
    try:
        log.info("node %s shows its state at %s", id, urls[id])
        while (code := await _serve_node(start, engine, front, urls)) is None:
            front.node = None
            engine = SqliteEngine.open(start.data)
        return code
    finally:
        listener.close()


async def _serve_node(start: _Start, engine: SqliteEngine, front: _Front, urls: dict[str, str]) -> int | None:
    """The exit code, or None: the node was retired, and a new one is to begin on the folder, which is empty now."""
    id, hello = start.me.id, start.hello
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    transport = await NatsTransport.connect(start.server, f"spine node {id}", BROKER_SECONDS_MAX)
    claim = NodeClaim(transport, Subjects(hello.cluster), id)
    try:
        extra = engine.checkpoint.extra
        if extra.get("node") == id and (saved := saved_in(extra)) is not None:
            belongs(start.cluster, saved, str(start.file))
        check_folder(extra, hello, id)
        await claim.take()
        register, membership = await _entered(start, engine, transport)
        settings = membership.settings  # the file may leave them out
        hello = msgspec.structs.replace(
            hello, factor=settings.factor, write_quorum=settings.write_quorum, read_quorum=settings.read_quorum
        )
        node = Node(
            id, hello, engine, transport, zone=start.me.zone, limits=start.cluster.limits, register=register,
            membership=membership,
        )  # fmt: skip
    except BaseException:
        await claim.release()
        await transport.close()
        raise
    front.node = node
    node.seats.on_change.append(lambda: _show_addresses(node, urls))
    _show_addresses(node, urls)
    stopping = asyncio.create_task(stop.wait())
    closed = asyncio.create_task(transport.closed.wait())
    left = asyncio.create_task(node.seats.left.wait())
    try:
        await node.start()
        print(f"ready {id}", flush=True)
        if not node.seats.is_member:
            me = start.me
            node.join(Member(host=me.host, port=me.port, zone=me.zone, role=me.role))
        assert node.failed is not None
        await asyncio.wait((stopping, closed, left, node.failed), return_when=asyncio.FIRST_COMPLETED)
        if closed.done():
            log.critical("node %s can't go on: the broker at %s has closed the connection for good", id, transport.url)
            return 1
        if node.failed.done() and isinstance(node.failed.exception(), Retired) and not stop.is_set():
            log.warning("node %s begins anew", id)
            return None
        if node.failed.done() and isinstance(error := node.failed.exception(), Removed):
            raise error
        if node.failed.done():
            log.critical("node %s can't go on", id, exc_info=node.failed.exception())
            return 1
        if left.done():
            print(
                f"node {id}: removed from the cluster; the folder can be deleted. Take it out of the configuration "
                "first: with a new folder it would join again",
                flush=True,
            )
            await asyncio.wait((stopping, closed), timeout=LEFT_SECONDS)  # what it is being asked is answered
        return 0
    except Removed as error:
        raise ConfigError(str(error)) from error
    finally:
        for waiting in (stopping, closed, left):
            waiting.cancel()
        await node.stop()
        await claim.release()
        await transport.close()


async def _entered(start: _Start, engine: SqliteEngine, transport: NatsTransport) -> tuple[Register, Membership]:
    """The cluster's register, and the membership to begin with. Raises ConfigError: this node, its folder or its
    configuration does not belong to the running cluster, or the broker has no JetStream; ConnectionFailed."""
    extra = engine.checkpoint.extra
    saved, blank = saved_in(extra), "incarnation" not in extra
    cell = await transport.cell(bucket_of(start.cluster.name), KEY, start.cluster.locks.replicas or 1)
    register = Register(cell)
    hello = msgspec.structs.replace(start.hello, cluster_id=new_cluster_id())  # where there is no cluster yet
    first = beginning(hello, former=saved is None and not blank)
    membership = await entered(register, transport, first, saved, blank, start.me.id)
    agree(start.cluster, membership, str(start.file))
    member = membership.members.get(start.me.id)
    if member is not None and member.role != start.me.role:
        log.warning("%s is a %s in the cluster, as it was when it joined; to change that, remove it and add it",
                    start.me.id, member.role)  # fmt: skip
    return register, membership


def _show_addresses(node: Node, urls: dict[str, str]) -> None:
    """Let the node's page know where the others are now."""
    for other in node.seats.hello.nodes:
        if other.host:
            urls[other.id] = url_of(other.host, other.port)
