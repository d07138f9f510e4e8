"""One replica of one partition: the rules that make all replicas of it converge.

docs/ARCHITECTURE.md numbers them. Here are 1 (an actor's changes apply in order), 2 and 3 (a change waits for what it
depends on, the versions of the records it touched included), 4 (what a record already has is skipped), 6 (a sync's
vector counts after its last page), 8 (an announcement counts once everything in it is here), 9 (a tombstone goes once
every replica has it) and 10 (a change from the future waits).
Gonçalves et al., "Concise server-wide causality management for eventually consistent data stores" (2017).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from crdt_spine.core import conflicts
from crdt_spine.core.causality import Vector, join, join_into, meet, within
from crdt_spine.core.clock import HybridClock, at_milliseconds
from crdt_spine.core.messages import Change, Delta
from crdt_spine.core.record import Record, apply, merge
from crdt_spine.core.registers import Origin
from crdt_spine.core.strays import OwnStrays
from crdt_spine.limits import SYNC_PAGE_RECORDS_MAX


class Records(Protocol):
    """Where records live; a dict would do. `put` and `drop` are remembered until they are durable."""

    def get(self, id: str) -> Record | None: ...
    def put(self, partition: int, record: Record) -> None: ...
    def drop(self, partition: int, id: str) -> None: ...
    def changed(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> Sequence[Record]:
        """since(have), one page of at most `limit`: the records whose version is not within `have`, by id, behind the
        id `after`."""
        ...


#: Told of every change that took effect: the record before and after it, and the dot (actor, n).
Watcher = Callable[[int, Record | None, Record, str, int], None]

#: Told what was found about values that were lost to concurrent writes.
Reporter = Callable[[list[conflicts.Finding]], None]

#: Told of records that were replaced, and by what: by a change of this node's own, by one whose writer had not seen all
#: of the record, by a sync. The memory's other versions are told of at the nodes that coordinated what replaced them.
Historian = Callable[[Record, Record], None]


class _Open(msgspec.Struct):
    """Consecutive changes of one actor that are not in a delta yet; `ahead`: dots they need beyond the vector."""

    actor: str
    first: int
    ahead: Vector
    changes: list[Change]


class Partition:
    """A replica's state of one partition, but for the records themselves."""

    def __init__(self, number: int, records: Records, clock: HybridClock, vector: Vector | None = None) -> None:
        self.number = number
        self.records = records
        self.clock = clock
        self.vector: Vector = vector or {}
        self.memories = 0
        self.tombstones = 0
        self.waiting: dict[str, list[tuple[int, int, Delta]]] = {}  # actor -> (first, -length, delta), ascending
        self.waiting_changes = 0
        self.heard: dict[str, Vector] = {}  # replica -> the newest announcement that counts
        self.forgotten: Vector = {}  # what is within it may miss tombstones that not every replica had
        self.forgotten_time = 0  # the greatest hybrid time of a tombstone that was dropped here, or where this is from
        self.watcher: Watcher | None = None
        self.reporter: Reporter | None = None
        self.historian: Historian | None = None
        self.strays: OwnStrays | None = None
        self._promised: Vector = {}  # the vectors of sources of which pages were merged
        self._open: _Open | None = None  # this turn's own changes
        self._sealed: list[Delta] = []  # and those under an earlier name

    # -- a change of our own ----------------------------------------------------------------------------------------

    def coordinate(self, actor: str, change: Change, record: Record | None) -> Record:
        """Give the change its dot, apply it, and put it into the delta that `seal` will give."""
        n = self.vector.get(actor, 0) + 1
        if self._open is None or self._open.actor != actor:
            self._sealed = self.seal()
            self._open = _Open(actor, n, {}, [])
        opened = self._open
        opened.changes.append(change)
        if record is not None and not within(record.version, self.vector):
            join_into(opened.ahead, record.version)  # rule 3
        after = apply(record, change, Origin(change.time, actor, n, change.agent))
        if record is not None:
            if self.historian is not None:
                self.historian(record, after)
            if change.unseen and self.reporter is not None:
                self.reporter(conflicts.of_unseen(record, after, change))
        self._keep(record, after, actor, n)
        if self.strays is not None:
            self.strays.note_change(self.number, actor, n, change)
        self.vector[actor] = n
        return after

    def seal(self) -> list[Delta]:
        """The deltas of everything coordinated since the last call.

        They depend on all that is here now: what came between two changes of a turn, the second one may build on.
        """
        deltas, self._sealed = self._sealed, []
        opened, self._open = self._open, None
        if opened is not None:
            deps = join(self.vector, opened.ahead)
            del deps[opened.actor]  # rule 1 sees to it
            deltas.append(
                Delta(partition=self.number, actor=opened.actor, first=opened.first, deps=deps, changes=opened.changes)
            )
        return deltas

    # -- changes of others ------------------------------------------------------------------------------------------

    def offer(self, delta: Delta, latest: int) -> list[Delta]:
        """Take a delta from the network: apply it, hold it back or drop it as a duplicate (rules 1, 2, 10).

        `latest` is the greatest hybrid time that may be applied now. Returns the deltas that were applied, in order:
        this one, and those that had waited for it.
        """
        here = self.vector.get(delta.actor, 0)
        if delta.first + len(delta.changes) - 1 <= here:
            return []
        if not self.waiting and delta.first <= here + 1 and self._due(delta, latest):
            self._apply(delta)  # as nearly all do
            return [delta]
        held = self.waiting.setdefault(delta.actor, [])
        if not any(first == delta.first and len(d.changes) >= len(delta.changes) for first, _, d in held):
            insort(held, (delta.first, -len(delta.changes), delta))
            self.waiting_changes += len(delta.changes)
        return self.drain(latest)

    def replay(self, delta: Delta, own: bool = False) -> None:
        """Apply a delta of the own journal again, `own` if this node coordinated it. It was applied once, in this
        order: its dependencies are here, though maybe in a record that is ahead of the vector (rule 3), and its time
        had come."""
        assert delta.first <= self.vector.get(delta.actor, 0) + 1, "the journal has a hole"
        self._apply(delta, own)

    def drain(self, latest: int) -> list[Delta]:
        """Apply what no longer has to wait."""
        applied: list[Delta] = []
        progress = bool(self.waiting)
        while progress:
            progress = False
            for actor in list(self.waiting):
                while (delta := self._next(actor, latest)) is not None:
                    self._apply(delta)
                    applied.append(delta)
                    progress = True
        return applied

    def forget_waiting(self) -> None:
        """Drop everything held back: the next sync brings it."""
        self.waiting.clear()
        self.waiting_changes = 0

    def forget_waiting_of(self, actors: Iterable[str]) -> None:
        """Drop what is held back of these actors."""
        for actor in actors:
            self.waiting_changes -= sum(len(delta.changes) for _, _, delta in self.waiting.pop(actor))

    def _next(self, actor: str, latest: int) -> Delta | None:
        """The actor's next delta that is due, taken out of the waiting ones; duplicates fall away on the road."""
        held = self.waiting[actor]
        while held:
            first, _, delta = held[0]
            here = self.vector.get(actor, 0)
            duplicate = first + len(delta.changes) - 1 <= here
            if not duplicate and (first > here + 1 or not self._due(delta, latest)):
                return None
            held.pop(0)
            self.waiting_changes -= len(delta.changes)
            if not duplicate:
                return delta
        del self.waiting[actor]
        return None

    def _due(self, delta: Delta, latest: int) -> bool:
        return within(delta.deps, self.vector) and delta.changes[-1].time <= latest

    def _apply(self, delta: Delta, own: bool = False) -> None:
        actor, here = delta.actor, self.vector.get(delta.actor, 0)
        for n, change in enumerate(delta.changes, delta.first):
            if n <= here:
                continue
            record = self.records.get(change.id)
            if record is None or n > record.version.get(actor, 0):  # rule 4
                after = apply(record, change, Origin(change.time, actor, n, change.agent))
                if record is not None:
                    telling = own
                    for other, m in record.version.items():
                        if delta.deps.get(other, 0) < m and other != actor:
                            self._report(delta, n, change, record, after)  # its writer had not seen all of the record
                            telling = True
                            break
                    if telling and after is not record and self.historian is not None:
                        self.historian(record, after)
                    if change.unseen and self.reporter is not None:
                        self.reporter(conflicts.of_unseen(record, after, change))
                if after is not record:
                    self._keep(record, after, actor, n)
            elif not within(record.version, delta.deps):
                self._report(delta, n, change, record, None)
            if self.strays is not None:
                self.strays.note_change(self.number, actor, n, change)
            self.vector[actor] = n
        self.clock.observe(delta.changes[-1].time)  # an actor's times rise

    def _report(self, delta: Delta, n: int, change: Change, before: Record, after: Record | None) -> None:
        """Tell of lost values. `after` is None where the record had the change already."""
        self._close()
        if self.reporter is None:
            return
        origin, seen = Origin(change.time, delta.actor, n, change.agent), {**delta.deps, delta.actor: n - 1}
        if after is None:
            self.reporter(conflicts.of_skipped(change, origin, seen))
        else:
            judged = conflicts.saw(self._promised, origin) and not conflicts.saw(self.vector, before.life.origin)
            self.reporter(conflicts.of_change(before, after, change, origin, seen, judged))

    def _close(self) -> None:
        """End the delta under way: its `deps` must not have what comes now, to a record that it may have changed."""
        if self._open is not None:
            self._sealed = self.seal()

    def _keep(self, before: Record | None, after: Record, actor: str, n: int) -> None:
        if before is None or before.life is not after.life:
            self._count(before, after)
        self.records.put(self.number, after)
        if self.watcher is not None:
            self.watcher(self.number, before, after, actor, n)

    def _count(self, before: Record | None, after: Record | None) -> None:
        if before is not None:
            self.memories -= before.alive
            self.tombstones -= not before.alive
        if after is not None:
            self.memories += after.alive
            self.tombstones += not after.alive

    # -- since ------------------------------------------------------------------------------------------------------

    def merge_records(self, records: Iterable[Record], upto: Vector | None = None) -> None:
        """One page of a sync: records may now be ahead of the vector (rule 3 is the answer to that). `upto` is the
        source's vector when the sync began; without it nothing is said about lost values."""
        for theirs in records:
            mine = self.records.get(theirs.id)
            # Where all of a record was here and it is not, its tombstone was dropped: a page that was made before that,
            # or is replayed from the journal after it, must not bring it back.
            if within(theirs.version, self.vector if mine is None else mine.version):
                continue
            # Nor where the store that gave it life was here: a delete wins over what was changed elsewhere meanwhile.
            if mine is None and _born_within(theirs, self.vector):
                continue
            merged = theirs if mine is None else merge(mine, theirs)
            if mine is not None and not within(mine.version, theirs.version) and not within(mine.version, upto or {}):
                self._close()  # the source had not seen all of this record
                if self.reporter is not None and upto is not None:
                    self.reporter(conflicts.of_merge(mine, theirs, merged, upto, self.vector))
            if merged == mine:
                continue
            if mine is not None and self.historian is not None:
                self.historian(mine, merged)
            self.clock.observe(merged.updated)
            self._count(mine, merged)
            self.records.put(self.number, merged)
            if self.strays is not None:
                self.strays.note_record(self.number, merged)
            if self.watcher is not None:
                self.watcher(self.number, mine, merged, "", 0)
        self._promised = join(self._promised, upto or {})

    def drop_absent(
        self, ids: Collection[str], upto: Mapping[str, int], after: str | None, through: str | None
    ) -> None:
        """Forget the records behind `after`, through `through`, that a source with `upto` no longer has, `ids` being
        those it has. It had all of them: their tombstones were dropped after the copy was made that is this disk. What
        was changed here after its death there is dead as well."""
        while page := self.records.changed(self.number, {}, after, SYNC_PAGE_RECORDS_MAX):
            for record in page:
                after = record.id
                if through is not None and after > through:
                    return
                if after not in ids and (within(record.version, upto) or _born_within(record, upto)):
                    self._count(record, None)
                    self.records.drop(self.number, after)

    def finish_sync(self, upto: Mapping[str, int], latest: int, forgotten: Mapping[str, int] = {}) -> list[Delta]:
        """The last page is in: the source's vector at the start of the sync holds here too (rule 6), and what it had
        `forgotten` is missing here as well."""
        self.vector = join(self.vector, upto)
        join_into(self.forgotten, forgotten)
        return self.drain(latest)

    # -- stability --------------------------------------------------------------------------------------------------

    def hear(self, replica: str, vector: Mapping[str, int]) -> bool:
        """An announcement of another replica; False while it does not count yet (rule 8)."""
        heard = self.heard.get(replica)
        if heard == vector:
            return True
        if not within(vector, self.vector):
            return False
        self.heard[replica] = join(heard or {}, vector)
        return True

    def unhear(self, replica: str) -> None:
        """A replica has a new name: what it said under the old one, it may no longer have."""
        self.heard.pop(replica, None)

    def stable(self, replicas: Iterable[str]) -> Vector:
        """What every replica has, as far as it was heard; `replicas` are the others that must agree."""
        return meet([self.vector, *(self.heard.get(replica, {}) for replica in replicas)])

    def collect(self, tombstones: Iterable[Record], replicas: Iterable[str], retired: Collection[str] = ()) -> int:
        """Forget the tombstones that every replica has (rule 9), but for those that are `retired`; how many."""
        stable = self.stable(replicas)
        collected = 0
        for tombstone in tombstones:
            record = self.records.get(tombstone.id)
            if record is not None and not record.alive and within(record.version, stable):
                if retired:
                    join_into(self.forgotten, record.version)
                self.forgotten_time = max(self.forgotten_time, record.updated)
                self._count(record, None)
                self.records.drop(self.number, record.id)
                collected += 1
        return collected


def _born_within(record: Record, vector: Mapping[str, int]) -> bool:
    """Does the vector have the store that gave a record its life?"""
    origin = record.life.origin
    return record.alive and vector.get(origin.actor, 0) >= origin.n


def latest_time(now: int, drift: int) -> int:
    """The greatest hybrid time that may be applied at the wall clock `now`, both in milliseconds (rule 10)."""
    return at_milliseconds(now + drift)
