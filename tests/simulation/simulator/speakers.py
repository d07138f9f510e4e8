"""Agents that talk in a thread whose entries lie in all partitions: they read it, and append to what they have read.

A read is what crdt_spine/thread.py makes of it: a look at every partition, each by some node, and of what they show
what is `visible` by the cut that their vectors make, in causal order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crdt_spine.core.causality import Vector
from crdt_spine.core.messages import Store, Vectors, Write
from crdt_spine.core.thread import Entry, causal_order, visible
from crdt_spine.thread import Context
from simulator.agents import Agent, Habit

if TYPE_CHECKING:
    from simulator.cluster import Cluster
    from simulator.node import Node

THREADS = ("talk", "gossip")
ENTRY_IDS = 1_000  # entries have ids from here on: nobody else writes to them


class ThreadRead(str):
    """A read of a thread, as an operation that an agent waits for: the thread's name."""


class Speaker(Agent):
    """An agent that does nothing but talk."""

    def __init__(self, cluster: Cluster, name: str, pause_max: int) -> None:
        super().__init__(cluster, name, 0, pause_max, Habit((), ()))
        self.contexts = {thread: Context() for thread in THREADS}
        self.looked: Vectors = {}
        self.found: list[Entry] = []

    def _begin(self) -> None:
        if self.resting:
            return
        chance = self.world.random
        self.count += 1
        thread = chance.choice(THREADS)
        reads = chance.random() < 0.5
        self.pending = (self.count, ThreadRead(thread) if reads else self._append(self.count, thread), 0)
        self._attempt()

    def _append(self, i: int, thread: str) -> Write:
        number = self.world.random.randrange(self.cluster.partitions)
        id = f"m{ENTRY_IDS + number + self.cluster.partitions * self.cluster.new_ticket()}"
        operation = Store(i=i, id=id, content=f"{self.name}-{i}", thread=thread)
        self.cluster.check("appends", self, thread, id)
        return self.contexts[thread].next(operation, self.name, number)

    def _attempt(self) -> None:
        assert self.pending is not None
        mine = self.pending
        if not isinstance(mine[1], ThreadRead):
            super()._attempt()
            return
        self.looked, self.found = {}, []
        self.world.tell(self.name, f"looks at {mine[1]}")
        for number in range(self.cluster.partitions):
            self._look(mine, number, self._choose(f"m{number}"))
        self._plan_time_out(mine)

    def _look(self, mine: Any, number: int, node: str) -> None:
        token = dict(self.token.get(number, {}))

        def answer(entries: list[Entry], vector: Vector) -> None:
            self.cluster.network.send(node, self.name, lambda: self._shown(mine, number, entries, vector), "agent")

        def ask(there: Node) -> None:
            there.read_thread(number, mine[1], token, answer)

        self._send(node, ask)

    def _shown(self, mine: Any, number: int, entries: list[Entry], vector: Vector) -> None:
        if self.pending is not mine or number in self.looked:
            return
        self.looked[number] = vector
        self.found += entries
        if len(self.looked) < self.cluster.partitions:
            return
        shown, _ = visible(self.found, self.looked)
        context, order = self.contexts[mine[1]], causal_order(shown)
        context.take(shown)
        context.take(entry for entry in self.found if entry.agent == self.name)
        for partition, seen in self.looked.items():
            self._see(f"m{partition}", seen)
        self.cluster.check("thread_read", self, str(mine[1]), [entry.id for entry in order])
        self._end("thread read")

    def _gives_up(self, operation: Write | str) -> bool:
        """All that it has read is gone with the token; an entry must not build on less than it says."""
        for context in self.contexts.values():
            context.clock = {self.name: context.clock.get(self.name, 0)}
            context.dots = {}
        return True

    def _answered(self, mine: Any, node: str, kind: str, about: Any) -> None:
        if kind == "done" and isinstance(mine[1], Store):
            assert mine[1].thread is not None
            # It may be heard of late, when the agent has forgotten what the entry was built on.
            context = self.contexts[mine[1].thread]
            context.hear(mine[1].clock, self.cluster.partition_of(mine[1].id), {about.actor: about.n})
            context.reach(mine[1].after)
            self.cluster.check("appended", self, mine[1].thread, mine[1].id)
        super()._answered(mine, node, kind, about)
