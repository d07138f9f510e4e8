"""After the faults: wait until all nodes are up and their replicas equal, then note what each has, asked alone."""

from __future__ import annotations

import asyncio
import time

from chaos.agents import PREFIX_LAST
from chaos.cluster import Cluster
from chaos.history import End, Held, Recorder
from chaos.reshape import settled
from crdt_spine.core.placement import partition_of
from crdt_spine.errors import SpineError
from crdt_spine.memory import Memory

CONVERGE_SECONDS_MAX = 60.0

Memories = dict[str, tuple[Memory, bytes]]


async def end(cluster: Cluster, recorder: Recorder, problems: list[str]) -> None:
    """Record the end, with what never came right, in words; `problems` are those of before."""
    healed = time.monotonic()
    problems = [*problems, *await _last_words(cluster)]
    found: dict[str, Memories] = {}
    try:
        async with asyncio.timeout(CONVERGE_SECONDS_MAX):
            while not await settled(cluster):
                await asyncio.sleep(0.3)
    except TimeoutError:
        problems.append(f"a change of the cluster is under way {CONVERGE_SECONDS_MAX:g} s after the last fault")
    holders = cluster.holders()
    try:
        async with asyncio.timeout(CONVERGE_SECONDS_MAX):
            while not await _level(cluster, holders, found):
                await asyncio.sleep(0.3)
    except TimeoutError:
        states = {node: (await cluster.status(node))["state"] for node in cluster.nodes}
        problems.append(f"the replicas are not equal {CONVERGE_SECONDS_MAX:g} s after the last fault; states: {states}")
    partitions = len(holders)
    for node, memories in found.items():
        for memory, raw in memories.values():
            number = partition_of(memory.id, partitions)
            if node in holders[number]:
                recorder.add(
                    Held(
                        node=node, partition=number, id=memory.id, content=memory.content,
                        tags=tuple(sorted(memory.tags)), all=raw.decode(),
                    )
                )  # fmt: skip
    recorder.add(End(healed=healed, converged=time.monotonic(), holders=holders, problems=tuple(problems)))


async def _last_words(cluster: Cluster) -> list[str]:
    """Store a memory in every partition that subscribers hear of; this must work again, within the time."""
    holders = cluster.holders()
    left = {}
    number = 0
    while len(left) < len(holders):
        left.setdefault(partition_of(f"{PREFIX_LAST}{number}", len(holders)), f"{PREFIX_LAST}{number}")
        number += 1
    deadline = time.monotonic() + CONVERGE_SECONDS_MAX
    problem: SpineError | None = None
    for id in left.values():
        while True:
            try:
                await cluster.observer.store("last", id=id, tags=["news"])
                break
            except SpineError as error:
                problem = error
            if time.monotonic() > deadline:
                return [f"{CONVERGE_SECONDS_MAX:g} s after the last fault, writes still fail: {problem!r}"]
            await asyncio.sleep(0.1)
    return []


async def _level(cluster: Cluster, holders: dict[int, tuple[str, ...]], found: dict[str, Memories]) -> bool:
    """Are all nodes up, and do all replicas of each partition say the same? `found` gets what they say."""
    for node in cluster.nodes:
        if (await cluster.status(node))["state"] != "up":
            return False
        try:
            found[node] = await cluster.memories(node)
        except SpineError:
            return False
    by_partition: dict[tuple[str, int], dict[str, bytes]] = {}
    for node, memories in found.items():
        for id, (_, raw) in memories.items():
            by_partition.setdefault((node, partition_of(id, len(holders))), {})[id] = raw
    for number, nodes in holders.items():
        first, *others = [by_partition.get((node, number), {}) for node in nodes]
        if any(other != first for other in others):
            return False
    return True
