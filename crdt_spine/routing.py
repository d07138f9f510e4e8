"""Which node an agent asks: a partition's first replica, unless that failed a moment ago; for everything, few nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Hello

AVOID_SECONDS = 1.0  # how long a node that failed is not tried, while there are others

#: Partitions that one node can answer, with the nodes that can; None: all partitions.
Group = tuple[list[str], tuple[int, ...] | None]


class Routing:
    """A session's view of the nodes. `turn` spreads sessions over them, `clock` gives seconds."""

    def __init__(self, hello: Hello, layout: Layout, turn: int, clock: Callable[[], float]) -> None:
        names = [node.id for node in hello.nodes]
        start = turn % len(names)
        self._names = names[start:] + names[:start]
        self._layout = layout
        self._held = {node: {n for n, nodes in layout.replicas.items() if node in nodes} for node in names}
        self._clock = clock
        self._avoid: dict[str, float] = {}  # node -> until when

    def avoid(self, node: str) -> None:
        """A node failed: ask others for a while."""
        self._avoid[node] = self._clock() + AVOID_SECONDS

    def avoided(self, node: str) -> bool:
        """Did it fail a moment ago?"""
        return self._avoid.get(node, 0.0) > self._clock()

    def healthy(self, candidates: Sequence[str]) -> str:
        """The first of these nodes that is not being avoided; the one avoided longest if all are."""
        if not self._avoid:
            return candidates[0]
        for node in candidates:
            if not self.avoided(node):
                return node
        return min(candidates, key=lambda node: self._avoid[node])

    def cover(self) -> list[Group]:
        """The fewest groups (greedily) that have every partition once; nodes that are being avoided come last."""
        names = sorted(self._names, key=self.avoided)
        left = set(self._layout.replicas)
        whole = [node for node in names if self._held[node] == left]
        if whole:
            return [(whole, None)]
        groups: list[Group] = []
        while left:
            best = max(names, key=lambda node: (len(self._held[node] & left), not self.avoided(node)))
            part = self._held[best] & left
            others = [node for node in names if node != best and part <= self._held[node]]
            groups.append(([best, *others], tuple(sorted(part))))
            left = left - part
        return groups
