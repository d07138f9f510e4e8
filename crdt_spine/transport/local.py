"""A transport inside one process: the embedded node and its agent speak the same messages as a cluster does."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Callable
from typing import NamedTuple

from crdt_spine.core.locks import Kept as KeptLease
from crdt_spine.limits import MESSAGE_BYTES_MAX
from crdt_spine.transport.base import Handler, Kept, Message, NobodyListens, Subscription

log = logging.getLogger(__name__)


class LocalSubscription:
    """A handler's place in the transport."""

    def __init__(self, transport: LocalTransport, subject: str, handler: Handler) -> None:
        self.transport = transport
        self.pattern = subject.split(".")
        self.handler = handler
        self.queue: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.get_running_loop().create_task(self._run())

    def takes(self, tokens: list[str]) -> bool:
        """NATS's rules: `*` is any one token, a last `>` any rest."""
        for index, part in enumerate(self.pattern):
            if part == ">":
                return len(tokens) > index
            if index >= len(tokens) or part not in ("*", tokens[index]):
                return False
        return len(self.pattern) == len(tokens)

    async def _run(self) -> None:
        while True:
            message = await self.queue.get()
            try:
                waiting = self.handler(message)
                if waiting is not None:
                    await waiting
            except Exception:
                log.exception("the handler of %s failed", message.subject)

    async def cancel(self) -> None:
        if self in self.transport.subscriptions:
            self.transport.subscriptions.remove(self)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class LocalTransport:
    """Delivers in the order of sending, each handler on a task of its own, as a broker would."""

    connected = True
    payload_bytes_max = MESSAGE_BYTES_MAX

    def __init__(self) -> None:
        self.subscriptions: list[LocalSubscription] = []
        self._numbers = itertools.count()

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> LocalSubscription:
        subscription = LocalSubscription(self, subject, handler)
        self.subscriptions.append(subscription)
        return subscription

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        tokens = subject.split(".")
        takers = [subscription for subscription in self.subscriptions if subscription.takes(tokens)]
        for subscription in takers:
            subscription.queue.put_nowait(Message(subject, payload, reply))
        if not takers and reply:
            for subscription in self.subscriptions:
                if subscription.takes(reply.split(".")):
                    subscription.queue.put_nowait(Message(reply, b"", "", nobody=True))

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def take(message: Message) -> None:
            if not answer.done():
                answer.set_result(message)

        inbox = f"_local.{next(self._numbers)}"
        subscription = await self.subscribe(inbox, take)
        try:
            self.send(subject, payload, inbox)
            message = await asyncio.wait_for(answer, timeout)
        finally:
            await subscription.cancel()
        if message.nobody:
            raise NobodyListens(subject)
        return message.payload

    async def close(self) -> None:
        for subscription in list(self.subscriptions):
            await subscription.cancel()


class _Watcher:
    def __init__(self, cell: LocalCell, on_change: Callable[[], None]) -> None:
        self.cell = cell
        self.on_change = on_change

    async def cancel(self) -> None:
        if self in self.cell.watchers:
            self.cell.watchers.remove(self)


class LocalCell:
    """A `Cell` in memory, for those in one process who share it. It does not outlive them."""

    def __init__(self, value: bytes | None = None) -> None:
        self.kept = None if value is None else Kept(value, 1)
        self.watchers: list[_Watcher] = []

    async def read(self) -> Kept | None:
        return self.kept

    async def write(self, value: bytes, revision: int) -> bool:
        here = 0 if self.kept is None else self.kept.revision
        if here != revision:
            return self.kept is not None and self.kept.value == value
        self.kept = Kept(value, here + 1)
        for watcher in list(self.watchers):
            watcher.on_change()
        return True

    async def watch(self, on_change: Callable[[], None]) -> _Watcher:
        self.watchers.append(_Watcher(self, on_change))
        return self.watchers[-1]


class _Lease(NamedTuple):
    path: str
    value: bytes
    ends: float


class _Deaf:
    async def cancel(self) -> None:
        pass


class LocalLeases:
    """A `Leases` in memory, for those in one process who share it. It does not outlive them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._epoch: int | None = None
        self._sequence = 0
        self._messages: dict[int, _Lease] = {}

    async def find(self) -> tuple[int, int] | None:
        return None if self._epoch is None else (self._epoch, self._sequence)

    async def make(self, epoch: int) -> None:
        if self._epoch is None:
            self._epoch = epoch

    async def discard(self) -> None:
        self._epoch = None
        self._messages.clear()

    def use(self, epoch: int) -> None:
        pass

    async def put(self, path: str, value: bytes, expected: int, seconds: int, whole: str = "") -> int | None:
        if max(self._at(whole or path), default=0) != expected:
            return None
        for sequence in self._at(path):
            del self._messages[sequence]
        self._sequence += 1
        self._messages[self._sequence] = _Lease(path, value, self._now() + seconds)
        return self._sequence

    async def last(self, path: str) -> KeptLease | None:
        return self._kept(max(self._at(path), default=0))

    async def first(self, path: str, after: int = 0) -> KeptLease | None:
        return self._kept(min((sequence for sequence in self._at(path) if sequence > after), default=0))

    async def drop(self, sequence: int) -> bool:
        return self._messages.pop(sequence, None) is not None

    async def hear(self, path: str, heard: Callable[[str], None]) -> Subscription:
        return _Deaf()  # nobody else shares them

    async def paths(self) -> list[str]:
        self._at("")
        return [message.path for message in self._messages.values()]

    def _kept(self, sequence: int) -> KeptLease | None:
        return KeptLease(sequence, self._messages[sequence].value) if sequence else None

    def _at(self, path: str) -> list[int]:
        """The messages at a path, by NATS's rules; what has ended is gone."""
        now = self._now()
        for sequence in [sequence for sequence, message in self._messages.items() if message.ends <= now]:
            del self._messages[sequence]
        pattern = re.compile(re.escape(path).replace(r"\*", "[^.]+").replace(">", ".+"))
        return [sequence for sequence, message in self._messages.items() if pattern.fullmatch(message.path)]
