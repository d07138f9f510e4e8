"""The simulated cluster: nodes, network, the register of who holds what, history, and the checkers that watch it
all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from crdt_spine.core.placement import placed
from simulator.checkers import Checker
from simulator.history import History
from simulator.network import Network
from simulator.node import Node
from simulator.register import Register
from simulator.world import World

if TYPE_CHECKING:
    from simulator.agents import Agent
LOOK_MILLISECONDS = 300  # between two looks at the register when all is to become well


class Cluster:
    """At first the nodes but the `spares` hold the partitions, each of them on `factor` nodes, or on all of these.
    `without` names a rule that is taken away (rules.py); `strong`: are there strong operations?
    `counts` proves what happened."""

    def __init__(
        self,
        world: World,
        network: Network,
        skews: Sequence[int],
        spares: int,
        announce_milliseconds: int,
        looks: tuple[int, int],
        checkers: Sequence[Checker],
        without: str | None = None,
        retirement_seconds: float = float("inf"),
        partitions: int = 2,
        factor: int | None = None,
        *,
        strong: bool = True,
    ) -> None:
        self.world = world
        self.network = network
        self.without = without
        self.retirement_seconds = retirement_seconds
        self.announce_milliseconds = announce_milliseconds
        self.partitions = partitions
        self.healing = False
        self.strong = strong
        self._looks = looks
        self.counts: Counter[str] = Counter()
        self.history = History()
        self.checkers = [self.history, *checkers]
        self._watchers: defaultdict[str, list[Callable[..., None]]] = defaultdict(list)
        for checker in self.checkers:
            checker.cluster = self
            for what, nothing in vars(Checker).items():
                if not what.startswith("_") and getattr(type(checker), what) is not nothing:
                    self._watchers[what].append(getattr(checker, what))
        self._incarnations = self._tickets = 0
        self.agents: list[Agent] = []
        self.on_crash: Callable[[Node, str], None] = lambda node, where: None
        founders = [f"n{index}" for index in range(len(skews))]
        self.write_quorum = min(2, len(founders))
        replicas = placed(partitions, founders, factor, {}) if factor else dict.fromkeys(range(partitions), founders)
        self.register = Register(replicas, founders, factor or len(founders))
        self.names = founders + [f"n{len(founders) + index}" for index in range(spares)]
        clocks = zip(self.names, [*skews, *[0] * spares], strict=True)
        self.nodes = {name: Node(self, name, skew) for name, skew in clocks}
        for name in founders:
            self.nodes[name].boot()

    def check(self, what: str, *about: object) -> None:
        """Let every checker see that something happened."""
        for watcher in self._watchers[what]:
            watcher(*about)

    def look_milliseconds(self, name: str, *, late: bool = False) -> int:
        """At most so much passes between two looks at the register. The first node may hear of a newcomer `late`."""
        if self.healing:
            return LOOK_MILLISECONDS
        return self._looks[late and name == self.names[0]]

    def crashed(self, node: Node, where: str) -> None:
        """A node has died there."""
        self.counts[f"crash {where}"] += 1
        self.on_crash(node, where)

    def partition_of(self, id: str) -> int:
        return int(id[1:]) % self.partitions

    def holders(self, number: int) -> list[Node]:
        """The nodes that must have all of a partition in the end."""
        return [self.nodes[name] for name in self.register.holders(number)]

    def operations(self) -> list[bytes]:
        """The operations that agents wait for, or have asked for so lately that it may come to a node only now, as they
        stand in journal rows."""
        return [f'"{agent.name}-{number}"'.encode() for agent in self.agents for number in agent.asked]

    def new_incarnation(self) -> int:
        self._incarnations += 1
        return self._incarnations

    def new_ticket(self) -> int:
        self._tickets += 1
        return self._tickets
