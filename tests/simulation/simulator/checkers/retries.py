"""A node that has an operation's change does not apply the operation again when it is retried there: neither where its
vector has the change, nor where only the memory has, ahead of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crdt_spine.core.causality import Vector
from crdt_spine.core.messages import Change
from simulator.checkers import Checker

if TYPE_CHECKING:
    from simulator.node import Node


class Retries(Checker):
    """Knows which dots carry which operation."""

    def __init__(self) -> None:
        self.dots: dict[str, set[tuple[int, str, int]]] = {}

    def coordinated(self, node, partition, dot, change, past) -> None:  # type: ignore[no-untyped-def]
        if change.strong is not None:
            return  # done again where what was done before is dead: `Linearizable` knows
        nothing = Change(id=change.id, time=change.time, agent=change.agent, operation=change.operation)
        for number, actor, n in self.dots.get(change.operation, set()):
            lost = self.cluster.history.changes.get((number, actor, n))
            known = lost is not None and lost.operation == change.operation
            if known and (actor, n) != dot and self._is_here(node, partition, actor, n, past) and change != nothing:
                self.fail(f"{node.name} applies {change.operation} again as {dot}, though it has ({actor}, {n})")
        self.dots.setdefault(change.operation, set()).add((partition, *dot))

    def _is_here(self, node: Node, partition: int, actor: str, n: int, past: Vector) -> bool:
        """Has a node a change, so that it can know the operation? What no replica that counts has by its vector was
        lost with a disk, or is refused: a memory may have it all the same, but nobody can say what else is in it."""
        if n > past.get(actor, 0):
            return False
        away = {*node.replica.dead, *filter(node.replica.retirement.is_away, self.cluster.nodes)}
        replicas = [one.replica for name, one in self.cluster.nodes.items() if one.life and name not in away]
        return any(
            n <= replica.partitions[partition].vector.get(actor, 0)
            for replica in replicas
            if partition in replica.partitions
        )
