"""An operator who lets nodes join partitions, and leave them, while everything else goes on.

It has no state but what the register says, and is interrupted now and then: whoever goes on finds the step to be done.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from crdt_spine.core import membership as memberships
from crdt_spine.core.causality import Vector

if TYPE_CHECKING:
    from simulator.cluster import Cluster

REPLICAS_MIN = 3
REPLICAS_MAX = 5
INTERRUPTION = 0.1  # the chance that an operator stops looking before the step is done


class Operator:
    """Until `over`, a change now and then. `counts` says what it was."""

    def __init__(self, cluster: Cluster, pause_max: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.pause_max = pause_max  # milliseconds; 0: it does nothing
        self.over = False
        self.counts: Counter[str] = Counter()
        self._wanted: Vector | None = None
        if pause_max:
            self._pause()

    def _pause(self) -> None:
        self.world.after(self.world.between(1, self.pause_max), self._look)

    def _look(self) -> None:
        if self.cluster.register.membership.change is not None:
            self._advance()
        elif self.cluster.register.settled and not self.over:
            self._begin()
        if self.over:
            self.world.after(100, self._look)
        else:
            self._pause()

    def _begin(self) -> None:
        chance, register = self.world.random, self.cluster.register
        number = chance.randrange(self.cluster.partitions)
        there = register.members(number)
        away = [name for name in self.cluster.names if name not in there]
        join = len(there) <= REPLICAS_MIN or (bool(away) and len(there) < REPLICAS_MAX and chance.random() < 0.5)
        if join and not away:
            return
        node = chance.choice(away if join else there)
        step = memberships.joining if join else memberships.leaving
        kind = "joins" if join else "leaves"
        self._move(kind, step(register.membership, number, node), node, f"{node} {kind} partition {number}")

    def _advance(self) -> None:
        register = self.cluster.register
        change = register.membership.change
        assert change is not None
        number, node, stage = change
        if self.world.random.random() < INTERRUPTION:
            self.counts["interrupted"] += 1
            self._wanted = None
            return
        confirmed = register.confirmed
        if self.cluster.without == "joined-first" and stage == "named":
            confirmed = dict.fromkeys(register.membership.nodes, register.membership.epoch)
        if register.membership.unconfirmed(confirmed):
            return
        known = self._durable(number)
        if self._wanted is None:
            if stage == "named":
                self._wanted = {}
            elif known.keys() >= register.membership.seats[number].keys():
                self._wanted = memberships.goal(register.membership, known)
            return
        if self.cluster.without == "handed-over" and stage == "leaving":
            self._wanted = {}
        step = memberships.advance(register.membership, confirmed, self._wanted, known, self.cluster.write_quorum)
        if step is not None:
            kind = step.stage(number, node) or "dropped"
            self._move(kind, step, node, f"{node} is {kind} in partition {number}")

    def _move(self, kind: str, step: memberships.Membership, name: str, what: str) -> None:
        self._wanted = None
        self.cluster.register.move(step)
        self.counts[kind] += 1
        self.world.tell("operator", f"{what} from epoch {step.epoch} on")
        node = self.cluster.nodes[name]
        if not node.life:
            node.boot()
        elif node.running:
            node.later(1, node.look_at_register)  # who is concerned knows first

    def _durable(self, number: int) -> dict[str, Vector]:
        """The vectors of those who answer."""
        return {
            name: node.replica.durable[number]
            for name, node in self.cluster.nodes.items()
            if node.running and node.stopped is None and number in node.replica.durable
        }
