"""The report of a cluster for people: its nodes, what is wrong, how even it is, its partitions. Fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from crdt_spine.cli.moving import amount, waits
from crdt_spine.cli.output import one_line
from crdt_spine.cli.sizes import bar, bytes_text, count_text, duration_text
from crdt_spine.limits import DIRTY_RECORDS_MAX

PARTITIONS_NAMED_MAX: Final = 16
REPAIRS_SHOWN_MAX: Final = 4
LOCKS_SHOWN_MAX: Final = 8
NODES_NAMED_MAX: Final = 3
WIDE_COLUMNS: Final = 104  # from here on there is room for what one rarely looks at
ROWS_MIN: Final = 4  # of a list, in however low a terminal
PARTITION_CELLS: Final = 12
SKEW_MEMORIES_MIN: Final = 10  # for each node or partition: with fewer, chance alone makes one of them twice as large
SKEW_RATE_MIN: Final = 1.0  # operations a second

_STATE_STYLES: Final = {"up": "green", "starting": "yellow", "stopping": "yellow", "full": "bold yellow"}


def cluster_view(report: dict[str, Any], *, columns: int = 200, rows: int | None = None) -> RenderableType:
    """Nodes and what is to be known of all of them. In `rows` lines, if there is only room for so many."""
    below = [
        *_change(report.get("membership")), _quorum(report), *_skew(report), *_repairs(report),
        *_locks(report.get("locks")), *_tombstones(report["nodes"]),
        *_opinions(report["nodes"]), *_problems(report["nodes"]),
    ]  # fmt: skip
    room = None if rows is None else max(ROWS_MIN, rows - _lines(below, columns) - 2)
    return Group(_head(report), *_nodes(report["nodes"], columns, room), *below)


def partition_view(report: dict[str, Any], *, columns: int = 200, rows: int | None = None) -> RenderableType:
    """Every partition; where there is only room for some, those that are furthest behind and asked for most."""
    partitions: list[tuple[str, dict[str, Any]]] = list(report["by_partition"].items())
    left = 0
    skews = _skew(report)
    if rows is not None and len(partitions) > (room := max(ROWS_MIN, rows - _lines(skews, columns) - 3)):
        left = len(partitions) - room
        partitions.sort(key=lambda pair: (-pair[1]["lag_changes"], -pair[1]["operations_per_second"]))
        partitions = partitions[:room]
    most = {
        name: max((one[name] for _, one in partitions), default=0) for name in ("memories", "operations_per_second")
    }
    table = _table(
        ("part", "replicas", "memories", "", "bytes", "ops/s", " ", "lag"), left=("replicas", "", " ", "lag")
    )
    for number, one in partitions:
        behind = ", ".join(one_line(node) for node in one["behind"])
        table.add_row(
            number,
            Text(" ".join(map(one_line, one["replicas"])), overflow="ellipsis"),
            count_text(one["memories"]),
            Text(bar(one["memories"], most["memories"], PARTITION_CELLS // 2), style="cyan"),
            bytes_text(one["bytes"]),
            count_text(one["operations_per_second"]),
            Text(
                bar(one["operations_per_second"], most["operations_per_second"], PARTITION_CELLS // 2), style="magenta"
            ),
            Text(f"{count_text(one['lag_changes'])} {behind}", style="yellow") if behind else Text("none", style="dim"),
        )
    more = [Text(f"… and {left} more", style="dim")] if left else []
    return Group(_head(report), table, *more, *skews)


def _lines(texts: Sequence[Text], columns: int) -> int:
    """How many lines they take, wrapped between words; rather one too many."""
    return sum(1 if text.cell_len <= columns else 1 + text.cell_len // (columns - 10) for text in texts)


# -- nodes ----------------------------------------------------------------------------------------------------------


def _head(report: dict[str, Any]) -> Text:
    replication, membership = report["replication"], report.get("membership")
    return Text.assemble(
        ("cluster ", "dim"), (one_line(report["cluster"]), "bold"), ("   region ", "dim"), one_line(report["region"]),
        (f"   {report['partitions']} partitions × {replication['factor']} replicas", "dim"),
        (f"   quorum {replication['write_quorum']}", "dim"),
        (f"   epoch {membership['epoch']}" if membership else "", "dim"),
        overflow="ellipsis", no_wrap=True,
    )  # fmt: skip


def _nodes(nodes: list[dict[str, Any]], columns: int, room: int | None) -> list[RenderableType]:
    shown, left = nodes, 0
    if room is not None and len(nodes) > room:
        shown = sorted(nodes, key=lambda node: (node["state"] == "up", not node.get("replication_lag_changes")))
        shown = shown[: room - 1]
        left = len(nodes) - len(shown)
    wide = columns >= WIDE_COLUMNS
    most = max((node["memories"] for node in nodes), default=0)
    names = ("node", "state", "zone", "memories", "", "bytes", "ops/s", "lag")
    table = _table((*names, "unflushed", "feeds", "pid") if wide else names, left=("node", "state", "zone", ""))
    for node in shown:
        style = _STATE_STYLES.get(node["state"], "bold red")
        rare = (_unflushed(node), _number(node.get("feeds")), str(node["pid"] or "–"))
        table.add_row(
            Text(one_line(node["id"]), overflow="ellipsis"),
            Text(f"● {node['state']}", style=style),
            Text(one_line(node.get("zone") or "–"), overflow="ellipsis"),
            f"{node['memories']:,}",
            Text(bar(node["memories"], most), style=style),
            bytes_text(node["bytes"]) if "bytes" in node else "–",
            count_text(node["operations_per_second"]) if "operations_per_second" in node else "–",
            _lag(node),
            *(rare if wide else ()),
        )
    return [table, *([Text(f"… and {left} more", style="dim")] if left else [])]


def _table(names: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name.strip(), justify="left" if name in left else "right", no_wrap=True)
    return table


def _lag(node: dict[str, Any]) -> str:
    if (silent := node.get("silent_seconds")) is not None:  # by the others' word
        changes = node["replication_lag_changes"]
        return (
            f"{changes:,} changes, {duration_text(silent)}" if changes else f"none, heard {duration_text(silent)} ago"
        )
    seconds, changes = node["replication_lag_seconds"], node.get("replication_lag_changes")
    if seconds is not None and not changes:
        return f"{seconds:.1f} s"
    if changes is None:
        return "–"
    return f"{changes:,} changes" + ("" if seconds is None else f", {seconds:.1f} s") if changes else "none"


def _unflushed(node: dict[str, Any]) -> Text:
    """Acknowledged, not in the tables yet; writers wait where there are too many."""
    waiting = node.get("unflushed")
    share = (waiting or 0) / DIRTY_RECORDS_MAX
    return Text(_number(waiting), style="bold red" if share > 0.9 else "yellow" if share > 0.5 else "")


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


# -- what is to be known of all -------------------------------------------------------------------------------------


def _change(membership: dict[str, Any] | None) -> list[Text]:
    """The change of the cluster's nodes that is under way, and how far it is."""
    if membership is None or membership["change"] is None:
        return []
    change = membership["change"]
    line = Text("changing  ", style="dim")
    line.append(f"{bar(change['done'], change['total'], 20):20}", style="green")
    line.append(f" {one_line(change.get('what') or change['kind'])}: {amount(change)}")
    waiting = waits(membership)
    return [line.append(f"; {waiting}" if waiting else "", style="yellow")]


def _quorum(report: dict[str, Any]) -> Text:
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


def _skew(report: dict[str, Any]) -> list[Text]:
    """The largest share against the ideal one, and the standard deviation in per cent of that; "–" where there is too
    little to be spread evenly."""
    lines: list[Text] = []
    for what, skews in report.get("skew", {}).items():
        enough = skews["memories"]["ideal"] >= SKEW_MEMORIES_MIN
        said = [
            f"{name} {one['max_over_ideal']:.2f}× (σ {one['deviation'] / one['ideal']:.0%})" if shown else f"{name} –"
            for name, one, shown in (
                ("memories", skews["memories"], enough),
                ("bytes", skews["bytes"], enough and skews["bytes"]["ideal"] >= 1),
                ("load", skews["operations_per_second"], skews["operations_per_second"]["ideal"] >= SKEW_RATE_MIN),
            )
        ]  # fmt: skip
        few = "" if enough else f"   too few memories: fewer than {SKEW_MEMORIES_MIN} for each"
        if skews["memories"]["max"]:
            lines.append(Text(f"skew of {what}: {', '.join(said)}{few}", style="dim"))
    return lines


def _repairs(report: dict[str, Any]) -> list[Text]:
    """What is being pulled, by node: partitions, sources, how much so far."""
    lines: list[Text] = []
    for node in report["nodes"]:
        repairs, waiting = node.get("repairs") or [], node.get("repairs_waiting", 0)
        if not repairs and not waiting:
            continue
        sources = sorted({one_line(repair["source"]) for repair in repairs})
        records, missing = sum(one["records"] for one in repairs), sum(one["changes_missing"] for one in repairs)
        whole = sum(one["whole"] for one in repairs)
        line = Text(f"{one_line(node['id'])} pulls {len(repairs)} of its partitions", style="yellow")
        line.append(f" from {', '.join(sources)}" if sources else "")
        line.append(f": {records:,} records of {missing:,} changes, ")
        line.append(bytes_text(sum(one["bytes"] for one in repairs)))
        line.append(f"; {waiting} wait" if waiting else "")
        line.append(f"; {whole} are compared as a whole" if whole else "")
        lines.append(line)
    if len(lines) > REPAIRS_SHOWN_MAX:
        left = len(lines) - REPAIRS_SHOWN_MAX
        lines = [*lines[:REPAIRS_SHOWN_MAX], Text(f"… and {left} more nodes pull", style="yellow")]
    return lines


def _locks(locks: list[dict[str, Any]] | None) -> list[Text]:
    """Who holds which lock."""
    if locks is None:
        return [Text("no lock service answers: who holds which lock is unknown", style="yellow")]
    lines = [
        Text("lock ", style="dim").append(one_line(one["name"]), style="bold").append(f"  {_holding(one)}")
        for one in locks[:LOCKS_SHOWN_MAX]
    ]
    left = len(locks) - len(lines)
    return [*lines, *([Text(f"… and {left} more locks; see `spine lock ls`", style="dim")] if left else [])]


def _holding(one: dict[str, Any]) -> str:
    waits = f"; {one['waiters']:,} wait" if one["waiters"] else ""
    if one["holder"] is None:
        return f"free{waits}"
    left = "" if one["expires_in_seconds"] is None else f", expires in {one['expires_in_seconds']:.0f} s"
    return f"held by {one_line(one['holder'])} (token {one['token']}{left}){waits}"


def lock_table(locks: list[dict[str, Any]]) -> Table:
    """The locks, a row each."""
    table = _table(("lock", "holder", "token", "expires in", "waiters"), left=("lock", "holder"))
    for one in locks:
        left = one["expires_in_seconds"]
        table.add_row(
            Text(one_line(one["name"]), overflow="ellipsis"),
            Text("–" if one["holder"] is None else one_line(one["holder"]), overflow="ellipsis"),
            "–" if one["token"] is None else str(one["token"]),
            "–" if left is None else f"{left:.0f} s",
            _number(one["waiters"]),
        )
    return table


def _tombstones(nodes: list[dict[str, Any]]) -> list[Text]:
    """How many deletions are remembered and for how long, for whom they wait, and who is not waited for any more."""
    lines: list[Text] = []
    if most := max((node.get("tombstones", 0) for node in nodes), default=0):
        oldest = max((node.get("oldest_tombstone_seconds") or 0 for node in nodes), default=0)
        line = Text(f"up to {most:,} tombstones on a node, the oldest {duration_text(oldest)} old", style="dim")
        waits: dict[str, float] = {}
        for node in nodes:
            for name, silent in node.get("tombstones_wait_for", {}).items():
                waits[name] = max(silent, waits.get(name, 0.0))
        for name, silent in sorted(waits.items()):
            line.append(f"; they wait for {one_line(name)}, silent for {duration_text(silent)}", style="yellow")
        lines.append(line)
    if retired := sorted({disk for node in nodes for disk in node.get("retired", ())}):
        lines.append(Text(f"retired: {', '.join(map(one_line, retired))}", style="dim"))
    return lines


def _opinions(nodes: list[dict[str, Any]]) -> list[Text]:
    """Who is suspected or taken for down by others, though it may have answered here."""
    by: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        for other, health in ((node.get("gossip") or {}).get("nodes") or {}).items():
            if health["state"] in ("suspect", "down"):
                by.setdefault((other, health["state"]), []).append(node["id"])
    said = {"suspect": "suspected", "down": "taken for down"}
    return [
        Text(f"{one_line(other)} is {said[state]} by {_named(sorted(who))}", style="yellow")
        for (other, state), who in sorted(by.items())
    ]


def _named(nodes: Sequence[str]) -> str:
    more = len(nodes) - NODES_NAMED_MAX
    return ", ".join(map(one_line, nodes[:NODES_NAMED_MAX])) + (f" and {more} more" if more > 0 else "")


def _problems(nodes: list[dict[str, Any]]) -> list[Text]:
    return [
        Text(f"{one_line(node['id'])}: {one_line(node['problem'])}", style="red")
        for node in nodes
        if node.get("problem")
    ]
