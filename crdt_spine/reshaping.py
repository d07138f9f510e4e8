"""Growing and shrinking a cluster, as an operator sees it: a change is proposed to any node, the nodes carry it out,
and whoever likes watches (node/steward.py, core/membership.py).

A proposal that is under way already is not made again, so a command that was interrupted is simply given once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Literal, cast

import msgspec

from crdt_spine.core.messages import NodeInfo, Reshape, Status
from crdt_spine.errors import ConnectionFailed, InvalidInput, SpineError
from crdt_spine.session import Session

LOOK_SECONDS: Final = 0.3  # between two looks
ANSWER_SECONDS_MAX: Final = 1.0  # of a newcomer that is asked how far it is

Kind = Literal["add", "remove", "replace", "cancel"]


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants: `comes` is to join, `goes` to leave, `dead`: and will not come back. Of a cancel, `goes`
    is the dead node, where that is not the newcomer."""

    kind: Kind
    comes: NodeInfo | None = None
    goes: str = ""
    dead: bool = False

    def is_under_way(self, cluster: dict[str, Any]) -> bool:
        """Is the change under way in this cluster just that?"""
        change = cluster["change"]
        if change is None or change["kind"] != self.kind:
            return False
        if self.kind == "cancel":
            return not self.dead or (self.goes or change["turned_away"]) in cluster["dead"]
        comes = None if self.comes is None else self.comes.id
        return bool((change["comes"] or None) == comes and (change["goes"] or "") == self.goes)

    def is_reached(self, cluster: dict[str, Any]) -> bool:
        """Has the cluster, in which nothing is under way any more, become so?"""
        if self.kind == "cancel":
            return True
        members = cluster["members"]
        joined = self.comes is None or self.comes.id in members
        return joined and (not self.goes or self.goes not in members)


class Shape(msgspec.Struct, frozen=True):
    """A cluster as one node knows it: the part "cluster" of its report, and which nodes it hears (with itself)."""

    cluster: dict[str, Any]
    heard: frozenset[str]

    @property
    def epoch(self) -> int:
        return cast("int", self.cluster["epoch"])


async def look(session: Session) -> Shape:
    """The cluster's shape, as a node knows it that answers. Raises ConnectionFailed."""
    nodes = [node.id for node in session.hello.nodes]
    result = await session.run(Status(i=session.number()), nodes, use_token=False)
    report: dict[str, Any] = msgspec.json.decode(result.status)
    if not report.get("cluster"):
        raise ConnectionFailed(f"node {report['id']} does not know its cluster's nodes (it is {report['state']})")
    peers: dict[str, dict[str, Any]] = report.get("peers", {})
    return Shape(report["cluster"], frozenset({report["id"], *(node for node in peers if peers[node]["alive"])}))


async def moved(session: Session, shape: Shape) -> Shape:
    """The shape with what a newcomer has taken so far, as it says itself; as it is where nobody comes, or nobody
    answers."""
    change = shape.cluster["change"]
    comes = None if change is None else change["comes"]
    if comes not in shape.heard:
        return shape
    try:
        result = await session.run(Status(i=session.number()), [comes], use_token=False, timeout=ANSWER_SECONDS_MAX)
    except SpineError:
        return shape
    taken = msgspec.json.decode(result.status).get("taken", {})
    return Shape({**shape.cluster, "change": {**change, **taken}}, shape.heard)


async def propose(session: Session, aim: Aim) -> int:
    """Have the change begin, unless it is under way; the epoch from which on a node knows of it. Raises InvalidInput
    with the reason where it is refused, ConnectionFailed."""
    before = await look(session)
    if aim.is_under_way(before.cluster):
        return before.epoch
    if aim.comes is not None and aim.kind == "add" and _is_there(aim.comes, before.cluster["members"]):
        return before.epoch
    nodes = [node.id for node in session.hello.nodes]
    operation = Reshape(i=session.number(), kind=aim.kind, node=aim.comes, goes=aim.goes, dead=aim.dead)
    try:
        await session.run(operation, nodes, use_token=False)
    except InvalidInput:
        # The answer of the node that began it may have been lost, and another node been asked after it.
        now = await look(session)
        if not aim.is_under_way(now.cluster):
            raise
        return now.epoch
    return before.epoch


def _is_there(node: NodeInfo, members: dict[str, Any]) -> bool:
    """Is it a member just so? Raises InvalidInput: there is another one with its id."""
    member = members.get(node.id)
    if member is None:
        return False
    there = member.get("host", ""), member.get("port", 0), member.get("zone")
    if there != (node.host, node.port, node.zone):
        host, port, zone = there
        raise InvalidInput(
            f"{node.id} is in the cluster already, at {host}:{port}{f' in zone {zone}' if zone else ''}: give the new "
            "node another id"
        )
    return True


async def follow(session: Session, epoch: int) -> AsyncIterator[Shape]:
    """The cluster's shape again and again, from that epoch on and never an older one, until nothing is under way. Nodes
    that can't be reached for a while are waited for. Raises ConnectionFailed when that takes too long."""
    while True:
        shape = await look(session)
        if shape.epoch >= epoch:
            epoch = shape.epoch
            yield await moved(session, shape)
            if shape.cluster["change"] is None:
                return
        await asyncio.sleep(LOOK_SECONDS)
