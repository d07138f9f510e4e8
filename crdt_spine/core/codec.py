"""A record as bytes: MessagePack in the tables, JSON in sync pages, both from the same compact shape.

Origins are listed once and referred to by index, as are actors and agents: a memory written by one change has one
origin, however many registers and tags it has. Equal records are equal bytes. Anything that can't be a record raises
`Garbled`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from crdt_spine.core.messages import Unreadable, Whole
from crdt_spine.core.record import UNBORN, Life, Record
from crdt_spine.core.registers import NEVER, Origin, Register


class Garbled(ValueError):
    """These bytes are no record."""


class _StoredLife(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    at: Annotated[int, msgspec.Meta(ge=-1)]  # index of its origin; -1: nobody stored or deleted it yet
    alive: bool
    agent: Whole
    created: Whole | None  # None: the origin's time
    thread: str | None = None
    clock: dict[str, Whole] = {}
    tags: tuple[str, ...] = ()


class Stored(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """The compact shape. An origin is (time, actor index, n, agent index); a register is [origin index, value]."""

    actors: list[str]
    agents: list[str]
    origins: list[tuple[Whole, Whole, Whole, Whole]]
    version: list[Whole]  # by actor index
    life: _StoredLife
    content: tuple[Whole, str | None] | None
    importance: tuple[Whole, float | None] | None
    expires: tuple[Whole, Whole | None] | None
    tags: dict[str, list[Whole]]
    metadata: dict[str, tuple[Whole, Any]]
    silent: list[tuple[Whole, Whole]] = []  # (actor index, time) of last changes that left no origin


def pack(record: Record) -> Stored:
    """The compact shape of a record (its id travels beside it)."""
    return _Packing(record).stored()


def unpack(id: str, stored: Stored) -> Record:
    """The record of a compact shape. Raises Garbled."""
    actors, agents = stored.actors, stored.agents
    try:
        origins = [Origin(time, actors[actor], n, agents[agent]) for time, actor, n, agent in stored.origins]
        version = dict(zip(actors, stored.version, strict=True))
        times = {origin.actor: origin.time for origin in origins if origin.n == version[origin.actor]}
        for actor, time in stored.silent:
            times[actors[actor]] = time
        if times.keys() != version.keys():
            raise Garbled(f"record {id!r} does not say when its actors changed it")
        life = stored.life
        at = origins[life.at] if life.at >= 0 else NEVER
        created = at.time if life.created is None else life.created
        value = Life(life.alive, agents[life.agent], life.thread, created, life.clock, life.tags)
        return Record(
            id,
            version,
            times,
            UNBORN if at is NEVER else Register(at, value),
            None if stored.content is None else Register(origins[stored.content[0]], stored.content[1]),
            None if stored.importance is None else Register(origins[stored.importance[0]], stored.importance[1]),
            None if stored.expires is None else Register(origins[stored.expires[0]], stored.expires[1]),
            {key: Register(origins[index], value) for key, (index, value) in stored.metadata.items()},
            {tag: tuple([origins[index] for index in indexes]) for tag, indexes in stored.tags.items()},
        )
    except (IndexError, ValueError) as error:
        if isinstance(error, Garbled):
            raise
        raise Garbled(f"record {id!r} refers to an actor, agent or origin that it does not list") from error


_to_msgpack = msgspec.msgpack.Encoder().encode
_from_msgpack = msgspec.msgpack.Decoder(Stored).decode
_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(Stored).decode


def to_bytes(record: Record) -> bytes:
    """The record as the tables keep it."""
    return _to_msgpack(pack(record))


def from_bytes(id: str, data: bytes) -> Record:
    """The record that `to_bytes` gave. Raises Garbled."""
    try:
        return unpack(id, _from_msgpack(data))
    except Unreadable as error:
        raise Garbled(f"record {id!r} in the tables: {error}") from error


def to_json(record: Record) -> msgspec.Raw:
    """The record as sync pages carry it."""
    return msgspec.Raw(_to_json(pack(record)))


def from_json(id: str, data: msgspec.Raw) -> Record:
    """The record of a sync page. Raises Garbled."""
    try:
        return unpack(id, _from_json(data))
    except Unreadable as error:
        raise Garbled(f"record {id!r} in a sync page: {error}") from error


class _Packing:
    """The tables of actors, agents and origins that grow while one record is packed."""

    def __init__(self, record: Record) -> None:
        self.record = record
        version = record.version
        self.actors = {actor: index for index, actor in enumerate(sorted(version) if len(version) > 1 else version)}
        self.agents: dict[str, int] = {}
        self.origins: dict[Origin, int] = {}
        self.listed: list[tuple[int, int, int, int]] = []

    def stored(self) -> Stored:
        record = self.record
        life = record.life.value
        at = -1 if record.life.origin == NEVER else self.origin(record.life.origin)
        created = None if at >= 0 and life.created == record.life.origin.time else life.created
        packed_life = _StoredLife(
            at, life.alive, self.agent(life.agent), created, life.thread, life.clock, life.tags,
        )  # fmt: skip
        content, importance, expires = map(self.register, (record.content, record.importance, record.expires))
        tags = {tag: [self.origin(origin) for origin in record.tags[tag]] for tag in sorted(record.tags)}
        metadata = {key: (self.origin(r.origin), r.value) for key, r in sorted(record.metadata.items())}
        version = [record.version[actor] for actor in self.actors]
        told = {(actor, n) for _, actor, n, _ in self.listed}
        silent = [
            (index, record.times[actor])
            for (actor, index), n in zip(self.actors.items(), version, strict=True)
            if (index, n) not in told
        ]
        return Stored(
            list(self.actors), list(self.agents), self.listed, version, packed_life, content, importance, expires,
            tags, metadata, silent,
        )  # fmt: skip

    def register(self, register: Register | None) -> tuple[int, Any] | None:
        return None if register is None else (self.origin(register.origin), register.value)

    def origin(self, origin: Origin) -> int:
        index = self.origins.get(origin)
        if index is None:
            index = self.origins[origin] = len(self.listed)
            self.listed.append((origin.time, self.actors[origin.actor], origin.n, self.agent(origin.agent)))
        return index

    def agent(self, agent: str) -> int:
        return self.agents.setdefault(agent, len(self.agents))
