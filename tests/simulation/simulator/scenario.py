"""What kind of run a seed is: how many nodes, how bad the weather, what agents like to do, how often things break."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from simulator.agents import Habit
from simulator.network import Weather

FAULTS = ("crash", "crash", "part", "part", "mend", "break off", "clock", "pause", "full disk")


class Scenario(NamedTuple):
    """Chosen by the seed. Times in milliseconds."""

    weather: Weather
    skews: tuple[int, ...]  # one a node
    habit: Habit
    ids: int  # memories
    agent_pause_max: int
    fault_pause_max: int
    announce: int
    rollback: bool
    faults: tuple[str, ...] = FAULTS  # repeated is likelier

    @classmethod
    def of(cls, chance: Random) -> Scenario:
        """Some scenario."""
        nodes = chance.choice([3, 3, 4, 5])
        return cls(
            Weather.of(chance),
            tuple(chance.choice([0, 0, 100, -300, 3_000, -3_600_000]) for _ in range(nodes)),
            Habit.of(chance, nodes),
            chance.choice([2, 6, 12]),
            chance.choice([30, 300]),
            chance.choice([400, 1_500, 6_000, 20_000]),
            chance.choice([200, 1_000]),
            chance.random() < 0.2,
        )


#: What one node changes comes by syncs alone, whose pages are slow; agents change tags all the time.
SYNCS = Scenario(
    Weather(0.02, 0.02, 0.0, 50, 3_000, "n0"),
    (0, 100, -300),
    Habit(("store", "tag", "tag", "tag", "tag", "untag", "untag", "untag", "untag"), (1,)),
    ids=12,
    agent_pause_max=30,
    fault_pause_max=20_000,
    announce=200,
    rollback=False,
)

#: Memories are stored and deleted all the time, deltas are lost and late.
DELETES = SYNCS._replace(
    weather=Weather(0.02, 0.2, 0.15, 300, 3_000),
    habit=Habit(("store", "store", "delete", "tag"), (1, 1, 1, None)),
    ids=4,
)

#: An old disk is put into a node, again and again.
ROLLBACKS = DELETES._replace(weather=Weather(0.02, 0.05, 0.0, 50, 1), fault_pause_max=1_500, rollback=True)

#: Disks are full for a while and nodes crash; whoever wants all replicas to have its write retries a lot.
FULL_DISKS = DELETES._replace(
    weather=Weather(0.02, 0.05, 0.0, 50, 1),
    habit=Habit(("store", "store", "edit", "tag"), (3,)),
    fault_pause_max=1_000,
    faults=("crash", "full disk", "full disk", "pause"),
)
