"""Which nodes hold which partition: from the cluster's description, the same answer for every node and agent."""

from __future__ import annotations

from crdt_spine.core.messages import Hello
from crdt_spine.core.placement import balanced, partition_of, replicas_of
from crdt_spine.core.ring import ConsistentHashRing


class Layout:
    """`replicas` maps each partition to its nodes, the preferred coordinator first."""

    def __init__(self, hello: Hello) -> None:
        self.partitions = hello.partitions
        names = [node.id for node in hello.nodes]
        zones = {node.id: node.zone for node in hello.nodes}
        ring = ConsistentHashRing(names)
        factor = min(hello.factor, len(names))
        self.replicas: dict[int, tuple[str, ...]] = balanced(
            {number: replicas_of(number, ring, factor, zones) for number in range(hello.partitions)}
        )

    def partition_of(self, id: str) -> int:
        """The partition of a memory."""
        return partition_of(id, self.partitions)
