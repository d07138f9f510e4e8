"""A write says honestly what came of it: what was "not applied" is nowhere, what is "unknown" is there at most once,
and nothing is there that nobody wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chaos.history import History, Op
from chaos.writes import told

LAST = "last"  # what the end of a run stores in every partition


def outcomes(history: History) -> Iterator[str]:
    """Looks at everything that anybody was ever shown."""
    by_value = {op.value: op for op in history.ops if op.value and op.writes}
    by_tag: dict[str, list[Op]] = {}
    for op in history.ops:
        for tag in op.add:
            by_tag.setdefault(tag, []).append(op)
    for value, where in _shown(history):
        write = by_value.get(value)
        if write is None:
            if value != LAST:
                yield f"{where} has {value!r}, which nobody wrote"
        elif write.outcome == "not applied":
            yield f"{where} has what was not applied: {told(write)}"
    for tag, where in _tags(history):
        if tag.startswith("x-") and not any(op.outcome != "not applied" for op in by_tag.get(tag, ())):
            yield f"{where} has the tag {tag}, which was not added"
    copies = Counter(held.content for held in history.final().values())
    for value, count in copies.items():
        if count > 1 and value != LAST:
            yield f"{value!r} is there {count} times"
    final, tried = (
        history.final(),
        Counter(op.id for op in history.ops if op.do == "delete" and op.outcome != "not applied"),
    )
    for op in history.ops:
        if op.do == "delete" and op.outcome == "not applied" and not tried[op.id] and op.id not in final:
            stored = any(one.id == op.id and one.do == "store" and one.outcome == "ok" for one in history.ops)
            if stored and not history.lossy:
                yield f"is gone though it was not applied: {told(op)}"


def _shown(history: History) -> Iterator[tuple[str, str]]:
    """Every content that was shown, and where."""
    for op in history.ops:
        if op.seen:
            yield op.seen, told(op)
        if op.do == "read":
            for value in op.shown:
                yield value, told(op)
    for update in history.told:
        if update.content:
            yield update.content, f"{update.subscriber} at {update.at:.3f}"
    for held in history.held:
        yield held.content, f"in the end {held.node}"


def _tags(history: History) -> Iterator[tuple[str, str]]:
    for op in history.ops:
        for tag in op.seen_tags:
            yield tag, told(op)
    for held in history.held:
        for tag in held.tags:
            yield tag, f"in the end {held.node}"
