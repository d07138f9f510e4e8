"""What tests share: a real broker, and waiting for a condition instead of for time."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from crdt_spine.broker.server import EmbeddedBroker

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
    """`await eventually(condition, seconds=10, what="…")`: returns once `condition()` is true, fails when it stays
    false."""

    async def wait(condition: Callable[[], object], seconds: float = 10.0, what: str = "the condition") -> None:
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
