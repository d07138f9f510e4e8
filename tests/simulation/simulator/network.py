"""Links: each message may be lost, doubled, delayed (and so overtaken), or cut off in one direction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from simulator.world import World


@dataclass(frozen=True)
class Weather:
    """How bad it is: chances of a message, and milliseconds."""

    loss: float
    delta_loss: float  # of deltas alone: what is lost of them, a sync must bring
    doubling: float
    delay_max: int
    page_delay_max: int  # of a sync's pages, on top: they grow old on the way
    mute: str = ""  # a node whose deltas are all lost, so that every change of it comes by a sync

    @classmethod
    def of(cls, chance: Random) -> Weather:
        """Some weather."""
        return cls(
            chance.choice([0.0, 0.02, 0.1]), chance.choice([0.0, 0.05, 0.2, 0.5]), chance.choice([0.0, 0.15]),
            chance.choice([5, 50, 300]), chance.choice([1, 300, 3_000]),
            chance.choice(["", "", "n0"]),
        )  # fmt: skip


FAIR = Weather(0.0, 0.0, 0.0, 20, 1)


class Network:
    """Carries callables; what they do is the receiver's business. `counts` proves which faults really happened."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world = world
        self.weather = weather
        self.cut: set[tuple[str, str]] = set()  # (from, to): one direction
        self.counts: Counter[str] = Counter()

    def send(self, source: str, target: str, deliver: Callable[[], None], kind: str = "") -> None:
        """Bring a message on its way; it is checked for a cut when it leaves and when it arrives. An agent's messages
        are not doubled: it does that itself, by retrying."""
        chance = self.world.second if kind in ("claim", "round") else self.world.random
        weather = self.weather
        self.counts["sent"] += 1
        if (source, target) in self.cut:
            self.counts["cut"] += 1
            return
        loss = weather.loss
        if kind == "delta":
            loss = 1.0 if source == weather.mute else weather.delta_loss
        if loss and chance.random() < loss:
            self.counts["lost"] += 1
            return
        copies = 1
        if weather.doubling and kind not in ("agent", "claim") and chance.random() < weather.doubling:
            self.counts["doubled"] += 1
            copies = 2

        def arrive() -> None:
            if (source, target) in self.cut:
                self.counts["cut"] += 1
            else:
                deliver()

        for _ in range(copies):
            delay = chance.between(1, weather.delay_max)
            if chance.random() < 0.05:
                delay *= 20  # a straggler
                self.counts["straggling"] += 1
            if kind == "page":
                delay += self.world.between(0, weather.page_delay_max)
            self.world.after(delay, arrive)

    @property
    def fair(self) -> bool:
        """Does everything work?"""
        return self.weather is FAIR

    def heal(self) -> None:
        """From now on everything arrives, once, if not in order."""
        self.cut.clear()
        self.weather = FAIR
