"""What a node once said to have, it has for ever: across turns and restarts its vectors only grow."""

from __future__ import annotations

from collections import defaultdict

from crdt_spine.core.causality import join, within
from simulator.checkers import Checker


class Vectors(Checker):
    """A node begins anew with a disk that was rolled back, and with a partition that it was given again."""

    def __init__(self) -> None:
        self.said: defaultdict[tuple[str, int], dict[str, int]] = defaultdict(dict)

    def rolled_back(self, node) -> None:  # type: ignore[no-untyped-def]
        for number in range(self.cluster.partitions):
            self.dropped(node, number)

    def dropped(self, node, partition) -> None:  # type: ignore[no-untyped-def]
        self.said.pop((node.name, partition), None)

    def sent(self, node, kind, vectors) -> None:  # type: ignore[no-untyped-def]
        for number, vector in vectors.items():
            if vector == self.said[node.name, number]:
                continue
            if kind == "announcement" and not within(self.said[node.name, number], vector):
                self.fail(f"{node.name} said {self.said[node.name, number]} of partition {number}, now {vector}")
            self.said[node.name, number] = join(self.said[node.name, number], vector)

    def settled(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        held = node.replica.partitions
        self.restarted(node, {number: held[number].vector for number in turn.vectors if number in held})

    def restarted(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        for number, vector in vectors.items():
            said = self.said[node.name, number]
            if said != vector and not within(said, vector):
                self.fail(f"{node.name} said {said} of partition {number}, has only {vector}")
