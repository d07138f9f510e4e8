"""A thread that is read has no answer before its question, and no hole: whatever its writer had read or written in the
thread before it appended an entry is shown wherever the entry is, and stands before it."""

from __future__ import annotations

from collections import defaultdict

from simulator.checkers import Checker


class Threads(Checker):
    """Keeps for every entry, as a plain set of ids, what its writer knew. Entries are never deleted."""

    def __init__(self) -> None:
        self.known: defaultdict[tuple[str, str], set[str]] = defaultdict(set)  # (agent, thread) -> entries
        self.pasts: dict[str, frozenset[str]] = {}

    def appends(self, agent, thread, id) -> None:  # type: ignore[no-untyped-def]
        self.pasts[id] = frozenset(self.known[agent.name, thread])

    def appended(self, agent, thread, id) -> None:  # type: ignore[no-untyped-def]
        self.known[agent.name, thread].add(id)

    def stale(self, agent) -> None:  # type: ignore[no-untyped-def]
        for name, thread in list(self.known):
            if name == agent.name:
                del self.known[name, thread]

    def thread_read(self, agent, thread, order) -> None:  # type: ignore[no-untyped-def]
        shown: set[str] = set()
        for id in order:
            if not self.pasts[id] <= shown:
                missing = sorted(self.pasts[id] - shown)
                self.fail(f"{agent.name} is shown {id} of {thread} before {missing}, which came before it: {order}")
            shown.add(id)
        self.known[agent.name, thread] |= shown
        self.cluster.counts["thread entries read"] += len(order)
