"""Causal order: no replica, and no reader, has an effect without its causes. What a change's coordinator had when it
made the change, and what its agent had written and read before, is wherever the change is, within a partition.

Ahamad et al., "Causal memory: definitions, implementation, and programming" (1995).
"""

from __future__ import annotations

from collections import defaultdict

from crdt_spine.core.causality import Vector, join_into, within
from simulator.checkers import Checker


class Causality(Checker):
    """Keeps the vector of every change's coordinator, apart from what its delta says of that. What a sync had brought
    of the record beyond that vector is in the record wherever the change is; `Meaning` looks at that."""

    def __init__(self) -> None:
        self.pasts: dict[tuple[int, str, int], Vector] = {}
        self.agents: defaultdict[tuple[str, int], Vector] = defaultdict(dict)  # what an agent wrote and read
        self.asked_with: dict[tuple[str, int], Vector] = {}  # the same, when it asked for an operation
        self.known: defaultdict[tuple[str, int], Vector] = defaultdict(dict)  # a node's vectors, looked at

    def coordinated(self, node, partition, dot, change, past) -> None:  # type: ignore[no-untyped-def]
        actor, n = dot
        past = {**node.replica.partitions[partition].vector, actor: n - 1}
        agent, _, number = change.operation.partition("-")
        join_into(past, self.asked_with.get((agent, int(number or 0)), {}))
        self.pasts[partition, actor, n] = past

    def asked(self, agent, id, attempt) -> None:  # type: ignore[no-untyped-def]
        if attempt[1] == 0:  # which may come late, after the others
            self.asked_with[agent.name, attempt[0]] = dict(self.agents[agent.name, self.cluster.partition_of(id)])

    def acknowledged(self, agent, id, partition, dot, needed) -> None:  # type: ignore[no-untyped-def]
        join_into(self.agents[agent.name, partition], dict([dot]))

    def stale(self, agent) -> None:  # type: ignore[no-untyped-def]
        for name, number in list(self.agents):
            if name == agent.name:
                del self.agents[name, number]
        self.asked_with.pop((agent.name, agent.count), None)

    def settled(self, node, turn) -> None:  # type: ignore[no-untyped-def]
        for number in turn.vectors:
            if number in node.replica.durable:
                self._look(node.name, number, node.replica.durable[number])

    def restarted(self, node, vectors) -> None:  # type: ignore[no-untyped-def]
        for number, vector in vectors.items():
            self.known.pop((node.name, number), None)
            self._look(node.name, number, vector)

    def read(self, agent, id, attempt, record, vector, node) -> None:  # type: ignore[no-untyped-def]
        number = self.cluster.partition_of(id)
        join_into(self.agents[agent.name, number], vector)
        if vector != self.known[node, number]:
            self._closed(f"{agent.name} is answered by {node}, which", number, vector, {})

    def _look(self, name: str, number: int, vector: Vector) -> None:
        self._closed(name, number, vector, self.known[name, number])
        self.known[name, number] = dict(vector)

    def _closed(self, who: str, number: int, vector: Vector, known: Vector) -> None:
        for actor, n in vector.items():
            if n == known.get(actor):
                continue
            past = self.pasts.get((number, actor, n))
            if past is not None and not within(past, vector):
                causes = {a: m for a, m in past.items() if vector.get(a, 0) < m}
                self.fail(f"{who} has ({actor}, {n}) of partition {number} without what came before it: {causes}")
