"""Announcements, paged syncs that interleave with everything and break off, and the collection of tombstones.

The same decisions as crdt_spine/node/replication.py: a gap that is older than a moment is pulled from the peer that
announced it; the first page fixes `upto`; every page is durable before the next is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from crdt_spine.core import codec
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
        self.behind: dict[int, tuple[str, int]] = {}  # partition -> (who has more, since when)
        self.syncs: dict[int, Sync] = {}
        self.collected = 0

    def run(self) -> None:
        """Look for gaps, for ever; announce and collect now and then."""
        self.node.later(self.world.random.randint(1, self.node.cluster.announce_milliseconds), self._announce_regularly)
        self.node.later(100, self._look)

    # -- announcements ----------------------------------------------------------------------------------------------

    def announce(self, answers: str = "") -> None:
        """Say what is durable here; in answer to a node also what it had said."""
        node = self.node
        vectors = {number: dict(vector) for number, vector in node.replica.durable.items()}
        node.cluster.check("sent", node, "announcement", vectors)
        state = "up" if node.serving else "starting"
        self.announced += 1
        number = (node.life, self.announced)
        announcement = Announcement(
            node=node.name, actor=node.actor, state=state, now=node.now, vectors=vectors, known_of=answers,
            known=node.replica.known_of(answers) if answers else {},
        )  # fmt: skip
        raw = encode(announcement)
        for peer in node.cluster.nodes:
            if peer != node.name:
                node.send(peer, lambda other: other.repair.take_announcement(raw, number))

    def _announce_regularly(self) -> None:
        self.announce()
        self.node.replica.drain(self.node.now)
        self.node.touch()
        if self.node.serving:
            self._collect()
        self.node.later(self.node.cluster.announce_milliseconds, self._announce_regularly)

    def take_announcement(self, raw: bytes, number: tuple[int, int]) -> None:
        announcement = _decode_announcement(raw)
        if number <= self.numbers.get(announcement.node, (0, 0)):
            return
        self.numbers[announcement.node] = number
        replica = self.node.replica
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
        done, behind = replica.hear(announcement)
        self.node.done(done)
        for partition in behind:
            self.mark_behind(partition, announcement.node)

    def _collect(self) -> None:
        node = self.node
        for number, partition in node.replica.partitions.items():
            collected = partition.collect(node.store.tombstones(number), node.replica.peers[number])
            if collected:
                self.collected += collected
                node.tell(f"forgets {collected} tombstones of partition {number}")

    # -- syncs ------------------------------------------------------------------------------------------------------

    def mark_behind(self, number: int, source: str) -> None:
        if number not in self.behind and source != self.node.name:
            self.behind[number] = (source, self.world.now)

    def break_off(self) -> None:
        """Every sync under way ends here."""
        self.syncs.clear()

    def _still_behind(self, number: int, source: str) -> bool:
        partition = self.node.replica.partitions[number]
        if partition.waiting:
            return True
        heard = self.heard.get(source)
        return heard is not None and not within(heard.vectors.get(number, {}), partition.vector)

    def _look(self) -> None:
        sources = [name for name, heard in self.heard.items() if heard.state == "up"]
        for number in sorted(self.node.suspect - self.syncs.keys()):
            if sources and self.node.incarnation == self.node.disk.checkpoint.incarnation:
                self._start(Sync(number, self.world.random.choice(sources), {}, True))
        for number, (source, since) in sorted(self.behind.items()):
            if number not in self.syncs and self.world.now - since >= GRACE_MILLISECONDS:
                del self.behind[number]
                if self._still_behind(number, source):
                    self._start(Sync(number, source, dict(self.node.replica.partitions[number].vector), False))
        self.node.later(100, self._look)

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
                limit=self.world.random.randint(1, PAGE_RECORDS_MAX),
                whole=sync.whole,
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
            clock=node.replica.clock.highest,
            after=request.after,
            whole=request.whole,
        )
        life = asker.life

        def leave() -> None:
            node.cluster.check("sent", node, "page", {request.partition: upto})
            answer = encode(page)
            node.send(asker.name, lambda there: there.repair.take_page(answer, sync, number, life), "page")

        node.barrier(leave)

    def take_page(self, raw: bytes, sync: Sync, number: int, life: int) -> None:
        node = self.node
        if node.life != life or self.syncs.get(sync.number) is not sync or sync.page != number:
            return
        page = _decode_page(raw)
        if sync.upto is not None and page.upto != sync.upto:
            del self.syncs[sync.number]
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
            if page.next is None:
                del self.syncs[sync.number]
                if sync.whole:
                    node.compared(sync.number)
                node.tell(f"has pulled partition {page.partition} from {sync.source}, upto {page.upto}")
            elif self.world.random.random() < BREAK_OFF:
                del self.syncs[sync.number]
                node.tell(f"the pull of partition {sync.number} from {sync.source} broke off after a page")
            else:
                sync.upto, sync.after = page.upto, page.next
                self._ask(sync)

        node.barrier(merged)
