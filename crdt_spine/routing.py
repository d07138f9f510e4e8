"""Which node an agent asks: a partition's first replica, while that is well; for everything, few nodes.

The first one is the same for all sessions of a zone, so that a partition has one coordinator, whose batches are large,
and a session reads where it last wrote. Once it is left (health.py), the better of two others takes its place, for as
long as that is well; then everybody goes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Hello
from crdt_spine.health import BETTER_FACTOR, BETTER_SECONDS, QUERY, READ, Health

#: Partitions that one node can answer, with the nodes that can.
Group = tuple[Sequence[str], tuple[int, ...]]


class Routing:
    """A session's way to the nodes of one layout. `turn` spreads sessions over them, nodes of `zone` come first."""

    def __init__(self, hello: Hello, layout: Layout, turn: int, health: Health, zone: str | None = None) -> None:
        self.health = health
        self._layout = layout
        self._turn = turn
        self._far = {node.id for node in hello.nodes if zone is not None and node.zone != zone}
        names = [node.id for node in hello.nodes]
        start = turn % len(names)
        self.names = sorted(names[start:] + names[:start], key=self._far.__contains__)
        self.held = {node: frozenset(n for n, nodes in layout.replicas.items() if node in nodes) for node in names}
        self.replicas = layout.replicas
        if self._far:
            self.replicas = {n: tuple(sorted(nodes, key=self._far.__contains__)) for n, nodes in self.replicas.items()}
        self._stand_ins: dict[tuple[bool, Sequence[str]], str] = {}
        self._plan: list[Group] = []
        self._changes = -1  # of the health that stand-ins and plan belong to

    def avoided(self, node: str) -> bool:
        """Is it in trouble?"""
        return node in self.health.trouble

    def choose(self, candidates: Sequence[str], tried: Collection[str] = (), *, reads: bool = True) -> str:
        """Where to go: the first of these nodes if it is well, else the better of two others; one that was tried only
        if there is no other, one in trouble only if all are."""
        health = self.health
        if not tried:
            first = candidates[0]
            if health.well(first, reads=reads):
                return first
            self._forget_old()
            key = reads, tuple(candidates)
            known = self._stand_ins.get(key)
            if known is None:
                known = self._stand_ins[key] = self._better(candidates, reads)
            return known
        rest = [node for node in candidates if node not in tried]
        if any(health.well(node, reads=reads) for node in rest):
            return self._better(rest, reads)
        return self._better(candidates, reads)

    def other(self, candidates: Iterable[str], asked: Collection[str]) -> str | None:
        """Who is asked as well where these have not answered yet."""
        rest = [node for node in candidates if node not in asked and self.health.well(node)]
        return self._better(rest, True) if rest else None

    def holders(self, numbers: Collection[int]) -> list[str]:
        """The nodes that have all these partitions."""
        if len(numbers) == 1:
            return list(self.replicas[next(iter(numbers))])
        wanted = frozenset(numbers)
        return [node for node in self.names if wanted <= self.held[node]]

    def cover(self, numbers: Collection[int] | None = None) -> list[Group]:
        """The fewest groups (greedily) that have each of these partitions once, all if None; of nodes that are well, as
        far as there are."""
        if numbers is not None:
            return self._cover(set(numbers))
        self._forget_old()
        if not self._plan:
            self._plan = self._cover(set(self._layout.replicas))
        return self._plan

    def _cover(self, left: set[int]) -> list[Group]:
        names = sorted(self.names, key=lambda node: not self.health.well(node))
        groups: list[Group] = []
        while left:
            # Of the nodes that are well and hold some of it, whoever holds most; the order of names decides ties. Where
            # none is well, the least bad one: who is asked in vain is worse then, so that all come to be asked.
            best = max(names, key=lambda node: _most(self.held[node] & left, self.health.badness(node)))
            part = self.held[best] & left
            assert part, f"nobody has partitions {sorted(left)}"
            others = [node for node in names if node != best and part <= self.held[node]]
            if others and best not in self._far and others[0] not in self._far and self.health.well(others[0]):
                health = self.health
                if health.cost(others[0], QUERY) * BETTER_FACTOR + BETTER_SECONDS < health.cost(best, QUERY):
                    best, others[0] = others[0], best
            groups.append(((best, *others), tuple(sorted(part))))
            left = left - part
        return groups

    def _better(self, candidates: Sequence[str], reads: bool) -> str:
        """Of the nodes that are well and near, the first one, or one by chance if that is much better."""
        health = self.health
        well = [node for node in candidates if health.well(node, reads=reads)]
        if not well:
            return min(candidates, key=health.badness)
        first = well[0]
        near = [node for node in well[1:] if (node in self._far) == (first in self._far)]
        if near:
            second = near[self._turn % len(near)]
            if health.cost(second, READ) * BETTER_FACTOR + BETTER_SECONDS < health.cost(first, READ):
                return second
        return first

    def _forget_old(self) -> None:
        if self._changes != self.health.changes:
            self._changes = self.health.changes
            self._stand_ins.clear()
            self._plan = []


def _most(part: frozenset[int], badness: tuple[int, float]) -> tuple[bool, int, float, int]:
    why, since = badness
    return bool(part), -why, -since, len(part)
