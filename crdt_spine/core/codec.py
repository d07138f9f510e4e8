"""A record as bytes: MessagePack in the tables, JSON in sync pages, both from the same compact shape.

Origins are listed once and referred to by index, as are actors and agents: a memory written by one change has one
origin, however many registers and tags it has. Equal records are equal bytes, but for documents: each replica folds
them when it likes. Anything that can't be a record raises `Garbled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from crdt_spine.core.document import Document, part
from crdt_spine.core.messages import Strong, Unreadable, Whole
from crdt_spine.core.record import UNBORN, Life, Record
from crdt_spine.core.registers import NEVER, Origin, Register


class Garbled(ValueError):
    """These bytes are no record."""


class Incomplete(Garbled):
    """This record has but a part of its document, and the rest is not here."""


class _StoredLife(msgspec.Struct, frozen=True, array_like=True, gc=False):
    at: Annotated[int, msgspec.Meta(ge=-1)]  # index of its origin; -1: nobody stored or deleted it yet
    alive: bool
    agent: Whole
    created: Whole | None = None  # None: the origin's time
    thread: str | None = None
    clock: dict[str, Whole] = {}
    tags: tuple[str, ...] = ()
    after: dict[int, dict[str, Whole]] = {}
    strong: Strong | None = None


class _StoredDocument(msgspec.Struct, frozen=True, array_like=True, gc=False):
    seen: dict[str, Whole]
    base: bytes | None  # None: only a part travels (document.part)
    tail: list[tuple[str, Whole, bytes]]


class Stored(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The compact shape. An origin is (time, actor index, n, agent index); a register is [origin index, value]. What
    is empty at the end is left out."""

    actors: list[str]
    agents: list[str]
    origins: list[tuple[Whole, Whole, Whole, Whole]]
    version: list[Whole]  # by actor index
    life: _StoredLife
    content: tuple[Whole, str | None] | None = None
    importance: tuple[Whole, float | None] | None = None
    expires: tuple[Whole, Whole | None] | None = None
    tags: dict[str, Whole | list[Whole]] = {}  # origin indexes, without a list where it is one
    metadata: dict[str, tuple[Whole, Any]] = {}
    silent: list[tuple[Whole, Whole]] = []  # (actor index, time) of last changes that left no origin
    document: _StoredDocument | None = None


_EMPTY: tuple[Any, ...] = (None, {}, [], ())


def pack(record: Record) -> list[Any]:
    """The compact shape of a record (its id travels beside it), as `Stored` reads it."""
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
        value = Life(
            life.alive, agents[life.agent], life.thread, created, life.clock, life.tags, life.after, life.strong
        )
        return Record(
            id,
            version,
            times,
            UNBORN if at is NEVER else Register(at, value),
            None if stored.content is None else Register(origins[stored.content[0]], stored.content[1]),
            None if stored.importance is None else Register(origins[stored.importance[0]], stored.importance[1]),
            None if stored.expires is None else Register(origins[stored.expires[0]], stored.expires[1]),
            {key: Register(origins[index], value) for key, (index, value) in stored.metadata.items()},
            {
                tag: (origins[added],) if isinstance(added, int) else tuple([origins[index] for index in added])
                for tag, added in stored.tags.items()
            },
            None if stored.document is None else _document(stored.document),
        )
    except (IndexError, ValueError) as error:
        if isinstance(error, Garbled):
            raise
        raise Garbled(f"record {id!r} refers to an actor, agent or origin that it does not list") from error


_to_msgpack = msgspec.msgpack.Encoder().encode
_from_msgpack = msgspec.msgpack.Decoder(Stored).decode
_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(Stored).decode
_loosely = msgspec.msgpack.Decoder(list[Any]).decode
_DOCUMENT = Stored.__struct_fields__.index("document")


def to_bytes(record: Record) -> bytes:
    """The record as the tables keep it."""
    return _to_msgpack(pack(record))


def from_bytes(id: str, data: bytes) -> Record:
    """The record that `to_bytes` gave. Raises Garbled."""
    try:
        return unpack(id, _from_msgpack(data))
    except Unreadable as error:
        raise Garbled(f"record {id!r} in the tables: {error}") from error


def to_json(record: Record, have: Mapping[str, int] = {}) -> msgspec.Raw:
    """The record as sync pages carry it, to somebody who has everything within `have`."""
    if record.document is not None:
        record = msgspec.structs.replace(record, document=part(record.document, have))
    return msgspec.Raw(_to_json(pack(record)))


def stored_to_json(id: str, data: bytes, have: Mapping[str, int] = {}) -> msgspec.Raw:
    """`to_json` of the record that `to_bytes` gave, from the one text to the other, as the shape is the same: a sixth
    of the work. Raises Garbled."""
    try:
        stored = _loosely(data)
        if len(stored) > _DOCUMENT and stored[_DOCUMENT] is not None:
            return to_json(from_bytes(id, data), have)
        return msgspec.Raw(_to_json(stored))
    except Unreadable as error:
        raise Garbled(f"record {id!r} in the tables: {error}") from error


def from_json(id: str, data: msgspec.Raw) -> Record:
    """The record of a sync page. Raises Garbled."""
    try:
        return unpack(id, _from_json(data))
    except Unreadable as error:
        raise Garbled(f"record {id!r} in a sync page: {error}") from error


def _trimmed(fields: list[Any]) -> list[Any]:
    while fields[-1] in _EMPTY:
        fields.pop()
    return fields


def _stored_document(document: Document) -> _StoredDocument:
    return _StoredDocument(dict(sorted(document.seen.items())), document.base, list(document.tail))


def _document(stored: _StoredDocument) -> Document:
    return Document(stored.seen, stored.base, tuple(stored.tail))


class _Packing:
    """The tables of actors, agents and origins that grow while one record is packed."""

    def __init__(self, record: Record) -> None:
        self.record = record
        version = record.version
        self.actors = {actor: index for index, actor in enumerate(sorted(version) if len(version) > 1 else version)}
        self.agents: dict[str, int] = {}
        self.origins: dict[Origin, int] = {}
        self.listed: list[tuple[int, int, int, int]] = []

    def stored(self) -> list[Any]:
        record = self.record
        life = record.life.value
        at = -1 if record.life.origin == NEVER else self.origin(record.life.origin)
        created = None if at >= 0 and life.created == record.life.origin.time else life.created
        packed_life = _trimmed([
            at, life.alive, self.agent(life.agent), created, life.thread, life.clock, life.tags, life.after,
            life.strong,
        ])  # fmt: skip
        content, importance, expires = map(self.register, (record.content, record.importance, record.expires))
        tags = {tag: self.adds(origins) for tag, origins in sorted(record.tags.items())}
        metadata = {key: (self.origin(r.origin), r.value) for key, r in sorted(record.metadata.items())}
        version = [record.version[actor] for actor in self.actors]
        told = {(actor, n) for _, actor, n, _ in self.listed}
        silent = [
            (index, record.times[actor])
            for (actor, index), n in zip(self.actors.items(), version, strict=True)
            if (index, n) not in told
        ]
        return _trimmed([
            list(self.actors), list(self.agents), self.listed, version, packed_life, content, importance, expires,
            tags, metadata, silent, None if record.document is None else _stored_document(record.document),
        ])  # fmt: skip

    def register(self, register: Register | None) -> tuple[int, Any] | None:
        return None if register is None else (self.origin(register.origin), register.value)

    def adds(self, origins: tuple[Origin, ...]) -> int | list[int]:
        return self.origin(origins[0]) if len(origins) == 1 else [self.origin(origin) for origin in origins]

    def origin(self, origin: Origin) -> int:
        index = self.origins.get(origin)
        if index is None:
            index = self.origins[origin] = len(self.listed)
            self.listed.append((origin.time, self.actors[origin.actor], origin.n, self.agent(origin.agent)))
        return index

    def agent(self, agent: str) -> int:
        return self.agents.setdefault(agent, len(self.agents))
