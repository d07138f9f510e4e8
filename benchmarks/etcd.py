"""The peer of strong operations: etcd with three members on loopback, and a client that uses `etcd3aio` as it is.

Choices, and which way they lean:

- The client is connected to the member that leads: no hop to it. Leans towards the peer.
- `kv.put` and `kv.get` with etcd's defaults: a write is on the disks of a majority (fsync), a read is linearizable (the
  leader asks a majority whether it still leads). So is what it is compared with.
- A memory is encoded to JSON on the way in and decoded on the way out, as in the JetStream benchmark.
- etcd is Debian's `etcd-server`; the client needs `pip install etcd3aio` (optional, "bench"). etcd3aio is the one among
  etcd's asyncio clients on PyPI that is kept and goes through gRPC's own asyncio interface.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from crdt_spine.bench.jetstream import HOST, StoredMemory, free_ports
from crdt_spine.bench.rounds import Running
from crdt_spine.bench.workload import Operation
from crdt_spine.broker.guard import spawn_bound_to_parent
from crdt_spine.errors import ConnectionFailed

MEMBERS = 3
CACHE = Path("build") / "etcd"
PACKAGE = "etcd-server"
READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 5.0
DOWNLOAD_SECONDS_MAX = 120.0
POLL_SECONDS = 0.1


class NoEtcd(Exception):
    """There is no etcd, or no client for it; the message says what to do."""


def find_etcd(cache: Path = CACHE) -> Path:
    """The program `etcd`: of PATH, or Debian's package unpacked into `cache`, which needs no root. Raises NoEtcd."""
    if (found := shutil.which("etcd")) is not None:
        return Path(found)
    program = cache / "usr" / "bin" / "etcd"
    if program.exists():
        return program
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoEtcd("there is no etcd in PATH, and no apt-get to fetch Debian's: install etcd")
    cache.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["apt-get", "download", PACKAGE], cwd=cache, check=True, capture_output=True, timeout=DOWNLOAD_SECONDS_MAX
        )
        package = next(cache.glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=cache, check=True, timeout=DOWNLOAD_SECONDS_MAX)
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        raise NoEtcd(f"Debian's {PACKAGE} can't be fetched: {error}; install etcd") from error
    return program


def version_of(program: Path) -> str:
    """What it says of itself."""
    said = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, timeout=10)
    return said.stdout.splitlines()[0] if said.stdout else "etcd"


class EtcdTarget:
    """kv.put and kv.get."""

    def __init__(self, kv: Any) -> None:
        self._kv = kv
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(StoredMemory).decode

    async def write(self, operation: Operation) -> None:
        memory = StoredMemory(operation.id, operation.content, operation.tags)
        await self._kv.put(operation.id, self._encode(memory))

    async def read(self, operation: Operation) -> None:
        found = (await self._kv.get(operation.id)).kvs
        if len(found) != 1 or self._decode(found[0].value).id != operation.id:
            raise LookupError(f"asked for {operation.id}, got {len(found)} values")


class EtcdSystem:
    """Three members, each with its own folder below `data`; they end with this program, however that ends."""

    name = "etcd"

    def __init__(self, program: Path, data: Path | None = None) -> None:
        self._program = program
        self._data = data

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """A fresh cluster, and a client at its leader. Raises ConnectionFailed: it took too long; NoEtcd."""
        try:
            from etcd3aio import Etcd3Client
        except ImportError as error:
            raise NoEtcd(f"{error}: pip install etcd3aio") from error
        folder = Path(tempfile.mkdtemp(prefix="etcd-", dir=self._data))
        try:
            async with AsyncExitStack() as stack:
                processes, endpoints = await self._start(stack, folder)
                try:
                    async with asyncio.timeout(READY_SECONDS_MAX):
                        leader = await _leader(Etcd3Client, endpoints)
                except TimeoutError:
                    raise ConnectionFailed(f"etcd at {endpoints[0]} had no leader in {READY_SECONDS_MAX:g} s") from None
                client = await stack.enter_async_context(Etcd3Client([endpoints[leader]]))
                by_part = [processes.pop(leader), *processes]
                names = ("leader", *(f"follower {number}" for number in range(1, MEMBERS)))
                yield Running(EtcdTarget(client.kv), {"client": os.getpid(), **dict(zip(names, by_part, strict=True))})
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _start(self, stack: AsyncExitStack, folder: Path) -> tuple[list[int], list[str]]:
        ports = free_ports(2 * MEMBERS)
        clients, peers = ports[:MEMBERS], ports[MEMBERS:]
        cluster = ",".join(f"m{number}=http://{HOST}:{port}" for number, port in enumerate(peers))
        pids = []
        for number in range(MEMBERS):
            client, peer = f"http://{HOST}:{clients[number]}", f"http://{HOST}:{peers[number]}"
            command = [
                self._program, "--name", f"m{number}", "--data-dir", folder / f"m{number}",
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", cluster, "--initial-cluster-state", "new",
            ]  # fmt: skip
            with (folder / f"m{number}.log").open("wb") as log:
                process = await spawn_bound_to_parent([str(word) for word in command], output=log)
            stack.push_async_callback(process.stop, STOP_SECONDS_MAX)
            pids.append(process.pid)
        return pids, [f"{HOST}:{port}" for port in clients]


async def _leader(client_of: Any, endpoints: list[str]) -> int:
    """The number of the member that leads, once all have one."""
    while True:
        try:
            said = []
            for endpoint in endpoints:
                async with client_of([endpoint]) as client:
                    said.append(await client.maintenance.status())
            leaders = {one.leader for one in said}
            if len(leaders) == 1 and leaders != {0}:
                return [one.header.member_id for one in said].index(leaders.pop())
        except Exception:  # whatever the client raises while members start
            pass
        await asyncio.sleep(POLL_SECONDS)
