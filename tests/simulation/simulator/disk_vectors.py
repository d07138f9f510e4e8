"""What every node has on its disk, by what it has told of: for checkers that hold something else against it."""

from __future__ import annotations

from collections import defaultdict

from crdt_spine.core.causality import join
from simulator.checkers import Checker


class DiskVectors(Checker):
    """`disks` maps node and partition to a vector."""

    def __init__(self) -> None:
        self.disks: defaultdict[tuple[str, int], dict[str, int]] = defaultdict(dict)

    def persisted(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        self._grow(node, turn.vectors)

    def checkpointed(self, node, checkpoint) -> None:  # type: ignore[no-untyped-def]
        self._grow(node, checkpoint.vectors)

    def _grow(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        for number, vector in vectors.items():
            if self.disks[node.name, number] != vector:
                self.disks[node.name, number] = join(self.disks[node.name, number], vector)

    def dropped(self, node, partition) -> None:  # type: ignore[no-untyped-def]
        self.disks.pop((node.name, partition), None)
