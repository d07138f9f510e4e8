"""How fast do so many nodes know of a death, what does it cost, and whom do they suspect wrongly? Virtual time.

python tests/gossip/run.py --nodes 1000 --seeds 3           a row for each seed, without loss and with a tenth lost
python tests/gossip/run.py --nodes 100 --seeds 50 --first 7

Of each run: a while to get to know each other, three nodes that die one after the other, then a tenth of all at once.
Exit 1 where somebody did not know within 10 s, a node sent or took more than 10 messages a second, a message had 16 KiB
or more, or a node that was well was said to be down.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from gossip_world import World

LOSSES = (0.0, 0.1)
CALM_SECONDS = 30.0
KNOWN_SECONDS_MAX = 10.0
MESSAGES_MAX = 10.0  # a node and second, sent and taken
BYTES_MAX = 16 * 1024
NEVER = float("inf")


class Figures(NamedTuple):
    """Of one run. `suspicions` and `down` are what was said wrongly of nodes that were well."""

    seed: int
    loss: float
    deaths: tuple[float, ...]  # seconds until every node that lives knows of it
    many: float  # the same, of a tenth of the nodes at once
    suspicions: int
    down: int
    messages: float  # a node and second, sent and taken, on average
    messages_max: float  # of the node with most
    largest: int  # bytes
    kibibytes: float  # sent a node and second
    virtual: float
    processor: float

    @property
    def well(self) -> bool:
        known = max(*self.deaths, self.many) <= KNOWN_SECONDS_MAX
        return known and self.messages_max <= MESSAGES_MAX and self.largest < BYTES_MAX and not self.down

    def __str__(self) -> str:
        deaths = " ".join(f"{seconds:4.1f}" for seconds in self.deaths)
        return (
            f"seed {self.seed}, {self.loss:.0%} lost: a death is known after {deaths} s, a tenth of all after "
            f"{self.many:.1f} s; {self.suspicions} false suspicions, {self.down} false down; messages a node and "
            f"second {self.messages:.1f} (at most {self.messages_max:.1f}), {self.kibibytes:.0f} KiB; largest "
            f"{self.largest} bytes; {self.virtual:.0f} s in {self.processor:.0f} s of processor"
        )


def measure(seed: int, loss: float, nodes: int) -> Figures:
    """One run."""
    begun = time.process_time()
    world = World(nodes, seed, loss=loss)
    world.run(CALM_SECONDS)
    deaths = []
    for name in world.dice.sample(world.members, 3):
        world.kill(name)
        deaths.append(world.run_until(lambda name=name: not world.unaware(name), 30) or NEVER)  # type: ignore[misc]
    crowd = world.dice.sample(sorted(world.nodes), max(1, nodes // 10))
    world.kill(*crowd)
    many = world.run_until(lambda: not any(world.unaware(name) for name in crowd), 30) or NEVER
    handled = [(world.sent[name] + world.received[name]) / world.now for name in world.nodes]
    return Figures(
        seed, loss, tuple(deaths), many, world.false["suspect"], world.false["down"], sum(handled) / len(handled),
        max(handled), world.largest, world.bytes_sent / nodes / world.now / 1024, world.now,
        time.process_time() - begun,
    )  # fmt: skip


def _run(what: tuple[int, float, int]) -> Figures:
    return measure(*what)


def main() -> int:
    """0: all runs are well; 1: some are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000, help="(default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: as many as cores)")
    arguments = parser.parse_args()
    failed = 0
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    runs = [(seed, loss, arguments.nodes) for seed in seeds for loss in LOSSES]
    with Pool(arguments.jobs) as pool:
        for figures in pool.imap(_run, runs):
            failed += not figures.well
            print(figures, "" if figures.well else "  <- too much", flush=True)
    print(f"{len(runs)} runs of {arguments.nodes} nodes, {failed} not well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
