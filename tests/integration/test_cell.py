"""A cell in JetStream: what was written is known, also when the answer was lost, and survives the broker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crdt_spine.broker.server import EmbeddedBroker
from crdt_spine.transport.base import Disconnected, Kept
from crdt_spine.transport.nats import NatsTransport


async def test_compare_and_set_by_several_and_a_watch(broker: EmbeddedBroker, eventually: Any) -> None:
    one, other = [await NatsTransport.connect(broker.url, name) for name in ("one", "other")]
    mine, theirs = await one.cell("spine_test", "membership"), await other.cell("spine_test", "membership")
    looks: list[int] = []
    watch = await theirs.watch(lambda: looks.append(1))
    assert await mine.read() is None
    assert await mine.write(b"first", 0)
    kept = await theirs.read()
    assert kept == Kept(b"first", 1)
    await eventually(lambda: looks, what="the watcher is told")
    wins = await asyncio.gather(mine.write(b"a", 1), theirs.write(b"b", 1))
    assert sorted(wins) == [False, True]
    kept = await mine.read()
    assert kept is not None and kept.value == (b"a" if wins[0] else b"b")
    assert await mine.write(kept.value, 1), "a write whose answer was lost comes again: it was done"
    assert await mine.read() == kept
    await watch.cancel()
    await one.close()
    await other.close()


async def test_an_answer_that_is_lost_is_asked_for_again(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = await NatsTransport.connect(broker.url, "test")
    cell = await transport.cell("spine_test", "membership")
    publish: Any = cell._js.publish
    lost = 0

    async def losing(*arguments: Any, **options: Any) -> Any:
        nonlocal lost
        answer = await publish(*arguments, **options)
        if lost < 1:
            lost += 1
            raise TimeoutError  # the value is there, and its writer does not know
        return answer

    import nats.errors

    async def timing_out(*arguments: Any, **options: Any) -> Any:
        try:
            return await losing(*arguments, **options)
        except TimeoutError as error:
            raise nats.errors.TimeoutError from error

    monkeypatch.setattr(cell._js, "publish", timing_out)
    assert await cell.write(b"value", 0)
    assert lost == 1 and await cell.read() == Kept(b"value", 1)
    lost = 0
    assert not await cell.write(b"another", 0), "that one did not win, and was told so"
    await transport.close()


async def test_it_survives_the_broker_and_a_broker_without_its_disk_has_none(tmp_path: Path) -> None:
    broker = await EmbeddedBroker.start(tmp_path / "broker", port=0)
    transport = await NatsTransport.connect(broker.url, "test")
    cell = await transport.cell("spine_test", "membership")
    assert await cell.write(b"value", 0)

    async def read() -> Kept | None:
        async with asyncio.timeout(40):
            while True:
                try:
                    return await cell.read()
                except (Disconnected, TimeoutError):
                    await asyncio.sleep(0.05)

    for folder, expected in (("broker", Kept(b"value", 1)), ("another", None)):
        broker.kill()
        await broker.exited.wait()
        with pytest.raises((Disconnected, TimeoutError)):
            await cell.read()
        broker = await EmbeddedBroker.start(tmp_path / folder, port=broker.port)
        assert await read() == expected
    assert await cell.write(b"made again", 0)
    await transport.close()
    await broker.stop()
