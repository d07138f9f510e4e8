"""Gossip on virtual time: up to a thousand nodes, a network that loses and delays, nodes that die, pause and return.

A seed is a run. Nodes are `core.gossip.Gossip`, messages go through their bytes (`wire`) or as they are; their size is
measured either way.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from typing import Any

from crdt_spine.core.gossip import Gossip, read
from crdt_spine.core.messages import Rumours, encode
from crdt_spine.limits import GOSSIP_SECONDS

JITTER = 0.1  # of a tick
DELAY_SECONDS = (0.0005, 0.05)
BEGINNING = 1_790_000_000_000  # milliseconds; a node's generation is this and the virtual time
AWAY = ("suspect", "down", "leaving")


class World:
    """So many nodes, which know of each other as members and have heard nothing yet. `length` is that of their names:
    with 20 characters some 320 fit into a message by name, with 63 some 150."""

    def __init__(self, nodes: int, seed: int, *, loss: float = 0.0, wire: bool = False, length: int = 20) -> None:
        self.dice = random.Random(seed)
        self.loss = loss
        self.wire = wire
        self.now = 0.0
        self.members = [f"node-{number:0>{length - 5}}" for number in range(nodes)]
        self.nodes: dict[str, Gossip] = {}  # those that are not dead
        self.paused: dict[str, list[Rumours]] = {}  # -> what waits for it
        self.side: dict[str, int] = {}  # of a network that is cut in two
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.bytes_sent = 0
        self.largest = 0
        self.away: dict[str, dict[str, float]] = defaultdict(dict)  # node -> who believes that it is away -> since
        self.false: Counter[str] = Counter()  # what was said wrongly of nodes that are well, by state
        self._events: list[tuple[float, int, str, str, Any]] = []
        self._number = 0
        for name in self.members:
            self.start(name)

    # -- what happens to nodes --------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """A process that knows nothing but the members. One that was killed is back with a later generation."""
        gossip = Gossip(name, f"zone-{hash_of(name) % 3}", BEGINNING + int(self.now * 1000), self.now)
        gossip.change_members(self.members)
        self.nodes[name] = gossip
        self._plan(self.dice.random() * GOSSIP_SECONDS, "tick", name, gossip)

    def kill(self, *names: str) -> None:
        for name in names:
            del self.nodes[name]
            for observers in self.away.values():
                observers.pop(name, None)

    def stop(self, name: str) -> None:
        """It says that it stops, and does."""
        for to, message in self.nodes[name].farewell(self.dice):
            self._send(name, to, message)
        self.kill(name)

    def pause(self, name: str) -> None:
        self.paused[name] = []

    def resume(self, name: str) -> None:
        """What waited is there at once."""
        for message in self.paused.pop(name):
            self._deliver(name, message)
        self._plan(0.0, "tick", name, self.nodes[name])

    def remove(self, name: str) -> None:
        """It is no member any more, says the membership to all that are there."""
        self.members.remove(name)
        for gossip in self.nodes.values():
            gossip.change_members(self.members)

    def cut(self, share: float) -> None:
        """The network falls into two parts."""
        first = self.dice.sample(self.members, int(len(self.members) * share))
        self.side = dict.fromkeys(first, 1)

    def heal(self) -> None:
        self.side = {}

    # -- what can be known -----------------------------------------------------------------------------------------

    def unaware(self, name: str) -> int:
        """How many of the nodes that are there do not know that this one is away."""
        there = self.nodes.keys() - {name}
        return len(there - self.away[name].keys())

    def believers(self, name: str) -> int:
        """How many of the nodes that are there believe that this one is away."""
        return len(self.away[name].keys() & self.nodes.keys())

    # -- time -------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        self.run_until(lambda: False, seconds)

    def run_until(self, done: Any, seconds: float, step: float = 0.1) -> float | None:
        """Until it is done, looked at every so often; after how many seconds, or None."""
        begun = self.now
        while self.now - begun < seconds - 1e-9:
            until = min(self.now + step, begun + seconds)
            while self._events and self._events[0][0] <= until:
                self.now, _, kind, name, what = heapq.heappop(self._events)
                self._happen(kind, name, what)
            self.now = until
            if done():
                return self.now - begun
        return None

    def _happen(self, kind: str, name: str, what: Any) -> None:
        if kind == "tick":
            if self.nodes.get(name) is what and name not in self.paused:
                self._tick(name, what)
        elif name in self.paused:
            self.paused[name].append(what)
        elif name in self.nodes:
            self._deliver(name, what)

    def _tick(self, name: str, gossip: Gossip) -> None:
        gossip.tell("up", load=self.dice.randrange(10_000), waiting=self.dice.randrange(100), latency=3, epoch=1)
        for to, message in gossip.tick(self.now, self.dice):
            self._send(name, to, message)
        self._note(name, gossip)
        self._plan(GOSSIP_SECONDS * (1 + JITTER * (2 * self.dice.random() - 1)), "tick", name, gossip)

    def _deliver(self, name: str, message: Rumours) -> None:
        gossip = self.nodes[name]
        self.received[name] += 1
        answer = gossip.receive(message, self.now)
        self._note(name, gossip)
        if answer is not None:
            self._send(name, message.node, answer)

    def _note(self, name: str, gossip: Gossip) -> None:
        for node, _, state in gossip.turns:
            if state in AWAY:
                self.away[node].setdefault(name, self.now)
                if node in self.nodes and node not in self.paused and not self.side:
                    self.false[state] += 1
            else:
                self.away[node].pop(name, None)
        gossip.turns.clear()

    def _send(self, name: str, to: str, message: Rumours) -> None:
        payload = encode(message)
        self.sent[name] += 1
        self.bytes_sent += len(payload)
        self.largest = max(self.largest, len(payload))
        lost = self.dice.random() < self.loss or self.side.get(name) != self.side.get(to)
        if not lost and to in self.nodes:
            self._plan(self.dice.uniform(*DELAY_SECONDS), "message", to, read(payload) if self.wire else message)

    def _plan(self, delay: float, kind: str, name: str, what: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, kind, name, what))


def hash_of(name: str) -> int:
    return sum(name.encode())
