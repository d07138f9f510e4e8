"""A node that is apart from the others and not from its agents: what brokers in two places do when the way between
them breaks, or a broker that drops what a slow subscription can't take.

What the file "apart" in the node's data folder says is lost between it and other nodes, in both directions, as what
NATS delivers at most once may be: "data", what they write, or "all" that they say. Agents, the lock service and
JetStream are reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from pathlib import Path
from typing import Any

from crdt_spine.transport import nats
from crdt_spine.transport.base import Handler
from crdt_spine.transport.nats import NatsTransport

LOOK_SECONDS = 0.02

_NODE = r"spine\.[^.]+\.node\.[^.]+"
#: What is lost (core/subjects.py), by the word in the file.
LOST = {
    "": re.compile(r"(?!)"),
    "data": re.compile(rf"spine\.[^.]+\.delta\.|{_NODE}\.(ack|sync)\b"),
    "all": re.compile(rf"spine\.[^.]+\.(delta|vectors|gossip)\.|{_NODE}\.(ack|sync|record|round|rounded|strays)\b"),
}


class Apart:
    """`install` it before the node connects."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark
        self._lost = LOST[""]
        self._look()

    def install(self) -> None:
        """From now on this process's transport loses what the mark says."""
        send, request, subscribe = NatsTransport.send, NatsTransport.request, NatsTransport.subscribe

        def sends(transport: NatsTransport, subject: str, payload: bytes, reply: str = "") -> None:
            if not self._loses(subject):
                send(transport, subject, payload, reply)

        async def requests(transport: NatsTransport, subject: str, payload: bytes, timeout: float) -> bytes:
            if self._loses(subject):
                await asyncio.sleep(timeout)
                raise TimeoutError(f"{subject} did not answer within {timeout:g} s")
            return await request(transport, subject, payload, timeout)

        async def subscribes(
            transport: NatsTransport, subject: str, handler: Handler, queue: str = ""
        ) -> nats.NatsSubscription:
            def take(message: Any) -> Any:
                return None if self._loses(message.subject) else handler(message)

            return await subscribe(transport, subject, take, queue)

        NatsTransport.send = sends  # type: ignore[method-assign]
        NatsTransport.request = requests  # type: ignore[method-assign]
        NatsTransport.subscribe = subscribes  # type: ignore[method-assign]
        threading.Thread(target=self._watch, daemon=True).start()

    def _loses(self, subject: str) -> bool:
        return self._lost.match(subject) is not None

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            self._lost = LOST[self._mark.read_text()]

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(LOOK_SECONDS)
