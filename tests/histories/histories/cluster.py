"""The chaos runs' cluster, with clocks that can be wrong, and their faults."""

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

NODE = Path(__file__).with_name("node.py")
SKEWS_MILLISECONDS = (-60_000, -2_000, -300, -100, 100, 300, 2_000, 60_000)  # within what is tolerated, and not

#: Seconds from and to, and how often; as in the chaos runs.
FAULTS = {**chaos_faults.FAULTS, "clock": (0.5, 5.0, 4)}


class SkewedCluster(Cluster):
    """`without`: a rule that its nodes do not keep (broken.py)."""

    def __init__(self, folder: Path, nodes: int, without: str = "") -> None:
        super().__init__(folder, nodes)
        self._without = without

    def _command(self, id: str, config: Path, folder: Path, url: str) -> list[str]:
        command = super()._command(id, config, folder, url)
        rule = ["--without", self._without] if self._without else []
        return [sys.executable, str(NODE), *rule, *command[command.index("node") :]]

    def skew(self, node: str, milliseconds: int) -> None:
        """From now on, and after each start, a node's clock is off by this."""
        (self.folder / node / "skew").write_text(str(milliseconds))


class SkewingFaults(Faults):
    """The chaos runs' faults, and wrong clocks, with times in between in which work gets done."""

    kinds = FAULTS
    pause_seconds = (0.5, 4.0)

    def __init__(self, cluster: SkewedCluster, dice: random.Random, recorder: Recorder, names: tuple[str, ...]) -> None:
        super().__init__(cluster, dice, recorder, names)
        self._skewed = cluster

    def _break(self, what: str) -> Callable[[str, float], Awaitable[None]]:
        return self._clock if what == "clock" else super()._break(what)

    async def _clock(self, node: str, seconds: float) -> None:
        self._skewed.skew(node, self._dice.choice(SKEWS_MILLISECONDS))
        try:
            await asyncio.sleep(seconds)
        finally:
            self._skewed.skew(node, 0)
