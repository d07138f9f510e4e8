"""A memory as a CRDT (docs/ARCHITECTURE.md, "A memory as a CRDT").

A record is a value: applying a change or merging another replica's record gives a new one, so whoever holds a record
(a cache, a flush under way, a query) can go on using it. The rules:

- `life` is the LWW register of being alive: a store writes it, a delete writes it, an update never does. So a delete
  wins over a concurrent update. Its origin is the floor: whatever was written below it is dead.
- content, importance, expiry and each metadata key are LWW registers, tags an OR-set.
- `document` has the edits that agents made together on top of the content (core/document.py): those of this content's
  origin. Whoever writes the whole content anew wins over all edits of the one before.
- `version` has the last dot of every actor that changed the record since the floor, `times` when that was. A change
  whose dot is in it is not applied again; one below the floor has no effect and leaves no dot. So a record is a
  function of the set of changes that reached it, and replicas agree on it even where some had dropped the tombstone
  before it and others had not.

Merging is commutative, associative and idempotent; applying a change gives the same as merging its effect
(tests/laws).
"""

from __future__ import annotations

from typing import Any

import msgspec

from crdt_spine.core import orset
from crdt_spine.core.causality import Vector, within
from crdt_spine.core.document import Document, edited, key_of, merged, text_of
from crdt_spine.core.messages import Change, Strong
from crdt_spine.core.registers import NEVER, Origin, Register, above, later
from crdt_spine.core.version import vector_text, version_text


class Life(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of the alive register: what is fixed at a memory's birth, or what is left of it after its death.

    `created` is a hybrid time, `clock` and `after` are the causal past of what was appended to a thread
    (core/thread.py). `tags` is empty while it lives; a tombstone keeps the last ones, so that a subscription that comes
    back later can still tell that a memory it followed was deleted.
    """

    alive: bool
    agent: str
    thread: str | None
    created: int
    clock: dict[str, int]
    tags: tuple[str, ...]
    after: dict[int, dict[str, int]] = {}
    strong: Strong | None = None  # of a strong operation (core/whole.py)


UNBORN = Register(NEVER, Life(False, "", None, 0, {}, ()))


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One memory's whole state on a replica. `metadata` maps a key to its register; None there is a removed key.

    `times` has the actors of `version`: the hybrid time of each one's last change. A removal is seen there only.
    """

    id: str
    version: Vector
    times: dict[str, int]
    life: Register
    content: Register | None
    importance: Register | None
    expires: Register | None
    metadata: dict[str, Register]
    tags: orset.Tags
    document: Document | None = None

    @property
    def text(self) -> str:
        """What its content reads as. Of a document it is made anew each time; a node has `OpenDocuments` for that."""
        return text_of(self.content, self.document)

    @property
    def alive(self) -> bool:
        """Is there a memory, or only the tombstone of one?"""
        return bool(self.life.value.alive)

    @property
    def updated(self) -> int:
        """The hybrid time of the last change, be it that it took something away."""
        return max(self.times.values(), default=0)

    @property
    def etag(self) -> str:
        """The version that readers are shown: a seal (core/whole.py) has that of what it sealed."""
        return version_text(self.id, self.shown_vector)

    @property
    def shown_vector(self) -> str:
        """What is in it beside the memory's name."""
        sealed = self._sealed
        return vector_text(self.version) if sealed is None else sealed[0]

    @property
    def shown_updated(self) -> int:
        """The hybrid time of the last change that readers are shown."""
        sealed = self._sealed
        return self.updated if sealed is None else sealed[1]

    @property
    def _sealed(self) -> tuple[str, int] | None:
        """What was sealed, where nothing has changed since."""
        strong, origin = self.life.value.strong, self.life.origin
        if strong is None or strong.sealed is None or self.version != {origin.actor: origin.n}:
            return None
        sealed: tuple[str, int] = strong.sealed
        return sealed

    def metadata_values(self) -> dict[str, Any]:
        """The metadata as its caller gave it."""
        return {key: register.value for key, register in self.metadata.items() if register.value is not None}

    def expired(self, now: int) -> bool:
        """Is its time over at the hybrid time `now`?"""
        return self.expires is not None and self.expires.value is not None and self.expires.value <= now


def same_memory(one: Record, other: Record) -> bool:
    """Would a reader see the same memory, but for its version?"""
    return (
        one.life == other.life
        and one.content == other.content
        and one.importance == other.importance
        and one.expires == other.expires
        and one.metadata == other.metadata
        and one.tags == other.tags
        and one.document == other.document
    )


def empty(id: str) -> Record:
    """The record of an id that nobody has written."""
    return Record(id, {}, {}, UNBORN, None, None, None, {}, {})


def apply(record: Record | None, change: Change, origin: Origin) -> Record:
    """The record after one change; the same object where the change comes too late to have an effect. The caller has
    seen to it that the change's dot is new to the record."""
    if change.alive and (record is None or _is_above(origin, record.times)):
        return _born(change, origin)
    if record is None:
        record = empty(change.id)
    floor = record.life.origin
    if origin < floor:
        return record
    content, importance, expires, metadata = record.content, record.importance, record.expires, record.metadata
    document = record.document
    if change.content is not None:
        content = later(content, Register(origin, change.content))
        if content is not record.content:
            document = None
    if change.document is not None and key_of(content) == (change.base or (origin.time, origin.actor)):
        document = edited(content, document, origin.actor, origin.n, change.document)
    if change.importance is not None:
        importance = later(importance, Register(origin, change.importance))
    if change.expires is not msgspec.UNSET:
        expires = later(expires, Register(origin, change.expires))
    if change.metadata:
        metadata = _merge_metadata(metadata, {key: Register(origin, value) for key, value in change.metadata.items()})
    tags = record.tags
    if change.remove or change.add:
        tags = dict(tags)
        orset.remove(tags, change.remove)
        orset.add(tags, change.add, origin)
    version = {**record.version, origin.actor: origin.n}
    times = {**record.times, origin.actor: origin.time}
    if change.alive is None:
        return Record(record.id, version, times, record.life, content, importance, expires, metadata, tags, document)
    life = _life(change, origin)
    return _above_floor(Record(record.id, version, times, life, content, importance, expires, metadata, tags, document))


def merge(one: Record, other: Record) -> Record:
    """The join of two replicas' records of one memory."""
    # Who has all changes of the other has its state as well; but of a document it may have only a part.
    if one.document is other.document is None:
        if within(other.version, one.version):
            return one
        if within(one.version, other.version):
            return other
    version, times = dict(one.version), dict(one.times)
    for actor, n in other.version.items():
        if version.get(actor, 0) < n:
            version[actor] = n
            times[actor] = other.times[actor]
    life = one.life if one.life.origin >= other.life.origin else other.life
    both = Record(
        one.id, version, times, life, later(one.content, other.content), later(one.importance, other.importance),
        later(one.expires, other.expires), _merge_metadata(one.metadata, other.metadata),
        orset.merge(one.tags, one.version, other.tags, other.version),
        None if one.document is other.document is None else _merge_documents(one, other),
    )  # fmt: skip
    return both if one.life.origin == other.life.origin else _above_floor(both)


def completes(record: Record | None, theirs: Record, vector: Vector) -> bool:
    """Can another replica's record be merged, though it may have but a part of its document? Else it is to be asked for
    whole. `vector` is the own replica's: who had the memory and has no record of it has dropped it."""
    if theirs.document is None or theirs.document.base is not None:
        return True
    if record is None:
        return vector.get(theirs.life.origin.actor, 0) >= theirs.life.origin.n
    mine, key, floor = key_of(record.content), key_of(theirs.content), record.life.origin
    if mine != key:
        return max(mine, (floor.time, floor.actor)) > key  # it is dead here
    return within(theirs.document.seen, record.document.reached if record.document is not None else {})


def _born(change: Change, origin: Origin) -> Record:
    """The record of a store above all there is: nothing of an older state is left."""
    return Record(
        change.id, {origin.actor: origin.n}, {origin.actor: origin.time}, _life(change, origin),
        None if change.content is None else Register(origin, change.content),
        None if change.importance is None else Register(origin, change.importance),
        None if change.expires is msgspec.UNSET else Register(origin, change.expires),
        {key: Register(origin, value) for key, value in change.metadata.items()} if change.metadata else {},
        dict.fromkeys(change.add, (origin,)) if change.add else {},
        None if change.document is None else edited(None, None, origin.actor, origin.n, change.document),
    )  # fmt: skip


def _life(change: Change, origin: Origin) -> Register:
    created = change.created or origin.time
    agent = change.life_agent or origin.agent
    return Register(
        origin,
        Life(
            bool(change.alive), agent, change.thread, created, change.clock, change.last_tags, change.after,
            change.strong,
        ),
    )  # fmt: skip


def _is_above(origin: Origin, times: dict[str, int]) -> bool:
    """Is the origin above every change that left its time here?"""
    for actor, time in times.items():
        if time > origin.time or (time == origin.time and actor > origin.actor):
            return False
    return True


def _merge_metadata(one: dict[str, Register], other: dict[str, Register]) -> dict[str, Register]:
    if not one or not other:
        return one or other
    merged = dict(one)
    for key, register in other.items():
        mine = merged.get(key)
        if mine is None or register.origin > mine.origin:
            merged[key] = register
    return merged


def _merge_documents(one: Record, other: Record) -> Document | None:
    """The edits of the content that stays: that of the greater origin."""
    mine, theirs = key_of(one.content), key_of(other.content)
    if mine != theirs:
        return one.document if mine > theirs else other.document
    if one.document is None or other.document is None:
        return one.document or other.document
    return merged(one.content, one.document, other.document)


def _above_floor(record: Record) -> Record:
    """The record without what was written before its last store or delete."""
    floor = record.life.origin
    version, times, metadata = record.version, record.times, record.metadata
    dead = [actor for actor, time in times.items() if time < floor.time or (time == floor.time and actor < floor.actor)]
    if dead:
        version = {actor: n for actor, n in version.items() if actor not in dead}
        times = {actor: time for actor, time in times.items() if actor not in dead}
    if any(register.origin < floor for register in metadata.values()):
        metadata = {key: register for key, register in metadata.items() if register.origin >= floor}
    return Record(
        record.id, version, times, record.life, above(record.content, floor), above(record.importance, floor),
        above(record.expires, floor), metadata, orset.drop_below(record.tags, floor),
        record.document if record.content is None or record.content.origin >= floor else None,
    )  # fmt: skip
