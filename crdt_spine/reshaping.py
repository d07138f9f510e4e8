"""Growing and shrinking a cluster, as an operator sees it: a change is proposed to any node, the nodes carry it out,
and whoever likes watches (node/steward.py, core/membership.py).

A proposal that is under way already, or done, is not made again, so a command that was interrupted is simply given once
more. One of another operator that differs from it in anything is refused with both values.
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
Place = tuple[str, int, str | None, str]  # host, port, zone and role


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
        return self._names(change) and not self.contradiction(cluster)

    def contradiction(self, cluster: dict[str, Any]) -> str:
        """Where the change under way is of the same nodes and yet another one: what it has and what is wanted, and what
        to do. Empty: there is none."""
        change = cluster["change"]
        if change is None or change["kind"] != self.kind or self.kind == "cancel" or not self._names(change):
            return ""
        if self.comes is not None:
            here, wanted = _place(cluster["members"].get(self.comes.id, {})), _place_of(self.comes)
            if here != wanted:
                return (
                    f"{self.comes.id} is being added already, {_placed(here)}, and not {_placed(wanted)}: give the "
                    "command as it was given first, or turn the change back and add it anew"
                )
        if self.dead and not change["dead"]:
            return (
                f"{change['what']}, as a node that is to hand over what it has, and not as dead: if it will not come "
                f"back, `spine cluster cancel --dead {self.goes}` ends that without it, and then give this once more"
            )
        if change["dead"] and not self.dead:
            return f"{change['what']}, as dead, and not as a node that is to hand over what it has: say --dead to watch"
        return ""

    def _names(self, change: dict[str, Any]) -> bool:
        comes = None if self.comes is None else self.comes.id
        return (change["comes"] or None) == comes and (change["goes"] or "") == self.goes

    def is_reached(self, cluster: dict[str, Any]) -> bool:
        """Has the cluster, in which nothing is under way any more, become so?"""
        if self.kind == "cancel":
            return True
        members = cluster["members"]
        joined = self.comes is None or self.comes.id in members
        return joined and (not self.goes or self.goes not in members)

    def is_done_already(self, cluster: dict[str, Any]) -> bool:
        """Was it made and finished before it was asked for? Raises InvalidInput: the newcomer is there, and another."""
        members, gone = cluster["members"], cluster.get("gone", [])
        if self.kind == "cancel" or (self.goes and (self.goes in members or self.goes not in gone)):
            return False
        return self.comes is None or _is_there(self.comes, members)


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
    """Have the change begin, unless it is under way or done; the epoch from which on a node knows of it. Raises
    InvalidInput with the reason where it is refused, ConnectionFailed."""
    before = await look(session)
    if contradiction := aim.contradiction(before.cluster):
        raise InvalidInput(contradiction)
    if aim.is_under_way(before.cluster) or aim.is_done_already(before.cluster):
        return before.epoch
    nodes = [node.id for node in session.hello.nodes]
    operation = Reshape(i=session.number(), kind=aim.kind, node=aim.comes, goes=aim.goes, dead=aim.dead)
    try:
        await session.run(operation, nodes, use_token=False)
    except InvalidInput:
        # The answer of the node that began it may have been lost, and another node been asked after it.
        now = await look(session)
        if contradiction := aim.contradiction(now.cluster):
            raise InvalidInput(contradiction) from None
        if not aim.is_under_way(now.cluster):
            raise
        return now.epoch
    return before.epoch


def _is_there(node: NodeInfo, members: dict[str, Any]) -> bool:
    """Is it a member just so? Raises InvalidInput: there is another one with its id."""
    member = members.get(node.id)
    if member is None:
        return False
    if _place(member) != _place_of(node):
        raise InvalidInput(
            f"{node.id} is in the cluster already, {_placed(_place(member))}, and not {_placed(_place_of(node))}: give "
            "the new node another id"
        )
    return True


def _place(member: dict[str, Any]) -> Place:
    return member.get("host", ""), member.get("port", 0), member.get("zone"), member.get("role", "primary")


def _place_of(node: NodeInfo) -> Place:
    return node.host, node.port, node.zone, node.role


def _placed(place: Place) -> str:
    host, port, zone, role = place
    return f"at {host}:{port} in {'no zone' if zone is None else f'zone {zone}'} as a {role}"


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
