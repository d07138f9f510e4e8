"""What kind of run a seed is: how many nodes, how bad the weather, what agents like to do, how often things break."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from simulator.agents import Habit
from simulator.network import Weather

NAMED_SHARE = 0.3  # of the seeds: the scenarios below get at what chance alone seldom does
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
    trouble: int = 12_000  # at least
    partitions: int = 2
    factor: int | None = None  # replicas of each partition; None: every node but the spares
    spares: int = 0  # nodes that hold nothing at first
    operator_pause_max: int = 0  # 0: the membership stays as it is
    deaths: int = 0  # so many nodes may be given up as dead, one after the other
    looks: tuple[int, int] = (1_500, 1_500)  # at most, between two looks at the register; n0 hears of newcomers later
    claimants: int = 3
    retirement: float = float("inf")  # seconds of silence after which a node is retired

    @classmethod
    def of(cls, chance: Random) -> Scenario:
        """Some scenario: one of `SCENARIOS`, or anything."""
        if chance.random() < NAMED_SHARE:
            return SCENARIOS[chance.choice([*SCENARIOS])]
        nodes = chance.choice([3, 3, 4, 5])
        spares = chance.choice([0, 0, 1]) if nodes < 5 else 0
        scenario = cls(
            Weather.of(chance),
            tuple(chance.choice([0, 0, 100, -300, 3_000, -3_600_000]) for _ in range(nodes)),
            Habit.of(chance, nodes),
            chance.choice([2, 6, 12]),
            chance.choice([30, 300]),
            chance.choice([400, 1_500, 6_000, 20_000]),
            chance.choice([200, 1_000]),
            chance.random() < 0.2,
            spares=spares,
            operator_pause_max=chance.choice([500, 4_000]) if spares or chance.random() < 0.2 else 0,
        )
        if scenario.operator_pause_max:
            scenario = scenario._replace(partitions=4, factor=3, deaths=int(chance.random() < 0.5))
        return scenario


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
    fault_pause_max=400,
    faults=("crash", "crash", "full disk", "pause"),
)

#: Nodes join and leave all the time, and crash; what is deleted must stay so everywhere, and is seldom stored again.
GROWTH = DELETES._replace(
    weather=Weather(0.0, 0.02, 0.15, 50, 3_000),
    habit=Habit(("store", "delete", "delete", "tag"), (1, 1, 1, None)),
    agent_pause_max=60,
    fault_pause_max=4_000,
    faults=("crash", "crash", "part", "mend", "break off", "pause"),
    ids=40,
    trouble=30_000,
    skews=(0, 100, -300, 0),
    partitions=4,
    factor=3,
    spares=2,
    operator_pause_max=300,
    looks=(300, 15_000),
)

#: Nodes leave, and come back, while much of what they say is lost or late.
FAREWELLS = GROWTH._replace(
    weather=Weather(0.02, 0.5, 0.15, 300, 3_000),
    habit=Habit(("store", "store", "delete", "tag"), (1,)),
    looks=(300, 300),
)

#: Nodes are given up as dead, and come back.
BURIALS = GROWTH._replace(
    weather=Weather(0.0, 0.2, 0.15, 50, 1_000),
    habit=Habit(("store", "delete", "delete", "tag"), (1, None, None, 9)),
    deaths=1,
    looks=(2_000, 2_000),
)

#: The same of partitions on four nodes, which three begin with, so that who comes takes nobody's place; and while much
#: is lost, so that it has not all yet. Of three a majority is two, of four it need not meet them once one has died.
SETTLING = BURIALS._replace(
    weather=Weather(0.0, 0.6, 0.0, 50, 600),
    habit=Habit(("store", "store", "store", "delete"), (None,)),
    agent_pause_max=30,
    fault_pause_max=8_000,
    looks=(300, 300),
    skews=(0, 100, -300),
    partitions=1,
    spares=3,
    factor=4,
    operator_pause_max=1_000,
    deaths=2,
)

#: Nodes crash all the time, at every boundary.
CRASHES = DELETES._replace(
    weather=Weather(0.02, 0.1, 0.15, 50, 300),
    fault_pause_max=500,
    faults=("crash", "crash", "crash", "break off", "part", "mend"),
    partitions=4,
    factor=3,
    spares=1,
    operator_pause_max=1_000,
)

#: Nodes are cut off from all others, while agents reach them, for so long that they are retired.
RETIREMENTS = DELETES._replace(
    weather=Weather(0.02, 0.1, 0.05, 50, 100),
    skews=(0, 100, -300),
    agent_pause_max=300,
    fault_pause_max=2_000,
    faults=("desert", "desert", "desert", "crash", "break off"),
    retirement=4.0,
)

#: Strong operations on few memories, while their primaries crash, stop, and are cut off.
CLAIMS = DELETES._replace(
    weather=Weather(0.02, 0.2, 0.1, 50, 50),
    skews=(0, 400, -400),
    agent_pause_max=60,
    fault_pause_max=900,
    faults=("crash", "crash", "part", "mend", "mend", "pause"),
    claimants=6,
)

SCENARIOS = {
    "syncs": SYNCS, "deletes": DELETES, "rollbacks": ROLLBACKS, "full-disks": FULL_DISKS, "growth": GROWTH,
    "farewells": FAREWELLS, "burials": BURIALS, "crashes": CRASHES, "retirements": RETIREMENTS, "settling": SETTLING,
    "claims": CLAIMS,
}  # fmt: skip
