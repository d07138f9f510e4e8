"""Gossip in a running node: the timer, the subject and the figures; the rules are in core/gossip.py.

Every GOSSIP_SECONDS or so it tells one other node what it knows of all, and asks that one. While there is no connection
nobody can be heard, so no time passes then. Who is away (suspect, down, leaving) is told to agents with every answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.gossip import Gossip, Health, read
from crdt_spine.core.messages import NodeState, Rumours, Unreadable, Vectors, encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.limits import GOSSIP_SECONDS
from crdt_spine.transport.base import Message, Transport

log = logging.getLogger(__name__)

JITTER: Final = 0.1  # of a pause: who began at one moment must not go on speaking at one moment
SMOOTHING: Final = 1 / 8  # of a new measurement of the latency
_SAID: Mapping[NodeState, Literal["joining", "up", "leaving"]] = {
    "starting": "joining", "up": "up", "full": "up", "stopping": "leaving"
}  # fmt: skip


class Fares(msgspec.Struct, frozen=True, kw_only=True):
    """How this node fares, as it is asked once a tick. `operations` were taken so far, `commit_seconds` is how long it
    takes to make a turn durable, `turn` changes whenever `vectors` do."""

    state: NodeState
    operations: int
    waiting: int
    commit_seconds: float
    epoch: int
    turn: int
    vectors: Vectors


class Gossiper:
    """One node's part in the gossip. `members` gives who belongs to the cluster, `fares` how this node fares."""

    def __init__(
        self,
        node: str,
        zone: str | None,
        transport: Transport,
        subjects: Subjects,
        members: Callable[[], Collection[str]],
        fares: Callable[[], Fares],
    ) -> None:
        self.gossip = Gossip(node, zone, wall_clock.now(), time.monotonic())
        self.node = node
        self.transport = transport
        self.subjects = subjects
        self.members = members
        self.fares = fares
        self.counts: Counter[str] = Counter()
        self._chance = random.Random()
        self._late = 0.0  # seconds by which the timer was late, smoothed
        self._operations = (time.monotonic(), 0)
        self._load = 0
        self.load_elsewhere = 0  # operations a second that agents ask of the other nodes; as of the last tick
        self._digest = (-1, 0)  # of the vectors, as they were in that turn
        self._known: frozenset[str] = frozenset()

    # -- what others of this process ask ----------------------------------------------------------------------------

    @property
    def away(self) -> tuple[str, ...]:
        """The nodes that are not to be asked for anything: suspect, down or leaving."""
        return self.gossip.away

    def view(self) -> dict[str, Health]:
        """All members and this node."""
        return self.gossip.view(time.monotonic())

    def report(self) -> dict[str, Any]:
        """For the node's status."""
        return {
            "nodes": {node: _shown(health) for node, health in self.view().items()},
            "away": list(self.away),
            **{name: self.counts[name] for name in ("sent", "bytes_sent", "received", "bytes_received", "refused")},
            **self.gossip.counts,
        }

    # -- the timer --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Speak every GOSSIP_SECONDS or so, until cancelled."""
        while True:
            pause = GOSSIP_SECONDS * (1 + JITTER * (2 * self._chance.random() - 1))
            asleep = time.monotonic()
            await asyncio.sleep(pause)
            self._late += SMOOTHING * (time.monotonic() - asleep - pause - self._late)
            if self.transport.connected:
                self._follow()
                self._tell()
                if len(self._known) > 1:
                    self._send(self.gossip.tick(time.monotonic(), self._chance))
                    self._log()

    def stop(self) -> None:
        """Tell some of the others that this node stops."""
        self._send(self.gossip.farewell(self._chance))

    def take(self, message: Message) -> None:
        """What another node knows. Garbage is counted and otherwise ignored."""
        try:
            rumours = read(message.payload)
        except Unreadable:
            self.counts["refused"] += 1
            return
        self.counts["received"] += 1
        self.counts["bytes_received"] += len(message.payload)
        answer = self.gossip.receive(rumours, time.monotonic())
        if answer is not None:
            self._send([(rumours.node, answer)])
        self._log()

    def _follow(self) -> None:
        members = frozenset(self.members())
        if members != self._known:
            self._known = members
            self.gossip.change_members(members)

    def _tell(self) -> None:
        fares, now = self.fares(), time.monotonic()
        self.load_elsewhere = self.gossip.load_elsewhere
        since, before = self._operations
        if now - since >= 1.0:
            self._load = round((fares.operations - before) / (now - since))
            self._operations = (now, fares.operations)
            if fares.turn != self._digest[0]:
                self._digest = (fares.turn, _digest(fares.vectors))
        self.gossip.tell(
            _SAID[fares.state], load=max(0, self._load), waiting=max(0, fares.waiting),
            latency=round(1000 * (max(0.0, self._late) + fares.commit_seconds)), epoch=fares.epoch,
            digest=self._digest[1],
        )  # fmt: skip

    def _send(self, messages: list[tuple[str, Rumours]]) -> None:
        for node, message in messages:
            payload = encode(message)
            self.counts["sent"] += 1
            self.counts["bytes_sent"] += len(payload)
            self.transport.send(self.subjects.gossip(node), payload)

    def _log(self) -> None:
        for node, before, after in self.gossip.turns:
            if after == "suspect" or (after == "down" and before != "leaving"):
                log.warning("%s is %s: there is no news of it", node, after)
            elif before in ("suspect", "down"):
                log.warning("%s is %s again", node, after)
            else:
                log.info("%s is %s", node, after)
        self.gossip.turns.clear()


def _digest(vectors: Vectors) -> int:
    return zlib.crc32(encode(sorted((number, sorted(vector.items())) for number, vector in vectors.items())))


def _shown(health: Health) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "state": health.state, "phi": round(health.phi, 2), "silent_seconds": round(health.silent, 2)
    }  # fmt: skip
    if health.vitals is not None:
        vitals = health.vitals
        shown |= {
            "zone": vitals.zone or None, "load": vitals.load, "waiting": vitals.waiting,
            "latency_milliseconds": vitals.latency, "epoch": vitals.epoch, "digest": vitals.digest,
        }  # fmt: skip
    return shown
