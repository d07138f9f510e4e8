"""The receipts of all replicas together are what the specification says, whatever ways the changes took.

The specification knows all changes and what the writer of each had seen. A value is lost to a concurrent write if it is
not shown in the end although nobody who saw it shown wrote over it. The replicas know only records and vectors.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from records import Records

from crdt_spine.core import whole, writes
from crdt_spine.core.causality import within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.conflicts import WHOLE, Finding, Receipt, Withdrawal, fields_of
from crdt_spine.core.messages import Change, Delete, Delta, Edit, Store
from crdt_spine.core.partition import Partition
from crdt_spine.core.record import Record, apply
from crdt_spine.core.registers import Origin

ACTORS = ("r/a@1", "r/b@1", "r/c@1")
IDS = ("m", "n")
END = 1 << 60

Dot = tuple[str, int]
Lost = tuple[str, str, Dot]  # id, field, dot


class Replica:
    """A partition, the receipts that it has, and, for the specification, which changes of each memory are in it."""

    def __init__(self) -> None:
        self.records = Records()
        self.clock = HybridClock()
        self.partition = Partition(0, self.records, self.clock)
        self.partition.reporter = self.take
        self.receipts: dict[Lost, Receipt] = {}
        self.seen: dict[str, set[Dot]] = {id: set() for id in IDS}

    def take(self, findings: list[Finding]) -> None:
        for finding in findings:
            match finding:
                case Receipt():
                    self.receipts[finding.id, finding.field, (finding.loser.actor, finding.loser.n)] = finding
                case Withdrawal():
                    its = [receipt for receipt in self.receipts.values() if receipt.id == finding.id]
                    for receipt in finding.withdrawn(its):
                        del self.receipts[receipt.id, receipt.field, (receipt.loser.actor, receipt.loser.n)]


class Execution:
    """Three replicas. A sync under way is (source, have, upto, after)."""

    def __init__(self, steps: list[Any]) -> None:
        self.replicas = [Replica() for _ in ACTORS]
        self.inboxes: list[list[Delta]] = [[] for _ in ACTORS]
        self.syncs: dict[int, tuple[int, dict[str, int], dict[str, int], str | None]] = {}
        self.changes: dict[Dot, tuple[Change, frozenset[Dot]]] = {}
        self.values = itertools.count(1)
        for kind, here, there, detail in steps:
            getattr(self, kind)(here, there, detail)
        for here in range(len(ACTORS)):
            while here in self.syncs:
                self.page(here, 0, None)
            self.seal(here)
        for here in range(len(ACTORS)):
            self.deliver(here, 0, len(self.inboxes[here]))
        for here, there in [*itertools.permutations(range(len(ACTORS)), 2)] * 2:
            if not within(self.replicas[there].partition.vector, self.replicas[here].partition.vector):
                self.sync(here, there, None)
        assert all(one.records == self.replicas[0].records for one in self.replicas), "the replicas differ"

    # -- steps ------------------------------------------------------------------------------------------------------

    def write(self, here: int, wall: int, detail: tuple[str, str, tuple[str, ...]]) -> None:
        replica, (id, kind, fields) = self.replicas[here], detail
        record = replica.records.get(id)
        keys = {field.removeprefix("metadata."): next(self.values) for field in fields if field.startswith("metadata.")}
        content = f"text {next(self.values)}" if kind == "store" or "content" in fields else None
        importance = next(self.values) / 1e6 if kind == "store" or "importance" in fields else None
        time = max(replica.clock.highest + 1, wall << 16)
        try:
            match kind:
                case "store":
                    store = Store(i=0, id=id, content=content or "", importance=importance or 0, metadata=keys)
                    change = writes.store(store, record, time, f"agent-{here}", "")
                case "edit":
                    edit = Edit(i=0, id=id, content=content, importance=importance, metadata=keys)
                    change = writes.edit(edit, record, time, f"agent-{here}", "")
                case "strong edit":
                    edit = Edit(i=0, id=id, content=content, importance=importance, metadata=keys)
                    change = whole.written_whole(edit, record, time, f"agent-{here}", "", ())
                case "strong read":
                    change = whole.seal(id, record, time, ())
                case _:
                    change = writes.delete(Delete(i=0, id=id), record, time, f"agent-{here}", "")
        except writes.Refused:
            return
        replica.clock.observe(time)
        dot = (ACTORS[here], replica.partition.vector.get(ACTORS[here], 0) + 1)
        self.changes[dot] = change, frozenset(replica.seen[id])
        replica.partition.coordinate(ACTORS[here], change, record)
        replica.seen[id].add(dot)

    def seal(self, here: int, *_: Any) -> None:
        for delta in self.replicas[here].partition.seal():
            for other in {*range(len(ACTORS))} - {here}:
                self.inboxes[other].append(delta)

    def deliver(self, here: int, _: int, count: int) -> None:
        """The next deltas, as far as there are any."""
        for delta in self.inboxes[here][:count]:
            self._applied(here, self.replicas[here].partition.offer(delta, END))
        del self.inboxes[here][:count]

    def lose(self, here: int, _: int, count: int) -> None:
        """The next deltas come late, maybe after a sync has brought what they have."""
        self.inboxes[here] = self.inboxes[here][count:] + self.inboxes[here][:count]

    def drop(self, here: int, _: int, count: int) -> None:
        """The next deltas never come: only a sync can bring what they have."""
        del self.inboxes[here][:count]

    def sync(self, here: int, there: int, _: Any) -> None:
        """A sync from its beginning to its end, with nothing in between."""
        self.begin(here, there, None)
        while here in self.syncs:
            self.page(here, 0, None)

    def begin(self, here: int, there: int, _: Any) -> None:
        if here != there:
            self.seal(there)
            have, upto = self.replicas[here].partition.vector, self.replicas[there].partition.vector
            self.syncs[here] = there, dict(have), dict(upto), None

    def page(self, here: int, _: int, __: Any) -> None:
        """One page of one memory."""
        if here not in self.syncs:
            return
        there, have, upto, after = self.syncs.pop(here)
        self.seal(there)
        mine, theirs = self.replicas[here], self.replicas[there]
        found = theirs.records.changed(0, have, after, 2)
        mine.partition.merge_records(found[:1], upto)
        for record in found[:1]:
            mine.seen[record.id] |= theirs.seen[record.id]
            mine.clock.observe(record.updated)
        if len(found) > 1:
            self.syncs[here] = there, have, upto, found[0].id
            return
        for (actor, n), (change, _) in self.changes.items():
            if upto.get(actor, 0) >= n:
                mine.seen[change.id].add((actor, n))
        self._applied(here, mine.partition.finish_sync(upto, END))

    def _applied(self, here: int, deltas: list[Delta]) -> None:
        for delta in deltas:
            for n, change in enumerate(delta.changes, delta.first):
                self.replicas[here].seen[change.id].add((delta.actor, n))

    # -- what came of it --------------------------------------------------------------------------------------------

    def receipts(self) -> set[Lost]:
        """What all replicas together tell of; a removed key is no value."""
        return {
            (id, field, dot)
            for replica in self.replicas
            for (id, field, dot), receipt in replica.receipts.items()
            if field != WHOLE and receipt.lost is not None
        }

    def shown(self, id: str, dots: frozenset[Dot]) -> dict[str, Dot]:
        """Field -> write, as somebody sees the memory who has these changes."""
        record: Record | None = None
        for dot, (change, _) in self.changes.items():
            if dot in dots and change.id == id:
                record = apply(record, change, Origin(change.time, *dot, change.agent))
        if record is None:
            return {}
        return {
            field: (register.origin.actor, register.origin.n)
            for field, register in fields_of(record).items()
            if field != WHOLE
        }

    def specification(self) -> set[Lost]:
        """The lost values: neither shown in the end nor written over by anybody who saw them."""
        lost: set[Lost] = set()
        for id in IDS:
            mine = {dot: change for dot, (change, _) in self.changes.items() if change.id == id}
            lost |= {(id, field, dot) for dot, change in mine.items() for field in written(change)}
            lost -= {(id, field, dot) for field, dot in self.shown(id, frozenset(mine)).items()}
            for dot, change in mine.items():
                for field, before in self.shown(id, self.changes[dot][1]).items():
                    if field not in carried(change) and (change.alive is not None or field in written(change)):
                        lost.discard((id, field, before))
        return lost


def written(change: Change) -> set[str]:
    fields = {f"metadata.{key}" for key, value in change.metadata.items() if value is not None}
    fields |= {name for name in ("content", "importance") if getattr(change, name) is not None}
    return fields - carried(change)


def carried(change: Change) -> set[str]:
    """What a strong write only leaves as it is."""
    return set() if change.strong is None else {field for _, fields in change.strong.carried for field in fields}


replicas = st.integers(0, len(ACTORS) - 1)
fields = st.lists(st.sampled_from(["content", "importance", "metadata.k", "metadata.j"]), unique=True).map(tuple)
ids = st.sampled_from("mmmn")
changes = st.tuples(ids, st.sampled_from(["store", "edit", "edit"]), fields)
kinds = ["store", "store", "edit", "edit", "edit", "delete", "strong edit", "strong read"]
changes_or_deletes = st.tuples(ids, st.sampled_from(kinds), fields)
walls = st.integers(1, 6)  # milliseconds; few, so that stamps tie and only actors tell them apart
write = st.tuples(st.just("write"), replicas, walls, changes)
write_or_delete = st.tuples(st.just("write"), replicas, walls, changes_or_deletes)
exchanges = (
    st.tuples(st.just("seal"), replicas, st.none(), st.none()),
    st.tuples(st.just("deliver"), replicas, st.none(), st.integers(1, 3)),
    st.tuples(st.just("lose"), replicas, st.none(), st.integers(1, 3)),
)
syncs = (
    st.tuples(st.just("drop"), replicas, st.none(), st.integers(1, 9)),
    st.tuples(st.just("sync"), replicas, replicas, st.none()),
    st.tuples(st.just("begin"), replicas, replicas, st.none()),
    st.tuples(st.just("page"), replicas, st.none(), st.none()),
)
with_deltas = st.lists(st.one_of(write, write, *exchanges), min_size=8, max_size=40).map(Execution)
with_everything = st.lists(
    st.one_of(write_or_delete, write_or_delete, write_or_delete, *exchanges, *syncs), min_size=8, max_size=40
).map(Execution)
one_after_the_other = st.lists(
    st.tuples(replicas, walls, changes_or_deletes, st.booleans(), st.booleans()), min_size=4, max_size=20
)


@given(with_deltas)
def test_the_receipts_of_all_replicas_are_the_values_that_were_lost(execution: Execution) -> None:
    assert execution.receipts() == execution.specification()


@given(with_everything)
def test_no_value_is_lost_without_a_receipt_whatever_ways_the_changes_took(execution: Execution) -> None:
    assert execution.receipts() >= execution.specification()


@given(one_after_the_other)
def test_who_writes_over_what_they_have_seen_leaves_no_receipt(writes: list[Any]) -> None:
    """The one who writes next has everything, some of it from a sync; the others have what they have."""
    steps: list[Any] = []
    for here, wall, change, by_sync, late in writes:
        steps += [("seal", there, 0, None) for there in range(len(ACTORS))]
        if by_sync:
            steps += [("lose", here, 0, 1)] * late
            steps += [(kind, here, there, 0) for there in range(len(ACTORS)) for kind in ("sync", "page")]
        else:
            steps.append(("deliver", here, 0, 99))
        steps.append(("write", here, wall, change))
    execution = Execution(steps)
    assert execution.specification() == set()
    assert execution.receipts() == set()
