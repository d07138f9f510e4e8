"""The connection to the broker ends when it is told to, whatever the broker does."""

from __future__ import annotations

import asyncio
import socket

import pytest

from crdt_spine.errors import ConnectionFailed
from crdt_spine.transport.nats import NatsTransport


async def test_a_connection_that_is_cancelled_at_any_moment_of_reconnecting_ends() -> None:
    """nats-py takes a cancellation that meets a refused connection for a failed attempt, and tries again for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for turns in range(12):  # the attempt is cancelled after that many turns of the loop, wherever it is then
        attempt = asyncio.ensure_future(NatsTransport.connect(f"nats://127.0.0.1:{port}", "test", 4.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        attempt.cancel()
        done, _ = await asyncio.wait({attempt}, timeout=20.0)
        assert done, f"still connecting, cancelled after {turns} turns"


async def test_a_connection_that_nobody_answers_fails_in_time() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = asyncio.get_running_loop().time()
    with pytest.raises(ConnectionFailed, match=str(port)):
        await NatsTransport.connect(f"nats://127.0.0.1:{port}", "test", 0.5)
    assert asyncio.get_running_loop().time() - began < 15
