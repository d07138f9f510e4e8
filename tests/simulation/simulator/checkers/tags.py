"""The tags are an observed-remove set: what is there was added, and no remove that had seen that add is here.

The specification is pure: it knows agents' adds and removes and what the coordinator of each remove had, not the dots
that a change names. Shapiro et al., "A comprehensive study of convergent and commutative replicated data types"
(2011), 3.3.5; Burckhardt et al., "Replicated data types: specification, verification, optimality" (2014).
"""

from __future__ import annotations

from simulator.checkers import Checker


class Tags(Checker):
    """Remembers which adds each remove has seen."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int, str, str], frozenset[tuple[str, int]]] = {}  # (actor, n, id, tag) -> adds

    def coordinated(self, node, partition, dot, change, past) -> None:  # type: ignore[no-untyped-def]
        for tag in change.remove.keys() - set(change.add):
            self.seen[*dot, change.id, tag] = frozenset(
                (made.actor, made.n)
                for made in self.cluster.history.made[change.id]
                if tag in made.change.add and made.n <= past.get(made.actor, 0)
            )

    def looked(self, where, id, record, changes) -> None:  # type: ignore[no-untyped-def]
        if record is None or not record.alive:
            return
        born = max(index for index, made in enumerate(changes) if made.change.alive is not None)
        removed = {
            (tag, add)
            for _, actor, n, change in changes
            for tag in change.remove
            for add in self.seen.get((actor, n, id, tag), ())
        }
        should_be = {
            tag
            for _, actor, n, change in changes[born:]
            for tag in change.add
            if (tag, (actor, n)) not in removed
        }  # fmt: skip
        if record.tags.keys() != should_be:
            self.fail(f"{id} on {where} has the tags {sorted(record.tags)}, it should have {sorted(should_be)}")
