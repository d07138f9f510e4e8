"""What goes wrong: faults by a seed, up to two at once on different targets, each for a while, all recorded.

What a cluster may lose when a disk goes back is bounded by its promise: an acknowledged write is on two disks, so only
one node's disk ever goes back in a run.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from chaos import packets
from chaos.cluster import Cluster
from chaos.history import Fault, Recorder
from chaos.link import Mode
from chaos.reshape import Stuck, reshape

PAUSE_SECONDS = (0.2, 1.5)  # between the beginnings of two faults
AT_ONCE = 2

#: Seconds that a fault lasts, from and to, and how often it is chosen.
FAULTS: dict[str, tuple[float, float, int]] = {
    "kill": (0.3, 2.0, 4),
    "stop": (0.5, 6.0, 5),
    "cut": (0.5, 4.0, 3),
    "delay": (1.0, 5.0, 2),
    "stall-in": (0.5, 5.0, 3),
    "stall-out": (0.5, 5.0, 3),
    "half-open": (1.0, 5.0, 2),
    "full": (1.0, 5.0, 3),
    "rollback": (0.5, 1.0, 2),
    "broker-restart": (0.5, 1.0, 1),
    "broker-kill": (0.5, 1.0, 2),
    "reshape": (0.0, 0.0, 3),  # until it is done
}
#: The same, of faults that need a network namespace (packets.py), and what is lost: in, out, or both ways.
PACKETS: dict[str, tuple[float, float, int]] = {"lossy": (1.0, 6.0, 4), "deaf": (0.5, 5.0, 3), "mute": (0.5, 5.0, 3)}
DIRECTIONS: dict[str, tuple[packets.Direction, ...]] = {"lossy": ("in", "out"), "deaf": ("in",), "mute": ("out",)}
LOSSES = (0.05, 0.1, 0.3)  # of packets on a lossy link
LINKS: dict[str, Mode] = {
    "cut": "cut", "delay": "delay", "stall-in": "stall-in", "stall-out": "stall-out", "half-open": "half-open",
}  # fmt: skip


class Faults:
    """`run` until it is cancelled or the time is over; afterwards nothing is broken any more."""

    kinds = FAULTS | PACKETS
    pause_seconds = PAUSE_SECONDS
    at_once = AT_ONCE

    def __init__(self, cluster: Cluster, dice: random.Random, recorder: Recorder, names: tuple[str, ...]) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []  # what was not done, though it should be whatever goes wrong
        self._cluster = cluster
        self._dice = dice
        self._recorder = recorder
        self._names = names
        self._busy: set[str] = set()
        self._victim = dice.choice(cluster.nodes)  # whose disk may go back

    async def run(self, until: float) -> None:
        running: set[asyncio.Task[None]] = set()
        try:
            while (now := time.monotonic()) < until:
                await asyncio.sleep(min(self._dice.uniform(*self.pause_seconds), until - now))
                running = {task for task in running if not task.done() or task.result()}
                if len(running) < self.at_once + ("cluster" in self._busy) and (chosen := self._choose()) is not None:
                    what, target, seconds = chosen
                    seconds = min(seconds, max(0.1, until - time.monotonic()))
                    running.add(asyncio.create_task(self._one(what, target, seconds)))
        finally:
            await asyncio.gather(*running)

    def _choose(self) -> tuple[str, str, float] | None:
        [what] = self._dice.choices(self._names, [self.kinds[name][2] for name in self._names])
        if what.startswith("broker"):
            targets = ["broker"]
        elif what in LINKS or what in PACKETS:
            targets = list(self._cluster.links)
        elif what == "rollback":
            targets = [self._victim]
        elif what == "reshape":
            targets = ["cluster"]
        else:
            targets = self._cluster.nodes
        target = self._dice.choice(targets)
        seconds = self._dice.uniform(*self.kinds[what][:2])
        if target in self._busy or target in self._cluster.left:
            return None
        return what, target, seconds

    async def _one(self, what: str, target: str, seconds: float) -> None:
        """Break it, wait, mend it."""
        self._busy.add(target)
        began = time.monotonic()
        try:
            if what == "rollback" and target not in self._cluster.copies:
                what = "kill"  # there is no old copy yet: this makes one
            self.counts[what] += 1
            await self._break(what)(target, seconds)
        finally:
            self._busy.discard(target)
            self._recorder.add(Fault(what=what, target=target, begin=began, end=time.monotonic()))

    def _break(self, what: str) -> Callable[[str, float], Awaitable[None]]:
        if what in LINKS:
            return lambda target, seconds: self._link(target, LINKS[what], seconds)
        if what in PACKETS:
            return lambda target, seconds: self._packets(target, what, seconds)
        if what.startswith("broker"):
            number = signal.SIGKILL if what == "broker-kill" else signal.SIGTERM
            return lambda target, seconds: self._broker(number, seconds)
        named: dict[str, Callable[[str, float], Awaitable[None]]] = {
            "kill": self._kill, "stop": self._stop, "full": self._full, "rollback": self._rollback,
            "reshape": self._reshape,
        }  # fmt: skip
        return named[what]

    async def _kill(self, node: str, seconds: float) -> None:
        copy = node == self._victim and "rollback" in self._names
        await self._cluster.kill(node, seconds, copy=copy)

    async def _rollback(self, node: str, seconds: float) -> None:
        await self._cluster.kill(node, seconds, roll_back=True)

    async def _stop(self, node: str, seconds: float) -> None:
        pid = self._cluster.signal(node, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            if pid == self._cluster.pid(node):
                self._cluster.signal(node, signal.SIGCONT)

    async def _reshape(self, cluster: str, seconds: float) -> None:
        try:
            await reshape(self._cluster, self._dice, self.counts)
        except Stuck as stuck:
            self.problems.append(str(stuck))

    async def _full(self, node: str, seconds: float) -> None:
        self._cluster.fill(node, True)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._cluster.fill(node, False)

    async def _link(self, name: str, mode: Mode, seconds: float) -> None:
        link = self._cluster.links[name]
        link.set(mode)
        try:
            await asyncio.sleep(seconds)
        finally:
            link.set("pass")

    async def _packets(self, name: str, what: str, seconds: float) -> None:
        port, directions = self._cluster.links[name].own_port, DIRECTIONS[what]
        share = self._dice.choice(LOSSES) if what == "lossy" else 1.0
        for direction in directions:
            await asyncio.to_thread(packets.lose, port, direction, share)
        try:
            await asyncio.sleep(seconds)
        finally:
            for direction in directions:
                await asyncio.to_thread(packets.lose_nothing, port, direction)

    async def _broker(self, number: signal.Signals, seconds: float) -> None:
        self._cluster.signal("broker", number)
        await asyncio.sleep(seconds)


class Stops(Faults):
    """One node after the other is stopped, for so long that agents ask another one, and write on, and for so short that
    it takes writes as soon as it goes on: where late ones are taken, agents see it."""

    kinds = FAULTS | {"stop": (1.0, 2.8, 1)}
    pause_seconds = (0.1, 0.6)
    at_once = 1
