"""What was deleted, and never stored again, does not live: not in the end, and not for who has seen that it is gone."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.history import History
from chaos.writes import promised, told


def resurrection(history: History) -> Iterator[str]:
    """Of a session counts what it asked with its token."""
    final = history.final()
    gone: dict[tuple[str, str], str] = {}  # (session, id) -> how it knows
    lived: set[tuple[str, str]] = set()
    for op in history.ops:
        if op.kind != "doomed" or op.outcome != "ok":
            continue
        key = (op.session, op.id)
        if op.do == "delete" and op.found:
            if promised(op, history) and op.id in final:
                yield f"lives in the end though it was deleted: {told(op)}"
            gone[key] = told(op)
        elif op.do in ("store", "update"):
            lived.add(key)
            if op.do == "update" and op.with_token and key in gone:
                yield f"{told(op)} found it alive, after {gone[key]}"
        elif op.do == "get" and op.found:
            lived.add(key)
            if op.with_token and key in gone:
                yield f"{told(op)} shows it, after {gone[key]}"
        elif op.do == "get" and op.with_token and key in lived:
            gone.setdefault(key, f"{told(op)} had shown none")
        elif op.do == "query":
            lived.update((op.session, id) for id in op.shown)
            if op.with_token:
                for id in op.shown:
                    if (op.session, id) in gone:
                        yield f"{told(op)} shows {id}, after {gone[op.session, id]}"
