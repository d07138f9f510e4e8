"""At which level an operation is done that nobody gave one: its memory's tags are known here (core/levels.py)."""

from __future__ import annotations

import msgspec

from crdt_spine.core.levels import Demand, Overrides, stricter
from crdt_spine.core.messages import Delete, Edit, EditDocument, Get, GetDocument, Result, Store
from crdt_spine.core.record import Record
from crdt_spine.node.answers import Answers

Leveled = Get | GetDocument | Store | Edit | EditDocument | Delete


class Levels:
    """Reads (reads.py) and writes (coordinator.py) ask it first. `overrides` are the cluster's."""

    def __init__(self, overrides: Overrides, answers: Answers) -> None:
        self.overrides = overrides
        self.answers = answers

    def demand(self, operation: Leveled, record: Record | None) -> Demand:
        """The level of an operation that nobody gave one, by its own tags and those that its memory has here."""
        own = operation.tags if isinstance(operation, Store) else operation.add if isinstance(operation, Edit) else ()
        tags = record.tags if record is not None and record.alive else ()
        return self.overrides.demand(own, tags) or Demand(operation.default, "")

    def more_is_demanded(self, inbox: str, operation: Leveled, demand: Demand) -> bool:
        """Was it sent at a level that promises less? Then it is to come again at the other one."""
        if operation.level is None or not stricter(demand.level, operation.level):
            return False
        result = Result(i=operation.i, error="Level", level=demand.level, because=demand.tag, outcome="not applied")
        self.answers.add(inbox, result)
        return True


def told(result: Result, demand: Demand | None) -> Result:
    """The result, with the override that was in force, if any was."""
    if demand is None or not demand.tag:
        return result
    return msgspec.structs.replace(result, level=demand.level, because=demand.tag)
