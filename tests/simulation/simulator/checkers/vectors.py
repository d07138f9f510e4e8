"""What a node once said to have, it has for ever: across turns and restarts its vectors only grow."""

from __future__ import annotations

from collections import defaultdict

from crdt_spine.core.causality import join, within
from simulator.checkers import Checker


class Vectors(Checker):
    """A rolled-back disk is the one exception: its node begins anew."""

    def __init__(self) -> None:
        self.said: defaultdict[tuple[str, int], dict[str, int]] = defaultdict(dict)

    def rolled_back(self, node) -> None:  # type: ignore[no-untyped-def]
        for number in node.replica.partitions:
            del self.said[node.name, number]

    def sent(self, node, kind, vectors) -> None:  # type: ignore[no-untyped-def]
        for number, vector in vectors.items():
            if kind == "announcement" and not within(self.said[node.name, number], vector):
                self.fail(f"{node.name} said {self.said[node.name, number]} of partition {number}, now {vector}")
            self.said[node.name, number] = join(self.said[node.name, number], vector)

    def settled(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        self.restarted(node, {number: partition.vector for number, partition in node.replica.partitions.items()})

    def restarted(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        for number, vector in vectors.items():
            if not within(self.said[node.name, number], vector):
                self.fail(f"{node.name} said {self.said[node.name, number]} of partition {number}, has only {vector}")
