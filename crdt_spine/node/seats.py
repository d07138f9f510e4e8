"""What a node holds, as the cluster's register says: it acts on a new membership, keeps it, and confirms it.

    closed       of a partition that goes nothing is taken any more, from nobody
    changed      once all that came of it is durable, between two turns: it is forgotten in memory, and new peers count
    kept         the membership is in the checkpoint; where a partition went, all that was dirty is in the tables before
                 that, so that no journal row with changes of the old copy follows the checkpoint that has it no more
    confirmed    announced, and acted on by whoever drives the change (steward.py)

What the tables have of a partition that went is wiped behind that, a few records at a time. The checkpoint says so, and
a partition that is given back waits until nothing is left of its old copy. docs/decisions/0020-membership-steps.md says
why in this order; the simulator's node does the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec

from crdt_spine.core.layout import Layout
from crdt_spine.core.membership import Membership, to_json
from crdt_spine.core.messages import Announcement, Hello, NodeInfo, Vectors
from crdt_spine.core.placement import partition_of
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.replica import Replica
from crdt_spine.errors import ConfigError
from crdt_spine.node.committer import Committer
from crdt_spine.node.coordinator import Coordinator
from crdt_spine.node.feeds import Feeds
from crdt_spine.node.flusher import Flusher
from crdt_spine.node.identity import Identity
from crdt_spine.node.register import Register
from crdt_spine.node.replication import Replication
from crdt_spine.node.serving import Serving
from crdt_spine.storage.engine import Checkpoint, PartitionSummary, StorageFull
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Disconnected, Subscription

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0  # between two looks at the register, besides those when something is heard of it
RETRY_SECONDS = 0.5  # while the disk is full
LINGER_SECONDS = 5.0  # a dropped partition's subject is listened to for as long: it may carry others' deltas as well


class Removed(Exception):
    """The cluster was told that this node is dead: it must not go on, and its folder stays as it is."""


class Deltas:
    """The subscriptions to the deltas of what is held. `listen` subscribes to a partition's subject, None: to all."""

    def __init__(self, partitions: int, listen: Callable[[int | None], Awaitable[Subscription]]) -> None:
        self._partitions = partitions
        self._listen = listen
        self._open: dict[int | None, Subscription] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def hold(self, numbers: Collection[int]) -> None:
        """Hear of these partitions at least; of others no more, soon."""
        wanted: set[int | None] = {None} if len(numbers) == self._partitions else set(numbers)
        for number in sorted(wanted - self._open.keys(), key=str):
            self._open[number] = await self._listen(number)
        for number in self._open.keys() - wanted:
            leaving = asyncio.get_running_loop().create_task(self._leave(self._open.pop(number)))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, subscription: Subscription) -> None:
        try:
            await asyncio.sleep(LINGER_SECONDS)
        finally:
            with contextlib.suppress(Exception):
                await subscription.cancel()

    async def close(self) -> None:
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for subscription in self._open.values():
            with contextlib.suppress(Exception):
                await subscription.cancel()


class Seats:
    """A node's place in the cluster. `saved` is the membership on its disk, `newest` what the register had when it
    started. `on_change` is told when the membership was confirmed."""

    def __init__(
        self, node: str, hello: Hello, register: Register, saved: Membership, newest: Membership,
        wiping: Collection[int],
    ) -> None:  # fmt: skip
        self.node = node
        self.hello = hello
        self.register = register
        self.membership = saved  # what is acted upon ...
        self.epoch = saved.epoch  # ... and on the disk
        self.seen = newest  # the newest that is known
        self.wiping = set(wiping)  # partitions of which the tables still have records that count no more
        self.look_again = asyncio.Event()
        self.on_change: list[Callable[[], None]] = []
        self.left = asyncio.Event()  # this node was a member and is none any more: others have all that it had
        self._one = asyncio.Lock()
        self._one_wipes = asyncio.Lock()
        self._dropped = asyncio.Event()  # there is something to wipe
        self._encoded = (saved, to_json(saved))
        self._compared: set[int] = set()

    def connect(
        self, replica: Replica, store: RecordStore, committer: Committer, flusher: Flusher, identity: Identity,
        replication: Replication, feeds: Feeds, coordinator: Coordinator, serving: Serving, deltas: Deltas,
        on_done: Callable[[list[Waiting]], None], on_serving: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Meet the parts that have to follow."""
        self.replica = replica
        self.store = store
        self.committer = committer
        self.flusher = flusher
        self.identity = identity
        self.replication = replication
        self.feeds = feeds
        self.coordinator = coordinator
        self.serving = serving
        self.deltas = deltas
        self.on_done = on_done
        self.on_serving = on_serving
        self._hold(self.membership.peers_of(self.node), self.membership)
        self._meet(self.membership)
        self._ignore(self.wiping)
        self._follow()

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint must have of it."""
        if self._encoded[0] is not self.membership:
            self._encoded = (self.membership, to_json(self.membership))
        wiping = {"wiping": sorted(self.wiping)} if self.wiping else {}
        return {"membership": self._encoded[1], **wiping}

    @property
    def is_member(self) -> bool:
        """Does this node belong to the cluster, as far as it knows?"""
        return self.node in self.seen.members

    # -- hearing of it ----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Before the node says anything to anybody: act on what the register said. Raises Removed."""
        if "membership" not in self.flusher.engine.checkpoint.extra:  # an earlier program's folder
            await self._until_there_is_space(lambda: self.flusher.note(self._noted))
        await self.adopt(self.seen)

    async def run(self) -> None:
        """Look at the register now and then, and whenever something is heard of it, until cancelled. Raises Removed."""
        subscription: Subscription | None = None
        try:
            while True:
                if subscription is None:
                    with contextlib.suppress(Disconnected, TimeoutError):
                        subscription = await self.register.watch(self.look_again.set)
                self.look_again.clear()
                await self.look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self.look_again.wait()
        finally:
            if subscription is not None:
                with contextlib.suppress(Exception):
                    await subscription.cancel()

    async def look(self) -> None:
        """Adopt what the register has; give it back what it has lost. Raises Removed."""
        try:
            found = await self.register.look()
            if found is None or found.epoch < self.membership.epoch:
                await self._restore(found)
                return
        except (Disconnected, TimeoutError) as error:
            log.info("the register does not answer: %s", error)
            return
        except ConfigError as error:
            log.error("%s: this node goes on with epoch %d", error, self.membership.epoch)
            return
        await self.adopt(found)

    async def _restore(self, found: Membership | None) -> None:
        """The register has less than this node: its broker lost its disk, or went back to an old one. The node with the
        newest epoch makes it what it was."""
        newest = max((peer.announcement.epoch for peer in self.replication.peers.values()), default=0)
        if newest <= self.membership.epoch:
            log.warning("the register has lost epoch %d: it is made again", self.membership.epoch)
            await self.register.replace(found, self.membership)

    def hear(self, announcement: Announcement) -> Vectors:
        """What counts of a peer's vectors. Who knows of a newer epoch than this node is a reason to look."""
        if announcement.epoch > self.seen.epoch:
            self.look_again.set()
        return self.seen.counted(announcement.node, announcement.epoch, announcement.vectors)

    # -- acting on it -----------------------------------------------------------------------------------------------

    async def adopt(self, membership: Membership) -> None:
        """Act on a membership, keep it, confirm it. Raises Removed."""
        async with self._one:
            if membership == self.membership:
                self.seen = self.membership
                return
            if membership.refuses(self.node):
                raise Removed(
                    f"node {self.node} was given up as dead in epoch {membership.gone.get(self.node, 0)} of the cluster"
                )
            self.seen = membership
            was_member = self.node in self.membership.members
            before, after = _seats(self.membership, self.node), _seats(membership, self.node)
            gone = [number for number in self.replica.partitions if before[number] != after.get(number)]
            given = [number for number in after if before.get(number) != after[number]]
            self._close(gone)
            await self.deltas.hold(after)
            if gone:
                await self._until_there_is_space(lambda: self._drop(gone))
            stale = self.wiping & set(given)
            if stale:  # this node slept through its drop, or has just been dropped
                await self._until_there_is_space(lambda: self._wipe(stale))
            await self.committer.between_turns(lambda: self._change(membership, given))
            await self._until_there_is_space(lambda: self.flusher.note(self._noted))
            if given:
                log.info("%s goes on as %s: it is given partitions", self.replica.actor, self.identity.actor)
                self.replica.actor = self.identity.actor
            self.epoch = membership.epoch
            self._tell(membership, gone, given)
            self._follow()
            self.replication.announce()
            for told in self.on_change:
                told()
            if was_member and not self.is_member:
                self.left.set()

    def _close(self, gone: Collection[int]) -> None:
        """Take nothing more of these partitions, neither from agents nor from peers."""
        self.replica.close(gone)
        self.replication.pulling.leave(gone)
        self.feeds.dismiss_from(gone, f"node {self.node} does not hold the partition any more")
        self._compared = self.identity.to_compare & set(gone)
        self._serve(without=gone)

    async def _drop(self, gone: Collection[int]) -> None:
        """Hold these partitions no more, in a checkpoint that has everything dirty. A crash behind that finds them
        empty, by the membership from before, and drops them again. Raises StorageFull."""

        async def drop() -> None:
            await self.committer.between_turns(lambda: self._forget(gone))

        await self.flusher.flush(drop)

    def _forget(self, gone: Collection[int]) -> None:
        """Between two turns, while no flush is under way."""
        numbers, partitions = {*gone} & self.replica.partitions.keys(), self.hello.partitions
        if not numbers:
            return  # an attempt before this one did it; the disk was full after that
        self.store.forget(lambda id: partition_of(id, partitions) in numbers)
        left = {number: others for number, others in self.replica.peers.items() if number not in numbers}
        self._told(*self._hold(left, self.membership))
        self.identity.leave(numbers)
        self._ignore(self.wiping | numbers)

    def _change(self, membership: Membership, given: Collection[int]) -> None:
        """Between two turns, with everything durable: from here on the new membership holds."""
        self._told(*self._hold(membership.peers_of(self.node), membership))
        self._meet(membership)
        if given:
            self.identity.rename()
        self.membership = membership

    def _hold(
        self, peers: Mapping[int, tuple[str, ...]], membership: Membership
    ) -> tuple[list[Waiting], list[Waiting]]:
        """Hold these partitions from now on, with these other nodes, by that membership."""
        return self.replica.change_peers(peers, membership.muted(), membership.epoch, membership.dead)

    def _meet(self, membership: Membership) -> None:
        others = membership.nodes - {self.node, *membership.dead}
        unripe = {
            number: frozenset(node for node, seat in seats.items() if seat.stage in ("named", "pulling"))
            for number, seats in membership.seats.items()
            if number in membership.moving()
        }
        self.replication.meet(others, unripe)
        # Where each partition is on one node alone, nobody waits for anybody, and nobody could be reseeded.
        self.replica.retirement.change_nodes(others if membership.settings.factor > 1 else ())

    def _told(self, done: list[Waiting], lost: list[Waiting]) -> None:
        self.on_done(done)
        self.coordinator.lost(lost)

    def _noted(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint of the tables as they are, with this membership."""
        partitions = {
            number: checkpoint.partitions.get(number, PartitionSummary({}, forgotten_time=0))
            for number in self.replica.partitions
        }
        extra = {key: value for key, value in checkpoint.extra.items() if key != "wiping"}
        return Checkpoint(checkpoint.through, partitions, {**extra, **self.identity.saved, **self.saved})

    async def _until_there_is_space(self, write: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await write()
                return
            except StorageFull as error:
                log.error("epoch %d can't be kept, and is not confirmed: %s", self.seen.epoch, error)
                await asyncio.sleep(RETRY_SECONDS)

    def _tell(self, membership: Membership, gone: Collection[int], given: Collection[int]) -> None:
        if gone or given or membership.change is None:
            log.info(
                "epoch %d: %d partitions here%s%s", membership.epoch, len(self.replica.partitions),
                f", {len(given)} given" if given else "", f", {len(gone)} dropped" if gone else "",
            )  # fmt: skip

    def _follow(self) -> None:
        """Let the other parts know who is there."""
        membership = self.membership
        self._serve()
        nodes = [
            NodeInfo(id=id, zone=member.zone, host=member.host, port=member.port, role=member.role)
            for id, member in membership.members.items()
        ]
        self.hello = msgspec.structs.replace(
            self.hello, nodes=nodes, epoch=membership.epoch, replicas=membership.replicas(),
            cluster_id=membership.settings.cluster_id,
        )  # fmt: skip
        self.layout = Layout(self.hello)
        self.serving.epoch = membership.epoch
        self.replication.epoch = self.epoch
        if self._compared and not self.identity.to_compare:
            self.on_serving("")  # what was left to compare is not held any more
        self._compared = set()

    def _serve(self, without: Collection[int] = ()) -> None:
        """What agents may read and write here: by the old membership and by the new one."""
        self.serving.readable = frozenset(number for number in self._at(("member", "leaving")) if number not in without)
        self.serving.writable = frozenset(number for number in self._at(("member",)) if number not in without)
        self.feeds.readable = self.serving.readable

    def _at(self, stages: Collection[str]) -> list[int]:
        return [
            number
            for number in self.replica.partitions
            if self.membership.stage(number, self.node) in stages and self.seen.stage(number, self.node) in stages
        ]

    def _ignore(self, numbers: Collection[int]) -> None:
        """What the tables have of these partitions counts no more."""
        wiping, partitions = frozenset(numbers), self.hello.partitions
        self.wiping = set(wiping)
        if wiping:
            self._dropped.set()
        else:
            self._dropped.clear()
        self.store.ignored = (lambda id: partition_of(id, partitions) in wiping) if wiping else None

    # -- what went --------------------------------------------------------------------------------------------------

    async def wipe(self) -> None:
        """Wipe what is left of dropped partitions, until cancelled."""
        while True:
            await self._dropped.wait()
            try:
                await self._wipe(self.wiping)
            except StorageFull:
                log.info("partitions %s are not wiped yet: the disk is full", sorted(self.wiping))
            await asyncio.sleep(RETRY_SECONDS)

    async def _wipe(self, numbers: Collection[int]) -> None:
        """Leave nothing of these partitions in the tables. Raises StorageFull."""
        async with self._one_wipes:
            stale, partitions = self.wiping & set(numbers), self.hello.partitions
            if stale:
                await self.flusher.wipe(sorted(stale), lambda id: partition_of(id, partitions) in stale)
                self._ignore(self.wiping - stale)


def _seats(membership: Membership, node: str) -> dict[int, int]:
    """The partitions that a node holds, and since when."""
    return {number: membership.seats[number][node].since for number in membership.peers_of(node)}
