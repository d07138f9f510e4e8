"""Read your writes and monotonic reads, by memory, and causal within a partition: with its token a session is never
shown less than it wrote or saw before, nor less than what the writer of what it saw had known there.

Terry et al., "Session guarantees for weakly consistent replicated data" (1994). As each value is written once, who
shows it says which write it saw; Bouajjani et al., "On verifying causal consistency" (2017).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.history import History, Op
from chaos.writes import Writes, told
from crdt_spine.core.placement import partition_of

PAGE = 1_000  # a query that shows so many may have left some out

Known = dict[str, Op]  # id -> the write that was called last among those known


def sessions(history: History) -> Iterator[str]:
    """Registers by their values, a session's own notes by being there."""
    writes = Writes(history)
    partitions = len(history.end.holders) if history.end is not None else 64
    known: defaultdict[str, Known] = defaultdict(dict)
    pasts: dict[str, Known] = {}  # value -> what its writer knew, in the partition of what it wrote
    notes: defaultdict[str, dict[str, Op]] = defaultdict(dict)
    for op in history.ops:
        mine = known[op.session]
        if op.kind == "register" and op.writes:
            if op.with_token:
                number = partition_of(op.id, partitions)
                pasts[op.value] = {id: one for id, one in mine.items() if partition_of(id, partitions) == number}
            if op.outcome == "ok":
                _learn(mine, op.id, op)
        elif op.kind == "register" and op.outcome == "ok":
            yield from _judge(op, mine.get(op.id), writes)
            seen = writes.by_value.get(op.seen)
            if seen is not None:
                _learn(mine, op.id, seen)
                for id, write in pasts.get(op.seen, {}).items():
                    _learn(mine, id, write)
        elif op.kind == "note" and op.do == "store" and op.outcome == "ok":
            notes[op.session][op.id] = op
        elif op.kind == "note" and op.do == "query" and op.outcome == "ok" and op.with_token and len(op.shown) < PAGE:
            for id in notes[op.session].keys() - set(op.shown):
                yield f"{told(op)} does not show its own {told(notes[op.session][id])}"


def _learn(known: Known, id: str, write: Op) -> None:
    if id not in known or known[id].call < write.call:
        known[id] = write


def _judge(read: Op, known: Op | None, writes: Writes) -> Iterator[str]:
    if known is None or not read.with_token:
        return
    if not read.found:
        yield f"{told(read)} shows nothing, its session knew {told(known)}"
        return
    seen = writes.by_value.get(read.seen)
    if seen is not None and writes.surely_before(seen, known):
        yield f"{told(read)} shows {told(seen)}, its session knew {told(known)}"
