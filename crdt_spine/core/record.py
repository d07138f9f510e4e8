"""A memory as a CRDT (docs/ARCHITECTURE.md, "A memory as a CRDT").

A record is a value: applying a change or merging another replica's record gives a new one, so whoever holds a record
(a cache, a flush under way, a query) can go on using it. The rules:

- `life` is the LWW register of being alive: a store writes it, a delete writes it, an update never does. So a delete
  wins over a concurrent update. Its origin is the floor: whatever was written below it is dead.
- content, importance, expiry and each metadata key are LWW registers, tags an OR-set.
- `version` has the dots of all changes that touched the record; a change that is in it is not applied again.

Merging is commutative, associative and idempotent; applying a change gives the same as merging its effect
(tests/laws).
"""

from __future__ import annotations

from typing import Any

import msgspec

from crdt_spine.core import orset
from crdt_spine.core.causality import Vector, join
from crdt_spine.core.messages import Change
from crdt_spine.core.registers import NEVER, Origin, Register, above, later


class Life(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of the alive register: what is fixed at a memory's birth, or what is left of it after its death.

    `created` is a hybrid time. `tags` is empty while it lives; a tombstone keeps the last ones, so that a subscription
    that comes back later can still tell that a memory it followed was deleted.
    """

    alive: bool
    agent: str
    thread: str | None
    created: int
    clock: dict[str, int]
    tags: tuple[str, ...]


UNBORN = Register(NEVER, Life(False, "", None, 0, {}, ()))


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One memory's whole state on a replica. `metadata` maps a key to its register; None there is a removed key."""

    id: str
    version: Vector
    life: Register
    content: Register | None
    importance: Register | None
    expires: Register | None
    metadata: dict[str, Register]
    tags: orset.Tags

    @property
    def alive(self) -> bool:
        """Is there a memory, or only the tombstone of one?"""
        return bool(self.life.value.alive)

    @property
    def updated(self) -> int:
        """The hybrid time of the last write that is still visible."""
        times = [r.origin.time for r in (self.life, self.content, self.importance, self.expires) if r is not None]
        times += [r.origin.time for r in self.metadata.values()]
        times += [o.time for origins in self.tags.values() for o in origins]
        return max(times)

    def metadata_values(self) -> dict[str, Any]:
        """The metadata as its caller gave it."""
        return {key: register.value for key, register in self.metadata.items() if register.value is not None}

    def expired(self, now: int) -> bool:
        """Is its time over at the hybrid time `now`?"""
        return self.expires is not None and self.expires.value is not None and self.expires.value <= now


def empty(id: str) -> Record:
    """The record of an id that nobody has written."""
    return Record(id, {}, UNBORN, None, None, None, {}, {})


def apply(record: Record | None, change: Change, origin: Origin) -> Record:
    """The record after one change. The caller has seen to it that the change's dot is new to the record."""
    if record is None:
        record = empty(change.id)
    version = {**record.version, origin.actor: origin.n}
    life = record.life
    if change.alive is not None and origin > life.origin:
        life = Register(
            origin,
            Life(
                change.alive, change.life_agent or origin.agent, change.thread, change.created or origin.time,
                change.clock, change.last_tags,
            ),
        )  # fmt: skip
    if change.alive and life.origin is origin and _newest(record) < origin:
        # A store above all there is: nothing of the old state is left.
        tags: orset.Tags = dict.fromkeys(change.add, (origin,))
        fresh = {key: Register(origin, value) for key, value in change.metadata.items()}
        return Record(
            change.id, version, life, Register(origin, change.content), Register(origin, change.importance),
            None if change.expires is msgspec.UNSET else Register(origin, change.expires), fresh, tags,
        )  # fmt: skip
    content, importance, expires, metadata = record.content, record.importance, record.expires, record.metadata
    if change.content is not None:
        content = later(content, Register(origin, change.content))
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
    return _above_floor(Record(change.id, version, life, content, importance, expires, metadata, tags))


def merge(one: Record, other: Record) -> Record:
    """The join of two replicas' records of one memory."""
    life = later(one.life, other.life)
    assert life is not None
    return _above_floor(
        Record(
            one.id,
            join(one.version, other.version),
            life,
            later(one.content, other.content),
            later(one.importance, other.importance),
            later(one.expires, other.expires),
            _merge_metadata(one.metadata, other.metadata),
            orset.merge(one.tags, one.version, other.tags, other.version),
        )
    )


def _merge_metadata(one: dict[str, Register], other: dict[str, Register]) -> dict[str, Register]:
    merged = dict(one)
    for key, register in other.items():
        mine = merged.get(key)
        if mine is None or register.origin > mine.origin:
            merged[key] = register
    return merged


def _above_floor(record: Record) -> Record:
    floor = record.life.origin
    metadata = record.metadata
    if any(register.origin < floor for register in metadata.values()):
        metadata = {key: register for key, register in metadata.items() if register.origin >= floor}
    return Record(
        record.id, record.version, record.life, above(record.content, floor), above(record.importance, floor),
        above(record.expires, floor), metadata, orset.drop_below(record.tags, floor),
    )  # fmt: skip


def _newest(record: Record) -> Origin:
    """The greatest origin of anything in the record."""
    newest = record.life.origin
    for register in (record.content, record.importance, record.expires, *record.metadata.values()):
        if register is not None and register.origin > newest:
            newest = register.origin
    for origins in record.tags.values():
        newest = max(newest, *origins)
    return newest
