"""Every subscriber is told of every matching memory, exactly once by dot, and what it was told adds up to what
is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chaos.history import Held, History, Told
from chaos.writes import promised

NEWS = "news"


def subscriptions(history: History) -> Iterator[str]:
    """All subscribers listen from before the first memory to after the last word in every partition."""
    final = {id: held for id, held in history.final().items() if NEWS in held.tags}
    sure = {op.value for op in history.ops if promised(op, history)}
    alone = {op.id for op in history.ops if op.kind == "note" and op.outcome == "ok" and op.tries == 1}
    for subscriber in sorted({told.subscriber for told in history.told}):
        heard = [told for told in history.told if told.subscriber == subscriber]
        yield from _listener(subscriber, heard, final, sure, alone)


def _listener(
    subscriber: str, heard: list[Told], final: dict[str, Held], sure: set[str], alone: set[str]
) -> Iterator[str]:  # fmt: skip
    last: dict[str, Told] = {}
    times: Counter[tuple[str, str, str]] = Counter()
    for told in heard:
        last[told.id] = told
        times[told.id, told.kind, told.version] += 1
    for (id, kind, version), count in times.items():
        if count > 1:
            yield f"{subscriber} was told {count} times that {id} was {kind} at {version[:24]}"
    total = Counter(told.id for told in heard)
    for id in alone & total.keys():
        if total[id] > 1:
            yield f"{subscriber} was told {total[id]} times of {id}, which was stored once and left alone"
    for id, held in final.items():
        if id not in last:
            yield f"{subscriber} was never told of {id} ({held.content})"
        elif last[id].kind == "deleted" or last[id].content != held.content:
            yield f"{subscriber} was last told {last[id].kind} {last[id].content!r} of {id}, there is {held.content!r}"
    for id, told in last.items():
        if id not in final and told.kind != "deleted" and told.content in sure:
            yield f"{subscriber} was not told that {id} ({told.content}) was deleted"
