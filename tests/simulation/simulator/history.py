"""Every change that was ever made, and what a set of them adds up to: the rules of a memory, written down once more.

This is the naive second specification. It keeps all changes and knows no vectors, no merging and no order of arrival:
the value of a memory is a function of the *set* of changes on it.

- Of all stores and deletes the one with the greatest stamp says whether the memory lives: that is the floor.
- Of all writes to a field at or above the floor the one with the greatest stamp is its value.
- A tag is there if some change at or above the floor added it and no change took just that add away.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from crdt_spine.core.messages import Change
from crdt_spine.core.record import Record
from simulator.checkers import Checker

if TYPE_CHECKING:
    from simulator.node import Node

Dot = tuple[str, int]
Stamp = tuple[int, str]


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
        self.dots: defaultdict[str, set[tuple[int, str, int]]] = defaultdict(set)

    def coordinated(self, node: Node, partition: int, dot: Dot, change: Change) -> None:
        node.tell(f"makes ({dot[0]}, {dot[1]}) of {change.operation} on {change.id}")
        key = (partition, *dot)
        old = self.changes.get(key)
        if old is not None:
            self.dots[old.id].discard(key)
        self.changes[key] = change
        self.dots[change.id].add(key)

    def memory(self, id: str, has: Callable[[str, int], bool]) -> Seen | None:
        """The memory that the changes with these dots make; None: there is none."""
        return value(
            ((change.time, actor), (actor, n), change)
            for partition, actor, n in self.dots[id]
            if has(actor, n) and (change := self.changes[partition, actor, n])
        )


def value(changes: Iterable[tuple[Stamp, Dot, Change]]) -> Seen | None:
    """What a set of changes to one memory adds up to."""
    changes = sorted(changes, key=lambda entry: entry[0])
    lives = [(stamp, change) for stamp, _, change in changes if change.alive is not None]
    if not lives or not lives[-1][1].alive:
        return None
    floor, birth = lives[-1]
    written = [entry for entry in changes if entry[0] >= floor]
    content = importance = expires = None
    metadata: dict[str, Any] = {}
    adds: dict[str, set[Dot]] = {}
    version: dict[str, int] = {}
    for _, (actor, n), change in written:
        content = content if change.content is None else change.content
        importance = importance if change.importance is None else change.importance
        expires = expires if change.expires is msgspec.UNSET else change.expires
        metadata.update(change.metadata)
        for tag in change.add:
            adds.setdefault(tag, set()).add((actor, n))
        version[actor] = n
    for _, _, change in changes:
        for tag, dots in change.remove.items():
            adds.get(tag, set()).difference_update(dots)
    return Seen(
        birth.life_agent or birth.agent, birth.thread, birth.created or birth.time, content, importance, expires,
        {key: item for key, item in metadata.items() if item is not None},
        {tag: frozenset(dots) for tag, dots in adds.items() if dots},
        written[-1][0][0], version,
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
