"""A memory that was deleted stays deleted, wherever the deletion is known, unless it was stored again at a later
time."""

from __future__ import annotations

from simulator.checkers import Checker


class Resurrection(Checker):
    """Looks for the last store or delete that the replica has, by stamp."""

    def looked(self, where, id, record, changes) -> None:  # type: ignore[no-untyped-def]
        if record is None or not record.alive:
            return
        last = next((made for made in reversed(changes) if made.change.alive is not None), None)
        if last is not None and not last.change.alive:
            self.fail(f"{id} lives on {where}, which has its deletion ({last.actor}, {last.n}):\n    {record}")
