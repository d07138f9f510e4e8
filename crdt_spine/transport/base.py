"""What carries messages: subjects, handlers, requests. Two of them: the broker (nats.py), one process (local.py).

A transport also keeps *cells* where there is consensus: single values that change by compare-and-set (nats_cell.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from crdt_spine.core.locks import Kept as KeptLease


class NobodyListens(Exception):
    """A request's subject has no subscriber: whoever should answer is gone."""


class Disconnected(Exception):
    """There is no connection to the broker at the moment."""


class LeasesGone(Exception):
    """The leases are kept elsewhere by now: who uses them has to find them again."""


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

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        """Hear what is sent to a subject. Of those who do so with the same `queue`, one hears each message."""
        ...

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


class Leases(Protocol):
    """What locks are kept in (core/locks.py says what with): messages at paths, in one order, each of which ends by
    itself. All but `use` raise Disconnected or TimeoutError where it is not decided, and those on messages LeasesGone
    where what is kept is not what is used."""

    async def find(self) -> tuple[int, int] | None:
        """The epoch of what there is, and its last sequence."""
        ...

    async def make(self, epoch: int) -> None:
        """Make it anew, empty, unless there is some. Raises ConfigError where the broker can't."""
        ...

    async def discard(self) -> None:
        """Forget all of it."""
        ...

    def use(self, epoch: int) -> None:
        """From now on, the messages are those of this epoch."""
        ...

    async def put(self, path: str, value: bytes, expected: int, seconds: int, whole: str = "") -> int | None:
        """As `core.locks.Put`. None: refused, or not known."""
        ...

    async def last(self, path: str) -> KeptLease | None:
        """The newest message at a path."""
        ...

    async def first(self, path: str, after: int = 0) -> KeptLease | None:
        """The oldest message at paths that are like this one, behind a sequence."""
        ...

    async def drop(self, sequence: int) -> bool:
        """Delete a message; was it there? What is made anew does not use the sequences of what was there before."""
        ...

    async def hear(self, path: str, heard: Callable[[str], None]) -> Subscription:
        """Call `heard` with each path like this one at which others who share these leases try to put a message, as
        long as the broker is there: a hint, which may be lost, and says nothing of what came of it."""
        ...

    async def paths(self) -> list[str]:
        """The paths at which there are messages."""
        ...
