"""Who drives a change of the cluster: of the nodes that are up, the one with the smallest id.

Driving keeps nothing that matters. The register says what is to be done next, announcements say how far everybody is,
and goals (`core.membership_steps.Goals`) can be set anew; so when the driver dies, the next one goes on, and two that
take themselves for it do no harm: a step is put into the register by compare-and-set. An operator's command, or a node
that wants to join, only puts the change there (`propose`), through any node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.causality import Vector
from crdt_spine.core.membership import Member, Membership, described
from crdt_spine.core.membership_changes import proposed
from crdt_spine.core.membership_steps import Goals
from crdt_spine.core.messages import Reshape
from crdt_spine.core.rounds import unready
from crdt_spine.errors import InvalidInput
from crdt_spine.node.register import Register, member_of
from crdt_spine.node.replication import Replication
from crdt_spine.node.seats import Seats
from crdt_spine.transport.base import Disconnected

log = logging.getLogger(__name__)

STEP_SECONDS: Final = 0.05  # between two looks at whether a step can be made, while a change is under way
IDLE_SECONDS: Final = 1.0
JOIN_SECONDS: Final = 1.0  # between two attempts of a node to join
PROPOSALS_MAX: Final = 20  # how often something else may get into the register first
_SERVING: Final = ("up", "full")


class Steward:
    """One node's part in the changes of its cluster."""

    def __init__(self, seats: Seats, register: Register, replication: Replication) -> None:
        self.seats = seats
        self.register = register
        self.replication = replication
        seats.on_change.append(self._changed)
        self._wake = asyncio.Event()
        self._goals = Goals()
        self._saying: asyncio.TimerHandle | None = None
        self._told: tuple[int, int] | None = None  # moves done, and of how many, when it was said last

    # -- driving ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make the next step whenever it can be made and this node is to make it, until cancelled. Raises Removed."""
        while True:
            under_way = self.seats.seen.change is not None
            if under_way and self._drives():
                try:
                    await self._step()
                except (Disconnected, TimeoutError) as error:
                    log.info("a step waits for the register: %s", error)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STEP_SECONDS if under_way else IDLE_SECONDS):
                    await self._wake.wait()

    def _changed(self) -> None:
        self._wake.set()

    def _drives(self) -> bool:
        """Is this the smallest of the members that serve? One that compares its disk first may do so for long."""
        replication = self.replication
        serving = {node for node in replication.peers.alive() if replication.peers[node].announcement.state in _SERVING}
        members = self.seats.membership.members.keys()
        return replication.state in _SERVING and self.seats.node == min(serving & members | {self.seats.node})

    async def _step(self) -> None:
        membership = self.seats.membership
        if self.seats.epoch != membership.epoch or membership != self.seats.seen:
            return
        known = self._known()
        after = self._goals.step(
            membership, self.confirmed(), known, membership.settings.write_quorum, self._unready(membership)
        )
        if after is None:
            return
        if await self.register.replace(membership, after):
            self._tell(membership, after)
            await self.seats.adopt(after)
        else:
            await self.seats.look()

    def confirmed(self) -> dict[str, int]:
        """The epoch that each node has on its disk, as far as it has said."""
        heard = {node: peer.announcement.epoch for node, peer in self.replication.peers.items()}
        return {**heard, self.seats.node: self.seats.epoch}

    def _known(self) -> dict[str, dict[int, Vector]]:
        """What each node has, of those that have adopted this membership."""
        epoch = self.seats.epoch
        known = {
            node: peer.announcement.vectors
            for node, peer in self.replication.peers.items()
            if peer.announcement.epoch >= epoch
        }
        return {**known, self.seats.node: self.replication.replica.durable}

    def _unready(self, membership: Membership) -> Collection[int]:
        """Where the newcomer does not take part in strong operations yet, although it counts."""
        comes = "" if membership.change is None else membership.change.newcomer or ""
        if comes == self.seats.node:
            return unready(self.replication.replica)
        return self.replication.peers[comes].announcement.unready if comes in self.replication.peers else ()

    def _tell(self, before: Membership, after: Membership) -> None:
        if after.change is None:
            log.warning("epoch %d: %s: done", after.epoch, described(before))
        elif after.progress() != self._told:
            log.info("epoch %d: %s", after.epoch, described(after))
        self._told = after.progress()

    def pulled(self, number: int) -> None:
        """A sync is over: say at once what is here now, if others wait for that."""
        if self.seats.membership.stage(number, self.seats.node) == "pulling" and self._saying is None:
            self._saying = asyncio.get_running_loop().call_later(STEP_SECONDS, self._say)

    def _say(self) -> None:
        self._saying = None
        self.replication.announce()

    # -- what is asked for ------------------------------------------------------------------------------------------

    async def propose(self, reshape: Reshape, by: str) -> msgspec.Raw:
        """Begin the change that an operator wants; the report after that. `by` names the request: one that comes again
        is not made again. Raises InvalidInput: it can't be done, and why; Disconnected, TimeoutError."""
        node = reshape.node
        member = None if node is None else member_of(node)
        await self._propose(
            by, kind=reshape.kind, node="" if node is None else node.id, member=member, goes=reshape.goes,
            dead=reshape.dead,
        )  # fmt: skip
        return msgspec.Raw(msgspec.json.encode(self.report()))

    async def join(self, member: Member) -> None:
        """Have this node added to the cluster, once no other change is under way. Returns when it is a member."""
        waits = ""
        while not self.seats.is_member:
            try:
                await self._propose(f"{self.seats.node} itself", kind="add", node=self.seats.node, member=member)
                print(f"{self.seats.node} joins the cluster", flush=True)
                log.warning("%s joins the cluster: %s", self.seats.node, described(self.seats.seen))
                return
            except InvalidInput as refused:
                if str(refused) != waits:
                    log.warning("%s is not in the cluster yet: %s", self.seats.node, refused)
                waits = str(refused)
            except (Disconnected, TimeoutError) as error:
                log.info("%s can't ask to join: %s", self.seats.node, error)
            await asyncio.sleep(JOIN_SECONDS)

    async def _propose(self, by: str, **wanted: Any) -> None:
        for _ in range(PROPOSALS_MAX):
            current = await self.register.look()
            if current is None:
                raise Disconnected("the register of the cluster is lost, and not made again yet")
            if current.change is not None and current.change.by == by:
                break
            if wanted["kind"] == "add" and wanted["node"] == self.seats.node and wanted["node"] in current.members:
                break
            after = proposed(current, by=by, now=wall_clock.now(), **wanted)
            self._check_down(current, wanted)
            if await self.register.replace(current, after):
                log.warning("epoch %d: %s", after.epoch, described(after))
                break
        await self.seats.look()

    def _check_down(self, membership: Membership, wanted: dict[str, Any]) -> None:
        """Raises InvalidInput: who is said to be dead is up, or who has to hand over what it has is down."""
        goes, dead, up = wanted.get("goes", ""), wanted.get("dead"), self.replication.peers.alive() | {self.seats.node}
        if wanted["kind"] == "cancel" and not goes and membership.change is not None:
            goes = membership.change.newcomer or ""
        if goes not in membership.members or goes in membership.dead:
            return
        if dead and goes in up:
            raise InvalidInput(f"{goes} is up: stop it before you give it up as dead, or let it hand over what it has")
        if not dead and goes not in up:
            raise InvalidInput(
                f"{goes} is down, and has to confirm that it goes: start it; or say that it is dead (--dead), if it "
                "will not come back: what only it had is lost then, and its id is refused for ever"
            )

    # -- looking ----------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """The part "cluster" of the node's report. `not_heard` has the members that are not heard of, for how many
        seconds; None: they never were, since this node began."""
        report, members = self.seats.seen.report(self.confirmed()), self.seats.seen.members
        coordinates = Counter(replicas[0] for replicas in self.seats.layout.replicas.values() if replicas)
        for node, member in report["members"].items():
            member["coordinates"] = coordinates[node]
        silence = self.replication.peers.silence()
        report["not_heard"] = {
            node: round(silence[node], 1) if node in silence else None
            for node in sorted(members.keys() - self.replication.peers.alive() - {self.seats.node})
        }
        return report
