"""Links: each message may be lost, doubled, delayed (and so overtaken), or cut off in one direction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from simulator.world import World


class Network:
    """Carries callables; what they do is the receiver's business. `counts` proves which faults really happened."""

    def __init__(self, world: World, loss: float, doubling: float, delay_max: int) -> None:
        self.world = world
        self.loss = loss
        self.doubling = doubling
        self.delay_max = delay_max  # milliseconds
        self.cut: set[tuple[str, str]] = set()  # (from, to): one direction
        self.counts: Counter[str] = Counter()

    def send(self, source: str, target: str, deliver: Callable[[], None], *, once: bool = False) -> None:
        """Bring a message on its way; it is checked for a cut when it leaves and when it arrives. `once`: not doubled."""
        chance = self.world.random
        self.counts["sent"] += 1
        if (source, target) in self.cut:
            self.counts["cut"] += 1
            return
        if chance.random() < self.loss:
            self.counts["lost"] += 1
            return
        copies = 1
        if not once and chance.random() < self.doubling:
            self.counts["doubled"] += 1
            copies = 2
        for _ in range(copies):
            self.world.after(self._delay(), lambda: self._arrive(source, target, deliver))

    def heal(self) -> None:
        """From now on everything arrives, once, if not in order."""
        self.cut.clear()
        self.loss = self.doubling = 0.0
        self.delay_max = min(self.delay_max, 20)

    def _arrive(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        if (source, target) in self.cut:
            self.counts["cut"] += 1
        else:
            deliver()

    def _delay(self) -> int:
        chance = self.world.random
        if chance.random() < 0.05:
            return chance.randint(1, 20 * self.delay_max)  # a straggler
        return chance.randint(1, self.delay_max)
