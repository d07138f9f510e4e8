"""What a partition's primary decides about a strong operation, on the memory as it is (core/strong.py, step 2).

Each operation is done at most once, however often it is tried and by whichever primary: the memory itself remembers
which were done on it lately (core/whole.py), and its primary those of its term.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from crdt_spine.core import conflicts
from crdt_spine.core.causality import within
from crdt_spine.core.fences import outdated
from crdt_spine.core.messages import Change, Get
from crdt_spine.core.record import Record
from crdt_spine.core.registers import Origin
from crdt_spine.core.replica import Replica
from crdt_spine.core.strong_operation import Answer, Ask, fence_of
from crdt_spine.core.version import vector_text, version_text
from crdt_spine.core.whole import is_past, operations_of, refusal_text, refused_as, written_whole
from crdt_spine.core.writes import Refused
from crdt_spine.limits import STRONG_REMEMBERED_MAX


class Past:
    """What a primary remembers of its term."""

    def __init__(self) -> None:
        self.first: int | None = None  # the node's own changes from this one on were made in it
        self.steady: int | None = None  # and those from this one on stamped by its clock as it runs since
        self.sealed: OrderedDict[str, None] = OrderedDict()  # memories that were written whole
        self.refused: OrderedDict[str, tuple[str, str]] = OrderedDict()  # operation -> error, message

    def wrote(self, id: str, n: int) -> None:
        """A memory was written whole by the own change `n`."""
        self.first = n if self.first is None else self.first
        self.steady = n if self.steady is None else self.steady
        _keep(self.sealed, id, None)

    def done_on(self, record: Record | None, actor: str, time: int) -> tuple[str, ...]:
        """The operations that a memory remembers, unless the last one is long ago: its primary's own in this term, by
        the clock that stamped it. `time` is a hybrid time of now."""

        def is_long_ago(origin: Origin) -> bool:
            own = origin.actor == actor and self.steady is not None and origin.n >= self.steady
            return own and is_past(origin.time, time)

        return operations_of(record, is_long_ago)

    def refuse(self, answer: Answer, done: tuple[str, ...]) -> bool:
        """Remember it, if this is a refusal. False: so must the memory, which remembers `done`, as another attempt may
        be on its way to who is primary then."""
        ask = answer.ask
        if answer.outcome != "not applied":
            return True
        _keep(self.refused, ask.operation_id, (answer.error, answer.message))
        refused = remembered(answer)
        return not refused or refused in done


def remembered(answer: Answer) -> str:
    """What the memory is to remember of an answer: the refusal of an operation that is tried again; else nothing."""
    ask = answer.ask
    return refusal_text(ask.operation_id, answer.error) if answer.outcome == "not applied" and ask.retry else ""


def decide(
    replica: Replica, past: Past, number: int, ask: Ask, record: Record | None, time: int, done: tuple[str, ...],
    newer: int = 0,
) -> Change | Answer:  # fmt: skip
    """The change that does the operation at the hybrid time `time`, or what is to be said where there is nothing to do:
    it is a read, is `done` already, or is refused. `newer` is a token of its lock that others know, 0: none."""
    if isinstance(ask.operation, Get):
        return Answer(ask)
    id = ask.operation.id
    if ask.operation_id in done or _was_done(replica, past, number, ask):
        return Answer(ask, version=_version_of(replica, ask, record))
    if ask.operation_id in past.refused:
        error, message = past.refused[ask.operation_id]
        return Answer(ask, error=error, message=message, outcome="not applied")
    if error := refused_as(done, ask.operation_id):
        message = f"this was refused on memory {id!r} when it was tried before"
        return Answer(ask, error=error, message=message, outcome="not applied")
    if ask.retry and done[:1] == ("",):
        message = f"memory {id!r} was written too often since: it is not known whether the write was applied (unknown)"
        return Answer(ask, error="QuorumFailed", message=message, outcome="unknown")
    fence = fence_of(ask)
    if fence is not None and (newer or not replica.fences.admits(fence)):
        message = outdated(fence, max(newer, replica.fences.newest(fence.lock)))
        return Answer(ask, error="FenceRejected", message=message, outcome="not applied")
    try:
        change = written_whole(ask.operation, record, time, ask.agent, ask.operation_id, done)
    except Refused as refusal:
        return Answer(ask, error=refusal.error, message=str(refusal), outcome="not applied")
    if ask.seen is not None and record is not None and record.alive and not within(record.version, ask.seen):
        unseen = conflicts.unseen(record, change, ask.seen)
        change = msgspec.structs.replace(change, unseen=unseen) if unseen else change
    return change


def _was_done(replica: Replica, past: Past, number: int, ask: Ask) -> bool:
    """Was it done in this term? The memory may remember fewer operations than that."""
    known = replica.operations.get(ask.operation_id)
    if known is None or past.first is None:
        return False
    return known[0] == number and known[1] == replica.actor and known[2] >= past.first


def _version_of(replica: Replica, ask: Ask, record: Record | None) -> str:
    """The version that a write has made which is tried again: not one that somebody else made since. Empty: it is not
    known any more."""
    strong = None if record is None else record.life.value.strong
    if record is not None and strong is not None and strong.operations[-1:] == (ask.operation_id,):
        return record.etag
    known = replica.operations.get(ask.operation_id)
    return "" if known is None else version_text(ask.operation.id, vector_text({known[1]: known[2]}))


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    """Remember it, and forget what was remembered first if that is too much."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > STRONG_REMEMBERED_MAX:
        kept.popitem(last=False)
