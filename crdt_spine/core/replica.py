"""A node's core: all its partitions, driven turn by turn.

A turn is what one pass of the event loop brings: operations, deltas, sync pages. They take effect in memory at once.
`end_turn` then says what must become durable, and nothing of the turn leaves the node before `persisted`: only then
may deltas be published, acknowledgements sent and operations answered (rule 7). Reads look at `settled` for the same
reason. The shell (crdt_spine/node) does the IO in that order and knows no rule itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from crdt_spine.core import codec, writes
from crdt_spine.core.causality import Vector, join_into, within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Ack, Announcement, Delete, Delta, Edit, Store, SyncPage, Vectors, Write, encode
from crdt_spine.core.partition import Partition, Records, latest_time
from crdt_spine.core.quorum import Quorum, Waiting
from crdt_spine.core.record import Record
from crdt_spine.core.writes import Refused
from crdt_spine.limits import (
    BATCH_BYTES_TARGET,
    CLOCK_DRIFT_MILLISECONDS_MAX,
    OPERATION_SECONDS_MAX,
    OPERATIONS_REMEMBERED_MAX,
    WAITING_CHANGES_MAX,
)

Dot = tuple[str, int]


_END_OF_TIME = 1 << 62


class Event(msgspec.Struct, frozen=True, gc=False):
    """A record changed. `actor` is empty where a sync brought the change: it may stand for several dots."""

    partition: int
    before: Record | None
    after: Record
    actor: str
    n: int


def actor_name(region: str, node: str, incarnation: str) -> str:
    """The actor of a node in one incarnation."""
    return f"{region}/{node}@{incarnation}"


def node_of(actor: str) -> tuple[str, str]:
    """(region, node) of an actor."""
    region, _, rest = actor.partition("/")
    return region, rest.rpartition("@")[0]


class Turn(msgspec.Struct):
    """What one turn did: to be journaled (`journal`, one row), then to be sent (`deltas`, `acks`)."""

    journal: list[bytes]
    deltas: list[tuple[int, bytes]]  # partition, encoded: to publish
    acks: dict[str, dict[int, int]]  # actor -> partition -> n
    vectors: Vectors  # what is durable with it
    records: list[str]  # ids whose state is visible from then on
    waiting: list[tuple[int, Waiting]]
    events: list[Event]  # what changed, for feeds
    repeats: set[tuple[int, str, int]]  # of these, the dots of operations that were here under another dot already

    @property
    def empty(self) -> bool:
        return not (self.journal or self.acks or self.waiting or self.vectors)


class Replica:
    """The replicas that one node holds. `peers` maps a partition to the other nodes that hold it."""

    def __init__(
        self,
        node: str,
        actor: str,
        records: Records,
        clock: HybridClock,
        peers: Mapping[int, tuple[str, ...]],
        write_quorum: int,
        *,
        drift: int = CLOCK_DRIFT_MILLISECONDS_MAX,
    ) -> None:
        self.node = node
        self.actor = actor
        self.records = records
        self.clock = clock
        self.peers = peers
        self.write_quorum = write_quorum
        self.drift = drift
        self.partitions = {number: Partition(number, records, clock) for number in peers}
        self.quorums = {number: Quorum() for number in peers}
        self.durable: Vectors = {number: {} for number in peers}
        self.unsettled: dict[str, int] = {}  # id -> number of unfinished turns that touched it
        self.operations: OrderedDict[str, tuple[int, str, int]] = OrderedDict()
        self.actors: dict[str, str] = {}  # other nodes' names of now
        self._turn = self._new_turn()
        self._touched: set[int] = set()
        self._coordinated: set[int] = set()

    def watch(self, on: bool) -> None:
        """Collect events for feeds, or stop."""
        for partition in self.partitions.values():
            partition.watcher = self._event if on else None

    # -- operations -------------------------------------------------------------------------------------------------

    def write(
        self, number: int, operation: Write, agent: str, operation_id: str, now: int, ticket: Any, retry: bool = False
    ) -> Record | None:
        """Coordinate a write: the record it gives. `ticket` comes back from `persisted`, `ack` or `hear` once enough
        replicas have it, or from `expire`. Raises Refused: nothing was done."""
        partition = self.partitions[number]
        needed = min(operation.acks or self.write_quorum, 1 + len(self.peers[number]))
        deadline = now + int(OPERATION_SECONDS_MAX * 1000)
        # Not only where it says that it is a retry: a first attempt may come late, after the second one.
        known = self.operations.get(operation_id)
        if known is not None and not self._is_lost(*known):
            self._turn.waiting.append((number, Waiting(ticket, known[1], known[2], needed, deadline)))
            return self.records.get(operation.id)
        record = self.records.get(operation.id)
        time = max(self.clock.highest + 1, now << 16)
        match operation:
            case Store():
                change = writes.store(operation, record, time, agent, operation_id)
            case Edit():
                change = writes.edit(operation, record, time, agent, operation_id)
            case Delete():
                change = writes.delete(operation, record, time, agent, operation_id)
        self.clock.observe(time)
        after = partition.coordinate(self.actor, change, record)
        n = partition.vector[self.actor]
        self._coordinated.add(number)
        self._remember(operation_id, number, self.actor, n)
        self._touch(number, (operation.id,))
        self._turn.waiting.append((number, Waiting(ticket, self.actor, n, needed, deadline)))
        return after

    def delete_expired(self, number: int, operation: Delete, now: int) -> None:
        """Delete a memory whose time is over, in the node's own name. Raises Refused."""
        record = self.records.get(operation.id)
        time = self.clock.tick(now)
        change = writes.delete(operation, record, time, "", "", expired_too=True)
        self.partitions[number].coordinate(self.actor, change, record)
        self._coordinated.add(number)
        self._touch(number, (operation.id,))

    @property
    def pending(self) -> int:
        """How many changes the open turn has."""
        return len(self._turn.records)

    def settled(self, id: str) -> bool:
        """Is what `records` holds of this memory durable? Else it may be shown only after the next `persisted`."""
        return id not in self.unsettled

    # -- what peers send --------------------------------------------------------------------------------------------

    def receive(self, delta: Delta, raw: bytes, now: int) -> bool:
        """A delta from a coordinator, `raw` as it came. False: something before it is missing (a repair will tell)."""
        partition = self.partitions.get(delta.partition)
        if partition is None:
            return True
        applied = partition.offer(delta, latest_time(now, self.drift))
        for one in applied:
            self._journal_delta(one, raw if one is delta else encode(one))
        here = partition.vector.get(delta.actor, 0)
        if here >= delta.first + len(delta.changes) - 1:
            if not applied:
                self._turn.acks.setdefault(delta.actor, {})[delta.partition] = here  # its first ack may be lost
            return True
        if sum(p.waiting_changes for p in self.partitions.values()) > WAITING_CHANGES_MAX:
            partition.forget_waiting()
        return False

    def merge_page(self, page: SyncPage, raw: bytes, now: int) -> None:
        """One page of a sync, in its order; the last one joins the source's vector. Raises codec.Garbled, also for
        records from the future (rule 10): the page is to be asked for again later."""
        partition = self.partitions[page.partition]
        records = [codec.from_json(id, state) for id, state in page.records]
        if any(record.updated > latest_time(now, self.drift) for record in records):
            raise codec.Garbled("records are stamped ahead of this node's clock")
        partition.merge_records(records)
        if page.whole:
            partition.drop_absent({record.id for record in records}, page.upto, page.after, page.next)
        latest = latest_time(now, self.drift)
        if page.clock > latest:  # also for whoever replays this row: its clock must not run after one that is wrong
            page = msgspec.structs.replace(page, clock=latest)
            raw = encode(page)
        self.clock.observe(page.clock)
        self._turn.journal.append(raw)
        self._touch(page.partition, [record.id for record in records])
        for operation, (actor, n) in page.operations.items():
            self._remember(operation, page.partition, actor, n)
        if page.next is None:
            for delta in partition.finish_sync(page.upto, latest_time(now, self.drift)):
                self._journal_delta(delta, encode(delta))
            for actor, n in partition.vector.items():
                self._turn.acks.setdefault(actor, {})[page.partition] = n

    def drain(self, now: int) -> None:
        """Apply what waited for its time to come (rule 10)."""
        for partition in self.partitions.values():
            if partition.waiting:
                for delta in partition.drain(latest_time(now, self.drift)):
                    self._journal_delta(delta, encode(delta))

    def ack(self, ack: Ack) -> list[Waiting]:
        """A replica's acknowledgement; the writes that are done with it."""
        done: list[Waiting] = []
        for number, n in ack.reached.items():
            if number in self.quorums and ack.node in self.peers[number]:
                done += self.quorums[number].reached(ack.node, {ack.actor: n})
        return done

    def hear(self, announcement: Announcement) -> tuple[list[Waiting], list[int]]:
        """A peer's vectors: the writes that are done with them, and the partitions in which it has what is not here."""
        done: list[Waiting] = []
        behind: list[int] = []
        if self.actors.setdefault(announcement.node, announcement.actor) != announcement.actor:
            self.actors[announcement.node] = announcement.actor
            for number, known in self.partitions.items():
                self.quorums[number].forget(announcement.node)
                known.unhear(announcement.node)
        for number, vector in announcement.vectors.items():
            partition = self.partitions.get(number)
            if partition is None or announcement.node not in self.peers[number]:
                continue
            done += self.quorums[number].reached(announcement.node, vector)
            if partition.waiting:
                partition.forget_waiting_of(self._former_actors(announcement, partition))
            if not partition.hear(announcement.node, vector):
                behind.append(number)
        return done, behind

    def known_of(self, node: str) -> Vectors:
        """What another node has said to have, be it by a change of its own that is still held back here."""
        known = {number: dict(q.durable.get(node, {})) for number, q in self.quorums.items()}
        own = (node_of(self.actor)[0], node)
        for number, partition in self.partitions.items():
            for actor, held in partition.waiting.items():
                if node_of(actor) == own:
                    join_into(known[number], {actor: max(first + len(d.changes) - 1 for first, _, d in held)})
        return {number: vector for number, vector in known.items() if vector}

    def lost(self, announcement: Announcement) -> bool:
        """Does a peer know of this node what it does not know itself, changes it made or had? Then its disk was rolled
        back: it needs a new actor, and must compare every partition with a peer's (`SyncRequest.whole`) before it takes
        writes, since a record that it still has may be deleted and forgotten everywhere else."""
        made = any(
            vector.get(self.actor, 0) > self.partitions[number].vector.get(self.actor, 0)
            for number, vector in announcement.vectors.items()
            if number in self.partitions
        )
        had = announcement.known_of == self.node and not all(
            within(vector, self.partitions[number].vector)
            for number, vector in announcement.known.items()
            if number in self.partitions
        )
        return made or had

    def expire(self, now: int) -> list[tuple[Waiting, int]]:
        """Writes that did not get their quorum in time, with how many replicas have them."""
        return [(w, q.confirmed(w.actor, w.n)) for q in self.quorums.values() for w in q.expire(now)]

    # -- turns ------------------------------------------------------------------------------------------------------

    def end_turn(self) -> Turn:
        """Close the turn: everything since the last call, in the order in which it must be journaled."""
        for number in sorted(self._coordinated):
            for delta in self.partitions[number].seal():
                for raw in _encoded(delta):
                    self._turn.journal.append(raw)
                    self._turn.deltas.append((number, raw))
        self._turn.vectors = {number: dict(self.partitions[number].vector) for number in self._touched}
        turn, self._turn = self._turn, self._new_turn()
        self._touched.clear()
        self._coordinated.clear()
        return turn

    def persisted(self, turn: Turn) -> list[Waiting]:
        """The turn is durable: its vectors count, its records may be shown; the writes that are done with it."""
        done: list[Waiting] = []
        self.durable.update(turn.vectors)
        for id in turn.records:
            left = self.unsettled[id] - 1
            if left:
                self.unsettled[id] = left
            else:
                del self.unsettled[id]
        for number in turn.vectors:
            done += self.quorums[number].reached(self.node, self.durable[number])
        done += [waiting for number, waiting in turn.waiting if not self.quorums[number].wait(waiting)]
        return done

    # -- recovery ---------------------------------------------------------------------------------------------------

    def replay(self, entries: Iterable[bytes], decode: Callable[[bytes], Delta | SyncPage]) -> None:
        """Apply one journal row again after a restart, on top of what the tables have: idempotent, as ever."""
        for raw in entries:
            match decode(raw):
                case Delta() as delta if delta.partition in self.partitions:
                    self.partitions[delta.partition].replay(delta)
                case SyncPage() as page if page.partition in self.partitions:
                    self.merge_page(page, raw, _END_OF_TIME >> 16)
                case _:
                    pass
        self.remember(entries, decode)
        self.end_turn()

    def remember(self, entries: Iterable[bytes], decode: Callable[[bytes], Delta | SyncPage]) -> None:
        """Know a journal row's operation ids again."""
        for raw in entries:
            entry = decode(raw)
            if entry.partition not in self.partitions:
                continue
            if isinstance(entry, Delta):
                for n, change in enumerate(entry.changes, entry.first):
                    self._remember(change.operation, entry.partition, entry.actor, n)
            else:
                for operation, (actor, n) in entry.operations.items():
                    self._remember(operation, entry.partition, actor, n)

    def recovered(self) -> None:
        """All rows have been replayed: what there is, is durable."""
        self.unsettled.clear()
        for number, partition in self.partitions.items():
            self.durable[number] = dict(partition.vector)
            self.quorums[number].reached(self.node, partition.vector)

    def operations_since(self, number: int, have: Vector) -> dict[str, Dot]:
        """The operation ids of changes that a vector misses, as far as they are remembered."""
        return {
            operation: (actor, n)
            for operation, (p, actor, n) in self.operations.items()
            if p == number and have.get(actor, 0) < n
        }

    def behind(self, number: int, wanted: Mapping[str, int]) -> bool:
        """Does a reader's token ask for more than is durable here?"""
        return not within(wanted, self.durable[number])

    # -- within -----------------------------------------------------------------------------------------------------

    def _is_lost(self, number: int, actor: str, n: int) -> bool:
        """Was this change heard of and never seen, and has its node gone on under another name? It won't come then."""
        region, node = node_of(actor)
        newest = self.actor if node == self.node else self.actors.get(node, actor)
        former = actor != newest and region == node_of(self.actor)[0]
        return former and self.partitions[number].vector.get(actor, 0) < n

    def _former_actors(self, announcement: Announcement, partition: Partition) -> list[str]:
        """Whom changes wait for that nobody sends any more: what a node lost with its disk it has lost, and its changes
        after that could wait for ever. Whatever was not lost, a sync brings."""
        region = node_of(self.actor)[0]
        return [
            actor
            for actor in partition.waiting
            if actor != announcement.actor and node_of(actor) == (region, announcement.node)
        ]

    def _journal_delta(self, delta: Delta, raw: bytes) -> None:
        self._turn.journal.append(raw)
        self._turn.acks.setdefault(delta.actor, {})[delta.partition] = delta.first + len(delta.changes) - 1
        self._touch(delta.partition, [change.id for change in delta.changes])
        for n, change in enumerate(delta.changes, delta.first):
            dot = (delta.partition, delta.actor, n)
            if self.operations.get(change.operation, dot) != dot:
                self._turn.repeats.add(dot)  # two coordinators took it: the first died, or was too slow
            self._remember(change.operation, delta.partition, delta.actor, n)

    def _event(self, number: int, before: Record | None, after: Record, actor: str, n: int) -> None:
        self._turn.events.append(Event(number, before, after, actor, n))

    def _touch(self, number: int, ids: Iterable[str]) -> None:
        self._touched.add(number)
        for id in ids:
            self.unsettled[id] = self.unsettled.get(id, 0) + 1
            self._turn.records.append(id)

    def _remember(self, operation: str, number: int, actor: str, n: int) -> None:
        if not operation:
            return
        known = self.operations.get(operation)
        if known is not None and self.partitions[known[0]].vector.get(known[1], 0) >= known[2]:
            return  # that change is here; of this one it may only have been heard
        self.operations[operation] = (number, actor, n)
        if len(self.operations) > OPERATIONS_REMEMBERED_MAX:
            self.operations.popitem(last=False)

    @staticmethod
    def _new_turn() -> Turn:
        return Turn([], [], {}, {}, [], [], [], set())


def _encoded(delta: Delta) -> list[bytes]:
    """The delta as messages, none larger than need be."""
    raw = encode(delta)
    if len(raw) <= BATCH_BYTES_TARGET or len(delta.changes) == 1:
        return [raw]
    middle = len(delta.changes) // 2
    first = msgspec.structs.replace(delta, changes=delta.changes[:middle])
    second = msgspec.structs.replace(delta, first=delta.first + middle, changes=delta.changes[middle:])
    return _encoded(first) + _encoded(second)


__all__ = ["Dot", "Record", "Refused", "Replica", "Turn", "actor_name", "node_of"]
