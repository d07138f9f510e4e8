"""The chaos runs' cluster, with clocks that can be wrong and nodes that can be apart, and their faults."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from chaos import faults as chaos_faults
from chaos.cluster import Cluster
from chaos.faults import Faults
from chaos.history import Recorder

from crdt_spine.supervisor import lock_service

NODE = Path(__file__).with_name("node.py")
SKEWS_MILLISECONDS = (-60_000, -2_000, -300, -100, 100, 300, 2_000, 60_000)  # within what is tolerated, and not

DATA_SECONDS = 0.4  # of a node that is apart, for which only what it writes is lost

#: Seconds from and to, and how often; as in the chaos runs.
FAULTS = {**chaos_faults.FAULTS, "clock": (0.5, 5.0, 4), "apart": (1.0, 4.0, 4)}


class SkewedCluster(Cluster):
    """`without`: a rule that its nodes do not keep (broken.py). `locks`: there is a lock service."""

    def __init__(self, folder: Path, nodes: int, without: str = "", *, locks: bool = False) -> None:
        super().__init__(folder, nodes, [lock_service()] if locks else [])
        self._without = without

    def _command(self, id: str, config: Path, folder: Path, url: str) -> list[str]:
        command = super()._command(id, config, folder, url)
        rule = ["--without", self._without] if self._without else []
        return [sys.executable, str(NODE), *rule, *command[command.index("node") :]]

    def skew(self, node: str, milliseconds: int) -> None:
        """From now on, and after each start, a node's clock is off by this."""
        (self.folder / node / "skew").write_text(str(milliseconds))

    def part(self, node: str, loses: str) -> None:
        """From now on, and after each start, this is lost between a node and the others (apart.py); empty: nothing."""
        (self.folder / node / "apart").write_text(loses)


class SkewingFaults(Faults):
    """The chaos runs' faults, wrong clocks, and nodes apart, with times in between in which work gets done."""

    kinds = FAULTS
    pause_seconds = (0.5, 4.0)

    def __init__(self, cluster: SkewedCluster, dice: random.Random, recorder: Recorder, names: tuple[str, ...]) -> None:
        super().__init__(cluster, dice, recorder, names)
        self._skewed = cluster

    def _break(self, what: str) -> Callable[[str, float], Awaitable[None]]:
        named = {"clock": self._clock, "apart": self._apart}
        return named[what] if what in named else super()._break(what)

    async def _clock(self, node: str, seconds: float) -> None:
        self._skewed.skew(node, self._dice.choice(SKEWS_MILLISECONDS))
        try:
            await asyncio.sleep(seconds)
        finally:
            self._skewed.skew(node, 0)

    async def _apart(self, node: str, seconds: float) -> None:
        """First what it writes comes to nobody, then nobody hears anything of it."""
        try:
            self._skewed.part(node, "data")
            await asyncio.sleep(DATA_SECONDS)
            self._skewed.part(node, "all")
            await asyncio.sleep(seconds - DATA_SECONDS)
        finally:
            self._skewed.part(node, "")


class AimedFaults(SkewingFaults):
    """One at a time, so that there always is a majority: primaries lose their place, and come back."""

    kinds = FAULTS | {"apart": (2.5, 3.5, 5), "stop": (1.0, 2.0, 2)}
    pause_seconds = (0.5, 1.0)
    at_once = 1
