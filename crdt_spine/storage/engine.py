"""What a node needs from a storage engine: a journal on the way to the acknowledgement, tables filled behind it.

A write is durable once its journal row is. The tables follow in large transactions (`flush`), each of which also says
up to which journal row it went and which vectors that state has; a restart loads the vectors and replays the journal
rows after it. What is in the journal but not in the tables yet is the node's to remember (`records.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from crdt_spine.core.conflicts import Finding, Receipt
from crdt_spine.core.selection import Selection

Order = Literal["newest", "oldest"]


class Row(msgspec.Struct, frozen=True):
    """One record as the tables keep it: what queries look at, and `state`, the whole CRDT as bytes.

    `created` and `expires` are hybrid-clock integers (milliseconds << 16). `version` is the record's version vector:
    the dots index is kept from it. A dead record (`alive` false, a tombstone) is found by `changed` and `get` only.
    """

    id: str
    partition: int
    alive: bool
    agent: str
    thread: str | None
    created: int
    expires: int | None
    tags: tuple[str, ...]
    metadata: Mapping[str, Any]
    content: str
    version: Mapping[str, int]
    state: bytes


class PartitionSummary(msgspec.Struct):
    """What the tables know of a partition at their last flush."""

    vector: dict[str, int]
    memories: int = 0  # alive
    tombstones: int = 0
    forgotten: dict[str, int] = {}  # up to where tombstones were dropped that not every replica had
    forgotten_time: int | None = None  # of the newest tombstone that was dropped; an earlier version did not keep it


class Checkpoint(msgspec.Struct):
    """Everything about the tables' state that is not a record; written with the records, in one transaction.

    `through` is the last journal row that is in the tables. `extra` is the node's own (actor, clock, what it heard).
    """

    through: int = 0
    partitions: dict[int, PartitionSummary] = {}
    extra: dict[str, Any] = {}


class Found(msgspec.Struct, frozen=True):
    """One hit of `select`: enough to order and page, and the record's bytes."""

    created: int
    id: str
    state: bytes


class Former(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """A memory as its readers saw it: a version needs nothing of the CRDT any more. Times are hybrid times."""

    version: str
    updated: int
    created: int
    agent: str
    content: str
    importance: float = 0.5
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    thread: str | None = None
    clock: dict[str, int] = {}
    expires: int | None = None


class Version(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A replaced version of a memory; `replaced` is the hybrid time of the change that replaced it."""

    id: str
    replaced: int
    former: Former


class Past(msgspec.Struct, frozen=True):
    """What was replaced and lost, for a flush. `findings` are by id, as they came; `now` is the wall clock as a hybrid
    time, by which what is too old goes."""

    versions: Sequence[Version]
    findings: Mapping[str, Sequence[Finding]]
    now: int


class StorageFull(Exception):
    """The disk (or the file's permitted size) is used up; nothing of the call was written. It may be tried again."""


class StorageUnusable(Exception):
    """The folder can't be used: not writable, locked by another process, or of another format; the message says it."""


class Engine(Protocol):
    """Methods block and are called from one thread per group: journal, tables, reading, the event loop (`get`)."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What the tables held when they were opened, then what the last flush wrote."""
        ...

    def journal_rows(self, after: int) -> Iterator[tuple[int, bytes]]:
        """The journal's rows with a sequence above `after`, in order."""
        ...

    def append(self, row: bytes) -> int:
        """Write one journal row and make it durable (fsync); its sequence. Raises StorageFull."""
        ...

    def prune(self, through: int) -> None:
        """Drop the journal's rows up to and including `through`."""
        ...

    def flush(
        self, rows: Sequence[Row], forget: Sequence[str], checkpoint: Checkpoint, past: Past | None = None,
        rest: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Put the records into tables and indexes, remove the ids in `forget`, write the checkpoint, add what was
        replaced and lost: all or nothing, durable. A row replaces an older one of the same id. `rest` is called between
        the statements. Raises StorageFull."""
        ...

    def wipe(self, partitions: Sequence[int], records_max: int) -> int:
        """Drop up to that many records of these partitions from tables and indexes, without a trace; how many those
        were. The checkpoint stays: it must not have the partitions any more. Raises StorageFull."""
        ...

    def wipe_past(self, belongs: Callable[[str], bool], after: int, rows_max: int) -> int | None:
        """Drop what was replaced and lost of the memories that `belongs` says, from that many rows of the history
        behind `after`; behind which one to go on, None at the end. Raises StorageFull."""
        ...

    def get(self, id: str) -> bytes | None:
        """The state of one record (alive or dead) from the tables."""
        ...

    def changed(
        self, partition: int, have: Mapping[str, int], after: str | None, limit: int
    ) -> list[tuple[str, bytes]]:
        """(id, state) of the partition's records with a dot (actor, n) above have[actor] (0 where it has none), by
        id, behind the id `after`; at most `limit`. Reads only the index ranges concerned."""
        ...

    def ahead(self, vectors: Mapping[int, Mapping[str, int]]) -> list[tuple[int, str]]:
        """(partition, actor): of the actor a record of the partition has a dot above the partition's vector. Costs the
        same however many records there are."""
        ...

    def since(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> list[tuple[str, bytes]]:
        """The same, from another thread: for pages that other replicas are given, while the event loop goes on."""
        ...

    def pages(self) -> tuple[int, int]:
        """How many pages the tables have, and how many of them `changed` and `since` have fetched: what repairs have
        cost."""
        ...

    def sizes(self) -> dict[int, int]:
        """Partition -> bytes of its records in the tables, as of the last flush; where it has none, it may be left
        out."""
        ...

    def tombstones(self, partition: int, limit: int) -> list[tuple[str, bytes]]:
        """(id, state) of dead records of a partition, the longest untouched first; from an index of the dead alone."""
        ...

    def select(
        self,
        selection: Selection,
        order: Order,
        limit: int,
        after: tuple[int, str] | None,
        partitions: Sequence[int] | None,
        now: int,
    ) -> Iterator[Found]:
        """Living, unexpired records of the selection in (created, id) order, beyond `after`; lazily, so that the
        caller may stop early. `partitions` None means all of them."""
        ...

    def search(
        self,
        text: str,
        selection: Selection,
        order: Order | Literal["relevance"],
        limit: int,
        after: tuple[int, str] | None,
        partitions: Sequence[int] | None,
        now: int,
    ) -> list[tuple[float, Found]]:
        """As `select`, among those whose content has the words: all of them when ordered by time, any of them when
        ordered by relevance (bm25, best first; the float, smaller is better; `after` is not used then)."""
        ...

    def index_text(self, records_max: int) -> int:
        """Put up to that many waiting records into the text index; how many still wait."""
        ...

    def expired(self, now: int, limit: int) -> list[str]:
        """Ids of living records whose time is over."""
        ...

    def versions(self, id: str) -> list[Former]:
        """A memory's replaced versions, the newest first."""
        ...

    def receipts_of(self, ids: Sequence[str]) -> dict[str, dict[tuple[str, str, int], Receipt]]:
        """The conflict receipts of some memories, by id and `Receipt.key`."""
        ...

    def receipts(self, after: tuple[int, str, str, str, int] | None, limit: int) -> list[Receipt]:
        """A page of all conflict receipts that readers are shown, the newest first, beyond `after` (history.py)."""
        ...

    def beside(self, name: str) -> Path | None:
        """Where a file of this name is that lies with the engine's; None where it has no files."""
        ...

    def discard(self) -> None:
        """From the next opening on there is nothing; durable. Raises StorageFull."""
        ...

    def close(self) -> None: ...
