"""Consistent hashing with virtual nodes.

A node's points are sha256(f"{node}:{i}"), a key's point is sha256(key), both as hex text; the owner of a key is the
first point at or to the right of the key's, round the end. Adding a node moves only the keys that it then owns.
Karger et al., "Consistent hashing and random trees" (1997); DeCandia et al., "Dynamo" (2007), 4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from sortedcontainers import SortedDict  # type: ignore[import-untyped]

from crdt_spine.errors import InvalidInput


class ConsistentHashRing:
    """`virtual_nodes` points a node: the more, the more even the shares. Raises InvalidInput: a name given twice."""

    def __init__(self, nodes: Iterable[str] = (), virtual_nodes: int = 150) -> None:
        if isinstance(nodes, str):
            raise InvalidInput(f"nodes must be a list of names, not the one text {nodes!r}")
        if isinstance(virtual_nodes, bool) or not isinstance(virtual_nodes, int) or virtual_nodes < 1:
            raise InvalidInput(f"virtual_nodes must be a whole number of at least 1, not {virtual_nodes!r}")
        self.virtual_nodes = virtual_nodes
        self._points: SortedDict = SortedDict()  # point -> node
        self._nodes: set[str] = set()
        for node in nodes:
            self.add_node(node)

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes on the ring."""
        return frozenset(self._nodes)

    def add_node(self, name: str) -> None:
        """Put a node's points on the ring. Raises InvalidInput: it is there already, or it is no name."""
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"a node's name must be a text that is not empty, not {name!r}")
        if name in self._nodes:
            raise InvalidInput(f"node {name!r} is on the ring already")
        try:
            points = list(self._points_of(name))
        except UnicodeEncodeError:  # half of a pair of surrogates: no text that could be hashed
            raise InvalidInput(f"a node's name must be valid Unicode, not {name!r}") from None
        self._nodes.add(name)
        for point in points:
            self._points[point] = name

    def remove_node(self, name: str) -> None:
        """Take a node's points away. Raises InvalidInput where it is not there."""
        if name not in self._nodes:
            raise InvalidInput(f"node {name!r} is not on the ring; there are {sorted(self._nodes)}")
        self._nodes.remove(name)
        for point in self._points_of(name):
            del self._points[point]

    def get_node(self, key: str) -> str:
        """The owner of a key. Raises InvalidInput on an empty ring."""
        return next(self._walk(key))

    def get_replica_nodes(self, key: str, replicas: int = 3) -> list[str]:
        """The first distinct nodes from the key's point to the right: its owner first, all nodes if there are fewer.

        Raises InvalidInput on an empty ring and for `replicas` below 1.
        """
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
            raise InvalidInput(f"replicas must be a whole number of at least 1, not {replicas!r}")
        wanted = min(replicas, len(self._nodes))
        found: dict[str, None] = {}
        for node in self._walk(key):
            found[node] = None
            if len(found) == wanted:
                break
        return list(found)

    def _walk(self, key: str) -> Iterator[str]:
        if not self._points:
            raise InvalidInput("the ring has no nodes")
        if not isinstance(key, str):
            raise InvalidInput(f"a key must be a text, not {type(key).__name__}")
        try:
            start = _point(key)
        except UnicodeEncodeError:
            raise InvalidInput(f"a key must be valid Unicode, not {key!r}") from None
        for point in self._points.irange(start):  # a point equal to the key's owns it
            yield self._points[point]
        for point in self._points.irange(None, start, (True, False)):
            yield self._points[point]

    def _points_of(self, name: str) -> Iterator[str]:
        return (_point(f"{name}:{index}") for index in range(self.virtual_nodes))


def _point(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
