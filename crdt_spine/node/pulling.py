"""Repair: what is missing here is fetched from a peer that has it, with since(my vector).

A lost delta, a lost acknowledgement, a node that was away, one that starts with an empty disk: all the same. A gap
that is older than a moment (the delta may still be on its way) is pulled from a replica that announced it, page by
page (since.py answers); the source's vector of the first page is joined after the last one (rule 6), so a sync that
breaks off only has done part of the work. A node that can't believe its disk pulls a partition whole, to learn also
what is not there (`compare`, asked for by identity.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core import codec
from crdt_spine.core.causality import Vector, missing, within
from crdt_spine.core.messages import SyncPage, SyncRequest, Unreadable, encode
from crdt_spine.core.replica import Replica
from crdt_spine.core.subjects import Subjects
from crdt_spine.limits import CATCH_UP_SHARE_MAX, REPAIR_GRACE_SECONDS, TAKING_SHARE_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.peers import Peers
from crdt_spine.node.repairs import Repairs
from crdt_spine.node.share import Demand, PageShare
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Disconnected, NobodyListens, Transport

log = logging.getLogger(__name__)

SYNCS_AT_ONCE = 8  # partitions that are pulled, from all peers together
PAGE_SECONDS_MAX = 5.0

_decode_page = msgspec.json.Decoder(SyncPage).decode


class Pulling:
    """Knows which partitions are behind, and runs their syncs. `believed`: is what is here as new as its vectors say?
    `serves`: is this node up? `expelled` is set where a source has forgotten what this node never saw. `counts` are
    those of replication.py."""

    def __init__(
        self, replica: Replica, store: RecordStore, committer: Committer, transport: Transport, subjects: Subjects,
        demand: Demand, peers: Peers, counts: Counter[str], believed: Callable[[], bool], serves: Callable[[], bool],
        expelled: asyncio.Event,
    ) -> None:  # fmt: skip
        self.replica = replica
        self.store = store
        self.committer = committer
        self.transport = transport
        self.subjects = subjects
        self.peers = peers
        self.counts = counts
        self.believed = believed
        self.serves = serves
        self.expelled = expelled
        self.repairs = Repairs()
        self.share = PageShare(demand, TAKING_SHARE_MAX, CATCH_UP_SHARE_MAX)  # what pages take of this node's time
        self.unripe: dict[int, frozenset[str]] = {}  # replicas that do not have yet what others have, by partition
        self.on_pulled: Callable[[int], None] | None = None  # a sync of a partition is over, whatever came of it
        self.look_again = asyncio.Event()  # a sync ended, or there is a first gap
        self.paged = 0.0  # when the last page of a comparison came, monotonic seconds
        self._behind: dict[int, tuple[str, float]] = {}  # partition -> (who has more, since when)
        self._syncs: dict[int, asyncio.Task[bool]] = {}
        self._sources: dict[int, str] = {}  # of the syncs under way

    # -- what is behind ---------------------------------------------------------------------------------------------

    def mark_behind(self, number: int, source: str) -> None:
        """That peer seems to have more of a partition."""
        if number not in self._behind and source != self.replica.node:
            if self._behind.keys() <= self._syncs.keys():
                self.look_again.set()  # nobody would look when its time has come
            self._behind[number] = (source, time.monotonic())

    def look(self) -> None:
        """Begin the syncs whose time has come."""
        now = time.monotonic()
        for number, (source, since) in list(self._behind.items()):
            if number not in self.replica.partitions:  # it was dropped since it was seen to be behind
                del self._behind[number]
                continue
            if number in self._syncs or len(self._syncs) >= SYNCS_AT_ONCE or not self.believed():
                continue  # a disk that is too old is compared first: a sync would hide what it has not heard of
            if now - since >= REPAIR_GRACE_SECONDS:
                del self._behind[number]
                best = self._best_source(number) or source
                if self._still_behind(number, best):
                    self.pull(number, best)
                elif self._lacks_stranded(number, source):
                    self.pull(number, source)

    def due(self) -> list[float]:
        """When to look again, monotonic seconds; when a sync ends, at once (`look_again`)."""
        if len(self._syncs) < SYNCS_AT_ONCE:
            gaps = (since for number, (_, since) in self._behind.items() if number not in self._syncs)
            return [since + REPAIR_GRACE_SECONDS for since in gaps]
        return []

    def is_pulled(self, number: int) -> bool:
        """Does a partition miss what does not come by itself any more, but page by page?"""
        marked = self._behind.get(number)
        return number in self._syncs or (marked is not None and time.monotonic() - marked[1] >= REPAIR_GRACE_SECONDS)

    @property
    def behind(self) -> bool:
        """Is there such a partition?"""
        return any(map(self.is_pulled, self.busy))

    @property
    def busy(self) -> set[int]:
        """The partitions that are behind, or are being pulled."""
        return self._behind.keys() | self._syncs.keys()

    @property
    def waiting(self) -> int:
        """How many partitions are behind, and wait for others to be pulled first."""
        return len(self._behind.keys() - self._syncs.keys())

    def leave(self, numbers: Collection[int]) -> None:
        """Pull nothing of these partitions any more."""
        for number in numbers:
            self._behind.pop(number, None)
            if number in self._syncs:
                self._syncs[number].cancel()

    def meet(self, unripe: dict[int, frozenset[str]]) -> None:
        """The replica has new peers. `unripe` are replicas that are still to be filled, by partition. Nothing is pulled
        from who was dropped: its tombstones may be gone everywhere else, while a page of its is on the way."""
        self.unripe = unripe
        held = self.replica.peers
        self.leave([number for number, source in self._sources.items() if source not in held.get(number, ())])

    # -- whom to ask ------------------------------------------------------------------------------------------------

    def sources(self, number: int) -> list[str]:
        """The peers with which a partition can be compared."""
        up = {node for node in self.peers.alive() if self.peers[node].announcement.state == "up"}
        return [node for node in self.replica.peers[number] if node in up - self.unripe.get(number, frozenset())]

    def _best_source(self, number: int) -> str | None:
        """Whom to pull a partition from: who has the most of it and gives the least to this node now."""
        here = self.replica.partitions[number].vector
        return self.repairs.source(
            {
                node: missing(here, self.peers[node].announcement.vectors.get(number, {}))
                for node in self.sources(number)
                if not self.replica.retirement.is_away(node)
            }
        )

    def _still_behind(self, number: int, source: str) -> bool:
        partition = self.replica.partitions[number]
        if partition.waiting:
            return True
        peer = self.peers.get(source)
        return peer is not None and not within(peer.announcement.vectors.get(number, {}), partition.vector)

    def _lacks_stranded(self, number: int, source: str) -> bool:
        peer = self.peers.get(source)
        return peer is not None and self.replica.lacks_stranded(number, peer.announcement)

    # -- syncs ------------------------------------------------------------------------------------------------------

    def pull(self, number: int, source: str) -> None:
        """Pull a partition from this peer now, if that can be: somebody waits for what it has."""
        if number in self._syncs or source not in self.replica.peers.get(number, ()) or not self.believed():
            return
        if not self.replica.retirement.is_away(source) and not self.peers.starts(source):
            self._behind.pop(number, None)
            self._start_sync(number, source)

    async def compare(self, number: int, source: str) -> bool:
        """Make a partition what a peer's is, and forget what is not there any more; False: it broke off."""
        while number in self._syncs:
            await asyncio.wait((self._syncs[number],))
            await asyncio.sleep(0)
        if number not in self.replica.partitions:
            return False
        task = self._start_sync(number, source, whole=True)
        await asyncio.wait((task,))
        return not task.cancelled() and task.result()  # cancelled: the partition is not held any more

    def _start_sync(self, number: int, source: str, *, whole: bool = False) -> asyncio.Task[bool]:
        announced = self.peers[source].announcement.vectors.get(number, {}) if source in self.peers else {}
        self.repairs.begin(number, source, missing(self.replica.partitions[number].vector, announced))
        task = asyncio.get_running_loop().create_task(self._sync(number, source, whole))
        self._syncs[number], self._sources[number] = task, source

        def end(_: asyncio.Task[bool]) -> None:
            del self._syncs[number], self._sources[number]
            self.repairs.end(number)
            self.look_again.set()
            if number not in self.replica.partitions:
                return
            if self._lacks_stranded(number, source):
                self.replica.look_for_stranded(number)
            if self.on_pulled is not None:
                self.on_pulled(number)

        task.add_done_callback(end)
        return task

    async def _sync(self, number: int, source: str, whole: bool) -> bool:
        """Pull a partition from a peer, what is not there included if `whole`. False: it broke off; the next
        announcement, or who wants to compare, starts it again."""
        have: Vector = {} if whole else dict(self.replica.partitions[number].vector)
        upto: Vector | None = None
        after: str | None = None
        self.counts["whole_syncs" if whole else "syncs"] += 1
        repair = self.repairs.under_way[number]
        repair.whole = whole
        while True:
            request = SyncRequest(
                partition=number, have=have, upto=upto, after=after, limit=self.share.records_max(), whole=whole,
                disk=self.replica.retirement.disk,
            )  # fmt: skip
            try:
                asked = encode(request)
                self.counts["sync_bytes_asked"] += len(asked)
                raw = await self.transport.request(self.subjects.sync(source), asked, PAGE_SECONDS_MAX)
                self.counts["sync_bytes_taken"] += len(raw)
                page = _decode_page(raw)
                self.paged = time.monotonic() if whole else self.paged
                same = page.partition == number and page.whole == whole and page.after == after
                if not same or (upto is not None and page.upto != upto):
                    raise msgspec.ValidationError("the page answers another request")
                verdict = self.replica.judge(page, have)
                if verdict == "not believed" or self.replica.retirement.is_away(source):
                    log.info("%s never saw what this node has forgotten of partition %d", source, number)
                    return False
                if verdict != "useful":
                    log.warning("this node never saw what %s has forgotten of partition %d", source, number)
                    if verdict == "too late" and self.serves():
                        self.replica.retirement.adopt((self.replica.retirement.disk,))
                        self.expelled.set()
                        return False
                    return await self._sync(number, source, True)
                async with self.share.turn():
                    if number not in self.replica.partitions:
                        return False
                    began = time.thread_time()
                    self.replica.merge_page(page, encode(page) if b"\n" in raw else raw, wall_clock.now())
                    self.share.spent(time.thread_time() - began, len(page.records))
            except (TimeoutError, NobodyListens, Disconnected) as error:
                log.info("the sync of partition %d from %s broke off: %r", number, source, error)
                return False
            except codec.Incomplete as error:
                log.error("a sync of partition %d from %s: %s; it is compared as a whole", number, source, error)
                return False if whole else await self._sync(number, source, True)
            except (*Unreadable, codec.Garbled) as error:
                self.counts["refused"] += 1
                log.warning("%s sent a page of partition %d that is of no use: %s", source, number, error)
                return False
            self.counts["sync_records_taken"] += len(page.records)
            repair.records += len(page.records)
            repair.bytes += len(raw)
            self.counts["sync_operation_bytes_taken"] += len(encode(page.operations)) if page.operations else 0
            self.committer.touch()
            await self.committer.barrier()
            while self.store.behind() >= 1:
                await asyncio.sleep(0.02)
            if page.next is None:
                return True
            upto, after = page.upto, page.next

    def close(self) -> None:
        for task in list(self._syncs.values()):
            task.cancel()
