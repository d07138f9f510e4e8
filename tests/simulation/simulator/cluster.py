"""The simulated cluster: nodes, network, history, and the checkers that watch all of it."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.checkers import Checker
from simulator.history import History
from simulator.network import Network
from simulator.node import Node
from simulator.world import Violation, World

PARTITIONS = 2


class Cluster:
    """Every node holds every partition. `without` names a rule that is taken away (rules.py)."""

    def __init__(
        self, world: World, network: Network, skews: Sequence[int], write_quorum: int, checkers: Sequence[Checker],
        without: str | None = None,
    ) -> None:  # fmt: skip
        self.world = world
        self.network = network
        self.write_quorum = write_quorum
        self.without = without
        self.announce_milliseconds = world.random.choice([200, 1_000])
        self.history = History()
        self.checkers = checkers
        self._incarnations = self._tickets = 0
        self.names = [f"n{index}" for index in range(len(skews))]
        self.nodes: dict[str, Node] = {}
        for checker in checkers:
            checker.cluster = self
        for name, skew in zip(self.names, skews, strict=True):
            self.nodes[name] = Node(self, name, skew)

    def check(self, what: str, *about: object) -> None:
        """Let every checker see that something happened."""
        for checker in self.checkers:
            getattr(checker, what)(*about)

    def partition_of(self, id: str) -> int:
        return int(id[1:]) % PARTITIONS

    def peers_of(self, name: str) -> dict[int, tuple[str, ...]]:
        return {number: tuple(n for n in self.names if n != name) for number in range(PARTITIONS)}

    def new_incarnation(self) -> int:
        self._incarnations += 1
        return self._incarnations

    def new_ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def settled(self) -> bool:
        """Has every node the same, nothing under way?"""
        nodes = list(self.nodes.values())
        vectors = [[p.vector for p in node.replica.partitions.values()] for node in nodes]
        return all(node.serving and not node.repair.syncs for node in nodes) and all(v == vectors[0] for v in vectors)


__all__ = ["PARTITIONS", "Cluster", "Violation"]
