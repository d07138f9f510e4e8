"""What agents are told: all results of one loop turn for one agent travel in one `response/1`.

Everybody who does something for an agent ends here. With the results goes what they show, vector by partition: the
agent's session joins that into its token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.causality import Vector, join, join_into, within
from crdt_spine.core.messages import Response, Result, Vectors, encode
from crdt_spine.core.replica import Replica
from crdt_spine.node.serving import Serving
from crdt_spine.node.stray_keeper import StrayKeeper
from crdt_spine.transport.base import Transport
from crdt_spine.transport.pace import Pace

PACE_SECONDS_MAX = 0.001  # between two rounds of answers, if the first ...
PACE_RESULTS = 10  # ... had this many
RESPONSE_BYTES_TARGET = 256 * 1024


class Bundle(msgspec.Struct, eq=False):
    """What is to be said to one agent at the end of this loop turn."""

    results: list[Result]
    partitions: set[int]
    ahead: Vectors = {}  # what they show, of when they were made: more may be durable by now, which nobody was shown
    merged: Vectors = {}  # of that, what other replicas had


class Answers:
    """Results out. `down` tells the nodes that are believed to be away."""

    def __init__(
        self, replica: Replica, transport: Transport, serving: Serving, strays: StrayKeeper | None,
        down: Callable[[], tuple[str, ...]],
    ) -> None:  # fmt: skip
        self.replica = replica
        self.transport = transport
        self.serving = serving
        self.strays = strays
        self.down = down
        self._bundles: dict[str, Bundle] = {}
        self._pace = Pace(self._send, PACE_SECONDS_MAX, PACE_RESULTS)
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, inbox: str, result: Result, *partitions: int) -> None:
        """Say this to an agent. It shows what is durable of these partitions when it leaves."""
        bundle = self._bundles.get(inbox)
        if bundle is None:
            if not self._bundles:
                self._pace.plan()
            bundle = self._bundles[inbox] = Bundle([], set())
        bundle.results.append(result)
        if partitions:
            bundle.partitions.update(partitions)

    def showed(self, inbox: str, number: int, vector: Vector) -> None:
        """What was just said to an agent has this of a partition. Vectors are replaced, never changed."""
        ahead = self._bundles[inbox].ahead
        known = ahead.get(number)
        if known is None:
            ahead[number] = vector
        elif not within(vector, known):
            ahead[number] = join(known, vector)

    def merged(self, inbox: str, number: int, version: Vector) -> None:
        """What was just said to an agent has this of other replicas."""
        join_into(self._bundles[inbox].merged.setdefault(number, {}), version)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes a while and says its result itself; what comes behind it does not wait."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self) -> None:
        bundles, self._bundles = self._bundles, {}
        self._pace.sent(sum(len(one.results) for one in bundles.values()))
        for inbox, one in bundles.items():
            seen = {number: self.replica.durable[number] for number in one.partitions if number in self.replica.durable}
            for number, vector in one.ahead.items():
                seen[number] = join(seen[number], vector) if number in seen else vector
            strays = {} if self.strays is None else self.strays.established(seen)
            for number, vector in one.merged.items():
                strays[number] = join(strays.get(number, {}), vector)
            self._respond(inbox, one.results, seen, strays)

    def _respond(self, inbox: str, results: list[Result], seen: Vectors, strays: Vectors) -> None:
        """The results in messages of bearable size."""
        payload = encode(
            Response(
                node=self.replica.node, results=results, seen=seen, strays=strays, epoch=self.serving.epoch,
                down=self.down(), now=wall_clock.now(),
            )
        )  # fmt: skip
        if len(payload) <= RESPONSE_BYTES_TARGET or len(results) == 1:
            self.transport.send(inbox, payload)
        else:
            middle = len(results) // 2
            self._respond(inbox, results[:middle], seen, strays)
            self._respond(inbox, results[middle:], seen, strays)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
