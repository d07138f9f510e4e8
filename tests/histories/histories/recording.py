"""Histories of agents at work on one cluster, one after the other, while things break."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import NamedTuple

from chaos.history import Recorder

from histories.agents import Agent, Work
from histories.broken import OF_AGENTS
from histories.cluster import AimedFaults, SkewedCluster, SkewingFaults
from histories.history import Operation

AGENTS = 12  # the last ones, one a node, are loyal to it (agents.py)
KEYS = 5  # of each history
NODES = 3
LINKS = 2  # to the broker, for the agents; each can be cut
PAUSE_SECONDS = 0.04
HISTORY_SECONDS_MAX = 90.0


class Recorded(NamedTuple):
    """One history; `faults` is how often what was broken while it was made."""

    name: str
    operations: list[Operation]
    seconds: float
    faults: Counter[str]


async def record(
    folder: Path,
    *,
    count: int,
    operations: int,
    seed: str,
    level: str,
    faults: Sequence[str],
    without: str = "",
    keys: int = KEYS,
    pause_seconds: float = PAUSE_SECONDS,
    aimed: bool = False,
) -> AsyncGenerator[Recorded, None]:
    """`count` histories of `operations` each, of agents that ask for this level, under these faults. `folder`, which
    exists, is the cluster's; `without`: a rule that is not kept (broken.py); `aimed`: faults come one after the other,
    so that primaries change and come back (AimedFaults).

    Agents keep their sessions from one history to the next. A history that takes too long ends with what it has.
    """
    of_agents = without in OF_AGENTS
    locks = level == "strong" and not aimed
    cluster = SkewedCluster(folder / "cluster", NODES, "" if of_agents else without, locks=locks)
    recorder = Recorder(folder / "faults.jsonl")
    agents: list[Agent] = []
    pinned = level == "eventual" or of_agents
    breaking: asyncio.Task[None] | None = None
    try:
        await cluster.start()
        links = [await cluster.link_for(f"agents-{number}") for number in range(LINKS)]
        for number in range(AGENTS):
            name, url = f"a{number}", links[number % LINKS].url
            dice, node = random.Random(f"{seed}/{name}"), f"spine-{number % NODES + 1}"
            loyal = number >= AGENTS - NODES
            agents.append(Agent(name, url, dice, level, pause_seconds, node, pinned=pinned, loyal=loyal))
        kind = AimedFaults if aimed else SkewingFaults
        chance = kind(cluster, random.Random(f"{seed}/faults"), recorder, tuple(faults))
        if faults:
            breaking = asyncio.create_task(chance.run(float("inf")))
        for number in range(count):
            before, began = chance.counts.copy(), time.monotonic()
            names, until = [f"h{number}-k{key}" for key in range(keys)], began + HISTORY_SECONDS_MAX
            work = Work(names, f"h{number}-lock" if locks else "", operations, until)
            async with asyncio.TaskGroup() as group:
                for agent in agents:
                    group.create_task(agent.work(work))
            yield Recorded(f"h{number}", work.recorded, time.monotonic() - began, chance.counts - before)
    finally:
        for agent in agents:
            await agent.close()
        if breaking is not None:
            breaking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await breaking
        await cluster.stop()
        recorder.close()
