"""At every moment a replica's memory is exactly what the changes that it has add up to (history.py), whatever order
they came in: content, importance, expiry and metadata by the greatest stamp, tags, what is fixed at birth, and the
version."""

from __future__ import annotations

from simulator.checkers import Checker
from simulator.history import Seen, seen


class Meaning(Checker):
    """Looks at every record that a turn touched, and at all of them after a start and in the end."""

    def looked(self, where, id, record, changes) -> None:  # type: ignore[no-untyped-def]
        is_there, should_be = seen(record), self.cluster.history.memory(id, changes)
        if is_there == should_be:
            return
        if should_be is None:
            self.fail(f"{id} lives on {where} but should not be there:\n    {record}")
        if is_there is None:
            self.fail(f"{id} is not there on {where} but should be:\n    {should_be}\n  instead of\n    {record}")
        differing = [name for name in Seen._fields if getattr(is_there, name) != getattr(should_be, name)]
        self.fail(
            f"{id} on {where} differs in {', '.join(differing)}:\n    is        {is_there}\n    should be {should_be}"
        )
