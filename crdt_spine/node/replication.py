"""Anti-entropy: announcements say what every replica has; what is missing is fetched with since(my vector).

A lost delta, a lost acknowledgement, a node that was away, one that starts with an empty disk: all the same. A gap
that is older than a moment (the delta may still be on its way) is pulled from the replica that announced it, page by
page; the source's vector of the first page is joined after the last one (rule 6), so a sync that breaks off only has
done part of the work. A node that can't believe its disk pulls a partition whole, to learn also what is not there
(`compare`, asked for by identity.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.causality import Vector, missing, within
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.drift import ClockWatch, describe
from crdt_spine.core.messages import (
    Ack,
    Announcement,
    NodeState,
    SyncPage,
    SyncRequest,
    Unreadable,
    Vectors,
    bundled,
    deltas_of,
    encode,
)
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica, Turn, node_of
from crdt_spine.core.rounds import vouched
from crdt_spine.core.subjects import Subjects
from crdt_spine.limits import (
    ANNOUNCE_SECONDS,
    BATCH_BYTES_TARGET,
    CATCH_UP_SHARE_MAX,
    PEER_SILENT_SECONDS_MAX,
    REPAIR_GRACE_SECONDS,
    SYNC_SHARE_MAX,
    TAKING_SHARE_MAX,
    TOMBSTONE_SECONDS_MIN,
)
from crdt_spine.node.committer import Committer
from crdt_spine.node.lag import Lag
from crdt_spine.node.repairs import Repairs
from crdt_spine.node.share import Demand, PageShare
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Disconnected, Message, NobodyListens, Transport

log = logging.getLogger(__name__)

SYNCS_AT_ONCE = 8  # partitions that are pulled, from all peers together
PAGE_SECONDS_MAX = 5.0
LAST_WORDS_SECONDS = 0.5  # after a node has another name: what it sent under the old one is on its peers' disks
TOMBSTONES_AT_ONCE = 500  # in a partition
COLLECT_SECONDS = 10.0
PAUSE_SECONDS_MIN = 0.1  # between two looks at what is to be done

_decode_ack = msgspec.json.Decoder(Ack).decode
_decode_announcement = msgspec.json.Decoder(Announcement).decode
_decode_request = msgspec.json.Decoder(SyncRequest).decode
_decode_page = msgspec.json.Decoder(SyncPage).decode


class Peer(msgspec.Struct):
    """What is known of another node of the cluster."""

    heard: float  # monotonic seconds
    announcement: Announcement
    lag: int = 0  # changes that this node has and the peer, by its word, has not
    ahead: int = 0  # milliseconds by which its last announcement was from the future


class Replication:
    """Everything between this node and its peers: deltas, acknowledgements, announcements, syncs."""

    def __init__(
        self,
        node: str,
        region: str,
        zone: str | None,
        replica: Replica,
        store: RecordStore,
        committer: Committer,
        transport: Transport,
        subjects: Subjects,
        on_done: Callable[[list[Waiting]], None],
        demand: Demand,
        tombstone_seconds: float | None = None,
    ) -> None:
        self.node = node
        self.region = region
        self.zone = zone
        self.replica = replica
        self.store = store
        self.committer = committer
        self.transport = transport
        self.subjects = subjects
        self.on_done = on_done
        self.tombstone_seconds = TOMBSTONE_SECONDS_MIN if tombstone_seconds is None else tombstone_seconds
        self.nodes = frozenset(peer for peers in replica.peers.values() for peer in peers)
        self.state: NodeState = "starting"
        self.awaited: Callable[[], bool] = lambda: False  # does an agent wait for what others have?
        self.peers: dict[str, Peer] = {}
        self._began = time.monotonic()
        self._named: dict[str, float] = {}  # when a peer was first heard under its name of now, monotonic seconds
        self.counts: Counter[str] = Counter()
        self.heard_peer = asyncio.Event()
        self.answered: set[str] = set()  # the peers that said what they know of this node
        self.usurped = asyncio.Event()  # one of them knows of it what its disk does not: an old copy, or another's
        self.renaming: Callable[[], bool] = lambda: False  # partitions were given, and their new name is not in use yet
        self.blank = False  # the folder was empty at the start: whatever they know is of the one before it
        self.expelled = asyncio.Event()  # this node's disk was retired
        self.believed = False  # is all that is here as new as the vectors say? Else nobody must have it from here
        self.paged = 0.0  # when the last page of a comparison came, monotonic seconds
        self.clocks = ClockWatch(len(self.nodes) + 1, replica.drift)
        self.abstains: Callable[[], bool] = lambda: False  # is it nobody's primary? (strong.py)
        self.clock_ahead = 0  # milliseconds by which the own clock is ahead (negative: behind) of most; 0: it is right
        self.epoch = 0  # of the membership that this node has adopted and kept
        self.seated: Callable[[Announcement], Vectors] = lambda announcement: announcement.vectors  # what of it counts
        self.double = ""  # the name under which another process announces as this node
        self._doubled = 0.0  # when it was heard last, monotonic seconds
        self._announced_as: set[str] = set()  # the own names
        self.strays: StrayKeeper | None = None  # where placement follows agents or tags
        self._refused: set[str] = set()  # retired disks of which something was refused, and it was said so
        self._behind: dict[int, tuple[str, float]] = {}  # partition -> (who has more, since when)
        self._syncs: dict[int, asyncio.Task[bool]] = {}
        self._sources: dict[int, str] = {}  # of the syncs under way
        self.unripe: dict[int, frozenset[str]] = {}  # replicas that do not have yet what others have, by partition
        self.on_acked: Callable[[Ack], None] = lambda ack: None
        self.on_pulled: Callable[[int], None] | None = None  # a sync of a partition is over, whatever came of it
        self._look_again = asyncio.Event()  # a sync ended, or there is a first gap
        self._collect_seconds = min(COLLECT_SECONDS, max(0.5, self.tombstone_seconds))
        self.repairs = Repairs()
        self.lag = Lag(replica.durable)
        self.giving = PageShare(demand, SYNC_SHARE_MAX)  # what pages for others take of this node's time ...
        self.taking = PageShare(demand, TAKING_SHARE_MAX, CATCH_UP_SHARE_MAX)  # ... and what they brought from others
        self._pages = ThreadPoolExecutor(1, "pages")
        self.closed = False

    # -- sending ----------------------------------------------------------------------------------------------------

    def settled(self, turn: Turn) -> None:
        """A turn is durable: publish its deltas, acknowledge what it took from others."""
        for number, message in bundled(turn.deltas, self.replica.peers):
            self.transport.send(self.subjects.delta(number), message)
        for actor, reached in turn.acks.items():
            region, node = node_of(actor)
            if region == self.region and node != self.node:
                ack = Ack(
                    node=self.node, actor=actor, reached=reached, terms=vouched(self.replica, actor, reached)
                )  # fmt: skip
                self.transport.send(self.subjects.ack(node), encode(ack))

    def announce(self, answers: str = "") -> None:
        """Say what is durable here; in answer to a node that starts also what that one had said to have."""
        state: NodeState = "full" if self.committer.full and self.state == "up" else self.state
        retirement = self.replica.retirement
        self._announced_as.add(self.replica.actor)
        announcement = Announcement(
            node=self.node, actor=self.replica.actor, state=state, now=_now(), vectors=self.replica.durable,
            zone=self.zone, known_of=answers, known=self.replica.known_of(answers) if answers else {},
            ahead={node: peer.ahead for node, peer in self.peers.items() if peer.ahead and self._hears(peer)},
            disk="" if retirement.disk == self.replica.actor else retirement.disk,
            retired=tuple(sorted(retirement.retired)), silent=retirement.said(), epoch=self.epoch,
            strays={} if self.strays is None else self.strays.established(self.replica.durable),
            abstains=self.abstains(),
        )  # fmt: skip
        self.transport.send(self.subjects.vectors(self.node), encode(announcement))

    # -- receiving --------------------------------------------------------------------------------------------------

    async def take_delta(self, message: Message) -> None:
        """A coordinator's changes. While the tables are too far behind, the broker keeps the next ones."""
        try:
            deltas = deltas_of(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        now = _now()
        for delta, raw in deltas:
            if delta.actor == self.replica.actor:
                continue  # a transport that echoes
            if not delta.changes or delta.first < 1:
                self.counts["refused"] += 1
                continue
            line = encode(delta) if b"\n" in raw else raw  # a journal row is lines
            if not self.replica.receive(delta, line, now):
                self._mark_behind(delta.partition, node_of(delta.actor)[1])
        self.committer.touch(self.replica.awaited or self.awaited())
        while self.store.behind() >= 2 or self.committer.full:
            await asyncio.sleep(0.02)

    def take_ack(self, message: Message) -> None:
        """A replica has changes of this node durably."""
        try:
            ack = _decode_ack(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        self.on_acked(ack)
        self.on_done(self.replica.ack(ack))

    def take_announcement(self, message: Message) -> None:
        """A peer's vectors."""
        try:
            announcement = _decode_announcement(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        if announcement.node == self.node:
            self._hear_double(announcement)
            return
        if self.strays is not None:
            self.strays.hear(announcement)
        if announcement.node in self.replica.retirement.silent and not self._heed(announcement):
            return
        if announcement.node not in self.nodes:
            self.counts["refused"] += 1
            return
        counted = self.seated(announcement)
        if counted.keys() != announcement.vectors.keys():
            announcement = msgspec.structs.replace(announcement, vectors=counted)
        lag = sum(
            missing(announcement.vectors.get(number, {}), vector)
            for number, vector in self.replica.durable.items()
            if announcement.node in self.replica.peers[number]
        )
        now, known = _now(), self.peers.get(announcement.node)
        self.clocks.heard(announcement.node, announcement.now, now, announcement.ahead.get(self.node, 0))
        if announcement.known_of == self.node:
            self.answered.add(announcement.node)
        self.lag.hear(announcement.node, announcement.vectors)
        ahead = max(0, announcement.now - now)
        self.peers[announcement.node] = Peer(time.monotonic(), announcement, lag, ahead)
        if known is None or known.announcement.actor != announcement.actor:
            self._named[announcement.node] = time.monotonic()
        self.heard_peer.set()
        if not self.blank and not self.renaming() and self.replica.lost(announcement):
            self.usurped.set()
            return
        self._answer(announcement, known)
        done, behind = self.replica.hear(announcement)
        self.on_done(done)
        for number in behind:
            self._mark_behind(number, announcement.node)

    def _hear_double(self, announcement: Announcement) -> None:
        """Somebody announces under this node's id: itself over a transport that echoes, or another process that could
        not be asked when it, or this one, started (claim.py)."""
        if announcement.actor in self._announced_as:
            return
        if not self.double:
            log.error(
                "another process announces as node %s, under the name %s: two processes must not be one node; stop the "
                "one that does not belong here", self.node, announcement.actor,
            )  # fmt: skip
        self.double, self._doubled = announcement.actor, time.monotonic()

    def _heed(self, announcement: Announcement) -> bool:
        """Take what a peer says of retirements; False: the peer is retired, or this node."""
        retirement = self.replica.retirement
        before = retirement.retired.copy()
        retirement.serves = self.state == "up"
        if not self.replica.heed(announcement):
            disk = retirement.disks[announcement.node]
            if disk not in self._refused:
                self._refused.add(disk)
                log.warning("%s is retired: nothing that it has counts until it has begun anew", disk)
            self.peers.pop(announcement.node, None)
            self.lag.forget(announcement.node)
            return False
        for disk in sorted(retirement.retired - before - {retirement.disk}):
            log.warning("%s was away for too long: it is retired, by the word of %s", disk, announcement.node)
        if retirement.expelled:
            self.expelled.set()
        return True

    def _judge_silence(self, seconds: float) -> None:
        """So much time has passed: who is to be retired by now?"""
        retirement = self.replica.retirement
        retirement.serves = self.state == "up"
        retirement.tick(seconds)
        for disk in self.replica.retire():
            log.warning("%s was away for %g s: it is retired", disk, retirement.seconds)
            self.peers.pop(node_of(disk)[1], None)
            self.lag.forget(node_of(disk)[1])

    def _answer(self, announcement: Announcement, known: Peer | None) -> None:
        """Who starts, or has a new name, needs what the others know of it, from before they hear its new name. An
        answer is no question, or two nodes that start would answer each other without end."""
        renamed = known is not None and known.announcement.actor != announcement.actor
        asks = not announcement.known_of and (announcement.state == "starting" or renamed)
        if asks:
            self.announce(announcement.node)
        if known is None and (self.state == "starting" or not asks):
            self.announce()  # it may have come up behind this node's question

    async def take_request(self, message: Message) -> None:
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
        if not self.believed:
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
        async with self.giving.turn():
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
        limit = min(request.limit, self.giving.records_max())
        read = self.store.since(number, request.have, request.after, limit)
        loop = asyncio.get_running_loop()
        encoded, last, seconds = await loop.run_in_executor(self._pages, _encoded, read, request.have, limit)
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
        self.giving.spent(seconds + time.thread_time() - began, len(encoded))
        return page

    # -- who is there -----------------------------------------------------------------------------------------------

    def leave(self, numbers: Collection[int]) -> None:
        """Pull nothing of these partitions any more."""
        for number in numbers:
            self._behind.pop(number, None)
            if number in self._syncs:
                self._syncs[number].cancel()

    def meet(self, nodes: Collection[str], unripe: dict[int, frozenset[str]]) -> None:
        """The cluster has these other nodes from now on, and the replica its new peers. `unripe` are replicas that are
        still to be filled, by partition. Nothing is pulled from who was dropped: its tombstones may be gone everywhere
        else, while a page of its is on the way."""
        self.nodes, self.unripe = frozenset(nodes), unripe
        self.replica.members = self.nodes
        self.clocks.change_nodes(self.nodes)
        self.peers = {node: peer for node, peer in self.peers.items() if node in self.nodes}
        self.answered &= self.nodes
        held = self.replica.peers
        self.leave([number for number, source in self._sources.items() if source not in held.get(number, ())])

    # -- pulling ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Announce, look for gaps, collect tombstones, until cancelled."""
        announced = collected = 0.0
        ticked = time.monotonic()
        while True:
            now = time.monotonic()
            if now - announced >= ANNOUNCE_SECONDS:
                announced = now
                if now - self._doubled > PEER_SILENT_SECONDS_MAX:
                    self.double = ""
                self._judge_clock()
                self._judge_silence(now - ticked)
                ticked = now
                self.announce()
                self.replica.miss(self.nodes - self.alive())
                self.replica.drain(_now())
                if self.replica.pending:
                    self.committer.touch()
            if self.state == "up" and now - collected >= self._collect_seconds:
                collected = now
                self._collect()
            for number, (source, since) in list(self._behind.items()):
                if number not in self.replica.partitions:  # it was dropped since it was seen to be behind
                    del self._behind[number]
                    continue
                if number in self._syncs or len(self._syncs) >= SYNCS_AT_ONCE or not self.believed:
                    continue  # a disk that is too old is compared first: a sync would hide what it has not heard of
                if now - since >= REPAIR_GRACE_SECONDS:
                    del self._behind[number]
                    best = self._best_source(number) or source
                    may = not (self.replica.retirement.is_away(best) or self._starts(best))
                    if may and best in self.replica.peers.get(number, ()) and self._still_behind(number, best):
                        self._start_sync(number, best)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause(announced, collected)):  # wait_for may swallow a cancellation
                    await self._look_again.wait()
            self._look_again.clear()

    def _pause(self, announced: float, collected: float) -> float:
        """For how many seconds there is nothing to do, unless a sync ends or a first gap is found."""
        due = [announced + ANNOUNCE_SECONDS]
        if self.state == "up":
            due.append(collected + self._collect_seconds)
        if len(self._syncs) < SYNCS_AT_ONCE:
            gaps = (since for number, (_, since) in self._behind.items() if number not in self._syncs)
            due += [since + REPAIR_GRACE_SECONDS for since in gaps]
        return max(PAUSE_SECONDS_MIN, min(due) - time.monotonic())

    def is_pulled(self, number: int) -> bool:
        """Does a partition miss what does not come by itself any more, but page by page?"""
        marked = self._behind.get(number)
        return number in self._syncs or (marked is not None and time.monotonic() - marked[1] >= REPAIR_GRACE_SECONDS)

    def level(self, alive: set[str]) -> bool:
        """Has this node everything that those peers announced last?"""
        return not self._syncs and not any(
            self._still_behind(number, node)
            for node in alive
            if node in self.peers
            for number in self.peers[node].announcement.vectors
            if number in self.replica.partitions
        )

    def alive(self) -> set[str]:
        """The peers heard of lately."""
        return {
            node for node, peer in self.peers.items() if self._hears(peer) and peer.announcement.state != "stopping"
        }

    def said_since(self, actor: str) -> dict[str, Vectors]:
        """What the peers said to have since they can get nothing more from an actor that its node has given up: what
        that had sent is in their vectors by then, or never will be."""
        ended = self._named.get(node_of(actor)[1], self._began) + LAST_WORDS_SECONDS
        peers = {node: peer for node, peer in self.peers.items() if peer.heard > ended and self._hears(peer)}
        return {node: peer.announcement.vectors for node, peer in peers.items()}

    def silence(self) -> dict[str, float]:
        """For how many seconds each peer was not heard of that was heard of since this node began."""
        now = time.monotonic()
        return {node: now - peer.heard for node, peer in self.peers.items()}

    def sources(self, number: int) -> list[str]:
        """The peers with which a partition can be compared."""
        up = {node for node in self.alive() if self.peers[node].announcement.state == "up"}
        return [node for node in self.replica.peers[number] if node in up - self.unripe.get(number, frozenset())]

    def oldest_tombstones(self) -> dict[int, Record]:
        """Of each partition that has one in its tables the tombstone that was not touched for longest."""
        partitions = self.replica.partitions.items()
        found = {number: next(self.store.tombstones(number, 1), None) for number, p in partitions if p.tombstones}
        return {number: record for number, record in found.items() if record is not None}

    def reachable(self) -> set[str]:
        """The peers that can take a change now."""
        return {node for node in self.alive() if self.peers[node].announcement.state != "full"}

    def lag_seconds(self) -> float:
        """For how long this node has been missing something that a peer announced; 0 where it misses nothing."""
        return max(self.lag.seconds().values(), default=0.0)

    @property
    def repairs_waiting(self) -> int:
        """How many partitions are behind, and wait for others to be pulled first."""
        return len(self._behind.keys() - self._syncs.keys())

    def _hears(self, peer: Peer) -> bool:
        return time.monotonic() - peer.heard < PEER_SILENT_SECONDS_MAX

    def _starts(self, node: str) -> bool:
        """Is it not known yet whether that node's disk can be believed? It will announce when it is."""
        return node in self.peers and self.peers[node].announcement.state == "starting"

    def pull(self, number: int, source: str) -> None:
        """Pull a partition from this peer now, if that can be: somebody waits for what it has."""
        if number in self._syncs or source not in self.replica.peers.get(number, ()) or not self.believed:
            return
        if not self.replica.retirement.is_away(source) and not self._starts(source):
            self._behind.pop(number, None)
            self._start_sync(number, source)

    def _mark_behind(self, number: int, source: str) -> None:
        if number not in self._behind and source != self.node:
            if self._behind.keys() <= self._syncs.keys():
                self._look_again.set()  # nobody would look when its time has come
            self._behind[number] = (source, time.monotonic())

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
            self._look_again.set()
            if number in self.replica.partitions and self.on_pulled is not None:
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
                partition=number, have=have, upto=upto, after=after, limit=self.taking.records_max(), whole=whole,
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
                    if verdict == "too late" and self.state == "up":
                        self.replica.retirement.adopt((self.replica.retirement.disk,))
                        self.expelled.set()
                        return False
                    return await self._sync(number, source, True)
                async with self.taking.turn():
                    if number not in self.replica.partitions:
                        return False
                    began = time.thread_time()
                    self.replica.merge_page(page, encode(page) if b"\n" in raw else raw, _now())
                    self.taking.spent(time.thread_time() - began, len(page.records))
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

    def _judge_clock(self) -> None:
        """Is the own clock right? Say so once where it is not, and once when it is again."""
        ahead = self.clocks.ahead(self.alive())
        if ahead and not self.clock_ahead:
            log.error("the clock of %s is %s: it takes no more writes", self.node, describe(ahead))
        elif self.clock_ahead and not ahead:
            log.warning("the clock of %s agrees with the others again", self.node)
        self.clock_ahead = ahead

    def _collect(self) -> None:
        """Drop tombstones that every replica has, once late subscribers have had the time to hear of them."""
        now = _now()
        oldest = at_milliseconds(now - int(self.tombstone_seconds * 1000))
        for number, partition in self.replica.partitions.items():
            if partition.tombstones:
                found = self.store.tombstones(number, TOMBSTONES_AT_ONCE)
                old = (tombstone for tombstone in found if tombstone.life.origin.time < oldest)
                self.counts["tombstones_collected"] += self.replica.collect(number, old, now)

    def close(self) -> None:
        for task in list(self._syncs.values()):
            task.cancel()
        self.closed = True
        self._pages.shutdown(wait=True)


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


def _now() -> int:
    return time.time_ns() // 1_000_000
