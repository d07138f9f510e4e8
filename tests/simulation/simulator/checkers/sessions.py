"""An agent sees what it wrote and never less than it saw before, whichever node answers, and what that adds up to.

Terry et al., "Session guarantees for weakly consistent replicated data" (1994): read your writes, monotonic reads.
"""

from __future__ import annotations

from collections import defaultdict

from crdt_spine.core.causality import Vector, join_into, within
from simulator.checkers import Checker
from simulator.history import seen


class Sessions(Checker):
    """Keeps for every agent what its answers promised, apart from the agent's own token."""

    def __init__(self) -> None:
        self.known: defaultdict[tuple[str, int], Vector] = defaultdict(dict)
        self.asking: dict[tuple[str, int, int], Vector] = {}  # what was known when a read was sent

    def acknowledged(self, agent, id, partition, dot, needed) -> None:  # type: ignore[no-untyped-def]
        join_into(self.known[agent.name, partition], dict([dot]))

    def asked(self, agent, id, attempt) -> None:  # type: ignore[no-untyped-def]
        self.asking[agent.name, *attempt] = dict(self.known[agent.name, self.cluster.partition_of(id)])

    def stale(self, agent) -> None:  # type: ignore[no-untyped-def]
        for name, partition in list(self.known):
            if name == agent.name:
                del self.known[name, partition]

    def read(self, agent, id, attempt, record, vector) -> None:  # type: ignore[no-untyped-def]
        known = self.asking[agent.name, *attempt]
        if not within(known, vector):
            self.fail(f"{agent.name} knew {known} and was shown {id} by a replica that has {vector}")
        join_into(self.known[agent.name, self.cluster.partition_of(id)], vector)
        version = {} if record is None else record.version

        def has(actor: str, n: int) -> bool:
            return n <= vector.get(actor, 0) or n <= version.get(actor, 0)

        if seen(record) != (should_be := self.cluster.history.memory(id, has)):
            self.fail(f"{agent.name} was shown {id} as\n    {seen(record)}\n  instead of\n    {should_be}")
