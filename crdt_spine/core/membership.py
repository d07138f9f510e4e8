"""Who belongs to the cluster and who holds which partition: the register's value.

It is one value with an epoch, changed by compare-and-set where consensus is; nodes hear of it late, keep it on their
disks, and confirm its epoch after that. What an operator may ask for is in membership_changes.py, how that is turned
back in membership_cancel.py, and how it is done step by step in membership_steps.py.
docs/decisions/0020-membership-steps.md says what each stage of a seat means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any, Literal

import msgspec

from crdt_spine.core.causality import Vector
from crdt_spine.core.rebalancing import Move

Stage = Literal["named", "pulling", "member", "leaving"]
Kind = Literal["add", "remove", "replace", "cancel"]


class Seat(msgspec.Struct, frozen=True, array_like=True):
    """A node's place in a partition; `since` is the epoch that named it. A node that knows an older seat of its own was
    dropped in between: what it has of the partition is of no use any more."""

    stage: Stage
    since: int


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node of the cluster; `host:port` is its HTTP listener. A replica coordinates nothing that a primary could."""

    host: str = ""
    port: int = 0
    zone: str | None = None
    role: Literal["primary", "replica"] = "primary"


def one_host(host: str) -> str:
    """A host in the one way to write it: names without regard to case and a final dot, addresses in their shortest
    form."""
    name = host.lower().rstrip(".")
    try:
        return ip_address(name).compressed
    except ValueError:
        return name


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for the whole cluster from its beginning: a config that says something else is not this cluster's.
    `cluster_id` is no config's: it was made at random, and tells clusters of the same name apart."""

    cluster: str = ""
    cluster_id: str = ""
    region: str = ""
    partitions: int
    factor: int
    write_quorum: int = 1
    read_quorum: int = 1
    placement: str = "hash"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is being done: `comes` joins, `goes` leaves; of one that is turned back, `goes` is who had come, `comes` who
    was to go and gets its partitions back. `moves` has what is left to do, by partition, `done` what
    was done (a change that is turned back needs it no more); `total` is how many there were. `by` is the nonce of who
    proposed it, `begun` when, in milliseconds."""

    kind: Kind
    comes: str | None
    goes: str | None
    dead: bool = False
    moves: dict[int, Move]
    total: int
    by: str = ""
    begun: int = 0
    done: dict[int, Move] = {}

    @property
    def newcomer(self) -> str | None:
        """Who joins by it, or had come before it was turned back."""
        return self.goes if self.kind == "cancel" else self.comes


class Membership(msgspec.Struct, frozen=True):
    """The register. `seats`: partition -> node -> seat, `members`: who belongs to the cluster, `gone`: who does so no
    more, and since which epoch. `dead`: those of whom nothing is taken any more, ever; one of them that still has seats
    is a member until another node took them over."""

    epoch: int
    seats: dict[int, dict[str, Seat]]
    members: dict[str, Member]
    settings: Settings
    change: Change | None = None
    gone: dict[str, int] = {}
    dead: tuple[str, ...] = ()

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
            number: frozenset(node for node, seat in seats.items() if not self._counts(node, seat))
            for number, seats in self.seats.items()
        }

    def replicas(self) -> dict[int, tuple[str, ...]]:
        """Who answers for each partition: its members; where all of them are dead, those."""
        return {number: self.answering(number) for number in self.seats}

    def answering(self, number: int) -> tuple[str, ...]:
        """Who answers for one partition."""
        seats = self.seats[number].items()
        counting = tuple(node for node, seat in seats if self._counts(node, seat))
        return counting or tuple(node for node, seat in seats if seat.stage == "member")

    def stage(self, number: int, node: str) -> Stage | None:
        """How far a node is with a partition; None: it has nothing to do with it."""
        seat = self.seats.get(number, {}).get(node)
        return None if seat is None else seat.stage

    @property
    def nodes(self) -> frozenset[str]:
        """Who belongs to the cluster, or has a seat in any partition."""
        return frozenset(self.members).union(*self.seats.values())

    @property
    def zones(self) -> dict[str, str | None]:
        """The zone of each member."""
        return {node: member.zone for node, member in self.members.items()}

    def refuses(self, node: str) -> bool:
        """Is it dead? Whatever it sends is refused, and it must not start."""
        return node in self.dead

    def living(self, node: str | None) -> str | None:
        """The node, unless it is dead."""
        return None if node in self.dead else node

    def given_up(self, node: str) -> Membership:
        """The same, but that this node counts for nothing any more."""
        dead = tuple(sorted({*self.dead, node}))
        return msgspec.structs.replace(self, dead=dead, gone={**self.gone, node: self.epoch})

    def counted(self, node: str, epoch: int, vectors: Mapping[int, Vector]) -> dict[int, Vector]:
        """Of an announcement's vectors those that are of the node's seat of now: who was dropped and is named again has
        forgotten what it said before it knew (`epoch` is the one that it had adopted)."""
        if node in self.dead:
            return {}
        return {
            number: vector
            for number, vector in vectors.items()
            if (seat := self.seats.get(number, {}).get(node)) is not None and seat.since <= epoch
        }

    def unconfirmed(self, confirmed: Mapping[str, int]) -> list[str]:
        """Who has not confirmed this epoch. While there is any, no step follows. Nobody waits for the dead."""
        return sorted(node for node in self.nodes - {*self.dead} if confirmed.get(node, 0) < self.epoch)

    def progress(self) -> tuple[int, int]:
        """How many of the change's moves are done, and how many there are."""
        return (0, 0) if self.change is None else (self.change.total - len(self.change.moves), self.change.total)

    def moving(self) -> dict[int, tuple[str, Stage]]:
        """The partitions that move, each with the node whose seat is no member, and how far that is."""
        return {
            number: (node, seat.stage)
            for number, seats in self.seats.items()
            for node, seat in seats.items()
            if seat.stage != "member"
        }

    def report(self, confirmed: Mapping[str, int]) -> dict[str, Any]:
        """For people: the cluster, and how far the change under way is."""
        change = self.change
        done, total = self.progress()
        held = Counter(node for seats in self.seats.values() for node, seat in seats.items() if seat.stage != "named")
        return {
            "epoch": self.epoch,
            "members": {
                node: {**msgspec.to_builtins(member), "partitions": held[node]} for node, member in self.members.items()
            },
            "dead": sorted(self.members.keys() & {*self.dead}),
            "gone": sorted(self.gone.keys() - self.members.keys()),
            "change": None
            if change is None
            else {
                "kind": change.kind,
                "comes": None if change.kind == "cancel" else change.comes,
                "goes": None if change.kind == "cancel" else change.goes,
                "turned_away": change.goes if change.kind == "cancel" else None,
                "gets_back": change.comes if change.kind == "cancel" else None,
                "dead": change.dead,
                "done": done,
                "total": total,
                "by": change.by,
                "begun": change.begun,
                "what": _in_words(change),
                "moving": {str(number): f"{node} {stage}" for number, (node, stage) in self.moving().items()},
                "waits_for": self.unconfirmed(confirmed),
            },
        }

    def _counts(self, node: str, seat: Seat) -> bool:
        return seat.stage == "member" and node not in self.dead


_codec = msgspec.json.Decoder(Membership)


def to_json(membership: Membership) -> bytes:
    """As it stands in the register and in checkpoints."""
    return msgspec.json.encode(membership)


def from_json(raw: bytes) -> Membership:
    """Raises msgspec.ValidationError or msgspec.DecodeError: it is none."""
    return _codec.decode(raw)


def founded(
    replicas: Mapping[int, Iterable[str]],
    members: Mapping[str, Member] | None = None,
    settings: Settings | None = None,
) -> Membership:
    """The register of a cluster that begins with these replicas. Without `members`, they are who holds a partition;
    without `settings`, what can be seen from the replicas."""
    seats = {number: {node: Seat("member", 1) for node in nodes} for number, nodes in replicas.items()}
    if members is None:
        members = {node: Member() for node in sorted({node for nodes in seats.values() for node in nodes})}
    if settings is None:
        settings = Settings(partitions=len(seats), factor=max((len(nodes) for nodes in seats.values()), default=1))
    return Membership(1, seats, dict(members), settings)


def described(membership: Membership) -> str:
    """The change under way in words: "spine-4 is being added (12 of 48 partitions have moved; begun by a1b2)"."""
    change = membership.change
    if change is None:
        return "no change is under way"
    done, total = membership.progress()
    by = f"; begun by {change.by}" if change.by else ""
    return f"{_in_words(change)} ({done} of {total} partitions have moved{by})"


def _in_words(change: Change) -> str:
    goes = f"{change.goes} (dead)" if change.dead and change.kind != "cancel" else change.goes
    turned = [f"{change.goes} is turned away"] if change.goes is not None else []
    turned += [f"{change.comes} gets its partitions back"] if change.comes is not None else []
    return {
        "add": f"{change.comes} is being added",
        "remove": f"{goes} is being removed",
        "replace": f"{goes} is being replaced by {change.comes}",
        "cancel": " and ".join(turned) or "a change is turned back",
    }[change.kind]
