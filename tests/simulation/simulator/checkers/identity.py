"""A dot means one change: none is given twice once anybody can have it."""

from __future__ import annotations

from collections import defaultdict

from simulator.checkers import Checker


class Identity(Checker):
    """A dot that is on any disk is not given again. What was on one disk alone may go with it."""

    def __init__(self) -> None:
        self.disks: defaultdict[str, dict[tuple[int, str], int]] = defaultdict(dict)  # (partition, actor) -> last dot

    def persisted(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        self._grow(node, turn.vectors)

    def checkpointed(self, node, checkpoint) -> None:  # type: ignore[no-untyped-def]
        self._grow(node, checkpoint.vectors)

    def restarted(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        self._grow(node, vectors)

    def rolled_back(self, node) -> None:  # type: ignore[no-untyped-def]
        del self.disks[node.name]

    def dropped(self, node, partition) -> None:  # type: ignore[no-untyped-def]
        for key in [key for key in self.disks[node.name] if key[0] == partition]:
            del self.disks[node.name][key]

    def _grow(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        disk = self.disks[node.name]
        for number, vector in vectors.items():
            for actor, n in vector.items():
                disk[number, actor] = max(n, disk.get((number, actor), 0))

    def coordinated(self, node, partition, dot, change, past) -> None:  # type: ignore[no-untyped-def]
        actor, n = dot
        for name, disk in self.disks.items():
            if n <= disk.get((partition, actor), 0):
                self.fail(f"{node.name} gives the dot ({actor}, {n}) of partition {partition} again; {name} has it")
