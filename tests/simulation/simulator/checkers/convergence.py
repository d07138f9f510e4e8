"""After healing all replicas are equal: the same vectors, and the living records byte for byte, as the tables keep them
and as sync pages carry them."""

from __future__ import annotations

from crdt_spine.core import codec
from simulator.checkers import Checker


class Convergence(Checker):
    """Compares every partition's replicas with the first of them."""

    def healed(self) -> None:
        for number in range(self.cluster.partitions):
            first, *others = self.cluster.holders(number)
            mine, one = first.replica.partitions[number].vector, self._living(first, number)
            for node in others:
                partition, two = node.replica.partitions[number], self._living(node, number)
                if partition.vector != mine:
                    self.fail(f"partition {number}: {first.name} has {mine}, {node.name} has {partition.vector}")
                for id in sorted(one.keys() | two.keys()):
                    if one.get(id) != two.get(id):
                        self.fail(
                            f"{id} on {first.name}:\n    {first.store.get(id)}\n  on {node.name}:\n"
                            f"    {node.store.get(id)}"
                        )
                if partition.memories != len(two):
                    self.fail(f"{node.name} counts {partition.memories} memories in {number}, there are {len(two)}")

    def _living(self, node, number: int) -> dict[str, tuple[bytes, bytes]]:  # type: ignore[no-untyped-def]
        living = {}
        for id, record in node.store.partitions.get(number, {}).items():
            if record.alive:
                state, page = codec.to_bytes(record), codec.to_json(record)
                if codec.from_bytes(id, state) != record or codec.from_json(id, page) != record:
                    self.fail(f"{id} on {node.name} is another one once it was written and read:\n    {record}")
                living[id] = state, bytes(page)
        return living
