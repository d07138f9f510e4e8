"""How the cluster fares: status, once or again and again."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from crdt_spine.cli.options import Common, connected
from crdt_spine.cli.output import emit, emit_line, one_line
from crdt_spine.limits import DIRTY_RECORDS_MAX

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

BAR_CELLS: Final = 8
PARTITIONS_NAMED_MAX: Final = 16

_STATE_STYLES: Final = {"up": "green", "starting": "yellow", "stopping": "yellow", "full": "bold yellow"}


@click.command()
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
def status(common: Common, again: bool, interval: float) -> None:  # fmt: skip
    """Show the nodes' state and load, and the quorum."""
    from crdt_spine.cli.opening import opened, run

    async def main() -> None:
        async with opened(common) as spine:
            report = await spine.status()
            if common.as_json:
                (emit_line if again else emit)(report)
                while again:
                    await asyncio.sleep(interval)
                    emit_line(await spine.status())
                return

            from crdt_spine.cli.show import show

            if not again or not sys.stdout.isatty():
                show(cluster_view(report))
                while again:
                    await asyncio.sleep(interval)
                    show(cluster_view(await spine.status()))
                return

            from rich.live import Live

            with Live(cluster_view(report), auto_refresh=False, screen=False) as live:
                while True:
                    await asyncio.sleep(interval)
                    live.update(cluster_view(await spine.status()), refresh=True)

    run(main())


def cluster_view(report: dict[str, Any]) -> RenderableType:
    """The report for people."""
    from rich.console import Group
    from rich.text import Text

    replication = report["replication"]
    head = Text.assemble(
        ("cluster ", "dim"), (one_line(report["cluster"]), "bold"), ("   region ", "dim"), one_line(report["region"]),
        (f"   {report['partitions']} partitions × {replication['factor']} replicas", "dim"),
        (f"   write quorum {replication['write_quorum']}", "dim"),
    )  # fmt: skip
    problems = [
        Text(f"{one_line(node['id'])}: {one_line(node['problem'])}", style="red")
        for node in report["nodes"]
        if node.get("problem")
    ]
    return Group(head, _nodes(report["nodes"]), _quorum(report), *_tombstones(report["nodes"]), *problems)


def _nodes(nodes: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    most = max((node["memories"] for node in nodes), default=0)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("node", "state", "zone", "memories", "", "lag", "unflushed", "feeds", "pid"):
        table.add_column(name, justify="left" if name in ("node", "state", "zone", "") else "right", no_wrap=True)
    for node in nodes:
        style = _STATE_STYLES.get(node["state"], "bold red")
        table.add_row(
            one_line(node["id"]),
            Text(f"● {node['state']}", style=style),
            one_line(node.get("zone") or "–"),
            f"{node['memories']:,}",
            Text(bar(node["memories"], most), style=style),
            _lag(node),
            _unflushed(node),
            _number(node.get("feeds")),
            str(node["pid"] or "–"),
        )
    return table


def _quorum(report: dict[str, Any]) -> Text:
    from rich.text import Text

    without = report["partitions_without_quorum"]
    failures = report["quorum_failures"]
    if without:
        named = ", ".join(map(str, without[:PARTITIONS_NAMED_MAX])) + (
            " …" if len(without) > PARTITIONS_NAMED_MAX else ""
        )
        line = Text(f"{len(without)} of {report['partitions']} partitions without quorum: {named}", style="bold red")
    else:
        line = Text("every partition has its quorum", style="green")
    return line.append(f"   quorum failures so far: {failures:,}", style="yellow" if failures else "dim")


def _tombstones(nodes: list[dict[str, Any]]) -> list[Text]:
    """How many deletions are remembered and for how long, for whom they wait, and who is not waited for any more."""
    from rich.text import Text

    lines: list[Text] = []
    if most := max((node.get("tombstones", 0) for node in nodes), default=0):
        oldest = max((node.get("oldest_tombstone_seconds") or 0 for node in nodes), default=0)
        line = Text(f"up to {most:,} tombstones on a node, the oldest {_duration(oldest)} old", style="dim")
        waits: dict[str, float] = {}
        for node in nodes:
            for name, silent in node.get("tombstones_wait_for", {}).items():
                waits[name] = max(silent, waits.get(name, 0.0))
        for name, silent in sorted(waits.items()):
            line.append(f"; they wait for {one_line(name)}, silent for {_duration(silent)}", style="yellow")
        lines.append(line)
    if retired := sorted({disk for node in nodes for disk in node.get("retired", ())}):
        lines.append(Text(f"retired: {', '.join(map(one_line, retired))}", style="dim"))
    return lines


def _duration(seconds: float) -> str:
    """`3.2 h`: one unit is enough."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def bar(value: int, most: int) -> str:
    """A bar of eighths of a cell: `most` fills it, and what is more than nothing shows."""
    eighths = 0 if not most or value <= 0 else max(1, round(value / most * BAR_CELLS * 8))
    whole, part = divmod(eighths, 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[part] if part else "")


def _lag(node: dict[str, Any]) -> str:
    seconds, changes = node["replication_lag_seconds"], node.get("replication_lag_changes")
    if seconds is not None and not changes:
        return f"{seconds:.1f} s"
    if changes is None:
        return "–"
    return f"{changes:,} changes" + ("" if seconds is None else f", {seconds:.1f} s") if changes else "none"


def _unflushed(node: dict[str, Any]) -> Text:
    """Acknowledged, not in the tables yet; writers wait where there are too many."""
    from rich.text import Text

    waiting = node.get("unflushed")
    share = (waiting or 0) / DIRTY_RECORDS_MAX
    return Text(_number(waiting), style="bold red" if share > 0.9 else "yellow" if share > 0.5 else "")


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
