"""In the end all replicas of a partition are equal, byte for byte, and everything works again."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.history import History


def convergence(history: History) -> Iterator[str]:
    """As each node says it, asked alone."""
    if history.end is None:
        yield "the run has no end"
        return
    yield from history.end.problems
    found: dict[tuple[str, int], dict[str, str]] = {}
    for held in history.held:
        found.setdefault((held.node, held.partition), {})[held.id] = held.all
    for number, nodes in history.end.holders.items():
        first, *others = nodes
        mine = found.get((first, number), {})
        for other in others:
            theirs = found.get((other, number), {})
            for id in sorted(mine.keys() | theirs.keys()):
                if mine.get(id) != theirs.get(id):
                    yield f"{id}: {first} has {mine.get(id)}, {other} has {theirs.get(id)}"
