"""After healing all replicas are equal: the same vectors, and the living records byte for byte."""

from __future__ import annotations

from crdt_spine.core import codec
from simulator.checkers import Checker


class Convergence(Checker):
    """Compares every node with the first."""

    def healed(self) -> None:
        first, *others = self.cluster.nodes.values()
        for node in others:
            for number, partition in node.replica.partitions.items():
                mine = first.replica.partitions[number].vector
                if partition.vector != mine:
                    self.fail(f"partition {number}: {first.name} has {mine}, {node.name} has {partition.vector}")
                one, two = self._living(first, number), self._living(node, number)
                for id in sorted(one.keys() | two.keys()):
                    if one.get(id) != two.get(id):
                        self.fail(
                            f"{id} on {first.name}:\n    {first.store.get(id)}\n  on {node.name}:\n"
                            f"    {node.store.get(id)}"
                        )
                if partition.memories != len(two):
                    self.fail(f"{node.name} counts {partition.memories} memories in {number}, there are {len(two)}")

    @staticmethod
    def _living(node, number: int) -> dict[str, bytes]:  # type: ignore[no-untyped-def]
        records = node.store.partitions.get(number, {})
        return {id: codec.to_bytes(record) for id, record in records.items() if record.alive}
