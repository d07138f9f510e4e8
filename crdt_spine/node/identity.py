"""Who a node is: under which name it makes dots, and whether its disk may be believed.

A dot is never given twice. So before its first change a node asks every peer what they know of it (the handshake), and
goes on under a new name, a new incarnation, when one can't be asked or when one knows what its disk does not: then the
disk was lost, or rolled back to an old copy (`Replica.lost`).

A rolled back disk has more than a name to make good. A record that it still has may be deleted, and its tombstone
forgotten, everywhere else; no "changes since" would tell. So every partition is compared with a peer's, whole, before
the node serves again. Which partitions are left is on the disk, in the same checkpoint as the new name: a crash in the
middle goes on where it was. A folder that was empty at the start has nothing that could be too old.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from crdt_spine import wall_clock
from crdt_spine.core.actors import actor_name
from crdt_spine.core.replica import Replica
from crdt_spine.node.committer import Committer
from crdt_spine.node.replication import Replication

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS_MAX = 1.5  # how long a starting node waits for every peer's word on what they know of it
ASK_SECONDS = 0.3  # between two questions in the handshake
COMPARED_AT_ONCE = 4  # partitions; what they have shown is saved together
COMPARE_SECONDS_MAX = 20.0  # without a page of any peer: nobody is there to compare with, or all were rolled back
COMPARE_AGAIN_SECONDS = 0.5  # after an attempt that brought nothing
SAVE_SECONDS = 5.0  # how much comparing a crash may cost


class Identity:
    """A node's name, and the way to a disk that can be believed. `extra` is what a checkpoint had of it (`saved`),
    `write` writes a checkpoint; `on_serving` is told why the node must not serve from now on, and with "" that it may.
    """

    def __init__(
        self,
        node: str,
        region: str,
        extra: dict[str, Any],
        write: Callable[[], Awaitable[None]],
        on_serving: Callable[[str], None],
    ) -> None:
        self.node = node
        self.region = region
        self.write = write
        self.on_serving = on_serving
        self.blank = "incarnation" not in extra  # the folder was empty when this process began
        self.incarnation: str = extra.get("incarnation") or _incarnation()
        self.began: str = extra.get("began") or self.incarnation  # the first one on this disk: the disk's name
        self.to_compare: set[int] = set(extra.get("to_compare", ()))

    def connect(self, replica: Replica, replication: Replication, committer: Committer) -> None:
        """Meet the parts that need the name before they can be made."""
        self.replica = replica
        self.replication = replication
        self.committer = committer
        self.to_compare &= {number for number, peers in replica.peers.items() if peers}
        replication.blank = self.blank

    @property
    def actor(self) -> str:
        return actor_name(self.region, self.node, self.incarnation)

    @property
    def disk(self) -> str:
        """The name of the disk: the actor under which it began with nothing."""
        return actor_name(self.region, self.node, self.began)

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint must have of it."""
        left = {"to_compare": sorted(self.to_compare)} if self.to_compare else {}
        return {"incarnation": self.incarnation, "began": self.began, **left}

    # -- at the start -----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """A new folder's name is on the disk before anything else. Raises StorageFull."""
        if self.blank:
            await self.write()

    async def handshake(self) -> None:
        """Ask every peer what it knows of this node; take a new name where that is the only safe thing."""
        replication = self.replication
        deadline = time.monotonic() + HANDSHAKE_SECONDS_MAX
        while not self._may_begin() and time.monotonic() < deadline:
            replication.announce()
            replication.heard_peer.clear()
            again = min(time.monotonic() + ASK_SECONDS, deadline)
            while not self._may_begin() and (left := again - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(replication.heard_peer.wait(), left)
                except TimeoutError:
                    break
                replication.heard_peer.clear()
        unheard = self._peers - replication.answered
        if replication.expelled.is_set():
            return  # there will be another disk, and a name with it
        if self.blank and replication.replica.retirement.knows_another_disk:
            # Others may have forgotten deletions without it. Until it has all of theirs, and a clock above them, it
            # could store again, below such a deletion, what is dead.
            self.to_compare = {number for number, peers in self.replica.peers.items() if peers}
            await self.write()
        if replication.usurped.is_set():
            await self._rolled_back()
        elif unheard and not self.blank:
            await self._reincarnate(f"not heard: {', '.join(sorted(unheard))}")

    @property
    def _peers(self) -> set[str]:
        return {peer for peers in self.replica.peers.values() for peer in peers}

    def _may_begin(self) -> bool:
        return self._peers <= self.replication.answered or self.replication.expelled.is_set()

    async def run(self) -> None:
        """Compare what is left to be compared, then serve; stop and do it over when a peer turns out to know more of
        this node than its disk. Until cancelled. Raises StorageFull."""
        while True:
            if self.to_compare:
                await self._compare()
                self.on_serving("")
            await self.replication.usurped.wait()
            await self._rolled_back()

    # -- a new name -------------------------------------------------------------------------------------------------

    async def _rolled_back(self) -> None:
        self.to_compare = {number for number, peers in self.replica.peers.items() if peers}
        self.on_serving(self.problem)
        await self._reincarnate("a peer knows of it what its disk does not: the disk was lost or rolled back")

    async def _reincarnate(self, reason: str) -> None:
        """The new name is on the disk before its first dot."""
        await self.committer.barrier()
        old, self.incarnation = self.actor, _incarnation()
        await self.write()
        self.replica.actor = self.actor
        self.replication.usurped.clear()
        log.warning("%s goes on as %s: %s", old, self.actor, reason)
        self.replication.announce()

    def rename(self) -> None:
        """Take a new name. It is the caller's to write it to the disk and to tell the replica then."""
        self.incarnation = _incarnation()

    def leave(self, numbers: Collection[int]) -> None:
        """These partitions are not held any more: there is nothing to compare."""
        self.to_compare -= set(numbers)

    # -- a disk that can be believed --------------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why this node does not serve; empty where it does."""
        if not self.to_compare:
            return ""
        anew = self.incarnation == self.began and self.replica.retirement.knows_another_disk
        why = "begins anew on an empty disk" if anew else "was rolled back to an old copy of its disk"
        return (
            f"node {self.node} {why}; it compares its partitions with its peers' before it serves: "
            f"{len(self.to_compare)} are left"
        )

    async def _compare(self) -> None:
        """Compare all of `to_compare`, a few at a time, with peers that can be believed; go on without where there is
        none for too long."""
        replication = self.replication
        log.warning("%s", self.problem)
        left = deque(sorted(self.to_compare))
        started = saved = time.monotonic()
        while left:
            some = [left.popleft() for _ in range(min(COMPARED_AT_ONCE, len(left)))]
            compared = await asyncio.gather(*[self._compare_one(number) for number in some])
            self.to_compare -= {number for number, done in zip(some, compared, strict=True) if done}
            left += [number for number, done in zip(some, compared, strict=True) if not done]
            left = deque(number for number in left if number in self.to_compare)  # others may have been dropped
            now = time.monotonic()
            if left and now - max(started, replication.pulling.paged) >= COMPARE_SECONDS_MAX:
                log.warning(
                    "no peer could be compared with for %g s: %s goes on with %d partitions as its disk has them; what "
                    "was deleted and forgotten elsewhere since then may come back",
                    COMPARE_SECONDS_MAX, self.actor, len(left),
                )  # fmt: skip
                replication.counts["partitions_not_compared"] += len(left)
                break
            if left and now - saved >= SAVE_SECONDS:
                await self.write()
                saved = now
            if not any(compared):
                await asyncio.sleep(COMPARE_AGAIN_SECONDS)
        self.to_compare.clear()
        await self.committer.barrier()
        await self.write()
        replication.usurped.clear()  # whoever said so meanwhile spoke of the disk as it was

    async def _compare_one(self, number: int) -> bool:
        sources = self.replication.pulling.sources(number) if number in self.replica.partitions else ()
        return bool(sources) and await self.replication.pulling.compare(number, random.choice(sources))


def _incarnation() -> str:
    """A name that this node never had: the time, in base 36."""
    number, text = wall_clock.now(), ""
    while number:
        number, digit = divmod(number, 36)
        text = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + text
    return text
