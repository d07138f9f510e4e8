"""The demo as a command: options, display, summary, exit code.

0: every fact holds. 1: one does not, or the cluster could not be started. 2: wrong usage, or a file that can't be used.
130 and 143: interrupted, with everything ended all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from crdt_spine.demo import lines, picture
from crdt_spine.demo.cast import cast
from crdt_spine.demo.director import FULL, QUICK, Plan, perform
from crdt_spine.demo.facts import Evidence, Fact, judge
from crdt_spine.demo.sample import Sample, read_sample
from crdt_spine.demo.scene import Scene
from crdt_spine.errors import InvalidInput, SpineError

ROWS_DEFAULT: Final = 600
ROWS_MAX: Final = 5_000
LINES_MIN: Final = 16  # of a terminal, for the picture
PLAY_SECONDS_MAX: Final = 150.0  # far more than it takes; a demo ends by itself


@click.command("demo", context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path), help="JSON lines, one memory each; else a sample of its own.")
@click.option(
    "--map", "maps", multiple=True, metavar="TARGET=FIELD",
    help="Which field is content, agent, thread, tags … Repeatable; usual names are found without it.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1, ROWS_MAX), default=ROWS_DEFAULT, help="Rows taken from the file.")
@click.option("--quick", is_flag=True, help="About eight seconds instead of twenty.")
@click.option("--plain", is_flag=True, help="Lines instead of a picture, as without a terminal.")
def demo(data: Path, maps: tuple[str, ...], limit: int, quick: bool, plain: bool) -> None:
    """Agents share memories on three nodes, one of which is killed and comes back; then it is counted what held."""
    console = Console(highlight=False)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    logging.basicConfig(level=logging.CRITICAL)  # what goes wrong is in the facts
    try:
        sample = read_sample(data, maps, limit)
    except InvalidInput as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(2)
    console.print(Text(_introduction(data, sample)), soft_wrap=True)
    try:
        live = not plain and sys.stdout.isatty() and not console.is_dumb_terminal and console.height >= LINES_MIN
        evidence = asyncio.run(_play(sample, QUICK if quick else FULL, console, live))
    except SpineError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(1)
    except TimeoutError:
        click.echo(f"demo: it did not end within {PLAY_SECONDS_MAX:g} s", err=True)
        sys.exit(1)
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(summarise(judge(evidence), console))


def summarise(facts: Sequence[Fact], console: Console) -> int:
    """Show the facts as a table, and one line that says whether they hold; the exit code."""
    utf = console.encoding.lower().startswith("utf")
    table = Table.grid(padding=(0, 1, 0, 0))
    for justify in ("left", "left", "right"):
        table.add_column(no_wrap=True, justify=justify)
    table.add_column(overflow="fold")
    for fact in facts:
        style = "green" if fact.holds else "bold red"
        tick = ("✔" if fact.holds else "✘") if utf else ("ok" if fact.holds else "NO")
        table.add_row(Text(tick, style), fact.name, Text(fact.count, style), Text(fact.how))
    frame = box.ROUNDED if utf else box.ASCII
    console.print(Panel(table, title="what held", title_align="left", border_style="dim", box=frame, expand=False))
    wrong = [fact.name for fact in facts if not fact.holds]
    if wrong:
        said = f"demo: {len(wrong)} of {len(facts)} facts do not hold: {', '.join(wrong)}"
    else:
        said = f"demo: all {len(facts)} facts hold"
    console.print(Text(said, "bold red" if wrong else "bold green"), soft_wrap=True)
    return 1 if wrong else 0


def _introduction(data: Path, sample: Sample) -> str:
    agents = len({row.agent for row in sample.rows})
    threads = len({row.arguments["thread"] for row in sample.rows if "thread" in row.arguments})
    tags = len({tag for row in sample.rows for tag in row.arguments.get("tags", ())})
    said = f"{len(sample.rows)} memories of {agents} agents, {threads} threads, {tags} tags, from {data.name}"
    if sample.guessed:
        said += f" ({', '.join(sample.guessed)})"
    return said + ("; the file has more, --limit takes them" if sample.more else "")


async def _play(sample: Sample, plan: Plan, console: Console, live: bool) -> Evidence:
    """Perform before a display, in a folder that is gone afterwards."""
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError):  # where there are no signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    players = cast(sample.rows)
    scene = Scene(players)
    display = asyncio.create_task((picture.draw if live else lines.tell)(scene, console))
    try:
        with tempfile.TemporaryDirectory(prefix="crdt-spine-demo-") as folder:
            async with asyncio.timeout(PLAY_SECONDS_MAX):
                return await perform(players, plan, Path(folder) / "data", scene)
    finally:
        display.cancel()
        await asyncio.gather(display, return_exceptions=True)


def main(default_data: Path) -> None:
    """Run it with the process's arguments; `default_data` is the file that comes with it."""
    demo.main(prog_name="demo", default_map={"data": default_data})
