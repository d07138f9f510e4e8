"""What survives a crash: journal rows, and the last checkpoint that was written whole. And a node's records in memory.

As in crdt_spine/node, a checkpoint takes all records and vectors of one instant, which may be ahead of the journal
(a turn under way is in it), and says up to which journal row it surely goes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from crdt_spine.core import codec
from crdt_spine.core.causality import Vector, within
from crdt_spine.core.record import Record


@dataclass(frozen=True)
class Checkpoint:
    """The tables: encoded records by partition, and everything about them that is not a record."""

    through: int = 0
    records: dict[int, dict[str, bytes]] = field(default_factory=dict)
    vectors: dict[int, Vector] = field(default_factory=dict)
    incarnation: int = 0
    clock: int = 0
    suspect: frozenset[int] = frozenset()  # partitions to be compared with a peer's, after the disk was rolled back


class Disk:
    """One node's."""

    def __init__(self) -> None:
        self.checkpoint = Checkpoint()
        self.journal: list[bytes] = []  # row i has the sequence i + 1
        self.backup: tuple[Checkpoint, int] | None = None
        self.full = False

    def append(self, row: bytes) -> int:
        self.journal.append(row)
        return len(self.journal)

    def copy(self) -> None:
        """Keep a copy of now."""
        self.backup = (self.checkpoint, len(self.journal))

    def roll_back(self) -> None:
        """Be what the copy was."""
        assert self.backup is not None
        self.checkpoint, rows = self.backup
        del self.journal[rows:]
        self.backup = None


class DictRecords:
    """The `Records` of the core: dictionaries, and what a store answers besides."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.partitions: dict[int, dict[str, Record]] = {
            number: {id: codec.from_bytes(id, state) for id, state in states.items()}
            for number, states in checkpoint.records.items()
        }
        self.where = {id: number for number, records in self.partitions.items() for id in records}

    def get(self, id: str) -> Record | None:
        return self.partitions[self.where[id]].get(id) if id in self.where else None

    def put(self, partition: int, record: Record) -> None:
        self.where[record.id] = partition
        self.partitions.setdefault(partition, {})[record.id] = record

    def drop(self, partition: int, id: str) -> None:
        del self.partitions[partition][id]

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
            number: {id: codec.to_bytes(record) for id, record in sorted(records.items())}
            for number, records in sorted(self.partitions.items())
        }
