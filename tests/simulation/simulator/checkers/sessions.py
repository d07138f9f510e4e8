"""By its token an agent sees what it wrote and never less than it saw before, whichever node answers.

Terry et al., "Session guarantees for weakly consistent replicated data" (1994): read your writes, monotonic reads.
"""

from __future__ import annotations

from collections import defaultdict

from crdt_spine.core.causality import Vector, join, join_into, within
from simulator.checkers import Checker


class Sessions(Checker):
    """Keeps for every agent what its answers promised, apart from the agent's own token."""

    def __init__(self) -> None:
        self.known: defaultdict[tuple[str, int], Vector] = defaultdict(dict)
        self.shown: dict[tuple[str, str], Vector] = {}  # what a memory had when the agent saw it last
        self.asking: dict[tuple[str, int, int], tuple[Vector, Vector]] = {}  # both, when a read was sent
        self.answering: dict[str, str] = {}  # agent -> the node that answered last

    def acknowledged(self, agent, id, partition, dot, needed) -> None:  # type: ignore[no-untyped-def]
        join_into(self.known[agent.name, partition], dict([dot]))

    def asked(self, agent, id, attempt) -> None:  # type: ignore[no-untyped-def]
        known = dict(self.known[agent.name, self.cluster.partition_of(id)])
        self.asking[agent.name, *attempt] = known, self.shown.get((agent.name, id), {})

    def stale(self, agent) -> None:  # type: ignore[no-untyped-def]
        for name, partition in list(self.known):
            if name == agent.name:
                del self.known[name, partition]
        for name, id in list(self.shown):
            if name == agent.name:
                del self.shown[name, id]

    def read(self, agent, id, attempt, record, vector, node) -> None:  # type: ignore[no-untyped-def]
        known, shown = self.asking[agent.name, *attempt]
        if not within(known, vector):
            self.fail(f"{agent.name} knew {known} and was shown {id} by {node}, which has {vector}")
        has = vector if record is None else join(vector, record.version)
        if not within(shown, has):
            self.fail(f"{agent.name} saw {shown} in {id}, and then {has}, at {node}")
        if known and self.answering.get(agent.name, node) != node:
            self.cluster.counts["reads with a token at another node"] += 1
        self.answering[agent.name] = node
        join_into(self.known[agent.name, self.cluster.partition_of(id)], vector)
        if record is not None:
            self.shown[agent.name, id] = join(self.shown.get((agent.name, id), {}), record.version)
