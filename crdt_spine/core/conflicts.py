"""Conflict receipts: which values were lost to a concurrent write, by what a replica sees when two states meet.

Two writes are concurrent when neither is in the other's past (docs/ARCHITECTURE.md, "Conflicts and history"). A
register keeps the one with the greater stamp. Stores that keep both, as siblings, leave it to the next reader to choose
(DeCandia et al., "Dynamo", 2007; Preguiça et al., "Dotted version vectors", 2012); here the memory has one value at
once, and what the other one said becomes a receipt. A value that was overwritten by somebody who had seen it is none.

Receipts are no part of the CRDT. Each replica derives its own from what it applies and merges, and a reader unites what
all of them have: of two concurrent writes, the replica at which they met first has the receipt. Version vectors tell
it, and cheaply: only where a record has a change that the writer had not seen is there anything to compare.

No loss goes without a receipt (tests/laws). A receipt too many is possible where a sync brought only what became of
several concurrent writes, and not the writes: that one of them had been overwritten knowingly, nobody here has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from crdt_spine.core.causality import Vector
from crdt_spine.core.messages import Change, Strong
from crdt_spine.core.record import Record
from crdt_spine.core.registers import NEVER, Origin, Register

#: The values of a memory that can be lost, by field: content, importance, metadata.<key>, and ...
Fields = Mapping[str, Register]
#: ... as a field of its own, what no reader is shown: that the memory was stored or deleted.
WHOLE: Final = ""


class Receipt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value of the memory `id` that was written and lost, and what is there instead, each with where it comes from.

    A lost None is a removed key. A kept None is one as well, or a deletion, or a store that has no such key.
    """

    id: str
    field: str
    lost: Any
    kept: Any
    loser: Origin
    winner: Origin

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells a memory's receipts apart: the field, and the dot of the lost write."""
        return self.field, self.loser.actor, self.loser.n


#: Where a page of receipts goes on: (time, id, field, actor, n) of the last one shown.
Place = tuple[int, str, str, str, int]


def time_of(receipt: Receipt) -> int:
    """When there were both values: the hybrid time of the later write."""
    return max(receipt.loser.time, receipt.winner.time)


def place_in(receipt: Receipt) -> Place:
    """Where a receipt stands among all."""
    return time_of(receipt), receipt.id, *receipt.key


class Withdrawal(msgspec.Struct, frozen=True, gc=False):
    """Somebody wrote `fields` of the memory `id` (None: all but the `spared` ones), having seen what is within `seen`.

    A value that was lost here, and was the memory's there, was overwritten knowingly: its receipt counts no more. What
    was written below the store or deletion `floor` was not the memory's there, for the writer had seen that, too. More
    narrowly, `actor`: only its own values are sure to have been seen; `writer`: only what was lost to that very write.
    """

    id: str
    fields: tuple[str, ...] | None
    seen: Vector
    spared: tuple[str, ...] = ()
    floor: Origin = NEVER
    actor: str = ""
    writer: Origin | None = None

    def withdrawn(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        """Which of the memory's receipts count no more.

        Of all lost writes of a field that the writer had seen, stores and deletions of the memory included, the latest
        was its value there, and the earlier ones had lost to it.
        """
        seen = [receipt for receipt in receipts if saw(self.seen, receipt.loser)]
        if self.writer is not None:
            return [receipt for receipt in seen if receipt.winner == self.writer]
        floor = max([self.floor, *(receipt.loser for receipt in seen if receipt.field == WHOLE)])
        latest: dict[str, Receipt] = {}
        for receipt in seen:
            field = receipt.field
            concerned = field not in self.spared if self.fields is None else field in self.fields
            if concerned and receipt.loser >= (latest[field].loser if field in latest else floor):
                latest[field] = receipt
        return [
            receipt
            for receipt in latest.values()
            if not saw(self.seen, receipt.winner) and self.actor in ("", receipt.loser.actor)
        ]


Finding = Receipt | Withdrawal


def saw(vector: Mapping[str, int], origin: Origin) -> bool:
    """Is that write within the vector?"""
    return vector.get(origin.actor, 0) >= origin.n


def of_change(
    before: Record, after: Record, change: Change, origin: Origin, seen: Vector, judged: bool
) -> list[Finding]:  # fmt: skip
    """What a change says about lost values where it meets a record that has more than its writer had `seen`.

    `seen` is the delta's `deps` and the earlier changes of its actor. What the record shows and the writer had not seen
    is lost if it is not shown any more. What the change writes is lost if it is not shown: nobody here can have seen
    it, because whatever is here was applied after all that it depends on. But for records that a sync has put ahead of
    the vector: with `judged`, the source of the sync had the change, so the source says what became of it.
    """
    found: list[Finding] = []
    has, written = fields_of(before), _written(change, origin)
    known = tuple(field for field, register in has.items() if saw(seen, register.origin))
    floor = before.life.origin if WHOLE in known else NEVER
    if change.alive is not None:
        found.append(Withdrawal(change.id, None, seen, known + _beaten(change.strong, after), floor))
    elif fields := tuple(field for field in written if field not in known):
        found.append(Withdrawal(change.id, fields, seen, floor=floor))
    found += _lost(before, has, after, lambda one: saw(seen, one))
    if not judged:
        found += _lost(None, written, after, lambda one: False)
    return found


def unseen(record: Record, change: Change, seen: Vector) -> tuple[str, ...]:
    """The fields that a change writes over a value of another agent's that its own agent had not `seen` (its session's
    token), though the coordinator had: of agents that write at once at one coordinator the last one wins as well."""
    written = fields_of(record) if change.alive is not None else _written(change, NEVER)
    kept = _carried(change.strong)
    return tuple(
        [
            field
            for field, one in fields_of(record).items()
            if one.origin.agent != change.agent and field in written and field != WHOLE and field not in kept
            and not saw(seen, one.origin)
        ]
    )  # fmt: skip


def of_unseen(before: Record, after: Record, change: Change) -> list[Finding]:
    """What a change took away without its agent's having seen it: every replica that applies it can tell."""
    values = {field: register for field, register in fields_of(before).items() if field in change.unseen}
    return [*_lost(before, values, after, lambda one: False)]


def of_skipped(change: Change, origin: Origin, seen: Vector) -> list[Finding]:
    """What a change says that a sync had brought before (rule 4). Its record was judged then, from what vectors told.
    Where they told too little, a receipt was made in doubt; now it is known what the writer had seen."""
    return [] if change.alive is None else [Withdrawal(change.id, None, seen, writer=origin)]


def of_merge(mine: Record, theirs: Record, merged: Record, upto: Vector, vector: Vector) -> list[Finding]:
    """What the merge of two replicas' records says about lost values.

    A value of one side that the other side has not seen is lost if it is not shown any more: whatever took its place
    comes from the other side. One that the other side has seen was judged there, or where that had it from.

    Has it seen a value? Above its floor, its record's version tells exactly. Below the floor the version tells nothing;
    there it is the partition's vector: `vector` here, `upto` there. That one is as old as the sync, so in doubt there
    is a receipt although the value was seen since; the change that is the floor withdraws it (of_skipped).

    What a write that comes with the record had seen is not known, but that is within `upto`, if the write is, and that
    its actor's own earlier writes are in it.
    """

    def seen_there(origin: Origin) -> bool:
        return saw(upto if origin < theirs.life.origin else theirs.version, origin)

    def seen_here(origin: Origin) -> bool:
        return saw(vector if origin < mine.life.origin else mine.version, origin)

    has, others = fields_of(mine), fields_of(theirs)
    known = tuple(field for field, register in has.items() if saw(upto, register.origin))
    floor = mine.life.origin if WHOLE in known else NEVER
    found: list[Finding] = []
    for field, register in others.items():
        writer = register.origin
        if field not in known and saw(upto, writer) and not seen_here(writer):
            fields = None if field == WHOLE else (field,)
            spared = known + (_beaten(theirs.life.value.strong, merged) if field == WHOLE else ())
            found.append(Withdrawal(mine.id, fields, upto, spared, floor, writer.actor))
    found += _lost(mine, has, merged, seen_there)
    found += _lost(theirs, others, merged, seen_here)
    return found


def fields_of(record: Record) -> dict[str, Register]:
    """What a record says: that it lives or is dead, and the values that a reader sees; of a dead one none. A value that
    a strong write merely carried along (core/whole.py) is the one that it was: nobody has written it anew."""
    fields = {WHOLE: Register(record.life.origin, None)}
    if record.alive:
        fields |= {f"metadata.{key}": register for key, register in record.metadata.items()}
        if record.content is not None:
            fields["content"] = record.content
        if record.importance is not None:
            fields["importance"] = record.importance
        for field, origin in _carried(record.life.value.strong).items():
            register = fields.get(field)
            if register is not None and register.origin == record.life.origin:
                fields[field] = Register(origin, register.value)
    return fields


def _carried(strong: Strong | None) -> dict[str, Origin]:
    """Where the values come from that a strong write left as they were."""
    return {field: origin for origin, fields in strong.carried for field in fields} if strong is not None else {}


def _beaten(strong: Strong | None, after: Record) -> tuple[str, ...]:
    """Of what a strong write left as it was, what is lost all the same: it has written nothing over that."""
    carried = _carried(strong)
    now = fields_of(after) if carried else {}
    return tuple([field for field, origin in carried.items() if field not in now or now[field].origin != origin])


def _written(change: Change, origin: Origin) -> dict[str, Register]:
    fields = {f"metadata.{key}": Register(origin, value) for key, value in change.metadata.items()}
    if change.content is not None:
        fields["content"] = Register(origin, change.content)
    if change.importance is not None:
        fields["importance"] = Register(origin, change.importance)
    if change.alive is not None:
        fields[WHOLE] = Register(origin, None)
    for field in _carried(change.strong):
        fields.pop(field, None)
    return fields


def _lost(
    record: Record | None, values: Fields, after: Record, seen: Callable[[Origin], bool]
) -> Iterable[Receipt]:  # fmt: skip
    """Receipts of those values that are not shown any more and that whoever replaced them had not seen. `record` is
    where they were shown; a text that agents edited together is lost with its edits where somebody wrote it anew."""
    now = fields_of(after)
    for field, register in values.items():
        keeper = now.get(field)
        if keeper is not None and keeper.origin == register.origin:
            continue
        lost, unseen = register.value, not seen(register.origin)
        document = record.document if record is not None and field == "content" else None
        if record is not None and document is not None and document.base is not None:
            time = register.origin.time
            unseen = unseen or not all(seen(Origin(time, actor, n, "")) for actor, n in document.reached.items())
            lost = record.text if unseen else lost
        if not unseen:
            continue
        kept, winner = (None, after.life.origin) if keeper is None else (keeper.value, keeper.origin)
        if field == "content" and keeper is not None and after.document is not None:
            kept = after.text
        if kept != lost or field == WHOLE:
            yield Receipt(after.id, field, lost, kept, register.origin, winner)
