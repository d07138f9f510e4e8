"""since(vector): what a replica that misses something is answered (pulling.py asks), page by page.

The vector of the first page is this replica's; it goes along with all of them, and the asker joins it after the last
one (rule 6). Nothing is kept here between two pages.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.causality import Vector, within
from crdt_spine.core.messages import SyncPage, SyncRequest, Unreadable, encode
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica
from crdt_spine.limits import BATCH_BYTES_TARGET, SYNC_SHARE_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.share import Demand, PageShare
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Message, Transport

_decode_request = msgspec.json.Decoder(SyncRequest).decode


class Since:
    """Gives pages to other replicas. `believed`: may what is here be told? `counts` are those of replication.py."""

    def __init__(
        self, replica: Replica, store: RecordStore, committer: Committer, transport: Transport, demand: Demand,
        counts: Counter[str], believed: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.replica = replica
        self.store = store
        self.committer = committer
        self.transport = transport
        self.counts = counts
        self.believed = believed
        self.share = PageShare(demand, SYNC_SHARE_MAX)  # what pages for others take of this node's time
        self.strays: StrayKeeper | None = None  # where placement follows agents or tags
        self.closed = False
        self._thread = ThreadPoolExecutor(1, "pages")

    async def take(self, message: Message) -> None:
        """since(vector), one page. It leaves once everything in it is durable here."""
        try:
            request = _decode_request(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        if request.partition not in self.replica.partitions or not message.reply:
            self.counts["refused"] += 1
            return
        number = request.partition
        if not self.believed():
            return  # what this node has may be deleted and forgotten everywhere else; the asker will look elsewhere
        if request.disk in self.replica.retirement.retired:
            self.replica.retirement.refused[request.disk] += 1
            return  # it would find nothing of what was forgotten; announcements tell it that it is retired
        if not self.replica.may_pull(number, request.disk):
            self.counts["refused"] += 1
            return  # it was dropped, and will hear of it
        if request.upto is not None and not within(request.upto, self.replica.durable[number]):
            return  # promised by this node before it lost its disk
        upto = dict(self.replica.durable[number]) if request.upto is None else request.upto
        async with self.share.turn():
            page = await self._page(request, number, upto)
        if page is None:
            return
        if not await self.committer.durable() or number not in self.replica.partitions:
            return  # the disk is full, or the partition is no longer held: the asker will look elsewhere
        self.counts["sync_records_sent"] += len(page.records)
        self.transport.send(message.reply, encode(page))

    async def _page(self, request: SyncRequest, number: int, upto: Vector) -> SyncPage | None:
        """The page that is asked for; None: the partition is not here any more. Its records are read and encoded in a
        thread of their own: agents do not wait for them."""
        partition = self.replica.partitions.get(number)
        if partition is None or self.closed:
            return None
        limit = min(request.limit, self.share.records_max())
        read = self.store.since(number, request.have, request.after, limit)
        loop = asyncio.get_running_loop()
        encoded, last, seconds = await loop.run_in_executor(self._thread, _encoded, read, request.have, limit)
        if self.replica.partitions.get(number) is not partition:
            return None
        began = time.thread_time()
        page = SyncPage(
            partition=number,
            records=encoded,
            upto=upto,
            next=None if last else encoded[-1][0],
            operations=self.replica.operations_since(number, request.have) if last else {},
            clock=self.replica.partitions[number].forgotten_time,
            after=request.after,
            whole=request.whole,
            forgotten=self.replica.partitions[number].forgotten,
            strays=self.strays.own.packed(number) if last and self.strays is not None else None,
        )
        self.share.spent(seconds + time.thread_time() - began, len(encoded))
        return page

    def close(self) -> None:
        self.closed = True
        self._thread.shutdown(wait=True)


def _encoded(
    read: Callable[[], list[tuple[str, Record | bytes]]], have: Vector, limit: int
) -> tuple[list[tuple[str, msgspec.Raw]], bool, float]:
    """A page's records as it carries them, to somebody who has everything within `have`: as many as fit a message, at
    most `limit`. Then, whether there are no more, and the seconds of a processor that it took."""
    began = time.thread_time()
    records = read()
    encoded: list[tuple[str, msgspec.Raw]] = []
    size = 0
    for id, one in records:
        state = codec.stored_to_json(id, one, have) if isinstance(one, bytes) else codec.to_json(one, have)
        size += len(bytes(state))
        if size > BATCH_BYTES_TARGET and encoded:
            break
        encoded.append((id, state))
    return encoded, len(encoded) == len(records) < limit, time.thread_time() - began
