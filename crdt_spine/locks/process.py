"""The process of an instance of the lock service: `spine locks`. Everything that ends it, and with which exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from typing import Final

from crdt_spine.discovery import discover
from crdt_spine.errors import ConfigError, ConnectionFailed
from crdt_spine.locks.service import LockService
from crdt_spine.transport.nats import NatsTransport

log = logging.getLogger(__name__)

SERVER: Final = "nats://127.0.0.1:4222"  # where nothing says which broker
BROKER_SECONDS_MAX: Final = 30.0  # how long a starting service waits for its broker
NODES_SECONDS_MAX: Final = 60.0  # and for a node of its cluster
NODE_SECONDS_MAX: Final = 1.0  # to be told who belongs to the cluster now


def run_locks(server: str | None, cluster: str | None, replicas: int | None, name: str = "locks") -> int:
    """Run an instance until SIGINT or SIGTERM; its exit code. Prints `ready NAME` on stdout once it serves. `cluster`
    names it where the broker carries several; `replicas`: brokers that keep leases, None for what the cluster says, and
    three where it says nothing and they can."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    try:
        with runner:
            return runner.run(_serve(server or SERVER, cluster, replicas, name))
    except (ConfigError, ConnectionFailed) as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return 4 if isinstance(error, ConnectionFailed) else 1


async def _serve(server: str, cluster: str | None, replicas: int | None, name: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    # Who holds or wants a lock waits for the answer to every single message; there is nothing to be had by batches.
    transport = await NatsTransport.connect(server, f"spine {name}", BROKER_SECONDS_MAX, pace_seconds_max=0)
    closed = asyncio.create_task(transport.closed.wait())
    service: LockService | None = None
    starting: asyncio.Task[LockService] | None = None
    try:
        starting = asyncio.create_task(_started(transport, cluster, replicas))
        await asyncio.wait((starting, stopping, closed), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 1 if closed.done() else 0
        service = starting.result()
        print(f"ready {name}", flush=True)
        await asyncio.wait((stopping, closed, service.failed), return_when=asyncio.FIRST_COMPLETED)
        if service.failed.done():
            log.critical("the lock service can't go on", exc_info=service.failed.exception())
            return 1
        if closed.done() and not stop.is_set():
            log.critical("the lock service can't go on: the broker has closed the connection for good")
            return 1
        return 0
    finally:
        for task in (stopping, closed, starting):
            if task is not None:
                task.cancel()
        if service is not None:
            await service.stop()
        await transport.close()


async def _started(transport: NatsTransport, cluster: str | None, replicas: int | None) -> LockService:
    """Raises ConfigError, ConnectionFailed."""
    hello = await discover(transport, cluster, NODES_SECONDS_MAX)
    name, replicas = hello.cluster, replicas or hello.lock_replicas or None

    async def nodes() -> frozenset[str]:
        return frozenset(node.id for node in (await discover(transport, name, NODE_SECONDS_MAX)).nodes)

    service = LockService(transport, name, transport.leases(name, replicas), nodes)
    await service.start()
    return service
