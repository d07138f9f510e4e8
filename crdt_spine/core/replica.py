"""A node's core: all its partitions, driven turn by turn.

A turn is what one pass of the event loop brings: operations, deltas, sync pages. They take effect in memory at once.
`end_turn` then says what must become durable, and nothing of the turn leaves the node before `persisted`: only then
may deltas be published, acknowledgements sent and operations answered (rule 7). Reads look at `settled` for the same
reason. The shell (crdt_spine/node) does the IO in that order and knows no rule itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from crdt_spine.core import codec, conflicts, writes
from crdt_spine.core.actors import Actors, node_of
from crdt_spine.core.causality import Vector, join_into, within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.fences import Fence, Fences, token_of
from crdt_spine.core.messages import (
    Ack,
    Announcement,
    Change,
    Delete,
    Delta,
    Edit,
    EditDocument,
    Promised,
    Store,
    SyncPage,
    Vectors,
    Write,
    encode,
)
from crdt_spine.core.open_documents import OpenDocuments
from crdt_spine.core.operations import Dot, Operations
from crdt_spine.core.partition import Historian, Partition, Records, Reporter, latest_time
from crdt_spine.core.quorum import Quorum, Waiting, awaited
from crdt_spine.core.record import Record, completes
from crdt_spine.core.retirement import Retirement, disk_node
from crdt_spine.core.stranded import fingerprint
from crdt_spine.core.strays import OwnStrays
from crdt_spine.core.terms import Promises
from crdt_spine.core.turn import Event, Turn
from crdt_spine.core.whole import forgettable
from crdt_spine.core.writes import Refused
from crdt_spine.limits import (
    BATCH_BYTES_TARGET,
    CLOCK_DRIFT_MILLISECONDS_MAX,
    OPERATION_SECONDS_MAX,
    SYNC_PAGE_RECORDS_MAX,
    WAITING_CHANGES_MAX,
)

Entry = Delta | SyncPage | Fence | Promised  # of the journal


_END_OF_TIME = 1 << 62


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
        retirement: Retirement | None = None,
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
        self.counting = {number: 1 + len(others) for number, others in peers.items()}  # who counts for a quorum
        self.durable: Vectors = {number: {} for number in peers}
        self.unsettled: dict[str, int] = {}  # id -> number of unfinished turns that touched it
        self.documents = OpenDocuments()
        self.fences = Fences()
        self.promises = Promises()  # to the primaries of strong operations (core/terms.py)
        self.operations = Operations()
        self.stranded: dict[int, int] = {}  # partition -> fingerprint (core/stranded.py)
        self.actors = Actors()
        self.epoch = 0  # of the membership
        self.dead: frozenset[str] = frozenset()  # the nodes that were given up
        self._announced: dict[str, int] = {}  # other nodes' epochs when they said last what they have
        self.members: frozenset[str] | None = None  # the nodes of the cluster; None: whoever sends something
        self.retirement = retirement or Retirement(node, (), actor, float("inf"))
        self.away: frozenset[str] = frozenset()  # the nodes that are not heard of, or have to catch up first
        self.awaited = False  # does somebody wait for what the open turn has to become durable?
        self._awaited: dict[tuple[int, str], bool] = {}  # (partition, actor) -> is this node's acknowledgement?
        self._turn = Turn()
        self._touched: set[int] = set()
        self._remembering: dict[int, dict[str, float]] = {}  # partition -> tombstone -> when it was first to be dropped
        self._coordinated: set[int] = set()
        self._under_way = 0  # turns that are closed and not durable
        self._closed: frozenset[int] = frozenset()  # partitions that go
        self._watched = False
        self._reporter: Reporter | None = None
        self._historian: Historian | None = None
        self.strays: OwnStrays | None = None

    def watch(self, on: bool) -> None:
        """Collect events for feeds, or stop."""
        self._watched = on
        for partition in self.partitions.values():
            partition.watcher = self._event if on else None

    def note_strays(self, strays: OwnStrays) -> None:
        """Tell `strays` of what lies elsewhere than its placement key says (core/strays.py)."""
        self.strays = strays
        for partition in self.partitions.values():
            partition.strays = strays

    def report_to(self, reporter: Reporter, historian: Historian) -> None:
        """Tell `reporter` of values that were lost to concurrent writes, as they are found, and `historian` of what the
        own changes replace: what they keep must become durable no later than the records that it is about."""
        self._reporter, self._historian = reporter, historian
        for partition in self.partitions.values():
            partition.reporter, partition.historian = reporter, historian

    # -- other replicas ---------------------------------------------------------------------------------------------

    def close(self, numbers: Iterable[int]) -> None:
        """Nothing of these partitions is taken from peers any more, so that `change_peers` may take them away."""
        self._closed = frozenset(numbers)

    def change_peers(
        self, peers: Mapping[int, tuple[str, ...]], muted: Mapping[int, frozenset[str]], epoch: int = 0,
        dead: Iterable[str] = (),
    ) -> tuple[list[Waiting], list[Waiting]]:  # fmt: skip
        """Hold these partitions from now on, with these other nodes; the `muted` ones count for no quorum, but
        tombstones are kept for them as for all (core/membership.py). A partition that is new begins empty. Of the
        `dead` nothing is taken any more, from this `epoch` on.

        A partition that goes must be closed, and everything of it durable; its records are the caller's to drop.
        Returns the writes that have their quorum now, and those of which nobody will tell any more.
        """
        done: list[Waiting] = []
        lost: list[Waiting] = []
        died, self.dead, self.epoch = frozenset(dead) - self.dead, frozenset(dead), epoch
        for number in self.partitions.keys() - peers.keys():
            assert number in self._closed and number not in self._touched and not self._under_way, "it is not durable"
            lost += self.quorums.pop(number).waiting
            self.promises.forget(number)
            del self.partitions[number], self.durable[number]
            self.stranded.pop(number, None)
            self._remembering.pop(number, None)
        self.operations.keep(peers)
        for number in peers.keys() - self.partitions.keys():
            self.partitions[number] = Partition(number, self.records, self.clock)
            self.partitions[number].watcher = self._event if self._watched else None
            self.partitions[number].reporter = self._reporter
            self.partitions[number].historian = self._historian
            self.partitions[number].strays = self.strays
            self.quorums[number], self.durable[number] = Quorum(), {}
        for number, others in peers.items():
            for changed in set(others) ^ set(self.peers.get(number, ())):
                self.quorums[number].forget(changed)
                self.partitions[number].unhear(changed)
            mute = muted.get(number, frozenset())
            for node in (set(self.peers.get(number, ())) - set(others)) | (mute - self.quorums[number].muted) | died:
                # What of it waits for more may wait for ever, if it is dead; what anybody has of it, a sync brings.
                self.partitions[number].forget_waiting_of(self._held_of(self.partitions[number], node))
            self.counting[number] = 1 + sum(other not in mute for other in others)
            done += self.quorums[number].mute(mute)
        self.peers, self._closed = peers, frozenset()
        self._awaited.clear()
        return done, lost

    def miss(self, away: frozenset[str]) -> None:
        """For these nodes no write should have to wait, and for no others: they are not heard of, or catch up."""
        if away != self.away:
            self.away = away
            self._awaited.clear()

    def _is_awaited(self, number: int, actor: str) -> bool:
        """Does the coordinator of an actor's changes wait for this replica? For another region's, its bridge does."""
        key = number, actor
        known = self._awaited.get(key)
        if known is None:
            region, coordinator = node_of(actor)
            replicas = (self.node, *self.counting_peers(number))
            known = region != self.retirement.region or self.node in awaited(
                coordinator, replicas, self.write_quorum, self.away
            )
            self._awaited[key] = known
        return known

    # -- operations -------------------------------------------------------------------------------------------------

    def write(
        self, number: int, operation: Write, agent: str, operation_id: str, now: int, ticket: Any,
        seen: Vector | None = None,
    ) -> Record | None:  # fmt: skip
        """Coordinate a write: the record it gives. `seen` is what its agent has seen of the partition, as far as that
        is known: what it overwrites beyond leaves a receipt. `ticket` comes back from `persisted`, `ack` or `hear` once
        enough replicas have it, or from `expire`. Raises Refused: nothing was done."""
        partition = self.partitions[number]
        needed = min(operation.acks or self.write_quorum, self.counting[number])
        deadline = now + int(OPERATION_SECONDS_MAX * 1000)
        # Not only where it says that it is a retry: a first attempt may come late, after the second one.
        known = self.operations.get(operation_id)
        if known is not None and not self._is_lost(*known):
            self._turn.waiting.append((number, Waiting(ticket, known[1], known[2], needed, deadline)))
            self.awaited = True
            return self.records.get(operation.id)
        record = self.records.get(operation.id)
        time = max(self.clock.highest + 1, now << 16)
        match operation:
            case _ if known is not None and record is not None and record.version.get(known[1], 0) >= known[2]:
                # A sync brought it ahead of the vector, which will never get there. Whoever has this has it, too.
                change = Change(id=operation.id, time=time, agent=agent, operation=operation_id)
            case Store():
                change = writes.store(operation, record, time, agent, operation_id)
            case Edit():
                change = writes.edit(operation, record, time, agent, operation_id)
            case Delete():
                change = writes.delete(operation, record, time, agent, operation_id)
            case EditDocument():
                change = writes.edit_document(operation, record, time, agent, operation_id, self.documents)
        if seen is not None and record is not None and record.alive and not within(record.version, seen):
            unseen = conflicts.unseen(record, change, seen)
            if unseen:
                change = msgspec.structs.replace(change, unseen=unseen)
        self.clock.observe(time)
        after = partition.coordinate(self.actor, change, record)
        n = partition.vector[self.actor]
        self._coordinated.add(number)
        self._remember(operation_id, number, self.actor, n)
        if isinstance(operation, EditDocument) and change.document is not None:
            self.documents.applied(operation.id, self.actor, n, len(operation.update))
        self._touch(number, (operation.id,))
        self._turn.waiting.append((number, Waiting(ticket, self.actor, n, needed, deadline)))
        self.awaited = True
        return after

    def is_unsure(self, number: int, id: str) -> bool:
        """Is a memory ahead of its partition's vector? A sync brings it page by page, and which operations are in it
        with the last one: until then nobody knows here whether one that is tried again was done. What no replica has
        by its vector, as it was lost with a disk, is not waited for."""
        record, vector, quorum = self.records.get(id), self.partitions[number].vector, self.quorums[number]
        if record is None or within(record.version, vector):
            return False
        others = self._living_peers(number)
        unheard = any(self._announced.get(one, -1) < self.epoch for one in others)
        return any(
            vector.get(actor, 0) < n
            and (unheard or not self._is_lost(number, actor, n) or any(quorum.has(one, actor, n) for one in others))
            for actor, n in record.version.items()
        )

    def write_whole(self, number: int, change: Change, operation_id: str) -> tuple[Record, int]:
        """Coordinate the change of a strong operation (core/whole.py): the record it gives, and its number. Who waits
        for it looks at what becomes durable, here and elsewhere, itself (core/strong.py)."""
        self.clock.observe(change.time)
        partition = self.partitions[number]
        after = partition.coordinate(self.actor, change, self.records.get(change.id))
        n = partition.vector[self.actor]
        self._coordinated.add(number)
        self._remember(operation_id, number, self.actor, n)
        self._touch(number, (change.id,))
        return after, n

    def keep_promises(self) -> bool:
        """Have what was promised since the last call become durable with this turn; False: nothing was."""
        entry = self.promises.unsaved()
        if entry is None:
            return False
        self._turn.journal.append(encode(entry))
        self._turn.promised.append(entry)
        return True

    def keep_fence(self, fence: Fence) -> bool:
        """Know, durably with this turn, under which lease a write is made; False: a later one of the lock is known."""
        if not self.fences.admits(fence):
            return False
        if self.fences.keep(fence):
            self._turn.journal.append(encode(fence))
        return True

    def keep_epoch(self, epoch: int) -> bool:
        """Know, durably with this turn, that there is such an epoch of leases; is that new?"""
        rose = self.fences.learn_epoch(epoch)
        if rose:
            self._turn.journal.append(encode(Fence("-", token_of(epoch, 0))))
        return rose

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
        if partition is None or delta.partition in self._closed or self._refuses(delta):
            return True
        applied = partition.offer(delta, latest_time(now, self.drift))
        for one in applied:
            self._journal_delta(one, raw if one is delta else encode(one))
        here = partition.vector.get(delta.actor, 0)
        if here >= delta.first + len(delta.changes) - 1:
            if not applied:
                self._turn.acks.setdefault(delta.actor, {})[delta.partition] = here  # its first ack may be lost
                self.awaited = True
            return True
        if sum(p.waiting_changes for p in self.partitions.values()) > WAITING_CHANGES_MAX:
            partition.forget_waiting()
        return False

    def merge_page(self, page: SyncPage, raw: bytes, now: int) -> None:
        """One page of a sync, in its order; the last one joins the source's vector. Raises codec.Garbled, also for
        records from the future (rule 10), or where such were forgotten: the page is to be asked for again later.
        codec.Incomplete: and whole."""
        partition = self.partitions[page.partition]
        records = [codec.from_json(id, state) for id, state in page.records]
        latest = latest_time(now, self.drift)
        if any(record.updated > latest for record in records):
            raise codec.Garbled("records are stamped ahead of this node's clock")
        if page.clock > latest:  # what is stored here would be stamped below deletions that nobody can tell of any more
            raise codec.Garbled("deletions that its source has forgotten are stamped ahead of this node's clock")
        if not all(completes(self.records.get(record.id), record, partition.vector) for record in records):
            raise codec.Incomplete("a part of a document is of no use here: what it builds on is missing")
        if page.strays is not None and self.strays is not None:
            try:
                self.strays.unite(page.partition, *page.strays)
            except ValueError as error:
                raise codec.Garbled(str(error)) from error
        partition.merge_records(records, page.upto)
        if page.whole:
            partition.drop_absent({record.id for record in records}, page.upto, page.after, page.next)
        self.clock.observe(page.clock)
        partition.forgotten_time = max(partition.forgotten_time, page.clock)
        self._turn.journal.append(raw)
        self._touch(page.partition, [record.id for record in records])
        for operation, (actor, n) in page.operations.items():
            self._remember(operation, page.partition, actor, n)
        if page.next is None:
            for delta in partition.finish_sync(page.upto, latest, page.forgotten):
                self._journal_delta(delta, encode(delta))
            for actor, n in partition.vector.items():
                self._turn.acks.setdefault(actor, {})[page.partition] = n

    def drain(self, now: int) -> None:
        """Apply what waited for its time to come (rule 10)."""
        for number, partition in self.partitions.items():
            if partition.waiting and number not in self._closed:
                for delta in partition.drain(latest_time(now, self.drift)):
                    self._journal_delta(delta, encode(delta))

    def ack(self, ack: Ack) -> list[Waiting]:
        """A replica's acknowledgement; the writes that are done with it."""
        done: list[Waiting] = []
        if self.retirement.is_away(ack.node):
            return done
        for number, n in ack.reached.items():
            if number in self.quorums and ack.node in self.peers[number]:
                done += self.quorums[number].reached(ack.node, {ack.actor: n})
        return done

    def hear(self, announcement: Announcement) -> tuple[list[Waiting], list[int]]:
        """A peer's vectors: the writes that are done with them, and the partitions in which it has what is not here."""
        done: list[Waiting] = []
        behind: list[int] = []
        if self.actors.hear(announcement.node, announcement.actor):
            for number, known in self.partitions.items():
                self.quorums[number].forget(announcement.node)
                known.unhear(announcement.node)
        self._announced[announcement.node] = announcement.epoch
        for number, vector in announcement.vectors.items():
            partition = self.partitions.get(number)
            if partition is None or announcement.node not in self.peers[number]:
                continue
            done += self.quorums[number].reached(announcement.node, vector)
            if partition.waiting:
                partition.forget_waiting_of(self._former_actors(announcement, partition))
            heard = partition.hear(announcement.node, vector)
            if (not heard or self.lacks_stranded(number, announcement)) and within(partition.forgotten, vector):
                behind.append(number)
        return done, behind

    def look_for_stranded(self, number: int) -> None:
        """See which changes of a partition are stranded here (core/stranded.py): the next announcement is to tell."""
        vector, after, found = self.partitions[number].vector, None, 0
        while page := self.records.changed(number, vector, after, SYNC_PAGE_RECORDS_MAX):
            found += fingerprint(page, vector, lambda actor: self.why_ended(actor) != "")
            after = page[-1].id
        self.stranded.pop(number, None)
        if found:
            self.stranded[number] = found

    def lacks_stranded(self, number: int, announcement: Announcement) -> bool:
        """Are other changes of a partition stranded at a peer than here?"""
        return announcement.stranded.get(number, 0) not in (0, self.stranded.get(number, 0))

    # -- replicas that were away for too long -----------------------------------------------------------------------

    def heed(self, announcement: Announcement) -> bool:
        """Take what a peer says of who is retired, before anything else that it says; False: it is retired itself, and
        nothing else of it counts."""
        disk = announcement.disk or announcement.actor
        serves = announcement.state in ("up", "full")
        self.let_go(
            self.retirement.hear(announcement.node, disk, announcement.silent, announcement.retired, serves=serves)
        )
        return not self.retirement.is_away(announcement.node)

    def retire(self) -> list[str]:
        """Retire who was silent for too long, by the word of a majority: the disks."""
        retired = self.retirement.adopt(self.retirement.due())
        self.let_go(retired)
        return retired

    def let_go(self, disks: Iterable[str]) -> None:
        """These disks were retired: forget what their nodes said to have, and what of them is held back."""
        for _, node in map(node_of, disks):
            if not self.retirement.is_away(node):
                continue
            for number, partition in self.partitions.items():
                self.quorums[number].forget(node)
                partition.unhear(node)
                partition.forget_waiting_of(self._held_of(partition, node))

    def _held_of(self, partition: Partition, node: str) -> list[str]:
        """The actors of a node of which changes are held back."""
        return [actor for actor in partition.waiting if node_of(actor) == (self.retirement.region, node)]

    def may_pull(self, number: int, disk: str) -> bool:
        """May who has this disk be given a page of a partition? Not a node of the region that has no seat in it any
        more, and does not know that yet: tombstones are dropped here without waiting for it, so it would find nothing
        of what they deleted, and a vector that says that it has the deletion."""
        region, node = disk_node(disk)
        return region != self.retirement.region or node in self.peers[number]

    def judge(self, page: SyncPage, have: Vector) -> Literal["useful", "not believed", "incomplete", "too late"]:
        """A page of a sync that was asked for since `have`. It is not believed where its source never saw what was
        forgotten here: it has a new disk, and must ask first. It is incomplete where the source has forgotten what this
        replica never saw: then it is to ask for the whole. Too late where something of others is here already: that
        came from a disk that was retired, or this one was away itself, and it can't be told what of it is dead."""
        if not within(self.partitions[page.partition].forgotten, page.upto):
            return "not believed"
        if page.whole or within(page.forgotten, have):
            return "useful"
        own = (self.retirement.region, self.node)
        return "incomplete" if all(node_of(actor) == own for actor in have) else "too late"

    def collect(self, number: int, tombstones: Iterable[Record], at: float) -> int:
        """Forget those of a partition's tombstones that every replica has, but for retired ones; how many. One that
        knows of strong operations stays for a while, in seconds of `at`: who tries them again is to hear what came of
        them."""
        tombstones = forgettable(tombstones, self._remembering.setdefault(number, {}), at)
        peers = self.peers[number]
        retired = [node for node in peers if self.retirement.is_away(node)]
        return self.partitions[number].collect(tombstones, [node for node in peers if node not in retired], retired)

    def waits_for(self, number: int, tombstone: Record) -> list[str]:
        """The replicas for which a tombstone must stay."""
        heard = self.partitions[number].heard
        return [
            node
            for node in self.peers[number]
            if not self.retirement.is_away(node) and not within(tombstone.version, heard.get(node, {}))
        ]

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

    def counting_peers(self, number: int) -> list[str]:
        """The other replicas of a partition that count for a quorum."""
        muted = self.quorums[number].muted
        return [node for node in self.peers[number] if node not in muted]

    def unconfirmed(self, number: int, waiting: Waiting) -> tuple[str, ...]:
        """The replicas that are not known to have a change durably."""
        quorum = self.quorums.get(number)
        if quorum is None:
            return ()
        replicas = (self.node, *self.counting_peers(number))
        return tuple(sorted(node for node in replicas if not quorum.has(node, waiting.actor, waiting.n)))

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
        turn, self._turn = self._turn, Turn()
        self._under_way += not turn.empty
        self._touched.clear()
        self._coordinated.clear()
        self.awaited = False
        return turn

    def persisted(self, turn: Turn) -> list[Waiting]:
        """The turn is durable: its vectors count, its records may be shown; the writes that are done with it."""
        done: list[Waiting] = []
        self._under_way -= not turn.empty
        self.durable.update(turn.vectors)
        for entry in turn.promised:
            self.promises.saved_entry(entry)
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

    def replay(self, entries: Iterable[bytes], decode: Callable[[bytes], Entry]) -> None:
        """Apply one journal row again after a restart, on top of what the tables have: idempotent, as ever."""
        for raw in entries:
            match decode(raw):
                case Delta() as delta if delta.partition in self.partitions:
                    self.partitions[delta.partition].replay(delta, delta.actor == self.actor)
                case SyncPage() as page if page.partition in self.partitions:
                    self.merge_page(page, raw, _END_OF_TIME >> 16)
                case Fence() as fence:
                    self.fences.recall(fence)
                case Promised() as promised:
                    self.promises.replay(promised, self.partitions)
                case _:
                    pass
        self.remember(entries, decode)
        self.end_turn()
        self._under_way = 0

    def remember(self, entries: Iterable[bytes], decode: Callable[[bytes], Entry]) -> None:
        """Know a journal row's operation ids again."""
        for raw in entries:
            entry = decode(raw)
            if isinstance(entry, Fence | Promised) or entry.partition not in self.partitions:
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
        return self.operations.since(number, have)

    def behind(self, number: int, wanted: Mapping[str, int]) -> bool:
        """Does a reader's token ask for more than is durable here?"""
        return not within(wanted, self.durable[number])

    def unreachable(
        self, number: int, wanted: Mapping[str, int], said: Callable[[str], Mapping[str, Vectors]]
    ) -> tuple[str, str] | None:  # fmt: skip
        """Of a reader's token, an actor of which no replica will ever have what it has, and why; None: it may come.

        What the actor's node lost with its disk, or what it alone had when it was retired, may be at another replica
        still: so all that count must have said that they have it not, since that node can't have sent anything more.
        `said` gives what they said since then. Of other regions' actors nothing is known here."""
        partition, peers = self.partitions[number], self.peers[number]
        counting = set(self._living_peers(number)) - self.quorums[number].muted
        for actor, n in wanted.items():
            if partition.vector.get(actor, 0) >= n or actor in partition.waiting:
                continue
            if actor == self.actor:
                return actor, f"node {self.node} has lost it: its disk is an older one"
            why = self.why_ended(actor)
            if why:
                vectors = {node: held.get(number, {}) for node, held in said(actor).items() if node in peers}
                if counting <= vectors.keys() and all(vector.get(actor, 0) < n for vector in vectors.values()):
                    return actor, why
        return None

    def may_be_unreachable(self, number: int, wanted: Mapping[str, int]) -> bool:
        """Is there in a token what is not here, of an actor that makes no changes any more?"""
        missing = [actor for actor, n in wanted.items() if self.partitions[number].vector.get(actor, 0) < n]
        return any(actor == self.actor or self.why_ended(actor) for actor in missing)

    # -- within -----------------------------------------------------------------------------------------------------

    def _living_peers(self, number: int) -> list[str]:
        """The other replicas of a partition that were neither given up nor retired."""
        return [node for node in self.peers[number] if node not in self.dead and not self.retirement.is_away(node)]

    def why_ended(self, actor: str) -> str:
        """Why an actor of this region makes no changes any more; empty: it does, or that is not known."""
        region, node = node_of(actor)
        if region != node_of(self.actor)[0]:
            return ""
        if node == self.node:
            return f"node {node} goes on as {self.actor}, without it" if actor != self.actor else ""
        if self.retirement.is_away(node):
            return f"node {node} was away for too long and is retired"
        if node in self.dead:
            return f"node {node} was given up as dead"
        others = self.members if self.members is not None else {peer for peers in self.peers.values() for peer in peers}
        if node not in others:
            return f"no node of the cluster is called {node!r}"
        gone_on = self.actors.has_gone_on(node, actor)
        return f"node {node} goes on as {self.actors.newest[node]}, without it" if gone_on else ""

    def _refuses(self, delta: Delta) -> bool:
        """Does a delta come from a retired disk, from one that never saw what was forgotten here, or from a node that
        was taken out of the cluster? What that had when it was, syncs bring."""
        if self.retirement.refuses(delta.actor):
            return True
        if self.members is not None:
            region, node = node_of(delta.actor)
            if region == self.retirement.region and node not in self.members and node != self.node:
                return True
        partition = self.partitions[delta.partition]
        if not partition.forgotten or delta.first + len(delta.changes) - 1 <= partition.vector.get(delta.actor, 0):
            return False
        seen = {**delta.deps, delta.actor: delta.first - 1}
        return node_of(delta.actor)[0] == self.retirement.region and not within(partition.forgotten, seen)

    def _is_lost(self, number: int, actor: str, n: int) -> bool:
        """Was this change heard of and never seen, and won't it come? Its node has gone on under another name; or it
        was given up, nobody takes anything of it any more, and none of the others has it."""
        region, node = node_of(actor)
        if region != node_of(self.actor)[0] or self.partitions[number].vector.get(actor, 0) >= n:
            return False
        if node in self.dead:
            others, quorum = set(self.peers[number]) - self.dead, self.quorums[number]
            return all(self._announced.get(one, -1) >= self.epoch and not quorum.has(one, actor, n) for one in others)
        return actor != self.actor if node == self.node else self.actors.has_gone_on(node, actor)

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
        self.awaited = self.awaited or self._is_awaited(delta.partition, delta.actor)
        self._turn.acks.setdefault(delta.actor, {})[delta.partition] = delta.first + len(delta.changes) - 1
        self._touch(delta.partition, [change.id for change in delta.changes])
        for n, change in enumerate(delta.changes, delta.first):
            if self._remember(change.operation, delta.partition, delta.actor, n):
                # Two coordinators took it: the first died, or was too slow.
                self._turn.repeats.add((delta.partition, delta.actor, n))

    def _event(self, number: int, before: Record | None, after: Record, actor: str, n: int) -> None:
        self._turn.events.append(Event(number, before, after, actor, n))

    def _touch(self, number: int, ids: Iterable[str]) -> None:
        self._touched.add(number)
        for id in ids:
            self.unsettled[id] = self.unsettled.get(id, 0) + 1
            self._turn.records.append(id)

    def _remember(self, operation: str, number: int, actor: str, n: int) -> bool:
        """Know an operation by its change; True: it is known by another one."""
        if not operation:
            return False
        dot, known = (number, actor, n), self.operations.get(operation)
        if known is not None and self.partitions[known[0]].vector.get(known[1], 0) >= known[2]:
            return known != dot  # that change is here; of this one it may only have been heard
        self.operations.put(operation, *dot)
        return known is not None and known != dot


def _encoded(delta: Delta) -> list[bytes]:
    """The delta as messages, none larger than need be."""
    raw = encode(delta)
    if len(raw) <= BATCH_BYTES_TARGET or len(delta.changes) == 1:
        return [raw]
    middle = len(delta.changes) // 2
    first = msgspec.structs.replace(delta, changes=delta.changes[:middle])
    second = msgspec.structs.replace(delta, first=delta.first + middle, changes=delta.changes[middle:])
    return _encoded(first) + _encoded(second)


__all__ = ["Dot", "Refused", "Replica"]
