"""A node that has an operation's change does not apply the operation again when it is retried there."""

from __future__ import annotations

from simulator.checkers import Checker


class Retries(Checker):
    """Knows which dots carry which operation."""

    def __init__(self) -> None:
        self.dots: dict[str, set[tuple[int, str, int]]] = {}

    def coordinated(self, node, partition, dot, change, past) -> None:  # type: ignore[no-untyped-def]
        if change.strong is not None:
            return  # done again where what was done before is dead: `Linearizable` knows
        vector = node.replica.partitions[partition].vector
        for number, actor, n in self.dots.get(change.operation, set()):
            lost = self.cluster.history.changes.get((number, actor, n))
            known = lost is not None and lost.operation == change.operation
            if known and (actor, n) != dot and n <= vector.get(actor, 0):
                self.fail(f"{node.name} applies {change.operation} again as {dot}, though it has ({actor}, {n})")
        self.dots.setdefault(change.operation, set()).add((partition, *dot))
