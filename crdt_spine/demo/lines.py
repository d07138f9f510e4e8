"""The demo where nobody watches: one line for each thing that happens, with its time, and one for the progress."""

from __future__ import annotations

import asyncio
from typing import Final

from rich.console import Console
from rich.text import Text

from crdt_spine.demo.scene import NodeState, Scene

TELL_SECONDS: Final = 0.1
PROGRESS_SECONDS: Final = 2.0


async def tell(scene: Scene, console: Console) -> None:
    """Print what happens until cancelled, and the rest of it then."""
    told = 0
    progress_at = PROGRESS_SECONDS
    try:
        while True:
            told = _tell(scene, console, told)
            if scene.seconds >= progress_at:
                progress_at += PROGRESS_SECONDS
                _line(console, scene.seconds, _progress(scene))
            await asyncio.sleep(TELL_SECONDS)
    finally:
        _tell(scene, console, told)


def _tell(scene: Scene, console: Console, told: int) -> int:
    for moment in scene.since(told):
        _line(console, moment.seconds, moment.text)
    return scene.said


def _line(console: Console, seconds: float, text: str) -> None:
    console.print(Text(f"{seconds:6.1f} s  {text}"), soft_wrap=True)


def _progress(scene: Scene) -> str:
    nodes = ", ".join(
        f"{node.id} {node.memories}"
        + (
            ""
            if node.state is NodeState.UP
            else f" ({node.state}, {node.lag} behind)"
            if node.lag
            else f" ({node.state})"
        )
        for node in scene.nodes.values()
    )
    return (
        f"stored {scene.stored} of {scene.planned}, edited {scene.edited}, updates delivered {scene.received}"
        + (f"; memories on {nodes}" if nodes else "")
    )  # fmt: skip
