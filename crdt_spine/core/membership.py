"""Who holds which partition: a register that moves in steps, so that replicas come and go while agents write.

The register is one value with an epoch, changed by compare-and-set where consensus is; nodes hear of it late, keep it
on their disks, and confirm its epoch after that. Whoever drives a change (an operator's command) has no state of its
own: the register says which step is to come, so anybody can go on with a change that was interrupted.

- Joining. *named*: the others send the newcomer their deltas and keep their tombstones for it. Once all have confirmed
  that, *pulling*: it asks for since(nothing), and counts for no quorum. Once it has what there was when all had
  confirmed that, *member*.
- Leaving. *leaving*: it takes no more writes and counts for no quorum. Once all have confirmed that, and enough others
  have everything that it had then, it is dropped. Once all have confirmed that, nobody waits for it any more.

One change at a time. docs/decisions/0020-membership-steps.md says what goes wrong without each of the steps.
Ongaro, "Consensus: bridging theory and practice" (2014), chapter 4: one server at a time, learners first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from crdt_spine.core.causality import Vector, join_into, within

Stage = Literal["named", "pulling", "member", "leaving"]


class Seat(msgspec.Struct, frozen=True):
    """A node's place in a partition; `since` is the epoch that named it. A node that knows an older seat of its own was
    dropped in between: what it has of the partition is of no use any more."""

    stage: Stage
    since: int


class Membership(msgspec.Struct, frozen=True):
    """The register: partition -> node -> seat."""

    epoch: int
    seats: dict[int, dict[str, Seat]]

    def peers_of(self, node: str) -> dict[int, tuple[str, ...]]:
        """The partitions that a node holds, each with the other nodes that have a seat in it."""
        return {
            number: tuple(sorted(seats.keys() - {node}))
            for number, seats in self.seats.items()
            if node in seats and seats[node].stage != "named"
        }

    def muted(self) -> dict[int, frozenset[str]]:
        """The nodes that count for no quorum, by partition."""
        return {
            number: frozenset(node for node, seat in seats.items() if seat.stage != "member")
            for number, seats in self.seats.items()
        }

    def stage(self, number: int, node: str) -> Stage | None:
        """How far a node is with a partition; None: it has nothing to do with it."""
        seat = self.seats.get(number, {}).get(node)
        return None if seat is None else seat.stage

    @property
    def nodes(self) -> frozenset[str]:
        """Who has a seat in any partition."""
        return frozenset(node for seats in self.seats.values() for node in seats)

    @property
    def change(self) -> tuple[int, str, Stage] | None:
        """The change under way: partition, node, and the stage that the node is at."""
        for number, seats in self.seats.items():
            for node, seat in seats.items():
                if seat.stage != "member":
                    return number, node, seat.stage
        return None

    def counted(self, node: str, epoch: int, vectors: Mapping[int, Vector]) -> dict[int, Vector]:
        """Of an announcement's vectors those that are of the node's seat of now: who was dropped and is named again has
        forgotten what it said before it knew (`epoch` is the one that it had adopted)."""
        return {
            number: vector
            for number, vector in vectors.items()
            if (seat := self.seats.get(number, {}).get(node)) is not None and seat.since <= epoch
        }

    def unconfirmed(self, confirmed: Mapping[str, int]) -> list[str]:
        """Who has not confirmed this epoch. While there is any, no step follows."""
        return sorted(node for node in self.nodes if confirmed.get(node, 0) < self.epoch)


def founded(replicas: Mapping[int, Iterable[str]]) -> Membership:
    """The register of a cluster that begins with these replicas."""
    return Membership(1, {number: {node: Seat("member", 1) for node in nodes} for number, nodes in replicas.items()})


def joining(membership: Membership, number: int, node: str) -> Membership:
    """The first step of a node's joining a partition. Raises ValueError: it has a seat there, or a change is under
    way."""
    if membership.change is not None or node in membership.seats[number]:
        raise ValueError(f"{node} can't join partition {number} of {membership}")
    return _seated(membership, number, node, Seat("named", membership.epoch + 1))


def leaving(membership: Membership, number: int, node: str) -> Membership:
    """The first step of a node's leaving a partition. Raises ValueError: it is no member, or a change is under way."""
    if membership.change is not None or membership.stage(number, node) != "member":
        raise ValueError(f"{node} can't leave partition {number} of {membership}")
    return _seated(membership, number, node, Seat("leaving", membership.seats[number][node].since))


def goal(membership: Membership, durable: Mapping[str, Vector]) -> Vector:
    """What must have moved before the change's next step, as of now: to the newcomer what its peers have, to the
    others what the leaver has. `durable` has the partition's vectors by node, asked for once all have confirmed the
    epoch. A goal that was forgotten is set anew."""
    assert membership.change is not None
    number, node, stage = membership.change
    everything: Vector = {}
    for source in membership.seats[number]:
        if (source == node) == (stage == "leaving"):
            join_into(everything, durable[source])
    return everything


def advance(
    membership: Membership, confirmed: Mapping[str, int], wanted: Vector, durable: Mapping[str, Vector], enough: int
) -> Membership | None:
    """The next step of the change under way, or None: it is to be waited for. `confirmed` has each node's epoch,
    `wanted` is the goal, `durable` has the partition's vectors by node, as far as they are known; a leaver's changes
    must be on `enough` others."""
    assert membership.change is not None
    number, node, stage = membership.change
    if membership.unconfirmed(confirmed):
        return None
    if stage == "named":
        return _seated(membership, number, node, Seat("pulling", membership.seats[number][node].since))
    seats = membership.seats[number]
    having = {replica for replica, vector in durable.items() if replica in seats and within(wanted, vector)}
    if stage == "pulling":
        seat = Seat("member", seats[node].since)
        return _seated(membership, number, node, seat) if node in having else None
    return _seated(membership, number, node, None) if len(having - {node}) >= enough else None


def _seated(membership: Membership, number: int, node: str, seat: Seat | None) -> Membership:
    seats = {other: there for other, there in membership.seats[number].items() if other != node}
    if seat is not None:
        seats[node] = seat
    return Membership(membership.epoch + 1, {**membership.seats, number: seats})
