"""How far a node is behind what its peers announced: for how long, and by how many changes, partition by partition. And
how far a peer is behind this node: nobody else can say it of one that is down.

Of each partition the oldest announcement is remembered that this node has not reached; when it has, the next one that
it has not. So the seconds are those since something was known to be missing, not those since the last announcement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from crdt_spine.core.causality import Vector, missing, within
from crdt_spine.core.messages import Vectors
from crdt_spine.core.replica import Replica


def shortfalls(replica: Replica, peer: str, actor: str) -> dict[int, int]:
    """Of the partitions in which a peer misses something that is durable here, how many changes: by its announcements,
    the last of which may be from a second before, and its acknowledgements. It has what it made itself, as `actor`."""
    counted: dict[int, int] = {}
    for number, vector in replica.durable.items():
        if peer in replica.peers[number]:
            has = {**replica.quorums[number].durable.get(peer, {}), actor: vector.get(actor, 0)}
            if count := missing(has, vector):
                counted[number] = count
    return counted


class Lag:
    """`durable` has the own vectors, by partition, as they are at any time."""

    def __init__(self, durable: Mapping[int, Vector], clock: Callable[[], float] = time.monotonic) -> None:
        self.durable = durable
        self._clock = clock
        self._owed: dict[int, tuple[float, Vector, str]] = {}  # partition -> since when, what, who has it

    def hear(self, peer: str, vectors: Vectors) -> None:
        """What a peer announced just now."""
        now = self._clock()
        for number, vector in vectors.items():
            here = self.durable.get(number)
            if here is None:
                continue
            owed = self._owed.get(number)
            if owed is not None and within(owed[1], here):
                owed = None
                del self._owed[number]
            if owed is None and not within(vector, here):
                self._owed[number] = now, vector, peer

    def forget(self, peer: str) -> None:
        """Nobody is owed any more what only this peer had."""
        self._owed = {number: owed for number, owed in self._owed.items() if owed[2] != peer}

    def seconds(self) -> dict[int, float]:
        """Of the partitions that miss something, for how long."""
        now = self._clock()
        return {
            number: round(now - since, 3)
            for number, (since, vector, _) in self._owed.items()
            if number in self.durable and not within(vector, self.durable[number])
        }

    def changes(self, announced: Mapping[str, Vectors]) -> dict[int, int]:
        """Of the partitions that miss something, how many changes of those that one of the peers has."""
        most: dict[int, int] = {}
        for vectors in announced.values():
            for number, vector in vectors.items():
                if number in self.durable and (count := missing(self.durable[number], vector)) > most.get(number, 0):
                    most[number] = count
        return most
