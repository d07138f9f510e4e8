"""What tests share: a real broker, a real cluster, and waiting for a condition instead of for time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import psutil
import pytest
import pytest_asyncio

from crdt_spine import Spine
from crdt_spine.broker.server import EmbeddedBroker
from crdt_spine.core.messages import Get, Status
from crdt_spine.errors import SpineError
from crdt_spine.memory import Memory
from crdt_spine.supervisor import Supervisor

# A shell ignores SIGINT in what it runs in the background, nohup ignores SIGHUP, and so would every process that the
# tests end with them. With a handler of its own pytest goes on as it would have, and its children begin as usual.
for _ignored in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_ignored) is signal.SIG_IGN:
        signal.signal(_ignored, lambda number, frame: None)

Eventually = Callable[..., Awaitable[None]]
RunScript = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    """A running nats-server with JetStream on a free loopback port: `.url`, `.port`, `.pid`.

    It ends with the test; should the test run be killed, the kernel ends it too.
    """
    async with await EmbeddedBroker.start(tmp_path / "broker", port=0) as running:
        yield running


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition, seconds=30, what="…")`: returns once `condition()` is true, fails when it stays
    false."""

    async def wait(condition: Callable[[], object], seconds: float = 30.0, what: str = "the condition") -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """`alive(pid)`: is there such a process, other than one that has ended and was not collected yet?"""

    def check(pid: int) -> bool:
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    return check


@pytest.fixture
async def run_script() -> AsyncIterator[RunScript]:
    """`await run_script(text, *arguments)`: a Python process of its own, stdout in a pipe; killed with the test."""
    processes: list[asyncio.subprocess.Process] = []

    async def run(text: str, *arguments: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", text, *arguments, stdout=asyncio.subprocess.PIPE
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


_HELD: list[socket.socket] = []


def free_port() -> int:
    """One that nobody else is given meanwhile: a socket stays bound to it until this process ends."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return int(held.getsockname()[1])


class RunningCluster:
    """A broker and nodes as processes of their own, as `spine up` runs them, with what tests do to them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.url = supervisor.url
        self.folder = supervisor.folder
        self.ids = [node.id for node in supervisor.nodes]
        self._observer = self.spine("observer")

    def spine(self, agent: str = "tester", **options: Any) -> Spine:
        """A new connection, to be used as `async with`."""
        return Spine.connect(self.url, agent=agent, **options)

    def pid(self, id: str) -> int | None:
        """The process of a node, or of "broker"."""
        return next(child.pid for child in self.supervisor.children if child.id == id)

    @contextlib.contextmanager
    def stopped(self, *ids: str) -> Iterator[None]:
        """These processes stand still (SIGSTOP), as one does whose machine is out of memory or asleep."""
        pids = [pid for id in ids if (pid := self.pid(id)) is not None]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    # -- asking one node ---------------------------------------------------------------------------------------------

    async def run_at(self, node: str, operation: type[Any], timeout: float = 5.0, **fields: Any) -> Any:
        """What one node says to an operation; SpineError where it can't."""
        session = self._observer._live
        return await session.run(operation(i=session.number(), **fields), (node,), use_token=False, timeout=timeout)

    async def get_at(self, node: str, id: str) -> Memory | None:
        """A memory as one node has it."""
        result = await self.run_at(node, Get, id=id)
        return msgspec.json.decode(result.memory, type=Memory) if result.memory else None

    async def contents_at(self, node: str, ids: Iterable[str]) -> dict[str, str | None]:
        """The contents of memories as one node has them; None where it has none."""
        wanted = list(ids)
        memories = await asyncio.gather(*[self.get_at(node, id) for id in wanted])
        return {id: memory.content if memory is not None else None for id, memory in zip(wanted, memories, strict=True)}

    async def status(self, node: str) -> dict[str, Any]:
        """One node's report, or {"state": "down"}."""
        if self.pid(node) is None:
            return {"state": "down"}
        try:
            return cast("dict[str, Any]", msgspec.json.decode((await self.run_at(node, Status, timeout=3.0)).status))
        except SpineError:
            return {"state": "down"}

    # -- meddling ----------------------------------------------------------------------------------------------------

    async def kill(self, *ids: str) -> None:
        """Kill nodes with SIGKILL, all at once; they stay away until `bring_back`."""
        self.supervisor.set_node_restart(False)
        await asyncio.gather(*[self.supervisor.kill_node(id) for id in ids])

    async def bring_back(self, *ids: str) -> None:
        """Start nodes that were killed, and wait until they serve."""
        for id in ids:
            self.supervisor.start_node(id)
        deadline = time.monotonic() + 60

        def away() -> list[str]:
            nodes = [node for node in self.supervisor.nodes if node.id in ids]
            return [f"{node.id} is {node.state}" for node in nodes if node.state != "ready"]

        while missing := away():
            assert time.monotonic() < deadline, f"not ready within 60 s: {', '.join(missing)}"
            await asyncio.sleep(0.01)
        self.supervisor.set_node_restart(True)

    def kill_broker(self) -> None:
        """Kill the broker with SIGKILL; the supervisor starts it again on the same port."""
        pid = self.pid("broker")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def start(self) -> None:
        await self._observer.__aenter__()

    async def close(self) -> None:
        await self._observer.close()
        await self.supervisor.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningCluster]:
    """Three nodes for a whole module: whoever kills one brings it back.

    The module must say `pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("its name")]`.
    """
    supervisor = Supervisor(tmp_path_factory.mktemp("cluster"), nodes=3, nats_port=0, http_port=0)
    await supervisor.start()
    running = RunningCluster(supervisor)
    await running.start()
    yield running
    await running.close()


@pytest_asyncio.fixture(loop_scope="module")
async def start_cluster(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[RunningCluster]]]:
    """`await start_cluster(nodes=3, …)`: a cluster of the test's own; options are the supervisor's."""
    running: list[RunningCluster] = []

    async def start(nodes: int = 3, folder: Path | None = None, **options: Any) -> RunningCluster:
        supervisor = Supervisor(
            folder or tmp_path / f"cluster-{len(running)}", nodes=nodes, nats_port=0, http_port=0, **options
        )
        await supervisor.start()
        running.append(RunningCluster(supervisor))
        await running[-1].start()
        return running[-1]

    yield start
    for one in running:
        await one.close()
