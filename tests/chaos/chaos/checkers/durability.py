"""No acknowledged write is lost: in the end every memory has what was written last, or what may be later than that."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.history import History
from chaos.writes import Writes, promised, told


def durability(history: History) -> Iterator[str]:
    """A write on a single replica may go with its disk."""
    writes, final = Writes(history), history.final()
    deleted = {op.id for op in history.ops if op.do == "delete" and op.outcome != "not applied"}
    entries = {held.content for held in history.held}
    for op in history.ops:
        if not promised(op, history) or op.do == "delete" or op.id in deleted:
            continue
        if op.do == "append":
            if op.value not in entries:
                yield f"an acknowledged entry is lost: {told(op)}"
        elif op.id not in final:
            yield f"an acknowledged write is lost, there is no such memory: {told(op)}"
        elif op.value:
            there = writes.by_value.get(final[op.id].content)
            if there is not None and writes.surely_before(there, op):
                yield f"an acknowledged write is lost: {told(op)}; there is {told(there)}"
