"""One run: some nodes, some agents, a time of trouble, a time to heal, and then everything must be well."""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from dataclasses import dataclass
from unittest.mock import patch

from crdt_spine.core import replica as replicas
from crdt_spine.core import rounds, whole
from simulator.agents import Agent
from simulator.boundaries import BOUNDARIES, MEMBERSHIP_BOUNDARIES, STRONG_BOUNDARIES
from simulator.checkers import Checker
from simulator.checkers.bounds import Bounds
from simulator.checkers.causality import Causality
from simulator.checkers.convergence import Convergence
from simulator.checkers.durability import Durability
from simulator.checkers.identity import Identity
from simulator.checkers.linearizable import Linearizable
from simulator.checkers.liveness import Liveness
from simulator.checkers.meaning import Meaning
from simulator.checkers.publishing import Publishing
from simulator.checkers.resurrection import Resurrection
from simulator.checkers.retries import Retries
from simulator.checkers.seating import Seating
from simulator.checkers.sessions import Sessions
from simulator.checkers.tags import Tags
from simulator.checkers.threads import Threads
from simulator.checkers.vectors import Vectors
from simulator.claimants import Claimant
from simulator.cluster import Cluster
from simulator.faults import Faults
from simulator.network import Network
from simulator.operator import Operator
from simulator.rules import taken_away
from simulator.scenario import Scenario
from simulator.speakers import Speaker
from simulator.world import Violation, World

OPERATIONS_MIN = 300  # the trouble lasts until the agents have asked for so much
CHANGING_MILLISECONDS_MAX = 60_000  # for a change of the membership to end
HEALING_MILLISECONDS = 15_000
AGENTS = 6
SPEAKERS = 2
REMEMBERED_SECONDS = 16.0  # a retried strong operation: stragglers of it come no later
CLAIMED = 2  # memories
OPERATORS = 2
WAITING_CHANGES_MAX = 5  # as few as may be held back, so that the bound is reached


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
        left_out = [f"… {len(self.story) - lines} lines …"] if len(self.story) > lines else []
        return "\n".join([*left_out, *self.story[-lines:], f"seed {self.seed}: {self.problem or 'all is well'}"])


def run(seed: int, without: str | None = None, scenario: Scenario | None = None, *, strong: bool = True) -> Outcome:
    """Run a seed, with all rules or without one of them; in the scenario that the seed chooses, or in that one. Not
    `strong`: nobody asks for a strong operation."""
    world = World(seed)
    agents: list[Agent] = []
    checkers = [
        Retries(), Identity(), Resurrection(), Tags(), Meaning(), Sessions(), Publishing(), Vectors(), Causality(),
        Threads(), Bounds(), Seating(), Durability(), Convergence(), Liveness(agents),
        Linearizable(),
    ]  # fmt: skip
    counts: dict[str, int] = {}
    problem = ""
    gc.disable()  # a fifth of the time; what a run leaves behind goes at once when it is over
    try:
        with (
            patch.object(replicas, "WAITING_CHANGES_MAX", WAITING_CHANGES_MAX),
            patch.object(whole, "REMEMBERED_SECONDS", REMEMBERED_SECONDS),
            patch.object(rounds, "partition_of", lambda id, partitions: int(id[1:]) % partitions),
            taken_away(without),
        ):
            scenario = scenario or Scenario.of(world.random)
            if not strong:
                scenario = scenario._replace(claimants=0)
            _run(world, scenario, agents, checkers, without, counts)
    except Violation as violation:
        problem = str(violation)
    except Exception as error:  # the core crashed: that is a finding as well
        problem = "".join(traceback.format_exception(error)[-8:])
    finally:
        gc.enable()
    counts["events"] = world.events
    return Outcome(world.seed, problem, world.hash.hexdigest(), world.story, counts)


def _run(
    world: World,
    scenario: Scenario,
    agents: list[Agent],
    checkers: list[Checker],
    without: str | None,
    counts: dict[str, int],
) -> None:
    world.tell("scenario", str(scenario))
    network = Network(world, scenario.weather)
    cluster = Cluster(
        world, network, scenario.skews, scenario.spares, scenario.announce, scenario.looks, checkers, without,
        scenario.retirement, scenario.partitions, scenario.factor,
        strong=scenario.claimants > 0,
    )  # fmt: skip
    cluster.agents = agents
    agents += [
        Agent(cluster, f"agent{index}", scenario.ids, scenario.agent_pause_max, scenario.habit)
        for index in range(AGENTS)
    ]
    agents += [Speaker(cluster, f"speaker{index}", scenario.agent_pause_max * 5) for index in range(SPEAKERS)]
    agents += [
        Claimant(cluster, f"claimant{index}", CLAIMED, scenario.agent_pause_max) for index in range(scenario.claimants)
    ]
    boundaries = BOUNDARIES + (MEMBERSHIP_BOUNDARIES if scenario.operator_pause_max else ())
    boundaries += STRONG_BOUNDARIES if scenario.claimants else ()
    faults = Faults(cluster, scenario.faults, scenario.fault_pause_max, boundaries, rollback=scenario.rollback)
    deaths = 0 if scenario.rollback else scenario.deaths
    operators = [Operator(cluster, scenario.operator_pause_max, deaths) for _ in range(OPERATORS)]
    world.run_until(scenario.trouble)
    while sum(agent.count for agent in agents) < OPERATIONS_MIN:
        world.run_until(world.now + 1_000)
    faults.over = cluster.healing = True
    for operator in operators:
        operator.over = True
    network.heal()
    world.tell("network", "everything works from now on")
    for agent in agents:
        agent.resting = True
    for node in cluster.nodes.values():
        node.skew = 0
        node.disk.full = False
        node.doomed = None
        if node.stopped is not None:
            node.go_on()
        if not node.running and node.life:
            node.boot()
    end = world.now + CHANGING_MILLISECONDS_MAX
    while not cluster.register.settled and world.now < end:
        world.run_until(world.now + 1_000)
    world.run_until(world.now + HEALING_MILLISECONDS)
    cluster.check("healed")
    for agent in agents:
        for outcome, times in agent.outcomes.items():
            counts[f"operation {outcome}"] = counts.get(f"operation {outcome}", 0) + times
    counts |= {f"fault {kind}": times for kind, times in faults.counts.items()}
    changes = sum((operator.counts for operator in operators), Counter[str]())
    counts |= {f"membership {kind}": times for kind, times in changes.items()}
    counts |= cluster.counts
    counts |= {f"message {kind}": times for kind, times in network.counts.items()}
