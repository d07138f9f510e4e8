"""What a replica keeps for later is bounded, however bad things are; and no clock runs away with another's.

A clock that follows one far ahead would stamp its own changes ahead, and so on through the cluster (rule 10).
"""

from __future__ import annotations

from crdt_spine.core import replica as replicas
from crdt_spine.core.clock import COUNTER_BITS
from simulator.checkers import Checker


class Bounds(Checker):
    """Looks after every turn."""

    def persisted(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        replica = node.replica
        held = sum(partition.waiting_changes for partition in replica.partitions.values())
        if held > replicas.WAITING_CHANGES_MAX:
            self.fail(f"{node.name} holds {held} changes back")
        ahead = (replica.clock.highest >> COUNTER_BITS) - node.latest
        if ahead > replica.drift + 1:
            self.fail(f"the clock of {node.name} is {ahead} ms ahead of any time that it was there")
