"""Monotonic reads where nothing is overwritten: with its token a session is shown again what it was shown, or wrote, as
long as nobody deletes it. An entry of a thread stays in the thread, a memory stays there and is found.

Terry et al., "Session guarantees for weakly consistent replicated data" (1994). `sessions` looks at what replaces what.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from chaos.checkers.sessions import PAGE
from chaos.history import History, Op
from chaos.writes import told


def monotonic(history: History) -> Iterator[str]:
    """Looks at reads of threads, and at gets and queries of memories that may be deleted."""
    deleted: defaultdict[str, float] = defaultdict(lambda: math.inf)  # id -> since when it may be gone
    for op in history.ops:
        if op.do == "delete" and op.outcome != "not applied":
            deleted[op.id] = min(deleted[op.id], op.call)
    known: defaultdict[tuple[str, str], dict[str, Op]] = defaultdict(dict)  # (session, thread or kind) -> what, by whom
    for op in history.ops:
        if op.outcome != "ok":
            continue
        if op.kind == "thread":
            yield from _judge(op, known[op.session, op.id], {op.value} if op.writes else set(op.shown))
        elif op.kind == "doomed" and op.do in ("store", "get", "query"):
            mine = {id: one for id, one in known[op.session, op.kind].items() if op.back < deleted[id]}
            if op.do == "get":
                mine = {id: one for id, one in mine.items() if id == op.id}
            shown = set(op.shown) if op.do == "query" else {op.id} if op.writes or op.found else set()
            yield from _judge(op, mine, shown)
            known[op.session, op.kind] |= dict.fromkeys(shown, op)


def _judge(op: Op, known: dict[str, Op], shown: set[str]) -> Iterator[str]:
    """A read shows what is known; then what it shows, or a write has written, is known as well."""
    if op.with_token and not op.writes and len(op.shown) < PAGE:
        for one in sorted(known.keys() - shown):
            yield f"{told(op)} does not show {one}, which its session knew by {told(known[one])}"
    known |= dict.fromkeys(shown, op)
