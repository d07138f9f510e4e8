"""The thread beside the event loop: one thing after another, errors to who asked, and nothing begun is left undone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from crdt_spine.node.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test")
    yield worker
    worker.close()


async def test_it_does_one_thing_after_another_in_one_thread_of_its_own(worker: Worker) -> None:
    did: list[int] = []
    threads: set[int] = set()

    def work(n: int) -> int:
        did.append(n)
        threads.add(threading.get_ident())
        return n * n

    async with asyncio.timeout(5):
        assert await asyncio.gather(*[worker.do(work, n) for n in range(50)]) == [n * n for n in range(50)]
    assert did == list(range(50))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_an_error_is_its_callers_and_the_next_one_goes_on(worker: Worker) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(ZeroDivisionError):
            await worker.do(lambda: 1 // 0)
        assert await worker.do(lambda: 1) == 1


async def test_what_was_begun_is_done_though_its_caller_was_cancelled_or_it_is_closed(worker: Worker) -> None:
    go_on, did = threading.Event(), []

    def work() -> None:
        go_on.wait(5)
        did.append(1)

    doing = [asyncio.create_task(worker.do(work)) for _ in range(2)]
    await asyncio.sleep(0)
    doing[0].cancel()
    await asyncio.gather(doing[0], return_exceptions=True)
    go_on.set()
    worker.close()
    assert did == [1, 1]
    async with asyncio.timeout(5):
        await doing[1]
    with pytest.raises(RuntimeError):
        await worker.do(work)
    worker.close()


def test_a_loop_that_is_gone_ends_nothing() -> None:
    worker, go_on, did = Worker("test"), threading.Event(), threading.Event()

    async def leave() -> None:
        asyncio.get_running_loop().create_task(worker.do(go_on.wait, 5))
        await asyncio.sleep(0)

    asyncio.run(leave())
    go_on.set()

    async def again() -> None:
        async with asyncio.timeout(5):
            await worker.do(did.set)

    asyncio.run(again())
    assert did.is_set()
    worker.close()
