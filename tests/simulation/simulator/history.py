"""Every change that was ever made, and what a set of them adds up to: the rules of a memory, written down once more.

This is the naive second specification. It keeps all changes and knows no vectors, no merging and no order of arrival:
the value of a memory is a function of the *set* of changes on it.

- Of all stores and deletes the one with the greatest stamp says whether the memory lives: that is the floor.
- Of all writes to a field at or above the floor the one with the greatest stamp is its value.
- A tag is there if some change at or above the floor added it and no change took just that add away.

The history also sees to it that the checkers look (`looked`) at every memory that a turn has touched, or of which it
has brought a change; at all of them where a node has started and in the end; and at what agents are shown.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from crdt_spine.core.messages import Change
from crdt_spine.core.record import Record
from simulator.checkers import Checker

if TYPE_CHECKING:
    from simulator.node import Node

Dot = tuple[str, int]


class Made(NamedTuple):
    """A change and its dot; its stamp is (time, actor)."""

    time: int
    actor: str
    n: int
    change: Change

    def __lt__(self, other: tuple[object, ...]) -> bool:
        return self[:2] < other[:2]


class Seen(NamedTuple):
    """A memory as it should be; `version` has the last dot of every actor that still matters."""

    agent: str
    thread: str | None
    created: int
    content: str | None
    importance: float | None
    expires: int | None
    metadata: dict[str, Any]
    tags: dict[str, frozenset[Dot]]
    updated: int
    version: dict[str, int]


class History(Checker):
    """All changes by dot, as they are made. A dot that was lost in a crash before anyone had it may be given again."""

    def __init__(self) -> None:
        self.changes: dict[tuple[int, str, int], Change] = {}
        self.made: defaultdict[str, list[Made]] = defaultdict(list)  # by memory, in the order of stamps
        self._values: dict[tuple[Any, ...], Seen | None] = {}
        self._known: dict[tuple[str, int], Mapping[str, int]] = {}  # the vectors of nodes when they were looked at
        self._looked: dict[tuple[str, str], tuple[Record | None, tuple[Made, ...]]] = {}

    # -- what the checkers are to look at ---------------------------------------------------------------------------

    def coordinated(self, node, partition, dot, change, past) -> None:  # type: ignore[no-untyped-def]
        node.tell(f"makes ({dot[0]}, {dot[1]}) of {change.operation} on {change.id}")
        key = (partition, *dot)
        old = self.changes.get(key)
        if old is not None:
            self.made[old.id].remove(Made(old.time, *dot, old))
            self._values.clear()
        self.changes[key] = change
        insort(self.made[change.id], Made(change.time, *dot, change))

    def settled(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        ids = set(turn.records)
        for number, vector in turn.vectors.items():
            known = self._known.get((node.name, number), {})
            for actor, n in vector.items():  # what a sync's end brought touches no record
                for m in range(known.get(actor, 0) + 1, n + 1):
                    change = self.changes.get((number, actor, m))
                    if change is not None:
                        ids.add(change.id)
            self._known[node.name, number] = vector
        for id in sorted(ids):
            self._look(node, id)

    def dropped(self, node, partition) -> None:  # type: ignore[no-untyped-def]
        self._known.pop((node.name, partition), None)

    def restarted(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        for number in range(self.cluster.partitions):
            self._known[node.name, number] = vectors.get(number, {})
        for id in sorted(self.made):
            self._look(node, id)

    def healed(self) -> None:
        for node in self.cluster.nodes.values():
            if node.running:
                self.restarted(node, {number: held.vector for number, held in node.replica.partitions.items()})

    def read(self, agent, id, attempt, record, vector, node) -> None:  # type: ignore[no-untyped-def]
        self.cluster.check("looked", f"{node}, as {agent.name} is shown it", id, record, self.had(id, vector, record))

    def _look(self, node: Node, id: str) -> None:
        partition = node.replica.partitions.get(self.cluster.partition_of(id))
        if partition is not None:
            record = node.store.get(id)
            changes = self.had(id, partition.vector, record)
            before = self._looked.get((node.name, id))
            if before is None or before[0] is not record or before[1] != changes:
                self._looked[node.name, id] = (record, changes)
                self.cluster.check("looked", node.name, id, record, changes)

    # -- the specification ------------------------------------------------------------------------------------------

    def had(self, id: str, vector: Mapping[str, int], record: Record | None) -> tuple[Made, ...]:
        """The changes of a memory that a replica with this vector and this record has, in the order of their stamps."""
        have = vector.get
        version: dict[str, int] = {} if record is None else record.version
        return tuple([
            made for made in self.made[id] if made.n <= have(made.actor, 0) or made.n <= version.get(made.actor, 0)
        ])  # fmt: skip

    def memory(self, id: str, changes: tuple[Made, ...]) -> Seen | None:
        """The memory that these changes make; None: there is none. Each set is added up once."""
        key = (id, *[(actor, n) for _, actor, n, _ in changes])
        if key not in self._values:
            self._values[key] = value(changes)
        return self._values[key]


def value(changes: tuple[Made, ...]) -> Seen | None:
    """What a set of changes to one memory, in the order of their stamps, adds up to."""
    lives = [index for index, made in enumerate(changes) if made.change.alive is not None]
    if not lives or not changes[lives[-1]].change.alive:
        return None
    written = changes[lives[-1] :]
    birth = written[0].change
    content = importance = expires = None
    metadata: dict[str, Any] = {}
    adds: dict[str, set[Dot]] = {}
    version: dict[str, int] = {}
    for _, actor, n, change in written:
        content = content if change.content is None else change.content
        importance = importance if change.importance is None else change.importance
        expires = expires if change.expires is msgspec.UNSET else change.expires
        metadata.update(change.metadata)
        for tag in change.add:
            adds.setdefault(tag, set()).add((actor, n))
        version[actor] = n
    for made in changes:
        for tag, dots in made.change.remove.items():
            adds.get(tag, set()).difference_update(dots)
    return Seen(
        birth.life_agent or birth.agent, birth.thread, birth.created or birth.time, content, importance, expires,
        {key: item for key, item in metadata.items() if item is not None},
        {tag: frozenset(dots) for tag, dots in adds.items() if dots},
        written[-1].time, version,
    )  # fmt: skip


def seen(record: Record | None) -> Seen | None:
    """A record, in the same words."""
    if record is None or not record.alive:
        return None
    life = record.life.value
    content, importance, expires = (
        None if register is None else register.value for register in (record.content, record.importance, record.expires)
    )
    return Seen(
        life.agent, life.thread, life.created, content, importance, expires, record.metadata_values(),
        {tag: frozenset((o.actor, o.n) for o in origins) for tag, origins in record.tags.items()},
        record.updated, dict(record.version),
    )  # fmt: skip
