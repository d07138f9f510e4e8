"""Who holds which partition, for the whole cluster: one value that is always consistent, as an entry of JetStream's KV.

Nodes read it when they start and look at it now and then; what they say to have confirmed is on their disks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from crdt_spine.core.membership import Member, Membership, Settings, founded, from_json, to_json


class Register:
    """`confirmed` maps a node to the newest epoch that it has adopted and has on its disk."""

    def __init__(self, replicas: Mapping[int, Iterable[str]], nodes: Iterable[str], factor: int) -> None:
        settings = Settings(partitions=len(replicas), factor=factor)
        self.membership = founded(replicas, {name: Member() for name in nodes}, settings)
        self.confirmed: dict[str, int] = {}

    def move(self, membership: Membership) -> bool:
        """The next step, by compare-and-set. False: somebody else was quicker."""
        if membership.epoch != self.membership.epoch + 1:
            return False
        self.membership = from_json(to_json(membership))
        return True

    def confirm(self, node: str, epoch: int) -> None:
        self.confirmed[node] = max(epoch, self.confirmed.get(node, 0))

    @property
    def settled(self) -> bool:
        """Is no change under way, and has everybody heard of the last one?"""
        return self.membership.change is None and not self.membership.unconfirmed(self.confirmed)

    def members(self, number: int) -> list[str]:
        """Who answers for a partition."""
        return [*self.membership.replicas()[number]]

    def holders(self, number: int) -> list[str]:
        """Who has a copy of a partition that must be complete in the end."""
        return [
            name
            for name, seat in self.membership.seats[number].items()
            if seat.stage in ("member", "leaving") and name not in self.membership.dead
        ]
