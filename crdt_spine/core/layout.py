"""Which nodes hold which partition: from the cluster's description, the same answer for every node and agent."""

from __future__ import annotations

from crdt_spine.core.messages import Hello
from crdt_spine.core.placement import balanced, partition_of, placed


class Layout:
    """`replicas` maps each partition to its nodes, the preferred coordinator first: who answers for it by the cluster's
    register, or where it begins, if the cluster has none yet."""

    def __init__(self, hello: Hello) -> None:
        self.partitions = hello.partitions
        replicas = {number: list(nodes) for number, nodes in hello.replicas.items()}
        if not replicas:
            names = [node.id for node in hello.nodes]
            zones = {node.id: node.zone for node in hello.nodes}
            replicas = placed(hello.partitions, names, hello.factor, zones)
        reluctant = frozenset(node.id for node in hello.nodes if node.role == "replica")
        self.replicas: dict[int, tuple[str, ...]] = balanced(replicas, reluctant)

    def partition_of(self, id: str) -> int:
        """The partition of a memory."""
        return partition_of(id, self.partitions)
