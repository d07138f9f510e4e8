"""How many bytes the records of each partition have in the tables: counted as they change, never by looking at all.

A folder of an earlier version gets the table when it is opened, with what its pages are, shared out by memories.
"""

from __future__ import annotations

from collections.abc import Mapping

from crdt_spine.storage.database import Database
from crdt_spine.storage.engine import Checkpoint

_SCHEMA = "CREATE TABLE sizes (partition INTEGER PRIMARY KEY, bytes INTEGER NOT NULL)"


def create(database: Database) -> None:
    """Make the table where it is missing."""
    if not _present(database):
        with database.transaction():
            database.run(_SCHEMA)


def load(database: Database, checkpoint: Checkpoint) -> dict[int, int]:
    """Partition -> bytes."""
    if not _present(database):
        return {}  # an earlier version's folder that is only read
    found: dict[int, int] = dict(database.rows("SELECT partition, bytes FROM sizes"))
    memories = {number: summary.memories for number, summary in checkpoint.partitions.items()}
    if found or not sum(memories.values()):
        return found
    pages = database.number("PRAGMA page_count") * database.number("PRAGMA page_size")
    return {number: pages * count // sum(memories.values()) for number, count in memories.items()}


def write(database: Database, before: Mapping[int, int], changes: Mapping[int, int]) -> dict[int, int]:
    """Within a transaction: what came to each partition, or went; the new sizes."""
    after = {**before, **{number: max(0, before.get(number, 0) + change) for number, change in changes.items()}}
    rows = [value for pair in after.items() for value in pair]  # all of them: what was estimated is not there yet
    if changes:
        database.run_many(
            "INSERT INTO sizes VALUES", "(?,?)", "ON CONFLICT (partition) DO UPDATE SET bytes = excluded.bytes", rows
        )
    return after


def _present(database: Database) -> bool:
    return bool(database.rows("SELECT 1 FROM sqlite_schema WHERE name = 'sizes'"))
