"""A dot means one change: none is given twice once anybody can have it."""

from __future__ import annotations

from simulator.checkers import Checker


class Identity(Checker):
    """A dot that was on a disk is not given again, other than after that disk was rolled back unheard."""

    def __init__(self) -> None:
        self.last: dict[tuple[int, str], int] = {}  # (partition, actor) -> its last dot on any disk

    def persisted(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        for number, vector in turn.vectors.items():
            for actor, n in vector.items():
                self.last[number, actor] = max(n, self.last.get((number, actor), 0))

    def coordinated(self, node, partition, dot, change) -> None:  # type: ignore[no-untyped-def]
        actor, n = dot
        if n <= self.last.get((partition, actor), 0):
            self.fail(f"{node.name} gives the dot ({actor}, {n}) of partition {partition} a second time")
