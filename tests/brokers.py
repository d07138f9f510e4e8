"""A cluster of three NATS servers with JetStream, as it is run on three machines: each message is on disk on two of
them before it is acknowledged (`sync_interval: always`)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

import nats.errors
from nats.aio.client import Client

from crdt_spine.broker.binary import find_nats_server
from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent

SERVERS = 3
READY_SECONDS_MAX = 30.0


class BrokerCluster:
    """Use it as `async with`. Its servers end with this process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = _free_ports(2 * SERVERS)
        self.processes: list[BoundProcess | None] = [None] * SERVERS

    @property
    def url(self) -> str:
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports[:SERVERS])

    async def start(self, index: int) -> None:
        """Start a server, or start it again on what it has on its disk."""
        folder = self.folder / f"nats-{index}"
        folder.mkdir(parents=True, exist_ok=True)
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self.ports[SERVERS:])
        config = folder / "nats-server.conf"
        config.write_text(
            f'host: 127.0.0.1\nport: {self.ports[index]}\nserver_name: n{index}\nlog_file: "{folder / "log"}"\n'
            f'jetstream {{ store_dir: "{folder}", sync_interval: always }}\n'
            f"cluster {{ name: test, host: 127.0.0.1, port: {self.ports[SERVERS + index]}, routes: [{routes}] }}\n"
        )
        with (folder / "out").open("wb") as output:
            self.processes[index] = await spawn_bound_to_parent([find_nats_server(), "--config", config], output=output)

    async def kill(self, index: int) -> None:
        """End a server (SIGKILL)."""
        process = self.processes[index]
        assert process is not None
        await process.stop(0)

    async def wait_ready(self) -> None:
        """Return once streams on all servers can be made."""
        async with asyncio.timeout(READY_SECONDS_MAX):
            while True:
                client = Client()
                with contextlib.suppress(nats.errors.Error, OSError, Exception):
                    await client.connect(self.url.split(","), connect_timeout=1, max_reconnect_attempts=1)
                    js = client.jetstream(timeout=2)
                    await js.add_stream(name="ready", subjects=["ready"], num_replicas=SERVERS)
                    await js.delete_stream("ready")
                    await client.close()
                    return
                with contextlib.suppress(Exception):
                    await client.close()
                await asyncio.sleep(0.2)

    async def __aenter__(self) -> Self:
        for index in range(SERVERS):
            await self.start(index)
        await self.wait_ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(process.stop(0) for process in self.processes if process is not None))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
