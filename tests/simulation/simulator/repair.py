"""Announcements, paged syncs that interleave with everything and break off, and the collection of tombstones.

The same decisions as crdt_spine/node/pulling.py: a gap that is older than a moment is pulled from the peer that
announced it; the first page fixes `upto`; every page is durable before the next is asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.actors import node_of
from crdt_spine.core.causality import Vector, join, within
from crdt_spine.core.messages import Announcement, SyncPage, SyncRequest, encode

if TYPE_CHECKING:
    from simulator.node import Node

GRACE_MILLISECONDS = 300
PAGE_MILLISECONDS_MAX = 4_000
PAGE_RECORDS_MAX = 3
BREAK_OFF = 0.1  # the chance that a sync ends between two pages

_decode_announcement = msgspec.json.Decoder(Announcement).decode
_decode_request = msgspec.json.Decoder(SyncRequest).decode
_decode_page = msgspec.json.Decoder(SyncPage).decode


class Sync:
    """One partition being pulled from one peer."""

    def __init__(self, number: int, source: str, have: Vector, whole: bool) -> None:
        self.whole = whole
        self.number = number
        self.source = source
        self.have = have
        self.upto: Vector | None = None
        self.after: str | None = None
        self.page = 0  # pages asked for; an answer to another one is late


class Repair:
    """What a node does to have everything that its peers have."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.world = node.world
        self.heard: dict[str, Announcement] = {}
        self.numbers: dict[str, int] = {}  # of the newest announcement heard; a broker keeps a sender's order
        self.announced = 0
        self.answered: set[str] = set()  # who said what it knows of this node
        self.usurped = False
        self.behind: dict[int, str] = {}  # partition -> who has more
        self.syncs: dict[int, Sync] = {}

    def run(self) -> None:
        """Announce and collect now and then, for ever; compare what is suspect."""
        self.node.later(self.world.between(1, self.node.cluster.announce_milliseconds), self._announce_regularly)
        self.compare()

    def leave(self, numbers: Collection[int]) -> None:
        """Pull nothing of these partitions any more."""
        for number in numbers:
            self.syncs.pop(number, None)
            self.behind.pop(number, None)

    def meet(self) -> None:
        """Others hold the partitions now: pull from nobody who was dropped. Its tombstones may be gone everywhere else,
        while a page of its is on the way."""
        peers = self.node.replica.peers
        self.leave([sync.number for sync in self.syncs.values() if sync.source not in peers.get(sync.number, ())])

    # -- announcements ----------------------------------------------------------------------------------------------

    def announce(self, answers: str = "") -> None:
        """Say what is durable here; in answer to a node also what it had said."""
        node = self.node
        vectors = node.replica.durable
        node.cluster.check("sent", node, "announcement", vectors)
        state = "up" if node.serving else "starting"
        retirement = node.replica.retirement
        self.announced += 1
        number = (node.life, self.announced)
        announcement = Announcement(
            node=node.name, actor=node.actor, state=state, now=node.now, vectors=vectors, known_of=answers,
            known=node.replica.known_of(answers) if answers else {}, epoch=node.membership.epoch,
            disk=retirement.disk, retired=tuple(sorted(retirement.retired)), silent=retirement.said(),
            stranded=node.replica.stranded,
        )  # fmt: skip
        said = _decode_announcement(encode(announcement))  # once for all hearers: nobody changes a message
        for peer in node.cluster.nodes:
            if peer != node.name:
                node.send(peer, lambda other: other.repair.take_announcement(said, number))

    def _announce_regularly(self) -> None:
        self._judge_silence()
        self.announce()
        if any(partition.waiting for partition in self.node.replica.partitions.values()):
            self.node.replica.drain(self.node.now)
            self.node.touch()
        if self.node.serving:
            self._collect()
        self.node.later(self.node.cluster.announce_milliseconds, self._announce_regularly)

    def take_announcement(self, announcement: Announcement, number: tuple[int, int]) -> None:
        if number <= self.numbers.get(announcement.node, (0, 0)):
            return
        self.numbers[announcement.node] = number
        replica = self.node.replica
        replica.retirement.serves = self.node.serving
        heeded = replica.heed(announcement)
        if replica.retirement.expelled:
            self.node.reseed()
        if not heeded or replica.retirement.expelled:
            self.heard.pop(announcement.node, None)
            return
        self.heard[announcement.node] = announcement
        if announcement.known_of == self.node.name:
            self.answered.add(announcement.node)
        if replica.lost(announcement):
            if not self.usurped:
                self.usurped = True
                if self.node.serving:
                    self.node.reincarnate("a peer knows changes of it that are not here")
            return
        if announcement.state == "starting" and not announcement.known_of:
            self.announce(announcement.node)
        counted = self.node.seen.counted(announcement.node, announcement.epoch, announcement.vectors)
        if counted.keys() != announcement.vectors.keys():
            announcement = msgspec.structs.replace(announcement, vectors=counted)
        done, behind = replica.hear(announcement)
        self.node.done(done)
        for partition in behind:
            self.mark_behind(partition, announcement.node)

    def _judge_silence(self) -> None:
        self.node.replica.retirement.serves = self.node.serving
        self.node.replica.retirement.tick(self.node.cluster.announce_milliseconds / 1000)
        for disk in self.node.replica.retire():
            self.node.cluster.counts["retired"] += 1
            self.node.tell(f"retires {disk}")
            self.heard.pop(node_of(disk)[1], None)

    def _collect(self) -> None:
        node = self.node
        for number, partition in node.replica.partitions.items():
            if number not in self.syncs and number not in self.behind and node.cluster.without != "stranded":
                node.replica.look_for_stranded(number)
            if not partition.tombstones:
                continue
            collected = node.replica.collect(number, node.store.tombstones(number), node.world.now / 1000)
            if collected:
                node.cluster.counts["tombstones collected"] += collected
                node.tell(f"forgets {collected} tombstones of partition {number}")

    # -- syncs ------------------------------------------------------------------------------------------------------

    def mark_behind(self, number: int, source: str) -> None:
        if number not in self.behind and source != self.node.name:
            self.behind[number] = source
            self.node.later(GRACE_MILLISECONDS, lambda: self._pull(number))

    def break_off(self) -> None:
        """Every sync under way ends here."""
        self.syncs.clear()

    def _still_behind(self, number: int, source: str) -> bool:
        partition = self.node.replica.partitions[number]
        if partition.waiting:
            return True
        heard = self.heard.get(source)
        if self._lacks_stranded(number, source):
            self.node.cluster.counts["stranded elsewhere"] += 1
            return True
        return heard is not None and not within(heard.vectors.get(number, {}), partition.vector)

    def _lacks_stranded(self, number: int, source: str) -> bool:
        heard = self.heard.get(source)
        return heard is not None and self.node.replica.lacks_stranded(number, heard)

    def compare(self) -> None:
        """Make partitions what a peer's are, where the own disk can't be believed, until none is left."""
        if self.node.suspect:
            self.node.later(100, self._compare)

    def _compare(self) -> None:
        for number in sorted(self.node.suspect - self.syncs.keys()):
            members = self.node.membership.seats[number].items()
            sources = [
                name for name, seat in members
                if name in self.heard and self.heard[name].state == "up" and seat.stage in ("member", "leaving")
            ]  # fmt: skip
            if sources and self.node.incarnation == self.node.disk.checkpoint.incarnation:
                self._start(Sync(number, self.world.random.choice(sources), {}, True))
        self.compare()

    def _pull(self, number: int) -> None:
        """Ask for what is still missing, once no other sync of the partition is under way."""
        source = self.behind.get(number)
        if source is None:
            return
        if number in self.syncs or number in self.node.suspect:
            self.node.later(100, lambda: self._pull(number))
            return
        del self.behind[number]
        replica = self.node.replica
        may = source in replica.peers.get(number, ()) and not replica.retirement.is_away(source)
        if may and self._still_behind(number, source):
            self._start(Sync(number, source, dict(self.node.replica.partitions[number].vector), False))

    def _start(self, sync: Sync) -> None:
        self.syncs[sync.number] = sync
        what = "all of it" if sync.whole else f"since {sync.have}"
        self.node.tell(f"pulls partition {sync.number} from {sync.source}, {what}")
        self._ask(sync)

    def _ask(self, sync: Sync) -> None:
        sync.page += 1
        number, page = sync.number, sync.page
        raw = encode(
            SyncRequest(
                partition=number,
                have=sync.have,
                upto=sync.upto,
                after=sync.after,
                limit=self.world.between(1, PAGE_RECORDS_MAX),
                whole=sync.whole,
                disk=self.node.replica.retirement.disk,
            )
        )
        self.node.send(sync.source, lambda source: source.repair.take_request(raw, self.node, sync, page))
        self.node.later(PAGE_MILLISECONDS_MAX, lambda: self._time_out(sync, page))

    def _time_out(self, sync: Sync, page: int) -> None:
        if self.syncs.get(sync.number) is sync and sync.page == page:
            del self.syncs[sync.number]
            self.node.tell(f"the pull of partition {sync.number} from {sync.source} broke off")

    def take_request(self, raw: bytes, asker: Node, sync: Sync, number: int) -> None:
        """Answer with one page; it leaves once everything in it is durable here."""
        node, request = self.node, _decode_request(raw)
        retired = request.disk in node.replica.retirement.retired and node.cluster.without != "retired"
        if request.partition not in node.replica.partitions or retired:
            return
        if not node.replica.may_pull(request.partition, request.disk) and node.cluster.without != "joined-first":
            node.cluster.counts["page refused"] += 1
            return
        durable = node.replica.durable[request.partition]
        upto = dict(durable) if request.upto is None else request.upto
        if not within(upto, durable) or (request.whole and node.suspect):
            return  # its disk was rolled back since it promised that
        records = node.store.changed(request.partition, request.have, request.after, request.limit)
        last = len(records) < request.limit
        page = SyncPage(
            partition=request.partition,
            records=[(record.id, codec.to_json(record)) for record in records],
            upto=upto,
            next=None if last else records[-1].id,
            operations=node.replica.operations_since(request.partition, request.have) if last else {},
            clock=node.replica.partitions[request.partition].forgotten_time,
            after=request.after,
            whole=request.whole,
            forgotten=dict(node.replica.partitions[request.partition].forgotten),
        )
        life = asker.life

        held = node.replica.partitions[request.partition]

        def leave() -> None:
            if node.replica.partitions.get(request.partition) is not held:
                return  # the partition was dropped meanwhile
            node.cluster.check("sent", node, "page", {request.partition: upto})
            node.boundary("before a page leaves")
            answer = encode(page)
            node.send(asker.name, lambda there: there.repair.take_page(answer, sync, number, life), "page")

        node.barrier(leave)

    def _is_useful(self, page: SyncPage, sync: Sync) -> bool:
        """Has its source forgotten nothing that this node never saw? Else ask for the whole, or begin anew."""
        replica = self.node.replica
        verdict = replica.judge(page, sync.have)
        if verdict == "too late" and self.node.serving:
            replica.retirement.adopt([replica.retirement.disk])
            self.node.reseed()
        elif verdict == "not believed" or replica.retirement.is_away(sync.source):
            del self.syncs[sync.number]
        elif verdict != "useful":
            self._start(Sync(sync.number, sync.source, {}, True))
        return verdict == "useful" and sync.number in self.syncs

    def take_page(self, raw: bytes, sync: Sync, number: int, life: int) -> None:
        node = self.node
        if node.life != life or self.syncs.get(sync.number) is not sync or sync.page != number:
            return
        page = _decode_page(raw)
        if sync.upto is not None and page.upto != sync.upto:
            del self.syncs[sync.number]
            return
        if not self._is_useful(page, sync):
            return
        try:
            node.replica.merge_page(page, raw, node.now)
        except codec.Garbled as error:
            node.tell(f"refuses a page of partition {page.partition}: {error}")
            del self.syncs[sync.number]
            return
        if node.cluster.without == "last-page":
            partition = node.replica.partitions[page.partition]
            partition.vector = join(partition.vector, page.upto)
        node.touch()

        def merged() -> None:
            if self.syncs.get(sync.number) is not sync:
                return
            node.boundary("after a page")
            if page.next is None:
                del self.syncs[sync.number]
                if self._lacks_stranded(sync.number, sync.source):
                    node.replica.look_for_stranded(sync.number)
                if sync.whole:
                    node.compared(sync.number)
                node.tell(f"has pulled partition {page.partition} from {sync.source}, upto {page.upto}")
            elif not node.cluster.network.fair and self.world.random.random() < BREAK_OFF:
                del self.syncs[sync.number]
                node.tell(f"the pull of partition {sync.number} from {sync.source} broke off after a page")
            else:
                sync.upto, sync.after = page.upto, page.next
                self._ask(sync)

        node.barrier(merged)
