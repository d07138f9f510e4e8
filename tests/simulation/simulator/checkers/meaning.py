"""At every moment a replica's memory is exactly what the changes that it has add up to (history.py).

That is the OR-set's promise (an add wins over a concurrent remove, a remove takes what it saw and nothing else), the
registers', and the floor's; and that nothing that was deleted comes back, whatever order things arrive in.
"""

from __future__ import annotations

from simulator.checkers import Checker
from simulator.history import Seen, seen


class Meaning(Checker):
    """Looks at every record that a turn touched, and at all of them in the end."""

    def settled(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        for id in sorted(set(turn.records)):
            self._look(node, id)

    def restarted(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        self._look_at_all(node)

    def healed(self) -> None:
        for node in self.cluster.nodes.values():
            self._look_at_all(node)

    def _look_at_all(self, node) -> None:  # type: ignore[no-untyped-def]
        for id in sorted(self.cluster.history.dots):
            self._look(node, id)

    def _look(self, node, id: str) -> None:  # type: ignore[no-untyped-def]
        record = node.store.get(id)
        vector = node.replica.partitions[self.cluster.partition_of(id)].vector
        version = {} if record is None else record.version

        def has(actor: str, n: int) -> bool:
            return n <= vector.get(actor, 0) or n <= version.get(actor, 0)

        is_there, should_be = seen(record), self.cluster.history.memory(id, has)
        if is_there == should_be:
            return
        if should_be is None:
            self.fail(f"{id} lives on {node.name} but was deleted:\n    {record}")
        if is_there is None:
            self.fail(f"{id} is not there on {node.name} but should be:\n    {should_be}\n  instead of\n    {record}")
        differing = [name for name in Seen._fields if getattr(is_there, name) != getattr(should_be, name)]
        self.fail(
            f"{id} on {node.name} differs in {', '.join(differing)}:\n"
            f"    is        {is_there}\n    should be {should_be}"
        )
