"""Which replicas move when a node comes or goes: as few as can be, and so that all nodes have the same share after it.

What is asked for, in this order: every partition has its replicas; they are in as many zones as there are enough of, as
evenly as can be, and never in fewer than before; all nodes hold equally many replicas, or one more, where the zones
allow it; nothing moves that need not; and what moves is what the ring would give to the node that gets it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from crdt_spine.core.evenness import even_out
from crdt_spine.core.ring import ConsistentHashRing


class Move(msgspec.Struct, frozen=True, array_like=True):
    """In one partition: first `to` joins, then `frm` leaves; either may be None."""

    to: str | None
    frm: str | None


def plan(
    current: Mapping[int, Collection[str]],
    zones: Mapping[str, str | None],
    factor: int,
    *,
    comes: str | None = None,
    goes: str | None = None,
) -> dict[int, Move]:
    """By partition, what is to move when `comes` joins the cluster, `goes` leaves it, or both. `current` has each
    partition's replicas, `zones` all nodes that may hold any (`goes` may be among them) and their zones; a replica on
    another node stays where it is. At most one replica a partition moves."""
    nodes = sorted((zones.keys() | ({comes} if comes else set())) - {goes})
    shares = Shares(current, ConsistentHashRing(nodes), zones)
    for number in sorted(current):
        holders = shares.holders[number]
        if goes in holders:
            shares.leave(number, goes, comes, needed=len(holders) <= factor)
        elif len(holders) < min(factor, len(nodes)):
            shares.join(number)
        elif comes is not None:
            shares.spread(number, comes)
    if goes is not None:
        shares.even_out(shares.moves.keys())
    shares.even_out(sorted(current))
    return dict(sorted(shares.moves.items()))


class Shares:
    """Who holds what while moves are chosen: `holders` with the moves done, `moves` by partition. The nodes that may
    hold anything are the ring's."""

    def __init__(
        self, current: Mapping[int, Collection[str]], ring: ConsistentHashRing, zones: Mapping[str, str | None]
    ) -> None:
        self.nodes = sorted(ring.nodes)
        self.zones = {node: zones.get(node) or node for node in self.nodes}  # without a zone: one of its own
        self.current = {number: frozenset(holders) for number, holders in current.items()}
        self.holders = {number: set(holders) for number, holders in current.items()}
        self.moves: dict[int, Move] = {}
        self.load: Counter[str] = Counter(dict.fromkeys(self.nodes, 0))
        for holders in self.holders.values():
            self.load.update(node for node in holders if node in self.zones)
        self._all_zones = dict(zones)
        self._ring = ring
        self._walks: dict[int, dict[str, int]] = {}  # partition -> node -> how soon the ring has it
        self._wish: dict[str, list[int]] = {}  # node -> partitions, those first that the ring has it for the soonest

    def crowding(self, holders: Iterable[str]) -> int:
        """How little a partition's replicas are spread over zones: the sum of the squares of their numbers."""
        return sum(count * count for count in Counter(self._zone(node) for node in holders).values())

    def leave(self, number: int, goes: str | None, comes: str | None, *, needed: bool) -> None:
        """`goes` holds the partition no more; somebody else does, where that is needed and there is anybody: `comes`,
        if that is no worse for the zones."""
        self.holders[number].discard(goes or "")
        self._set(number, self._best(number, comes) if needed else None, goes)

    def join(self, number: int) -> None:
        """One replica more."""
        self._set(number, self._best(number), None)

    def spread(self, number: int, comes: str) -> None:
        """Give a replica to the newcomer where the partition is spread better over zones then."""
        holders = self.holders[number]
        if comes in holders:
            return
        before = self.crowding(holders)
        choices = [
            (self.crowding(holders - {frm} | {comes}), -self.load[frm], frm)
            for frm in sorted(holders & self.zones.keys())
        ]
        if choices and min(choices)[0] < before:
            self._shift(number, min(choices)[2], comes)

    def even_out(self, numbers: Iterable[int]) -> None:
        """Move replicas of these partitions until no chain of moves makes the shares more even."""
        movable = set(numbers)
        even_out(self.load, lambda frm, to, used: self._movable(frm, to, movable, used), self._shift)

    def _movable(self, frm: str, to: str, movable: set[int], used: Collection[int]) -> int | None:
        """The partition whose replica may go from one node to another, the one that the ring would move the soonest."""
        for number in self._wishes(to):
            holders = self.holders[number]
            if frm not in holders or to in holders or number not in movable or number in used:
                continue
            move = self.moves.get(number)
            if move is not None and move.to != frm:
                continue  # another replica of the partition moves
            if move is None and len(self.current[number]) != len(holders):
                continue
            zones = self.zones
            if zones[frm] == zones[to] or self.crowding(holders - {frm} | {to}) <= self.crowding(holders):
                return number
        return None

    def _wishes(self, node: str) -> list[int]:
        if node not in self._wish:
            self._wish[node] = sorted(self.current, key=lambda number: (self._rank(number, node), number))
        return self._wish[node]

    def _rank(self, number: int, node: str) -> int:
        if number not in self._walks:
            walk = self._ring.get_replica_nodes(f"partition-{number}", len(self.nodes))
            self._walks[number] = {there: place for place, there in enumerate(walk)}
        return self._walks[number][node]

    def _best(self, number: int, comes: str | None = None) -> str | None:
        """Who is to have one more replica of a partition: the best for its zones, then `comes`, then who has the
        fewest."""
        holders = self.holders[number]
        choices = [
            (self.crowding(holders | {node}), node != comes, self.load[node], self._rank(number, node), node)
            for node in self.nodes
            if node not in holders
        ]
        return min(choices)[4] if choices else None

    def _set(self, number: int, to: str | None, frm: str | None) -> None:
        if to is not None:
            self.holders[number].add(to)
            self.load[to] += 1
        if to is not None or frm is not None:
            self.moves[number] = Move(to, frm)

    def _shift(self, number: int, frm: str, to: str) -> None:
        """The replica that is on `frm` is to be on `to`."""
        self.holders[number] ^= {frm, to}
        self.load[frm] -= 1
        self.load[to] += 1
        move = self.moves.pop(number, None)
        origin = frm if move is None else move.frm
        if to != origin:
            self.moves[number] = Move(to, origin)

    def _zone(self, node: str) -> str:
        return self.zones.get(node) or self._all_zones.get(node) or node
