"""What nodes tell each other unasked: changes, acknowledgements, and announcements of what each has.

The way of a write goes on here: a turn that is durable has its deltas published (`settled`); the other replicas take
them (`take_delta`), make them durable and acknowledge them (acknowledgements.py); the coordinator counts that
(`take_ack`). Announcements say regularly what every replica has. They make up for whatever was lost: who misses
something pulls it (pulling.py), from whoever gives it (since.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.actors import node_of
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.drift import ClockWatch, describe
from crdt_spine.core.messages import (
    Ack,
    Announcement,
    NodeState,
    Unreadable,
    Vectors,
    bundled,
    deltas_of,
    encode,
)
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica
from crdt_spine.core.rounds import unready
from crdt_spine.core.subjects import Subjects
from crdt_spine.core.turn import Turn
from crdt_spine.limits import (
    ANNOUNCE_SECONDS,
    PEER_SILENT_SECONDS_MAX,
    TOMBSTONE_SECONDS_MIN,
)
from crdt_spine.node.acknowledgements import Acknowledgements
from crdt_spine.node.committer import Committer
from crdt_spine.node.lag import Lag
from crdt_spine.node.peers import Peer, Peers
from crdt_spine.node.pulling import Pulling
from crdt_spine.node.share import Demand
from crdt_spine.node.since import Since
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Message, Transport

log = logging.getLogger(__name__)

TOMBSTONES_AT_ONCE = 500  # in a partition
COLLECT_SECONDS = 10.0
SLOW_COMMIT_SECONDS = 0.02  # as long as others put off what nobody waits for
PAUSE_SECONDS_MIN = 0.1  # between two looks at what is to be done

_decode_ack = msgspec.json.Decoder(Ack).decode
_decode_announcement = msgspec.json.Decoder(Announcement).decode


class Replication:
    """This node's side of it."""

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
        self.peers = Peers()
        self.counts: Counter[str] = Counter()
        self.heard_peer = asyncio.Event()
        self.answered: set[str] = set()  # the peers that said what they know of this node
        self.usurped = asyncio.Event()  # one of them knows of it what its disk does not: an old copy, or another's
        self.renaming: Callable[[], bool] = lambda: False  # partitions were given, and their new name is not in use yet
        self.blank = False  # the folder was empty at the start: whatever they know is of the one before it
        self.expelled = asyncio.Event()  # this node's disk was retired
        self.believed = False  # is all that is here as new as the vectors say? Else nobody must have it from here
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
        self.on_acked: Callable[[Ack], None] = lambda ack: None
        self._collect_seconds = min(COLLECT_SECONDS, max(0.5, self.tombstone_seconds))
        self.acknowledgements = Acknowledgements(node, region, replica, transport, subjects)
        self.lag = Lag(replica.durable)
        self.pulling = Pulling(
            replica, store, committer, transport, subjects, demand, self.peers, self.counts, lambda: self.believed,
            self._serves, self.expelled,
        )  # fmt: skip
        self.since = Since(replica, store, committer, transport, demand, self.counts, lambda: self.believed)

    def _serves(self) -> bool:
        return self.state == "up"

    # -- sending ----------------------------------------------------------------------------------------------------

    def settled(self, turn: Turn) -> None:
        """A turn is durable: publish its deltas, acknowledge what it took from others."""
        for number, message in bundled(turn.deltas, self.replica.peers):
            self.transport.send(self.subjects.delta(number), message)
        self.acknowledgements.take(turn.acks)

    def announce(self, answers: str = "") -> None:
        """Say what is durable here; in answer to a node that starts also what that one had said to have."""
        state: NodeState = "full" if self.committer.full and self.state == "up" else self.state
        retirement = self.replica.retirement
        self._announced_as.add(self.replica.actor)
        announcement = Announcement(
            node=self.node, actor=self.replica.actor, state=state, now=wall_clock.now(), vectors=self.replica.durable,
            zone=self.zone, known_of=answers, known=self.replica.known_of(answers) if answers else {},
            ahead={node: peer.ahead for node, peer in self.peers.items() if peer.ahead and self.peers.hears(peer)},
            disk="" if retirement.disk == self.replica.actor else retirement.disk,
            retired=tuple(sorted(retirement.retired)), silent=retirement.said(), epoch=self.epoch,
            strays={} if self.strays is None else self.strays.established(self.replica.durable),
            abstains=self.abstains(), stranded=self.replica.stranded, behind=self._is_behind(),
            unready=tuple(unready(self.replica)),
        )  # fmt: skip
        self.transport.send(self.subjects.vectors(self.node), encode(announcement))

    def _is_behind(self) -> bool:
        """Is another replica likely to have a change durably before this one?"""
        return self.pulling.behind or self.committer.seconds > SLOW_COMMIT_SECONDS

    # -- receiving --------------------------------------------------------------------------------------------------

    async def take_delta(self, message: Message) -> None:
        """A coordinator's changes. While the tables are too far behind, the broker keeps the next ones."""
        try:
            deltas = deltas_of(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        now = wall_clock.now()
        for delta, raw in deltas:
            if delta.actor == self.replica.actor:
                continue  # a transport that echoes
            if not delta.changes or delta.first < 1:
                self.counts["refused"] += 1
                continue
            line = encode(delta) if b"\n" in raw else raw  # a journal row is lines
            if not self.replica.receive(delta, line, now):
                self.pulling.mark_behind(delta.partition, node_of(delta.actor)[1])
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
        now, known = wall_clock.now(), self.peers.get(announcement.node)
        self.clocks.heard(announcement.node, announcement.now, now, announcement.ahead.get(self.node, 0))
        if announcement.known_of == self.node:
            self.answered.add(announcement.node)
        self.lag.hear(announcement.node, announcement.vectors)
        ahead = max(0, announcement.now - now)
        self.peers.hear(announcement, ahead)
        self.heard_peer.set()
        if not self.blank and not self.renaming() and self.replica.lost(announcement):
            self.usurped.set()
            return
        self._answer(announcement, known)
        done, behind = self.replica.hear(announcement)
        self.on_done(done)
        for number in behind:
            self.pulling.mark_behind(number, announcement.node)

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

    # -- who is there -----------------------------------------------------------------------------------------------

    def meet(self, nodes: Collection[str], unripe: dict[int, frozenset[str]]) -> None:
        """The cluster has these other nodes from now on, and the replica its new peers. `unripe` are replicas that are
        still to be filled, by partition."""
        self.nodes = frozenset(nodes)
        self.replica.members = self.nodes
        self.clocks.change_nodes(self.nodes)
        self.peers.keep(self.nodes)
        self.answered &= self.nodes
        self.pulling.meet(unripe)

    # -- regularly --------------------------------------------------------------------------------------------------

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
                self.replica.miss(self.nodes - self.peers.steady())
                self.replica.drain(wall_clock.now())
                if self.replica.pending:
                    self.committer.touch()
            if self.state == "up" and now - collected >= self._collect_seconds:
                collected = now
                self._collect()
            self.pulling.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause(announced, collected)):  # wait_for may swallow a cancellation
                    await self.pulling.look_again.wait()
            self.pulling.look_again.clear()

    def _pause(self, announced: float, collected: float) -> float:
        """For how many seconds there is nothing to do, unless a sync ends or a first gap is found."""
        due = [announced + ANNOUNCE_SECONDS]
        if self.state == "up":
            due.append(collected + self._collect_seconds)
        due += self.pulling.due()
        return max(PAUSE_SECONDS_MIN, min(due) - time.monotonic())

    def oldest_tombstones(self) -> dict[int, Record]:
        """Of each partition that has one in its tables the tombstone that was not touched for longest."""
        partitions = self.replica.partitions.items()
        found = {number: next(self.store.tombstones(number, 1), None) for number, p in partitions if p.tombstones}
        return {number: record for number, record in found.items() if record is not None}

    def lag_seconds(self) -> float:
        """For how long this node has been missing something that a peer announced; 0 where it misses nothing."""
        return max(self.lag.seconds().values(), default=0.0)

    def _judge_clock(self) -> None:
        """Is the own clock right? Say so once where it is not, and once when it is again."""
        ahead = self.clocks.ahead(self.peers.alive())
        if ahead and not self.clock_ahead:
            log.error("the clock of %s is %s: it takes no more writes", self.node, describe(ahead))
        elif self.clock_ahead and not ahead:
            log.warning("the clock of %s agrees with the others again", self.node)
        self.clock_ahead = ahead

    def _collect(self) -> None:
        """Drop tombstones that every replica has, once late subscribers have had the time to hear of them; look for
        what is stranded where nothing is missing otherwise."""
        now = wall_clock.now()
        oldest = at_milliseconds(now - int(self.tombstone_seconds * 1000))
        for number, partition in self.replica.partitions.items():
            if partition.tombstones:
                found = self.store.tombstones(number, TOMBSTONES_AT_ONCE)
                old = (tombstone for tombstone in found if tombstone.life.origin.time < oldest)
                self.counts["tombstones_collected"] += self.replica.collect(number, old, time.monotonic())
        vectors = {number: partition.vector for number, partition in self.replica.partitions.items()}
        ahead = {number for number, actor in self.store.ahead(vectors) if self.replica.why_ended(actor)}
        for number in (ahead | self.replica.stranded.keys()) - self.pulling.busy:
            self.replica.look_for_stranded(number)

    def close(self) -> None:
        self.acknowledgements.close()
        self.pulling.close()
        self.since.close()
