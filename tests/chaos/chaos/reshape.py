"""Nodes join, leave and take each other's place while everything else goes wrong: one change at a time, as
`spine cluster` proposes and follows it, until it is done."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from chaos.cluster import Cluster
from crdt_spine.errors import ConnectionFailed, InvalidInput, SpineError
from crdt_spine.reshaping import Aim, follow, look, propose

CHANGE_SECONDS_MAX = 90.0
AGAIN_SECONDS = 0.5
MEMBERS_MAX = 5


class Stuck(Exception):
    """A change of the cluster that was not done."""


async def reshape(cluster: Cluster, dice: random.Random, counts: Counter[str]) -> None:
    """One change of the cluster, until nothing is under way. Raises Stuck: it does not end, or is refused."""
    newcomers = sorted(set(cluster.newcomers) & set(cluster.nodes))
    kinds = ["add"] * (len(cluster.nodes) < MEMBERS_MAX) + ["remove", "replace", "replace dead"] * bool(newcomers)
    kind = dice.choice(kinds)
    goes = "" if kind == "add" else dice.choice(newcomers)
    comes = None if kind == "remove" else await cluster.newcomer()
    dead = kind == "replace dead"
    if dead:
        await cluster.lose(goes)
    info = None if comes is None else comes.info
    aim = Aim(kind=kind.partition(" ")[0], comes=info, goes=goes, dead=dead)  # type: ignore[arg-type]
    counts[kind] += 1
    try:
        async with asyncio.timeout(CHANGE_SECONDS_MAX):
            await carry_out(cluster, aim)
    except (TimeoutError, InvalidInput) as error:
        raise Stuck(f"{aim} ends with {error!r}; {await _how_it_is(cluster)}") from error
    if goes:
        await cluster.dismiss(goes)


async def _how_it_is(cluster: Cluster) -> str:
    try:
        shape = await look(cluster.observer._live)
    except SpineError as error:
        return repr(error)
    return f"epoch {shape.epoch}, heard {sorted(shape.heard)}, {shape.cluster['change']}"


async def carry_out(cluster: Cluster, aim: Aim) -> None:
    """Propose it and follow it, whatever breaks meanwhile. Raises InvalidInput: it is refused and not done."""
    session = cluster.observer._live
    while True:
        try:
            async for _ in follow(session, await propose(session, aim)):
                pass
            if aim.is_reached((await look(session)).cluster):
                return
        except InvalidInput:
            if aim.is_reached((await look(session)).cluster):  # what was proposed before was done after all
                return
            raise
        except (ConnectionFailed, SpineError):
            pass
        await asyncio.sleep(AGAIN_SECONDS)


async def settled(cluster: Cluster) -> bool:
    """Is nothing under way, and does the observer know who holds what?"""
    session = cluster.observer._live
    try:
        shape = await look(session)
    except SpineError:
        return False
    return shape.cluster["change"] is None and session.hello.epoch == shape.epoch
