"""A node that has an operation's change does not apply the operation again when it is retried there: neither where its
vector has the change, nor where only the memory has, ahead of that."""

from __future__ import annotations

from crdt_spine.core.messages import Change
from crdt_spine.core.replica import node_of
from simulator.checkers import Checker


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
            if node_of(actor)[1] in node.replica.dead:
                continue  # which operations are in what it alone had, nobody can say
            if known and (actor, n) != dot and n <= past.get(actor, 0) and change != nothing:
                self.fail(f"{node.name} applies {change.operation} again as {dot}, though it has ({actor}, {n})")
        self.dots.setdefault(change.operation, set()).add((partition, *dot))
