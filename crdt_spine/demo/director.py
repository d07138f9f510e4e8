"""The play: nodes up, agents at work, one node killed and back, everybody waits until all is level, then the evidence.

Every wait has an end. What did not come about by then is missing in the evidence, and the facts say so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import msgspec

from crdt_spine.demo.agent import Agent
from crdt_spine.demo.cast import Player
from crdt_spine.demo.deliveries import complete, current
from crdt_spine.demo.facts import Contents, Evidence
from crdt_spine.demo.inspection import Inspector, digest
from crdt_spine.demo.ledger import Ledger
from crdt_spine.demo.scene import NodeState, Scene, Tone
from crdt_spine.demo.stage import Outage, Stage
from crdt_spine.errors import SpineError
from crdt_spine.spine import Spine

LOOK_SECONDS: Final = 0.25  # between looks at the nodes, for the picture
POLL_SECONDS: Final = 0.05  # between looks at what is waited for
RETURN_SECONDS_MAX: Final = 20.0  # for the killed node to serve again, once it is started
LEVEL_SECONDS_MAX: Final = 15.0
DELIVERY_SECONDS_MAX: Final = 15.0
OBSERVER: Final = "observer"


class Plan(msgspec.Struct, frozen=True):
    """How long things take, in seconds from the first memory on."""

    writing: float
    kill_at: float
    away: float


FULL: Final = Plan(writing=18.0, kill_at=5.5, away=4.5)
QUICK: Final = Plan(writing=4.5, kill_at=1.2, away=1.5)


async def perform(players: Sequence[Player], plan: Plan, folder: Path, scene: Scene) -> Evidence:
    """The whole play, in an empty folder. Raises SpineError where the cluster can't be started or reached at all."""
    stage = Stage(folder, scene)
    scene.say("a broker and three nodes are starting, each a process of its own")
    async with stage:
        scene.say(f"{len(scene.nodes)} nodes serve", Tone.GOOD)
        evidence = await _perform(players, plan, stage, scene)
    evidence.started, evidence.left = stage.started, len(stage.running())
    return evidence


async def _perform(players: Sequence[Player], plan: Plan, stage: Stage, scene: Scene) -> Evidence:
    ledger = Ledger()
    async with AsyncExitStack() as open_things:
        inspector = await open_things.enter_async_context(Inspector(stage.url))
        observer = await open_things.enter_async_context(Spine.connect(stage.url, agent=OBSERVER))
        agents = [
            Agent(player, number, spine, ledger, scene.agents[player.name])
            for number, (player, spine) in enumerate(await _connected(open_things, stage.url, players), 1)
        ]
        always: list[Coroutine[Any, Any, None]] = [_look(node, inspector, scene, stage, ledger) for node in scene.nodes]
        for agent in agents:
            for follow, updates in agent.subscriptions():
                await open_things.enter_async_context(updates)
                always.append(agent.follow(ledger.follow(agent.player.name, follow), updates))
            always.append(agent.edit())
        async with asyncio.TaskGroup() as background:
            tasks = [background.create_task(work) for work in always]
            await _work(agents, plan, stage, scene, inspector, observer, ledger)
            evidence = await _settle(agents, stage, scene, inspector, ledger)
            for task in tasks:
                task.cancel()
        return evidence


async def _connected(
    open_things: AsyncExitStack, url: str, players: Sequence[Player]
) -> list[tuple[Player, Spine]]:  # fmt: skip
    """Every player with a connection of its own."""
    spines = [Spine.connect(url, agent=player.name) for player in players]
    await asyncio.gather(*[open_things.enter_async_context(spine) for spine in spines])
    return list(zip(players, spines, strict=True))


# -- while they write --------------------------------------------------------------------------------------------


async def _work(
    agents: Sequence[Agent], plan: Plan, stage: Stage, scene: Scene, inspector: Inspector, observer: Spine,
    ledger: Ledger,
) -> None:  # fmt: skip
    """The agents write; meanwhile a node is killed, comes back and gets level."""
    scene.act = "writing"
    scene.say(f"{len(agents)} agents write {scene.planned} memories and follow each other", Tone.GOOD)
    async with asyncio.TaskGroup() as at_once:
        for agent in agents:
            at_once.create_task(agent.write(plan.writing))
        at_once.create_task(_lose_a_node(plan, stage, scene, inspector, observer, ledger))
    scene.say(f"all is written: {ledger.stored} memories, {ledger.updated} updates")


async def _lose_a_node(
    plan: Plan, stage: Stage, scene: Scene, inspector: Inspector, observer: Spine, ledger: Ledger
) -> None:
    await asyncio.sleep(plan.kill_at)
    node = await _busiest(inspector)
    scene.say(f"killing {node}, which serves the most subscriptions", Tone.BAD)
    before = len(ledger.writes)
    await stage.kill(node, plan.away)
    outage = stage.outage
    assert outage is not None
    try:
        async with asyncio.timeout(plan.away + RETURN_SECONDS_MAX):
            await stage.returned.wait()
        meanwhile = len(ledger.writes) - before
        scene.say(f"{node} serves again; {meanwhile} writes went on without it")
        async with asyncio.timeout(LEVEL_SECONDS_MAX):
            while True:
                if await _level(observer):
                    break
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        scene.say(f"{node} is not level with the others in time", Tone.BAD)
        return
    outage.level = time.monotonic()
    scene.nodes[node].state = NodeState.UP
    scene.say(f"{node} is level again, {outage.level - outage.started:.2f} s after its new start", Tone.GOOD)


async def _busiest(inspector: Inspector) -> str:
    """The node with the most feeds; of several, the last."""
    reports = [(node, await inspector.report(node)) for node in inspector.nodes]
    return max(reports, key=lambda one: (one[1]["feeds"] if one[1] is not None else -1, one[0]))[0]


async def _level(observer: Spine) -> bool:
    """Do all nodes serve, have the same number of memories, and miss nothing that they heard of?"""
    nodes = (await observer.status())["nodes"]
    return len({node["memories"] for node in nodes}) == 1 and all(
        node["state"] == "up" and not node["replication_lag_changes"] and not node["waiting_changes"] for node in nodes
    )


async def _look(node: str, inspector: Inspector, scene: Scene, stage: Stage, ledger: Ledger) -> None:
    """Keep the picture of a node fresh, until cancelled."""
    view = scene.nodes[node]
    while True:
        report = await inspector.report(node) if view.state is not NodeState.KILLED else None
        if report is not None and view.pid == report["pid"]:
            view.memories, view.feeds = report["memories"], report["feeds"]
            fullest = max(other.memories for other in scene.nodes.values() if other.state is not NodeState.KILLED)
            view.lag = max(report["replication_lag_changes"], fullest - view.memories)
        elif view.state is not NodeState.UP and stage.outage is not None:
            view.lag = _missed(stage.outage, ledger)
        await asyncio.sleep(LOOK_SECONDS)


def _missed(outage: Outage, ledger: Ledger) -> int:
    """The writes that were acknowledged while the node could not hear of them."""
    return sum(write.ended > outage.gone for write in ledger.writes) if outage.gone else 0


# -- when they are done ------------------------------------------------------------------------------------------


async def _settle(
    agents: Sequence[Agent], stage: Stage, scene: Scene, inspector: Inspector, ledger: Ledger
) -> Evidence:
    """Wait until every subscriber has everything and all nodes have the same, then ask each node alone."""
    scene.act = "settling"
    await _until(lambda: all(complete(feed, ledger.writes) for feed in ledger.feeds))
    await asyncio.gather(*[agent.edited_all() for agent in agents])
    listed, settled = await _same_everywhere(inspector, ledger)
    final = next(iter(listed.values()), {})
    await _until(lambda: all(current(feed, final) for feed in ledger.feeds))
    scene.act = "counting"
    scene.say("asking each node alone for every memory")
    ids = [write.id for write in ledger.writes if write.kind == "store" and write.memory is not None]
    found: Contents = {}
    for node in inspector.nodes:
        try:
            found[node] = await inspector.get(node, ids)
        except SpineError as error:
            scene.say(f"{node} can't be asked: {error}", Tone.BAD)
    for node, memories in listed.items():
        scene.nodes[node].memories, scene.nodes[node].lag = len(memories), 0
    scene.act = "done"
    return Evidence(
        planned=scene.planned,
        nodes=tuple(inspector.nodes),
        ledger=ledger,
        outage=stage.outage,
        listed=listed,
        found=found,
        settled_seconds=settled,
    )


async def _same_everywhere(inspector: Inspector, ledger: Ledger) -> tuple[Contents, float | None]:
    """What each node has, once it is the same; and how long that took from the last acknowledgement on."""
    deadline = time.monotonic() + LEVEL_SECONDS_MAX
    while True:
        listed: Contents = {}
        for node in inspector.nodes:
            try:
                listed[node] = await inspector.all_memories(node)
            except SpineError:
                continue
        if len(listed) == len(inspector.nodes) and len({digest(memories) for memories in listed.values()}) == 1:
            return listed, time.monotonic() - ledger.last_acknowledged
        if time.monotonic() > deadline:
            return listed, None
        await asyncio.sleep(POLL_SECONDS)


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for it, not for ever: the facts will say what is missing."""
    deadline = time.monotonic() + DELIVERY_SECONDS_MAX
    while True:
        if condition() or time.monotonic() > deadline:
            return
        await asyncio.sleep(POLL_SECONDS)
