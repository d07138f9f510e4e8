"""Who sends one thing at a time never waits; who sends many sends them together."""

from __future__ import annotations

import asyncio

from crdt_spine.transport.pace import Pace

SECONDS = 0.2


class Sender:
    def __init__(self) -> None:
        self.outbox: list[int] = []
        self.batches: list[int] = []
        self.times: list[float] = []
        self.loop = asyncio.get_running_loop()
        self.pace = Pace(self.flush, SECONDS, 10)
        self.ceiling = SECONDS

    def post(self, count: int) -> None:
        if not self.outbox:
            self.pace.plan()
        self.outbox += range(count)

    def flush(self) -> None:
        self.times.append(self.loop.time())
        self.batches.append(len(self.outbox))
        self.pace.sent(len(self.outbox), self.ceiling)
        self.outbox = []


async def test_a_full_batch_holds_the_next_one_up_and_that_carries_all_that_came() -> None:
    sender = Sender()
    sender.post(50)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for _ in range(3):
        sender.post(7)
        await asyncio.sleep(SECONDS / 20)
    await asyncio.sleep(SECONDS)
    assert sender.batches == [50, 21]
    assert sender.times[1] - sender.times[0] >= SECONDS * 0.99


async def test_a_small_batch_holds_up_little() -> None:
    sender = Sender()
    sender.post(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sender.post(1)
    await asyncio.sleep(SECONDS / 2)
    assert sender.batches == [1, 1]
    assert sender.times[1] - sender.times[0] >= SECONDS / 10 * 0.99


async def test_the_hold_up_has_a_ceiling_of_its_own() -> None:
    """Who waits for answers that take a millisecond gains nothing by holding more up for ten."""
    sender = Sender()
    sender.ceiling = SECONDS / 4
    sender.post(50)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sender.post(1)
    await asyncio.sleep(SECONDS / 2)
    assert sender.batches == [50, 1]
    assert SECONDS / 4 * 0.99 <= sender.times[1] - sender.times[0] < SECONDS / 2
