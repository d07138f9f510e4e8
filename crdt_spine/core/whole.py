"""Strong operations write a memory whole, so that what is left of earlier ones is dead.

A write of a former primary that was never confirmed may lie on a minority and spread at any later time. A change with
`alive` is the floor of its memory (core/record.py): what is stamped below it has no effect any more, anywhere, for
ever. So every strong write is a store, or a delete, with all that is to be there, stamped above all that earlier
primaries may have given (core/terms.py): what its primary had seen is in it, and what that had not seen is dead. Where
there is nothing to change, as for a read, the memory is *sealed*: written whole as it is; readers are shown the version
and the times of before. CASPaxos (Rystsov 2018) has the same idea: a read is an identity write.

What is written whole also says which operations were done on the memory lately. So whoever is primary next knows, from
the memory alone, whether an operation that is tried again was done, in a past that counts, or is dead. One that is
tried again and refused is remembered as well: its first attempt may still be on its way, and must not be done then.

They are forgotten after `REMEMBERED_SECONDS`, by one's own clock. Stamps of others say nothing about how long ago it
was, nor do one's own from before the clock was set: a clock that was an hour behind makes what was just done look old.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from crdt_spine.core import conflicts, writes
from crdt_spine.core.document import opened, updates_of
from crdt_spine.core.messages import Change, Delete, Edit, Store, Strong
from crdt_spine.core.record import Record, apply
from crdt_spine.core.registers import Origin
from crdt_spine.limits import STRONG_OPERATIONS_REMEMBERED_MAX, STRONG_OPERATIONS_REMEMBERED_SECONDS

REMEMBERED_SECONDS = STRONG_OPERATIONS_REMEMBERED_SECONDS


def written_whole(
    operation: Store | Edit | Delete, record: Record | None, time: int, agent: str, operation_id: str,
    done: tuple[str, ...],
) -> Change:  # fmt: skip
    """The change of a strong write; `done` are the operations before it that are to be remembered. Raises Refused
    (core/writes.py)."""
    done = _bounded((*done, operation_id))
    match operation:
        case Store():
            change = writes.store(operation, record, time, agent, operation_id)
            return msgspec.structs.replace(change, strong=Strong(done))
        case Delete():
            change = writes.delete(operation, record, time, agent, operation_id)
            return msgspec.structs.replace(change, strong=Strong(done))
        case Edit():
            change = writes.edit(operation, record, time, agent, operation_id)
            assert record is not None  # or it was refused
            after = apply(record, change, Origin(time, "", 0, agent))
            return _whole(after, time, agent, operation_id, Strong(done, edit=True, carried=_carried(after)))


def seal(id: str, record: Record | None, time: int, done: tuple[str, ...], refused: str = "") -> Change:
    """The change that changes nothing but that all below it is dead: in nobody's name. It remembers what was `done`,
    and `refused` (`refusal_text`)."""
    if refused:
        done = _bounded((*done, refused))
    if record is None:
        return Change(id=id, time=time, agent="", alive=False, strong=Strong(done, edit=True, sealed=("", 0)))
    sealed = Strong(done, edit=True, sealed=(record.shown_vector, record.shown_updated), carried=_carried(record))
    if not record.alive:
        life = record.life.value
        return Change(
            id=id, time=time, agent=record.life.origin.agent, alive=False, thread=life.thread, created=life.created,
            life_agent=life.agent, last_tags=life.tags, strong=sealed,
        )  # fmt: skip
    return _whole(record, time, record.life.value.agent, "", sealed)


def operations_of(record: Record | None, is_long_ago: Callable[[Origin], bool] | None = None) -> tuple[str, ...]:
    """The strong operations that were done on a memory lately, and those that were refused. "" as the first one says
    that earlier ones were left out. None where the last one `is_long_ago`."""
    strong = None if record is None else record.life.value.strong
    if record is None or strong is None or (is_long_ago is not None and is_long_ago(record.life.origin)):
        return ()
    operations: tuple[str, ...] = strong.operations
    return operations


def is_past(earlier: int, later: int) -> bool:
    """Is it long enough from one hybrid time to another one of the same clock to forget what was done?"""
    return earlier + (int(REMEMBERED_SECONDS * 1000) << 16) < later


def forgettable(tombstones: Iterable[Record], seen: dict[str, float], at: float) -> list[Record]:
    """Of a partition's tombstones those that remember no operation, or were there when it was asked so long ago, in
    seconds of a clock that is never set. `seen` is kept in between: when each was seen first."""
    ripe: list[Record] = []
    known, before = seen.copy(), at - REMEMBERED_SECONDS
    seen.clear()
    for one in tombstones:
        if operations_of(one):
            seen[one.id] = known.get(one.id, at)
            if seen[one.id] >= before:
                continue
        ripe.append(one)
    return ripe


def refusal_text(operation_id: str, error: str) -> str:
    """How a memory remembers that an operation on it was refused: every attempt is to be refused in the same way."""
    return f"-{error}:{operation_id}"


def refused_as(operations: tuple[str, ...], operation_id: str) -> str:
    """The error with which a memory that remembers these refused one; empty: it did not."""
    found = next((one for one in operations if one.startswith("-") and one.partition(":")[2] == operation_id), "")
    return found[1:].partition(":")[0]


def _bounded(operations: tuple[str, ...]) -> tuple[str, ...]:
    if len(operations) <= STRONG_OPERATIONS_REMEMBERED_MAX:
        return operations
    return ("", *operations[-STRONG_OPERATIONS_REMEMBERED_MAX + 1 :])


def _carried(record: Record) -> tuple[tuple[Origin, tuple[str, ...]], ...]:
    """Of what is written whole, what its writer leaves as it is, by where it comes from: it stays somebody else's."""
    fields: dict[Origin, list[str]] = {}
    for field, register in conflicts.fields_of(record).items():
        if field != conflicts.WHOLE and register.origin.actor:  # not the operation's own, which has no dot yet
            fields.setdefault(register.origin, []).append(field)
    return tuple([(origin, tuple(sorted(fields[origin]))) for origin in sorted(fields)])


def _whole(record: Record, time: int, agent: str, operation_id: str, strong: Strong) -> Change:
    """The store that gives a living memory all that is there. A document goes on as one Yjs state on an empty content,
    so that nothing of it is lost; who edits it just then carries the edit of the text over."""
    life = record.life.value
    content = None if record.content is None else record.content.value
    document: bytes | None = None
    if record.document is not None:
        content, document = "", opened(updates_of(record.content, record.document)).get_update()
    return Change(
        id=record.id,
        time=time,
        agent=agent,
        operation=operation_id,
        alive=True,
        content=content,
        importance=None if record.importance is None else record.importance.value,
        expires=msgspec.UNSET if record.expires is None else record.expires.value,
        metadata=record.metadata_values(),
        add=tuple(sorted(record.tags)),
        thread=life.thread,
        clock=life.clock,
        after=life.after,
        created=life.created,
        life_agent=life.agent,
        document=document,
        strong=strong,
    )
