"""Answers what was: a memory's earlier versions, and the values that were lost to concurrent writes.

As with queries, a snapshot of what is not in the tables yet is taken first, then a thread reads the tables: what is
flushed meanwhile is in both and counts once. The answer leaves after everything it tells of is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from heapq import merge as merge_sorted

import msgspec

from crdt_spine.core.clock import moment
from crdt_spine.core.conflicts import WHOLE, Finding, Place, Receipt, place_in
from crdt_spine.core.messages import Conflicts, History, Hit, Result, encode
from crdt_spine.core.record import Record
from crdt_spine.limits import HISTORY_VERSIONS_MAX, PAST_PAGE_BYTES_MAX
from crdt_spine.memory import Memory
from crdt_spine.node.committer import Committer
from crdt_spine.storage.engine import Engine, Former
from crdt_spine.storage.recent import Replaced, fold, former_of, versions_of
from crdt_spine.storage.records import RecordStore

ROWS_AT_ONCE = 128  # of receipts, from the tables

_encode = msgspec.json.Encoder(order="deterministic").encode


class PastReader:
    """`answer` from the event loop; the work is done on a thread of its own."""

    def __init__(self, store: RecordStore, engine: Engine, committer: Committer) -> None:
        self.store = store
        self.engine = engine
        self.committer = committer
        self._thread = ThreadPoolExecutor(1, "past")

    async def answer(self, operation: History | Conflicts) -> Result:
        """A page of it, as large as a message may be."""
        loop = asyncio.get_running_loop()
        if isinstance(operation, History):
            replaced = [*self.store.flushing_recent.replaced.get(operation.id, ())]
            replaced += self.store.recent.replaced.get(operation.id, ())
            record = self.store.get(operation.id)
            result = await loop.run_in_executor(self._thread, self._versions, operation, replaced, record)
        else:
            findings = {id: [*found] for id, found in self.store.flushing_recent.findings.items()}
            for id, found in self.store.recent.findings.items():
                findings[id] = [*findings.get(id, ()), *found]
            result = await loop.run_in_executor(self._thread, self._receipts, operation, findings)
        if not await self.committer.durable():
            message = "the disk is full, and what is asked for is not on it yet"
            return Result(i=operation.i, error="Behind", message=message)
        return result

    def _versions(self, operation: History, replaced: list[Replaced], record: Record | None) -> Result:
        """The memory as it is now, if it lives, then what it was, newest first."""
        current = [former_of(record)] if record is not None and record.alive else []
        fresh = [former_of(older) for older, _ in versions_of(replaced)]
        found = {one.version: one for one in (*self.engine.versions(operation.id), *fresh, *current)}
        order = sorted(found.values(), key=_age, reverse=True)[: HISTORY_VERSIONS_MAX + len(current)]
        if operation.after is not None:
            order = [one for one in order if _age(one) < operation.after]
        hits: list[Hit] = []
        size = 0
        for one in order:
            memory = msgspec.Raw(_encode(_memory(operation.id, one)))
            size += len(bytes(memory))
            if hits and size > PAST_PAGE_BYTES_MAX:
                return Result(i=operation.i, hits=hits, more=True)
            hits.append(Hit(created=one.updated, memory=memory, id=one.version))
        return Result(i=operation.i, hits=hits, version=current[0].version if current else None)

    def _receipts(self, operation: Conflicts, findings: dict[str, list[Finding]]) -> Result:
        page: list[msgspec.Raw] = []
        size = 0
        for receipt in self._newest(operation, findings):
            if receipt.field == WHOLE or (operation.after is not None and place_in(receipt) >= operation.after):
                continue
            raw = msgspec.Raw(encode(receipt))
            size += len(bytes(raw))
            if len(page) == operation.limit or (page and size > PAST_PAGE_BYTES_MAX):
                return Result(i=operation.i, receipts=page, more=True)
            page.append(raw)
        return Result(i=operation.i, receipts=page)

    def _newest(self, operation: Conflicts, findings: dict[str, list[Finding]]) -> Iterator[Receipt]:
        """The receipts asked for, newest first, and maybe some of earlier pages."""
        if operation.id is not None:
            findings = {operation.id: findings.get(operation.id, [])}
        fresh: list[Receipt] = []
        ids = [*findings]
        for start in range(0, len(ids), ROWS_AT_ONCE):
            some = ids[start : start + ROWS_AT_ONCE]
            known = self.engine.receipts_of(some)
            for id in some:
                fresh += fold(known.get(id, {}).values(), findings[id]).values()
        fresh.sort(key=place_in, reverse=True)
        tables = iter(()) if operation.id is not None else self._in_tables(operation.after)
        others = (receipt for receipt in tables if receipt.id not in findings)
        return merge_sorted(fresh, others, key=place_in, reverse=True)

    def _in_tables(self, after: Place | None) -> Iterator[Receipt]:
        while page := self.engine.receipts(after, ROWS_AT_ONCE):
            yield from page
            after = place_in(page[-1])

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def _age(former: Former) -> tuple[int, str]:
    return former.updated, former.version


def _memory(id: str, former: Former) -> Memory:
    return Memory(
        id=id,
        content=former.content,
        agent=former.agent,
        created_at=moment(former.created),
        updated_at=moment(former.updated),
        version=former.version,
        tags=frozenset(former.tags),
        metadata=former.metadata,
        thread=former.thread,
        clock=former.clock,
        importance=former.importance,
        expires_at=None if former.expires is None else moment(former.expires),
    )
