"""How the cluster fares: status, once or again and again."""

from __future__ import annotations

import asyncio
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from crdt_spine.cli.options import Common, connected
from crdt_spine.cli.output import emit, emit_line
from crdt_spine.errors import ConnectionFailed

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command()
@click.option("--partitions", is_flag=True, help="Show the partitions: replicas, size, load, lag.")
@click.option("--watch", "again", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="With --watch.",
)
@connected()
def status(common: Common, partitions: bool, again: bool, interval: float) -> None:
    """Show the nodes, their load, lag and repairs."""
    from crdt_spine.cli.opening import opened, run

    async def main() -> None:
        async with opened(common) as spine:
            report = await spine.status()
            if all(node["state"] == "down" for node in report["nodes"]):
                problem = report["nodes"][0].get("problem") if report["nodes"] else None
                raise ConnectionFailed(f"{common.server}: no node of the cluster answers ({problem})")
            if common.as_json:
                (emit_line if again else emit)(report)
                while again:
                    await asyncio.sleep(interval)
                    emit_line(await spine.status())
                return

            from crdt_spine.cli.show import show, width

            if not again or not sys.stdout.isatty():
                show(_view(report, partitions, width(), None))
                while again:
                    await asyncio.sleep(interval)
                    show(_view(await spine.status(), partitions, width(), None))
                return

            from rich.live import Live

            def fitted(report: dict[str, Any]) -> RenderableType:
                columns, lines = shutil.get_terminal_size()
                return _view(report, partitions, columns, lines - 1)

            with Live(fitted(report), auto_refresh=False, screen=False) as live:
                while True:
                    await asyncio.sleep(interval)
                    live.update(fitted(await spine.status()), refresh=True)

    run(main())


def _view(report: dict[str, Any], partitions: bool, columns: int, rows: int | None) -> RenderableType:
    from crdt_spine.cli.status_view import cluster_view, partition_view

    return (partition_view if partitions else cluster_view)(report, columns=columns, rows=rows)
