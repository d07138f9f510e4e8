"""What carries messages: subjects, handlers, requests. Two of them: the broker (nats.py), one process (local.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec


class NobodyListens(Exception):
    """A request's subject has no subscriber: whoever should answer is gone."""


class Disconnected(Exception):
    """There is no connection to the broker at the moment."""


class Message(msgspec.Struct, gc=False):
    """What a handler gets. `nobody` is true for the broker's note that a request reached no subscriber."""

    subject: str
    payload: bytes
    reply: str
    nobody: bool = False


#: Called for each message, in order; may be a coroutine function, which then holds back the next one.
Handler = Callable[[Message], Awaitable[None] | None]


class Subscription(Protocol):
    async def cancel(self) -> None: ...


class Transport(Protocol):
    @property
    def connected(self) -> bool: ...

    @property
    def payload_bytes_max(self) -> int:
        """The largest payload that `send` takes."""
        ...

    async def subscribe(self, subject: str, handler: Handler) -> Subscription: ...

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send soon, in order. Lost without a word while there is no connection; with `reply`, a handler of that
        subject is told when nobody listens."""
        ...

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        """One answer. Raises NobodyListens, Disconnected, TimeoutError."""
        ...

    async def close(self) -> None: ...
