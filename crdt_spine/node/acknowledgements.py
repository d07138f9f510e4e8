"""What this node has durably of others' changes, told to their coordinators: at once where a write waits for it, else a
little later, with what else there is to say to the same coordinator by then.

An acknowledgement is cumulative, so one that was put off is in the next one, and the announcements say the same.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache

from crdt_spine.core.actors import node_of
from crdt_spine.core.messages import Ack, encode
from crdt_spine.core.quorum import awaited
from crdt_spine.core.replica import Replica
from crdt_spine.core.rounds import vouched
from crdt_spine.core.subjects import Subjects
from crdt_spine.transport.base import Transport

PATIENCE_SECONDS = 0.025  # what nobody waits for is said that much later at most

_awaited = lru_cache(4_096)(awaited)


class Acknowledgements:
    """Those of one node. `take` is told what came to be durable, by actor."""

    def __init__(self, node: str, region: str, replica: Replica, transport: Transport, subjects: Subjects) -> None:
        self.node = node
        self.region = region
        self.replica = replica
        self.transport = transport
        self.subjects = subjects
        self._later: dict[str, dict[int, int]] = {}  # actor -> partition -> n
        self._timer: asyncio.TimerHandle | None = None

    def take(self, acks: dict[str, dict[int, int]]) -> None:
        """A turn is durable that has this much of others' changes."""
        for actor, news in acks.items():
            region, node = node_of(actor)
            if region != self.region or node == self.node:
                continue
            reached = self._held(self._later.pop(actor, {}) | news)
            if any(self._is_awaited(number, node) for number in reached):
                self._say(actor, reached)
                continue
            if reached:
                self._later[actor] = reached
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._say_all)

    def close(self) -> None:
        """Put nothing off any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _say_all(self) -> None:
        self._timer = None
        later, self._later = self._later, {}
        for actor, put_off in later.items():
            if reached := self._held(put_off):
                self._say(actor, reached)

    def _say(self, actor: str, reached: dict[int, int]) -> None:
        ack = Ack(node=self.node, actor=actor, reached=reached, terms=vouched(self.replica, actor, reached))
        self.transport.send(self.subjects.ack(node_of(actor)[1]), encode(ack))

    def _held(self, reached: dict[int, int]) -> dict[int, int]:
        """Of these partitions those that are here: some may have gone to other nodes meanwhile."""
        return {number: n for number, n in reached.items() if number in self.replica.partitions}

    def _is_awaited(self, number: int, coordinator: str) -> bool:
        """Does a write wait for this replica, were it up to its coordinator?"""
        replica = self.replica
        replicas = (self.node, *replica.counting_peers(number))
        return self.node in _awaited(coordinator, replicas, replica.write_quorum, replica.away)
