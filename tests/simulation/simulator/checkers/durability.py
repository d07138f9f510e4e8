"""No acknowledged write is lost: in the end every replica has every change that an agent was told is done."""

from __future__ import annotations

from simulator.checkers import Checker


class Durability(Checker):
    """Remembers acknowledgements; a write on a single replica may go with its disk."""

    def __init__(self) -> None:
        self.promised: list[tuple[str, int, tuple[str, int], int]] = []
        self.gone: set[str] = set()  # nodes whose disk was rolled back, or that were given up

    def acknowledged(self, agent, id, partition, dot, needed) -> None:  # type: ignore[no-untyped-def]
        self.promised.append((id, partition, dot, needed))

    def rolled_back(self, node) -> None:  # type: ignore[no-untyped-def]
        self.gone.add(node.name)

    def given_up(self, node) -> None:  # type: ignore[no-untyped-def]
        self.gone.add(node.name)

    def healed(self) -> None:
        for id, partition, (actor, n), needed in self.promised:
            for node in self.cluster.holders(partition):
                here = node.replica.partitions[partition].vector.get(actor, 0)
                if here < n and needed > len(self.gone):
                    self.fail(
                        f"the write ({actor}, {n}) of {id} was acknowledged, {node.name} has {actor} up to {here}"
                    )
