"""Nothing leaves a node before it is on the node's disk: no delta, no acknowledgement, no announcement, no page."""

from __future__ import annotations

from collections import defaultdict

from crdt_spine.core.causality import join, within
from simulator.checkers import Checker


class Publishing(Checker):
    """Keeps what every disk has, and compares what is sent with it."""

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

    def rolled_back(self, node) -> None:  # type: ignore[no-untyped-def]
        for number in range(self.cluster.partitions):
            self.dropped(node, number)

    def dropped(self, node, partition) -> None:  # type: ignore[no-untyped-def]
        self.disks.pop((node.name, partition), None)

    def restarted(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        self._grow(node, vectors)

    def sent(self, node, kind, vectors) -> None:  # type: ignore[no-untyped-def]
        for number, vector in vectors.items():
            disk = self.disks[node.name, number]
            if vector != disk and not within(vector, disk):
                self.fail(f"{node.name} sends a {kind} of {vector}, its disk has {self.disks[node.name, number]}")
