"""Nothing leaves a node before it is on the node's disk: no delta, no acknowledgement, no announcement, no page."""

from __future__ import annotations

from crdt_spine.core.causality import within
from simulator.disk_vectors import DiskVectors


class Publishing(DiskVectors):
    """Keeps what every disk has, and compares what is sent with it."""

    def rolled_back(self, node) -> None:  # type: ignore[no-untyped-def]
        for number in range(self.cluster.partitions):
            self.dropped(node, number)

    def restarted(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        self._grow(node, vectors)

    def sent(self, node, kind, vectors) -> None:  # type: ignore[no-untyped-def]
        for number, vector in vectors.items():
            disk = self.disks[node.name, number]
            if vector != disk and not within(vector, disk):
                self.fail(f"{node.name} sends a {kind} of {vector}, its disk has {self.disks[node.name, number]}")
