"""One process is a node: a second one is refused at its start and told of the first; nobody waits for the dead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from crdt_spine.core.messages import Claim, encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.errors import ConfigError
from crdt_spine.node.claim import NodeClaim
from crdt_spine.transport.base import NobodyListens
from crdt_spine.transport.nats import NatsTransport

Broker = Any
Process = Callable[[str], Awaitable[NodeClaim]]
SPINE: Final = [sys.executable, "-m", "crdt_spine.cli.main"]


@pytest.fixture
async def process(broker: Broker) -> AsyncIterator[Process]:
    """`await process(name)`: a claim to be the node n1 over a connection of its own, not taken yet."""
    transports: list[NatsTransport] = []

    async def connect(name: str) -> NodeClaim:
        transports.append(await NatsTransport.connect(broker.url, name))
        return NodeClaim(transports[-1], Subjects("test"), "n1", name)

    yield connect
    for transport in transports:
        await transport.close()


async def test_who_comes_second_is_told_who_is_there_and_the_first_says_so(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await process("b"), await process("a")
    await first.take()
    with caplog.at_level(logging.ERROR), pytest.raises(ConfigError, match=f"'n1'.*pid {os.getpid()} on "):
        await second.take()
    assert "another process says that it is node n1" in caplog.text
    await first.release()
    await second.take()


async def test_of_two_that_start_at_once_one_goes_on(process: Process) -> None:
    for turn in range(20):
        claims = [await process(f"{turn}-a"), await process(f"{turn}-b")]
        outcomes = await asyncio.gather(*[claim.take() for claim in claims], return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, ConfigError)]
        assert len(refused) == 1, outcomes
        for claim in claims:
            await claim.release()


async def test_a_free_id_and_one_whose_process_was_killed_cost_one_question(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crdt_spine.node.claim.CLAIM_SECONDS_MAX", 30.0)
    for name in ("a", "b", "c"):
        claim = await process(name)
        began = time.monotonic()
        await claim.take()
        assert time.monotonic() - began < 15, "nobody was waited for"
        await claim.transport.close()


async def test_one_that_holds_the_id_and_does_not_answer_is_taken_for_dead_after_a_while(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    stopped, claim = await process("a"), await process("b")
    subject = Subjects("test").claim("n1")
    await stopped.transport.subscribe(subject, lambda message: None)
    with pytest.raises(TimeoutError):  # the broker knows of the subscription from here on
        while True:
            with contextlib.suppress(NobodyListens):
                await claim.transport.request(subject, b"", 0.1)
    with caplog.at_level(logging.WARNING):
        await claim.take()
    assert "does not answer" in caplog.text


async def test_what_is_no_claim_is_not_answered(process: Process) -> None:
    holder, other = await process("a"), await process("b")
    await holder.take()
    for garbage in (b"", b"{", b'{"type":"claim/2"}', b'{"type":"claim/1","node":"n1"}'):
        with pytest.raises(TimeoutError):
            await other.transport.request(Subjects("test").claim("n1"), garbage, 0.1)
    asked = encode(Claim(node="n1", process="b", pid=1, host="h"))
    assert b'"settled":true' in await other.transport.request(Subjects("test").claim("n1"), asked, 5)


async def test_a_second_node_of_an_id_ends_with_1_and_a_killed_one_is_replaced_at_once(
    broker: Broker, tmp_path: Path
) -> None:
    """As processes: each has a port and a folder of its own, so nothing but the claim stands between them."""
    running: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        config = tmp_path / f"{port}.yaml"
        config.write_text(f"cluster:\n  name: test\n  nodes:\n    - {{id: n1, host: 127.0.0.1, port: {port}}}\n")
        command = [*SPINE, "node", "--config", str(config), "--id", "n1", "--data", str(tmp_path / str(len(running)))]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen([*command, "--server", broker.url], **pipes))
        return running[-1]

    def ready(node: subprocess.Popen[bytes]) -> bytes:
        assert node.stdout is not None
        return node.stdout.readline()

    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in (one, other)]
    try:
        first = start(ports[0])
        assert await asyncio.to_thread(ready, first) == b"ready n1\n"
        second = start(ports[1])
        said, problem = await asyncio.to_thread(second.communicate, timeout=30)
        assert (second.returncode, said) == (1, b"")
        assert f"'n1' of this cluster: pid {first.pid} on".encode() in problem
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
        third = start(ports[0])
        assert await asyncio.to_thread(ready, third) == b"ready n1\n"
    finally:
        for node in running:
            node.kill()
            node.wait()
            for pipe in (node.stdout, node.stderr):
                assert pipe is not None
                pipe.close()
