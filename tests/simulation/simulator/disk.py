"""What survives a crash: journal rows, and the last checkpoint that was written whole. And a node's records in memory.

As in crdt_spine/node, a checkpoint takes all records and vectors of one instant, which may be ahead of the journal
(a turn under way is in it), and says up to which journal row it surely goes. A row has a checksum: one that was torn in
a crash is found at the next start, and dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.causality import Vector, within
from crdt_spine.core.membership import Membership, founded
from crdt_spine.core.record import Record

ROW_MILLISECONDS_MIN = 8_000  # for so long an agent's straggling message may name an operation: its row stays

NOBODY = msgspec.structs.replace(founded({}), epoch=0)


@dataclass(frozen=True)
class Checkpoint:
    """The tables: encoded records by partition, and everything about them that is not a record."""

    through: int = 0
    records: dict[int, dict[str, bytes]] = field(default_factory=dict)
    vectors: dict[int, Vector] = field(default_factory=dict)
    incarnation: int = 0
    clock: int = 0
    suspect: frozenset[int] = frozenset()  # partitions to be compared with a peer's, after the disk was rolled back
    membership: Membership = NOBODY  # the one that the node has adopted
    began: int = 0  # the first incarnation on this disk
    retirement: dict[str, Any] = field(default_factory=dict)
    forgotten: dict[int, Vector] = field(default_factory=dict)
    forgotten_times: dict[int, int] = field(default_factory=dict)
    promises: dict[str, Any] = field(default_factory=dict)


class Disk:
    """One node's. `journal` has (when it was written, the row and its checksum); the first has the sequence `first`."""

    def __init__(self) -> None:
        self.checkpoint = Checkpoint()
        self.journal: list[tuple[int, bytes]] = []
        self.first = 1
        self.backup: tuple[Checkpoint, int, list[tuple[int, bytes]]] | None = None
        self.full = False

    @property
    def last(self) -> int:
        """The sequence of the last row."""
        return self.first + len(self.journal) - 1

    def append(self, row: bytes, now: int) -> int:
        """A row, written whole and synced; its sequence."""
        self.journal.append((now, row + crc32(row).to_bytes(4)))
        return self.last

    def tear(self, row: bytes, now: int) -> None:
        """The node dies while the row is being written."""
        self.journal.append((now, row[: len(row) // 2]))

    def rows(self) -> list[tuple[int, bytes]]:
        """What is in the journal after a crash, by sequence. A torn last row is dropped."""
        if self.journal and not _whole(self.journal[-1][1]):
            self.journal.pop()
        assert all(_whole(row) for _, row in self.journal), "rows are synced in their order"
        return [(sequence, row[:-4]) for sequence, (_, row) in enumerate(self.journal, self.first)]

    def prune(self, now: int, operations: Collection[bytes]) -> int:
        """Drop rows that are in the tables, but for those with operations that may still be asked for; how many."""
        rows = 0
        for written, row in self.journal[: self.checkpoint.through - self.first + 1]:
            if written > now - ROW_MILLISECONDS_MIN or any(operation in row for operation in operations):
                break
            rows += 1
        del self.journal[:rows]
        self.first += rows
        return rows

    def copy(self) -> None:
        """Keep a copy of now."""
        self.backup = (self.checkpoint, self.first, list(self.journal))

    def roll_back(self) -> None:
        """Be what the copy was."""
        assert self.backup is not None
        self.checkpoint, self.first, self.journal = self.backup
        self.backup = None


def _whole(row: bytes) -> bool:
    return len(row) >= 4 and crc32(row[:-4]).to_bytes(4) == row[-4:]


class DictRecords:
    """The `Records` of the core: dictionaries, and what a store answers besides."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.partitions: dict[int, dict[str, Record]] = {
            number: {id: codec.from_bytes(id, state) for id, state in states.items()}
            for number, states in checkpoint.records.items()
        }
        self.where = {id: number for number, records in self.partitions.items() for id in records}
        self._encoded: dict[str, bytes] = {}  # of the records that did not change since the last checkpoint

    def get(self, id: str) -> Record | None:
        number = self.where.get(id)
        return None if number is None else self.partitions[number].get(id)

    def put(self, partition: int, record: Record) -> None:
        self.where[record.id] = partition
        self.partitions.setdefault(partition, {})[record.id] = record
        self._encoded.pop(record.id, None)

    def drop(self, partition: int, id: str) -> None:
        del self.partitions[partition][id]
        self._encoded.pop(id, None)

    def forget(self, partition: int) -> None:
        """The node does not hold the partition any more."""
        for id in list(self.partitions.get(partition, {})):
            self.drop(partition, id)

    def changed(self, partition: int, have: Vector, after: str | None, limit: int) -> list[Record]:
        """since(have), one page, as storage gives it."""
        records = self.partitions.get(partition, {})
        ids = sorted(records)
        start = 0 if after is None else bisect_right(ids, after)
        return [records[id] for id in ids[start:] if not within(records[id].version, have)][:limit]

    def tombstones(self, partition: int) -> Iterator[Record]:
        return (record for record in list(self.partitions.get(partition, {}).values()) if not record.alive)

    def encoded(self) -> dict[int, dict[str, bytes]]:
        return {
            number: {id: self._bytes(record) for id, record in sorted(records.items())}
            for number, records in sorted(self.partitions.items())
        }

    def _bytes(self, record: Record) -> bytes:
        found = self._encoded.get(record.id)
        if found is None:
            found = self._encoded[record.id] = codec.to_bytes(record)
        return found
