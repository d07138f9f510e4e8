"""A record as its reader sees it: the public `Memory`, as JSON, made once for each state of a record."""

from __future__ import annotations

import msgspec

from crdt_spine.core.clock import moment
from crdt_spine.core.open_documents import OpenDocuments
from crdt_spine.core.record import Record
from crdt_spine.memory import Memory
from crdt_spine.storage.records import Entry

_encode = msgspec.json.Encoder(order="deterministic").encode


def memory_of(record: Record, documents: OpenDocuments | None = None) -> Memory:
    """The memory of a record; of a tombstone, what is left: id, agent, thread, tags and times. `documents` are those of
    the caller's thread, where it has some: a text that is edited is there at once."""
    life = record.life.value
    living = life.alive
    expires = record.expires.value if living and record.expires is not None else None
    return Memory(
        id=record.id,
        content=_content(record, documents) if living else "",
        agent=life.agent,
        created_at=moment(life.created),
        updated_at=moment(record.shown_updated),
        version=record.etag,
        tags=frozenset(record.tags) if living else frozenset(life.tags),
        metadata=record.metadata_values() if living else {},
        thread=life.thread,
        clock=life.clock,
        importance=record.importance.value if living and record.importance is not None else 0.5,
        expires_at=moment(expires) if expires is not None else None,
    )


def _content(record: Record, documents: OpenDocuments | None) -> str:
    if record.document is None:
        return record.content.value if record.content is not None else ""
    return record.text if documents is None else documents.text(record)


def encoded(record: Record, documents: OpenDocuments | None = None) -> bytes:
    """The memory as JSON."""
    return _encode(memory_of(record, documents))


def shown(entry: Entry, now: int, documents: OpenDocuments | None = None) -> msgspec.Raw | None:
    """The memory of an entry as JSON, kept with it; None where a reader finds nothing at the hybrid time `now`."""
    if entry.view is None:
        record = entry.record
        if record is None or not record.alive:
            return None
        entry.view = msgspec.Raw(encoded(record, documents))
        entry.expires = None if record.expires is None else record.expires.value
    return entry.view if entry.expires is None or entry.expires > now else None
