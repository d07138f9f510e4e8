"""The live picture: nodes, agents and events in one screen, drawn anew several times a second.

Made for 80 columns and 24 lines; where there is more room, more events and longer excerpts are shown. It is drawn in
place and its last state stays in the terminal, above the summary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crdt_spine.demo.scene import NodeState, NodeView, Scene, Tone

FRAME_SECONDS: Final = 0.15
LINES_AROUND: Final = 2  # a panel's
EVENT_LINES_MIN: Final = 3
BAR_COLUMNS_MAX: Final = 40

_NODE_STYLES: Final[Mapping[NodeState, str]] = {
    NodeState.STARTING: "yellow", NodeState.UP: "green", NodeState.CATCHING_UP: "yellow", NodeState.KILLED: "bold red",
}  # fmt: skip
_TONES: Final[Mapping[Tone, str]] = {Tone.PLAIN: "", Tone.GOOD: "green", Tone.BAD: "bold red"}


async def draw(scene: Scene, console: Console) -> None:
    """Draw until cancelled, and the last state then."""
    with Live(picture(scene, console), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(picture(scene, console), refresh=True)
                await asyncio.sleep(FRAME_SECONDS)
        finally:
            live.update(picture(scene, console), refresh=True)


def picture(scene: Scene, console: Console) -> RenderableType:
    """The scene as it is now, no higher than the terminal."""
    width, height = console.size
    room = height - 2 - (len(scene.nodes) + LINES_AROUND) - (LINES_AROUND + 1) - LINES_AROUND
    agents_shown = max(1, min(len(scene.agents), room - EVENT_LINES_MIN))
    events_shown = max(1, room - agents_shown)
    return Group(
        _headline(scene, width),
        _panel("nodes", _nodes(scene, width)),
        _panel(_agents_title(scene, agents_shown), _agents(scene, agents_shown)),
        _panel("events", _events(scene, events_shown)),
    )


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="dim", box=box.ROUNDED, padding=(0, 1))


def _headline(scene: Scene, width: int) -> Table:
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=max(1, scene.planned), completed=scene.stored, width=max(8, width - 62))
    counts = f"{scene.stored}/{scene.planned} stored  {scene.edited} edited  {scene.received} received"
    row.add_row(Text(f"{scene.seconds:5.1f} s  {scene.act}", style="bold"), bar, Text(counts))
    return row


def _nodes(scene: Scene, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    bar_columns = max(8, min(BAR_COLUMNS_MAX, width - 68))
    for node in scene.nodes.values():
        style = _NODE_STYLES[node.state]
        table.add_row(
            Text(f"{'✖' if node.state is NodeState.KILLED else '●'} {node.id}", style=style),
            Text(f"{node.state:11}", style=style),
            Text(f"process {node.pid:<7}" if node.pid else " " * 15, style="dim"),
            ProgressBar(
                total=max(1, scene.planned), completed=node.memories, width=bar_columns,
                complete_style=style, finished_style=style,
            ),
            Text(f"{node.memories:>4}"),
            _lag(node),
        )  # fmt: skip
    return table


def _lag(node: NodeView) -> Text:
    if node.lag:
        return Text(f"{node.lag:>4} behind", style="red")
    return Text(f"{node.feeds:>4} feeds" if node.pid else "", style="dim")


def _agents_title(scene: Scene, shown: int) -> str:
    hidden = len(scene.agents) - shown
    return f"agents, {shown} of {len(scene.agents)}" if hidden else "agents"


def _agents(scene: Scene, shown: int) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)
    table.add_column("", no_wrap=True, max_width=12, overflow="ellipsis")
    table.add_column("stored", justify="right", no_wrap=True)
    table.add_column("recv", justify="right", no_wrap=True)
    table.add_column("edit", justify="right", no_wrap=True)
    table.add_column("last memory", ratio=1, no_wrap=True, overflow="ellipsis")
    for agent in list(scene.agents.values())[:shown]:
        last = Text(agent.last or f"follows {agent.follows}", style="" if agent.last else "dim")
        table.add_row(
            Text(agent.name, style="cyan"), f"{agent.stored}/{agent.planned}", str(agent.received), str(agent.edited),
            last,
        )  # fmt: skip
    return table


def _events(scene: Scene, shown: int) -> RenderableType:
    lines = [
        Text(f"{moment.seconds:5.1f} s  {moment.text}", style=_TONES[moment.tone], no_wrap=True, overflow="ellipsis")
        for moment in list(scene.moments)[-shown:]
    ]
    return Group(*lines, *[Text("")] * (shown - len(lines)))
