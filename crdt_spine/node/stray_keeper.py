"""What a node knows of strays (core/strays.py): its own, told in announcements; the others', asked for where new.

An announcement says up to where strays were established in each partition, which is nothing where there are none. Who
does not know that much asks the node that said so for the keys, some partitions a message.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec

from crdt_spine.core.causality import Vector
from crdt_spine.core.messages import (
    Announcement,
    Query,
    StraysAnswer,
    StraysRequest,
    Unreadable,
    Vectors,
    encode,
)
from crdt_spine.core.strays import OwnStrays, StrayMap
from crdt_spine.core.subjects import Subjects
from crdt_spine.limits import STRAYS_AT_ONCE_MAX
from crdt_spine.storage.engine import Checkpoint
from crdt_spine.transport.base import Disconnected, Message, NobodyListens, Transport

log = logging.getLogger(__name__)

ASK_SECONDS_MAX = 2.0

_decode_request = msgspec.json.Decoder(StraysRequest).decode
_decode_answer = msgspec.json.Decoder(StraysAnswer).decode


class StrayKeeper:
    """`durable` are the vectors of the own partitions, `answering` has, by partition, the nodes that answer for it."""

    def __init__(
        self,
        node: str,
        placement: str,
        partitions: int,
        durable: Mapping[int, Vector],
        transport: Transport,
        subjects: Subjects,
        answering: Callable[[], Mapping[int, Collection[str]]],
    ) -> None:
        self.own = OwnStrays(placement, partitions)
        self.map = StrayMap(node, self.own, answering)
        self.durable = durable
        self.transport = transport
        self.subjects = subjects
        self.counts: Counter[str] = Counter()
        self._asking: dict[str, asyncio.Task[None]] = {}

    # -- the own ones -----------------------------------------------------------------------------------------------

    def established(self, numbers: Iterable[int]) -> Vectors:
        """Up to where strays were established, of those of these partitions that have some."""
        own = self.own
        return {number: vector for number in numbers if (vector := own.established(number))}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Know again what a checkpoint had; the tables of an earlier version may have any stray."""
        saved: dict[str, tuple[str, Vector]] | None = checkpoint.extra.get("strays")
        if saved is not None:
            for number, (keys, established) in saved.items():
                strays = self.own.of(int(number))
                strays.keys.unite(base64.b64decode(keys))
                strays.established = dict(established)
            return
        for one, summary in checkpoint.partitions.items():
            if summary.memories:
                self.own.of(one).keys.fill()
                self.own.of(one).established = dict(summary.vector)

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "strays": {
                str(number): (base64.b64encode(strays.keys.packed()).decode(), dict(strays.established))
                for number, strays in self.own.partitions.items()
                if strays.keys and number in self.durable
            }
        }

    def take(self, message: Message) -> None:
        """Somebody wants to know the strays of partitions."""
        try:
            request = _decode_request(message.payload)
        except Unreadable:
            self.counts["strays_refused"] += 1
            return
        if message.reply:
            keys = {
                number: (self.durable[number], self.own.of(number).keys.packed())
                for number in request.partitions
                if number in self.durable
            }
            self.transport.send(message.reply, encode(StraysAnswer(keys=keys)))

    # -- the others' ------------------------------------------------------------------------------------------------

    def elsewhere(self, query: Query, asked: Collection[int]) -> tuple[int, ...]:
        """The partitions that must be asked as well, so that nothing is missed."""
        return self.map.elsewhere(query.keys, asked, query.strays, self.durable)

    def hear(self, announcement: Announcement) -> None:
        """A peer's announcement."""
        if announcement.state not in ("up", "full"):
            return  # its disk may not be believed
        node = announcement.node
        news = self.map.hear(node, announcement.vectors, announcement.strays)
        if news and node not in self._asking:
            task = asyncio.get_running_loop().create_task(self._ask(node, news))
            self._asking[node] = task
            task.add_done_callback(lambda _: self._asking.pop(node, None))

    async def _ask(self, node: str, numbers: list[int]) -> None:
        """Its next announcement asks again where this breaks off."""
        for first in range(0, len(numbers), STRAYS_AT_ONCE_MAX):
            request = StraysRequest(partitions=tuple(numbers[first : first + STRAYS_AT_ONCE_MAX]))
            self.counts["stray_requests"] += 1
            try:
                raw = await self.transport.request(self.subjects.strays(node), encode(request), ASK_SECONDS_MAX)
                for number, (upto, keys) in _decode_answer(raw).keys.items():
                    if number in request.partitions:
                        self.map.learn(number, keys, upto)
            except (TimeoutError, NobodyListens, Disconnected):
                return
            except (*Unreadable, ValueError) as error:
                self.counts["strays_refused"] += 1
                log.warning("%s sent an answer about strays that is of no use: %s", node, error)
                return

    def close(self) -> None:
        for task in self._asking.values():
            task.cancel()
