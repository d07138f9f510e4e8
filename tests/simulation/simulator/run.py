"""One run: some nodes, some agents, a time of trouble, a time to heal, and then everything must be well."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from simulator.agents import Agent, Habit
from simulator.checkers.convergence import Convergence
from simulator.checkers.durability import Durability
from simulator.checkers.identity import Identity
from simulator.checkers.liveness import Liveness
from simulator.checkers.meaning import Meaning
from simulator.checkers.publishing import Publishing
from simulator.checkers.retries import Retries
from simulator.checkers.vectors import Vectors
from simulator.cluster import Cluster
from simulator.faults import Faults
from simulator.network import Network, Weather
from simulator.rules import taken_away
from simulator.world import Violation, World

TROUBLE_MILLISECONDS = 12_000
HEALING_MILLISECONDS = 15_000


@dataclass(frozen=True)
class Outcome:
    """What came of a seed. `problem` is empty when all is well."""

    seed: int
    problem: str
    hash: str
    story: list[str]
    counts: dict[str, int]

    def read(self, lines: int = 200) -> str:
        """The story's end, for a person."""
        return "\n".join([*self.story[-lines:], f"seed {self.seed}: {self.problem or 'all is well'}"])


class _HistoryChecker(Meaning):
    """Writes the history, then checks what it means."""

    def coordinated(self, node: Any, partition: int, dot: Any, change: Any) -> None:
        self.cluster.history.add(partition, dot, change)
        node.tell(f"makes ({dot[0]}, {dot[1]}) of {change.operation} on {change.id}")


def run(seed: int, without: str | None = None) -> Outcome:
    """Run a seed, with all rules or without one of them."""
    world = World(seed)
    with taken_away(without):
        return _run(world, without)


def _run(world: World, without: str | None) -> Outcome:
    chance = world.random
    network = Network(world, Weather.of(chance))
    size = chance.choice([2, 3, 3, 4])
    skews = [chance.choice([0, 0, 100, -300, 3_000, -3_600_000]) for _ in range(size)]
    agents: list[Agent] = []
    liveness = Liveness(agents)
    checkers = [
        Retries(), Identity(), _HistoryChecker(), Publishing(), Vectors(), Durability(), Convergence(), liveness
    ]  # fmt: skip
    counts: dict[str, int] = {}
    problem = ""
    try:
        cluster = Cluster(world, network, skews, min(2, size), checkers, without)
        habit = Habit.of(chance, size)
        ids, pause = chance.choice([2, 6, 12]), chance.choice([30, 300])
        agents += [Agent(cluster, f"agent{index}", ids, pause, habit) for index in range(6)]
        faults = Faults(cluster, chance.choice([400, 1500, 6000]), rollback=chance.random() < 0.2)
        world.run_until(TROUBLE_MILLISECONDS)
        faults.over = True
        network.heal()
        world.tell("network", "everything works from now on")
        for agent in agents:
            agent.resting = True
        for node in cluster.nodes.values():
            node.skew = 0
            if not node.running:
                node.boot()
        world.run_until(TROUBLE_MILLISECONDS + HEALING_MILLISECONDS)
        for checker in checkers:
            checker.healed()
        for agent in agents:
            for outcome, times in agent.outcomes.items():
                counts[outcome] = counts.get(outcome, 0) + times
        counts |= {f"fault {kind}": times for kind, times in faults.counts.items()}
        counts |= {f"message {kind}": times for kind, times in network.counts.items()}
        counts["collected"] = sum(node.repair.collected for node in cluster.nodes.values())
    except Violation as violation:
        problem = str(violation)
    except Exception as error:  # an assertion of the core's own, or a crash of it, is a finding as well
        problem = f"{type(error).__name__}: {error}"
        if without is None:
            with contextlib.suppress(AttributeError):
                import traceback

                problem += "\n" + "".join(traceback.format_exception(error)[-6:])
    counts["events"] = world.events
    return Outcome(world.seed, problem, world.hash.hexdigest(), world.story, counts)
