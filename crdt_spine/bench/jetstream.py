"""The peer: a JetStream KV bucket with three replicas on three nats-servers, and a client that uses nats-py as it is.

What a team would use if it had no crdt_spine: the same durability target (a majority of three has the write), the same
client language, the same event loop, the same memories. Choices, and which way they lean:

- One connection, as an agent has one; to the server that leads the bucket, which saves the peer a hop on every write
  (`client="follower"` measures the other case, which two agents in three would have). Leans towards the peer.
- `kv.put` and `kv.get` of nats-py, history 1, in a bucket as nats-py creates one: reads go to the leader and come back
  as base64 in JSON. `direct_get=True` is a bucket as the NATS command line and the Go client create theirs: the server
  at hand answers a read without its leader, faster, and possibly with what is stale. Both are measured.
- A memory is encoded to JSON on the way in and decoded on the way out: an agent works with memories, not with bytes.
- `sync_interval` is the server's default of two minutes: acknowledged writes are in the memory of the operating system,
  and a power failure of a majority loses them. `sync_always=True` is what gives the promise that crdt_spine gives.
  The default leans towards the peer, and is what the published ratio is measured against.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import nats
from nats.js.api import KeyValueConfig
from nats.js.kv import KeyValue

from crdt_spine.bench.rounds import Running
from crdt_spine.bench.workload import Operation
from crdt_spine.broker.binary import find_nats_server
from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent
from crdt_spine.errors import ConnectionFailed

SERVERS = 3
BUCKET = "memories"
HOST = "127.0.0.1"
READY_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 5.0
POLL_SECONDS = 0.05


class StoredMemory(msgspec.Struct):
    """A memory as the peer keeps it."""

    id: str
    content: str
    tags: tuple[str, ...]


class JetStreamTarget:
    """kv.put and kv.get."""

    def __init__(self, bucket: KeyValue) -> None:
        self.bucket = bucket
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(StoredMemory).decode

    async def write(self, operation: Operation) -> None:
        memory = StoredMemory(operation.id, operation.content, operation.tags)
        await self.bucket.put(operation.id, self._encode(memory))

    async def read(self, operation: Operation) -> None:
        entry = await self.bucket.get(operation.id)  # raises KeyNotFoundError
        assert entry.value is not None
        memory = self._decode(entry.value)
        if memory.id != operation.id:
            raise LookupError(f"asked for {operation.id}, got {memory.id}")


class JetStreamSystem:
    """Three servers, each with its own store below `data`; they end with this program, however that ends."""

    def __init__(
        self,
        data: Path | None = None,
        *,
        sync_always: bool = False,
        client: Literal["leader", "follower"] = "leader",
        direct_get: bool = False,
    ) -> None:
        choices = ["sync always"] * sync_always + ["client at a follower"] * (client == "follower")
        choices += ["direct get"] * direct_get
        self.name = "JetStream KV" + (f" ({', '.join(choices)})" if choices else "")
        self._data = data
        self._sync_always = sync_always
        self._client = client
        self._direct_get = direct_get

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """A fresh cluster with an empty bucket, and a client at it. Raises ConnectionFailed: it took too long."""
        folder = Path(tempfile.mkdtemp(prefix="jetstream-", dir=self._data))
        try:
            async with AsyncExitStack() as stack:
                processes, urls = await self._start(stack, folder)
                try:
                    async with asyncio.timeout(READY_SECONDS_MAX):
                        leader = await _create_bucket(urls, self._direct_get)
                except TimeoutError:
                    raise ConnectionFailed(f"JetStream at {urls[0]} had no bucket in {READY_SECONDS_MAX:g} s") from None
                numbers = range(SERVERS) if self._client == "leader" else reversed(range(SERVERS))
                server = next(number for number in numbers if (number == leader) == (self._client == "leader"))
                connection = await nats.connect(urls[server])
                stack.push_async_callback(connection.close)
                bucket = await connection.jetstream().key_value(BUCKET)
                # Named by their part in it, because which server leads differs from start to start.
                by_part = [processes.pop(leader), *processes]
                names = ("leader", *(f"follower {number}" for number in range(1, SERVERS)))
                pids = {name: process.pid for name, process in zip(names, by_part, strict=True)}
                yield Running(JetStreamTarget(bucket), {"client": os.getpid(), **pids})
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _start(self, stack: AsyncExitStack, folder: Path) -> tuple[list[BoundProcess], list[str]]:
        program = find_nats_server()
        ports = free_ports(2 * SERVERS)
        clients, routes = ports[:SERVERS], ports[SERVERS:]
        processes = []
        for number in range(SERVERS):
            config = folder / f"server-{number + 1}.conf"
            config.write_text(_config(number, folder, clients, routes, self._sync_always))
            with (folder / f"server-{number + 1}.log").open("wb") as log:
                process = await spawn_bound_to_parent([program, "--config", config], output=log)
            stack.push_async_callback(process.stop, STOP_SECONDS_MAX)
            processes.append(process)
        return processes, [f"nats://{HOST}:{port}" for port in clients]


def _config(number: int, folder: Path, clients: list[int], routes: list[int], sync_always: bool) -> str:
    others = ", ".join(f'"nats-route://{HOST}:{port}"' for n, port in enumerate(routes) if n != number)
    sync = "sync_interval: always" if sync_always else ""
    return (
        f'server_name: "{_server_name(number)}"\n'
        f"listen: {HOST}:{clients[number]}\n"
        f'jetstream {{ store_dir: "{folder / f"store-{number + 1}"}", {sync} }}\n'
        f'cluster {{ name: "peers", listen: {HOST}:{routes[number]}, routes: [{others}] }}\n'
    )


def _server_name(number: int) -> str:
    return f"peer-{number + 1}"


async def _create_bucket(urls: list[str], direct_get: bool) -> int:
    """Create the bucket as soon as the cluster can; returns the number of the server that leads it.

    Right after the start there is no leader of the whole and not every server is known: both are errors that pass.
    """
    config = KeyValueConfig(bucket=BUCKET, replicas=SERVERS, history=1, direct=direct_get)
    while True:
        try:
            connection = await nats.connect(urls[0], allow_reconnect=False, error_cb=_ignore)
            try:
                stream = connection.jetstream(timeout=2.0)
                await stream.create_key_value(config)
                while True:
                    info = await stream.stream_info(f"KV_{BUCKET}")
                    cluster = info.cluster
                    up_to_date = [] if cluster is None else [each for each in cluster.replicas or [] if each.current]
                    if cluster is not None and cluster.leader and len(up_to_date) == SERVERS - 1:
                        return [_server_name(number) for number in range(SERVERS)].index(cluster.leader)
                    await asyncio.sleep(POLL_SECONDS)
            finally:
                await connection.close()
        except (nats.errors.Error, OSError):
            await asyncio.sleep(POLL_SECONDS)


async def _ignore(_: Any) -> None:
    """The client would print what is expected while servers start."""


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on; all held at once, so that they differ."""
    probes = [socket.create_server((HOST, 0)) for _ in range(count)]
    try:
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
