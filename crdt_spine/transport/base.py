"""What carries messages: subjects, handlers, requests. Two of them: the broker (nats.py), one process (local.py).

A transport also keeps *cells* where there is consensus: single values that change by compare-and-set (nats_cell.py).
"""

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


class Kept(msgspec.Struct, frozen=True):
    """A cell's value, and which change brought it."""

    value: bytes
    revision: int


class Cell(Protocol):
    """One value that everybody sees change in the same order, and that outlives all who use it. Both methods raise
    Disconnected or TimeoutError where the broker does not decide; then it is to be tried again."""

    async def read(self) -> Kept | None:
        """The value; None: there is none. It may be a moment old: only `write` is the truth."""
        ...

    async def write(self, value: bytes, revision: int) -> bool:
        """Replace the value that the change `revision` brought (0: there must be none); False: it is another one by
        now. May be repeated where it is not known what came of it: a value that is there already was written."""
        ...

    async def watch(self, on_change: Callable[[], None]) -> Subscription:
        """Be told that it may have changed, soon after; not after every change, nor only then."""
        ...
