"""The operation ids that a node knows, so that a retry is answered and not applied again (rule 11).

Of every id the change that it became. The oldest ids go when there are too many. A sync brings the asker those of one
partition that it misses, so they are kept by partition as well: to look through all of them for each partition took a
node that gave 64 of them two seconds, in which it served nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from crdt_spine.core.causality import Vector
from crdt_spine.limits import OPERATIONS_REMEMBERED_MAX

Dot = tuple[str, int]


class Operations:
    """At most so many."""

    def __init__(self, most: int = OPERATIONS_REMEMBERED_MAX) -> None:
        self._most = most
        self._places: OrderedDict[str, int] = OrderedDict()  # id -> partition, in the order in which they became known
        self._dots: dict[int, dict[str, Dot]] = {}  # partition -> id -> the change

    def __len__(self) -> int:
        return len(self._places)

    def get(self, operation: str) -> tuple[int, str, int] | None:
        """The change that an operation became: partition, actor, n."""
        number = self._places.get(operation)
        return None if number is None else (number, *self._dots[number][operation])

    def put(self, operation: str, number: int, actor: str, n: int) -> None:
        """An operation became this change of a partition."""
        before = self._places.get(operation)
        if before is not None and before != number:
            del self._dots[before][operation]
        self._places[operation] = number
        dots = self._dots.get(number)
        if dots is None:
            dots = self._dots[number] = {}
        dots[operation] = actor, n
        if len(self._places) > self._most:
            oldest, place = self._places.popitem(last=False)
            del self._dots[place][oldest]

    def since(self, number: int, have: Vector) -> dict[str, Dot]:
        """Those of a partition's changes that a vector misses."""
        dots = self._dots.get(number, {})
        return {operation: (actor, n) for operation, (actor, n) in dots.items() if have.get(actor, 0) < n}

    def keep(self, numbers: Collection[int]) -> None:
        """Know those of these partitions alone."""
        for number in self._dots.keys() - set(numbers):
            for operation in self._dots.pop(number):
                del self._places[operation]
