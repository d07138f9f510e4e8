"""A thread that is read has no answer before its question, and no hole: the simulator's checker, told of what was
recorded. Entries go by their contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

from simulator.checkers.threads import Threads
from simulator.world import Violation

from chaos.history import History, Op
from chaos.writes import told


def threads(history: History) -> Iterator[str]:
    """A session is an agent of the simulator's."""
    checker = Threads()
    checker.cluster = SimpleNamespace(counts=Counter())  # type: ignore[assignment]
    moments: list[tuple[float, int, Op]] = []
    for op in history.ops:
        if op.do == "append":
            moments.append((op.call, 0, op))
            if op.outcome == "ok":
                moments.append((op.back, 1, op))
        elif op.do == "read" and op.outcome == "ok":
            moments.append((op.back, 2, op))
    written = {op.value for op in history.ops if op.do == "append"}
    for _, what, op in sorted(moments, key=lambda moment: moment[:2]):
        session = SimpleNamespace(name=op.session)
        if what == 0:
            checker.appends(session, op.id, op.value)
        elif what == 1:
            checker.appended(session, op.id, op.value)
        else:
            try:
                checker.thread_read(session, op.id, [entry for entry in op.shown if entry in written])
            except Violation as violation:
                yield f"{told(op)}: {violation}"
