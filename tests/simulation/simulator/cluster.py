"""The simulated cluster: nodes, network, history, and the checkers that watch all of it."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.checkers import Checker
from simulator.history import History
from simulator.network import Network
from simulator.node import Node
from simulator.world import World

PARTITIONS = 2


class Cluster:
    """Every node holds every partition. `without` names a rule that is taken away (rules.py)."""

    def __init__(
        self,
        world: World,
        network: Network,
        skews: Sequence[int],
        announce_milliseconds: int,
        checkers: Sequence[Checker],
        without: str | None = None,
    ) -> None:
        self.world = world
        self.network = network
        self.write_quorum = min(2, len(skews))
        self.without = without
        self.announce_milliseconds = announce_milliseconds
        self.history = History()
        self.checkers = [self.history, *checkers]
        self._incarnations = self._tickets = 0
        self.names = [f"n{index}" for index in range(len(skews))]
        self.nodes: dict[str, Node] = {}
        for checker in self.checkers:
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
