"""Rules that can be taken away, to see that the checkers notice: each of them must break some seed.

Some of them are the shell's rather than the core's (`SHELLS`): node.py, repair.py and operator.py look at
`Cluster.without` for those. Of "given-up" half is the shell's. With "joined-first" goes that nodes who do not know of
the newcomer give it no page, which would hide most of what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from crdt_spine.core import membership_steps, orset, strong
from crdt_spine.core import partition as partitions
from crdt_spine.core import replica as replicas
from crdt_spine.core.causality import Vector, join, within
from crdt_spine.core.membership import Membership
from crdt_spine.core.messages import Announcement, Delta
from crdt_spine.core.partition import Partition
from crdt_spine.core.rebalancing import Move
from crdt_spine.core.record import apply, merge
from crdt_spine.core.registers import Origin
from crdt_spine.core.replica import Replica
from simulator import speakers

#: Rules of the shell.
SHELLS = (
    "last-page", "persist-before-send", "journal-first", "token", "builds-on", "unsure", "stranded",
    "joined-first", "handed-over", "level",
)  # fmt: skip

RULES = {
    "deps": "rule 2: a change waits for what its coordinator had seen",
    "record-deps": "rule 3: it waits for the version of the record touched, too",
    "skip-seen": "rule 4: a change that is in a record's version is not applied there again",
    "floor": "what was written before the last store or delete is dead",
    "seen-adds": "a remove takes the adds of a tag that it saw, and no other",
    "last-page": "rule 6: a sync's vector counts after its last page",
    "persist-before-send": "rule 7: nothing leaves a node before it is on its disk",
    "heard": "rule 8: an announcement counts once everything in it is here",
    "stability": "rule 9: a tombstone is dropped once every replica has it",
    "journal-first": "a checkpoint is written once the turn that is in it is in the journal",
    "bounded": "what is held back beyond a bound is dropped, and a sync brings it",
    "token": "a node that has not reached a reader's token does not answer",
    "builds-on": "nor does it take a write of an agent that has seen more",
    "unsure": "nor a retry for a memory that a sync brought ahead of its vector, and of what is in it",
    "stranded": "what a sync brought of an actor that has ended, and no vector will have, is told of and pulled",
    "drift": "rule 10: a change from the future waits",
    "operations": "rule 11: a retry is answered, not applied again",
    "forgotten": "a late page does not bring a record back whose tombstone was dropped",
    "retired": "rule 9: what a disk has for which no tombstone waits any more is refused",
    "rolled-back": "a node that finds its disk rolled back takes a new name and compares everything",
    "joined-first": "a newcomer pulls once all others have confirmed that they know of it",
    "handed-over": "a leaver is dropped once the others have its changes",
    "level": "a newcomer counts once it has what the others had",
    "settled": "a move ends once who came has what there was when all knew that it is a member",
    "member-first": "a leaver goes once the one that comes for it is a member",
    "given-up": "who was given up as dead counts for nothing, nothing of it is taken, and it must not start",
    "no-holes": "an entry of a thread is shown if nothing before it can be missing",
    "majority": "a primary has the promise of a majority, and what it answers is on one",
    "thread-order": "a thread is shown in causal order, not in that of time",
}


def _apply_again(self: Partition, delta: Delta, own: bool = False) -> None:
    for n, change in enumerate(delta.changes, delta.first):
        if n > self.vector.get(delta.actor, 0):
            record = self.records.get(change.id)
            after = apply(record, change, Origin(change.time, delta.actor, n, change.agent))
            self._keep(record, after, delta.actor, n)
            self.clock.observe(change.time)
            self.vector[delta.actor] = n


def _merge_forgotten(self: Partition, records: Any, upto: Vector | None = None) -> None:
    for theirs in records:
        mine = self.records.get(theirs.id)
        merged = theirs if mine is None else merge(mine, theirs)
        self.clock.observe(merged.updated)
        if merged != mine:
            self._count(mine, merged)
            self.records.put(self.number, merged)


def _hear_anything(self: Partition, replica: str, vector: Mapping[str, int]) -> bool:
    self.heard[replica] = join(self.heard.get(replica, {}), vector)
    return within(vector, self.vector)


def _remove_all(tags: orset.Tags, seen: Mapping[str, Any]) -> None:
    for element in seen:
        tags.pop(element, None)


def _own_vector(self: Partition, replicas: object) -> Vector:
    return self.vector


def _heed_all(self: Replica, announcement: Announcement) -> bool:
    """Retire, but take everything from everybody."""
    self.judge = lambda page, have: "useful"  # type: ignore[method-assign]
    self._refuses = lambda delta: False  # type: ignore[method-assign]
    retired = set(announcement.retired) - {self.retirement.disk}
    serves = announcement.state == "up"
    self.retirement.hear(announcement.node, announcement.disk, announcement.silent, retired, serves=serves)
    return True


def _leave_first(seats: Mapping[str, Any], move: Move, dead: Any) -> Any:
    if move.frm in seats and move.to in seats:
        step = _next(seats, Move(None, move.frm), dead)
        return step._replace(goal=step.goal if step.stage is None else None, last=False)
    return _next(seats, move, dead)


def _end_early(seats: Mapping[str, Any], move: Move, dead: Any) -> Any:
    step = _next(seats, move, dead)
    return step._replace(goal=None) if step.last and step.goal == "level" else step


_next = membership_steps._next

_PATCHES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "deps": (Partition, "_due", lambda self, delta, latest: delta.changes[-1].time <= latest),
    "record-deps": (partitions, "join_into", lambda target, other: None),
    "skip-seen": (Partition, "_apply", _apply_again),
    "floor": (orset, "drop_below", lambda tags, floor: tags),
    "seen-adds": (orset, "remove", _remove_all),
    "heard": (Partition, "hear", _hear_anything),
    "stability": (Partition, "stable", _own_vector),
    "bounded": (Partition, "forget_waiting", lambda self: None),
    "drift": (replicas, "latest_time", lambda now, drift: 1 << 62),
    "operations": (Replica, "_remember", lambda self, operation, number, actor, n: None),
    "forgotten": (Partition, "merge_records", _merge_forgotten),
    "retired": (Replica, "heed", _heed_all),
    "rolled-back": (Replica, "lost", lambda self, announcement: False),
    "settled": (membership_steps, "_next", _end_early),
    "member-first": (membership_steps, "_next", _leave_first),
    "given-up": (Membership, "_counts", lambda self, node, seat: seat.stage == "member"),
    "no-holes": (speakers, "visible", lambda entries, cut: (entries, {})),
    "majority": (strong, "majority", lambda count: 1),
    "thread-order": (speakers, "causal_order", lambda entries: sorted(entries, key=lambda entry: entry.place)),
}  # fmt: skip


@contextmanager
def taken_away(rule: str | None) -> Iterator[None]:
    """Within the block the rule is not kept."""
    if rule is None or rule in SHELLS:
        yield
        return
    target, name, instead = _PATCHES[rule]
    with patch.object(target, name, instead):
        yield
