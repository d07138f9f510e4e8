"""What queries look at in a record, and the terms it is found by.

Tables have one inverted index, `postings`: (term, at, key), where `at` is the record's creation time. A term is "has
this tag", "is of this agent", "metadata key k equals v", or simply "lives"; a selection is a set of terms that must
all be there. So every condition is answered by the same index in the order of time, and intersecting conditions needs
no record.

A term is a number: a hash of its words, with no dictionary to keep. Two terms may share a number, so the index only
proposes; `Facets.selected` decides on the record's facets, by the same predicate that everybody else uses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from crdt_spine.core.selection import Selection
from crdt_spine.limits import TERMS_CACHED_MAX
from crdt_spine.storage.engine import Row

#: Terms that are no hash: they are zero and above, hashes are below zero.
EVERY = 0  # all living records
EXPIRING = 1  # living records whose time will be over; `at` is when
_DEAD = 2  # and the partition: its tombstones; `at` is the flush that brought them


class Facets(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row without its content, version and state. `touched` is the flush that brought it, for the dead only."""

    partition: int
    alive: bool
    agent: str
    thread: str | None
    created: int
    expires: int | None
    tags: tuple[str, ...]
    metadata: Mapping[str, Any]
    touched: int = 0

    def selected(self, selection: Selection, partitions: Collection[int] | None, now: int) -> bool:
        """Does a query mean this record?"""
        return (
            self.alive
            and (self.expires is None or self.expires > now)
            and (partitions is None or self.partition in partitions)
            and selection.matches(self.tags, self.agent, self.thread, self.created, self.metadata)
        )


_encode = msgspec.json.Encoder().encode  # JSON, so that the tables can be read with any tool
decode = msgspec.json.Decoder(Facets).decode


def of_row(row: Row, flush: int) -> bytes:
    """A row's facets, as the tables keep them."""
    return _encode(
        (
            row.partition, row.alive, row.agent, row.thread, row.created, row.expires, row.tags, row.metadata,
            0 if row.alive else flush,
        )
    )  # fmt: skip


def terms_of(record: Facets | Row) -> set[int]:
    """What a record is found by at one time: a living one when it was created, a dead one when it was touched."""
    if not record.alive:
        return {dead(record.partition)}
    terms = {EVERY, _hashed("agent", record.agent)}
    if record.thread is not None:
        terms.add(_hashed("thread", record.thread))
    for tag in record.tags:
        terms.add(_hashed("tag", tag))
    for key, value in record.metadata.items():
        terms.add(_metadata(key, value))
    return terms


def postings_of(record: Facets) -> set[tuple[int, int]]:
    """All its entries in the index: (term, at)."""
    at = record.created if record.alive else record.touched
    entries = {(term, at) for term in terms_of(record)}
    if record.alive and record.expires is not None:
        entries.add((EXPIRING, record.expires))
    return entries


def dead(partition: int) -> int:
    """The term of a partition's tombstones."""
    return _DEAD + partition


def required(selection: Selection) -> list[tuple[int, ...]]:
    """The terms of a selection: of each tuple a record must have at least one. Never empty."""
    groups: list[tuple[int, ...]] = [(_hashed("tag", tag),) for tag in dict.fromkeys(selection.tags)]
    if selection.any_tags:
        groups.append(tuple(dict.fromkeys(_hashed("tag", tag) for tag in selection.any_tags)))
    if selection.agent is not None:
        groups.append((_hashed("agent", selection.agent),))
    if selection.thread is not None:
        groups.append((_hashed("thread", selection.thread),))
    groups.extend((_metadata(key, value),) for key, value in selection.metadata.items())
    return groups or [(EVERY,)]


def _metadata(key: str, value: Any) -> int:
    """Equal values (as Selection.matches compares them) give equal terms; lists and objects share one for their key."""
    if value is None or isinstance(value, bool):
        text = f"truth {value}"
    elif isinstance(value, str):
        text = f"text {value}"
    elif isinstance(value, int | float):
        text = f"number {int(value) if value == value // 1 else value!r}"
    else:
        text = "structure"
    return _hashed("metadata", f"{len(key)} {key} {text}")


@lru_cache(TERMS_CACHED_MAX)
def _hashed(kind: str, words: str) -> int:
    digest = blake2b(f"{kind} {words}".encode(), digest_size=4).digest()
    return -1 - (int.from_bytes(digest) >> 1)
