"""A replica's records as simple as can be, for tests of the core alone; what keeps them in a node is in
crdt_spine/storage."""

from __future__ import annotations

from collections.abc import Mapping

from crdt_spine.core.causality import within
from crdt_spine.core.record import Record


class Records(dict[str, Record]):
    """Records in a dictionary: all of them in the one partition."""

    def put(self, partition: int, record: Record) -> None:
        self[record.id] = record

    def drop(self, partition: int, id: str) -> None:
        del self[id]

    def changed(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> list[Record]:
        ids = sorted(id for id in self if (after is None or id > after) and not within(self[id].version, have))
        return [self[id] for id in ids][:limit]
