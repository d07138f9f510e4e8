"""The page for people: a node's report as HTML that needs nothing else, and asks again by itself."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

REFRESH_SECONDS = 5

_STYLE = """
:root { color-scheme: light dark; --dim: #8a8a8a; --good: #2e9e4f; --middling: #c08a00; --bad: #d03c3c }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: normal; color: var(--dim) }
th, td { padding: .2rem 1rem .2rem 0; border-bottom: 1px solid color-mix(in srgb, var(--dim) 30%, transparent) }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere } p, footer { color: var(--dim) }
progress { width: 100%; accent-color: var(--good) }
.up { color: var(--good) } .starting, .stopping, .full { color: var(--middling) } .away { color: var(--bad) }
"""


def page_of(report: Mapping[str, Any], urls: Mapping[str, str]) -> str:
    """The page of a node's report, which may have little in it while the node starts; `urls` are the nodes' pages."""
    id, state = str(report["id"]), str(report["state"])
    parts = [
        f"<h1>{escape(id)} <span class={_quoted(state)}>● {escape(state)}</span></h1>",
        f"<p>{escape(_subtitle(report))}</p>",
        _facts(report),
        _change(report.get("cluster")),
        _repairs(report),
        _peers(report.get("peers", {}), {node: url for node, url in urls.items() if node != id}),
        '<footer><p>For programs: <a href="/health">/health</a>, <a href="/status">/status</a>.'
        f" This page asks again every {REFRESH_SECONDS} s.</p></footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">\n'
        f"<title>{escape(id)}: {escape(state)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _subtitle(report: Mapping[str, Any]) -> str:
    said = [f"zone {report['zone']}"] if report.get("zone") else []
    said += [f"process {report['pid']}"] if "pid" in report else []
    said += [f"up for {_duration(report['uptime_seconds'])}"] if "uptime_seconds" in report else []
    return ", ".join(said)


def _facts(report: Mapping[str, Any]) -> str:
    """What the report has of these; a starting node's has none."""
    rows = [
        (name, f"{report[key]:,}")
        for name, key in (
            ("memories", "memories"), ("bytes of their records", "bytes"),
            ("operations of agents a second", "operations_per_second"),
            ("deleted, still remembered", "tombstones"), ("partitions", "partitions"),
            ("not in the tables yet", "unflushed"), ("changes that wait for others", "waiting_changes"),
            ("writes that wait for a quorum", "waiting_writes"), ("subscriptions", "feeds"),
            ("writes without a quorum so far", "quorum_failures"), ("messages refused so far", "messages_refused"),
        )
        if report.get(key) is not None
    ]  # fmt: skip
    if report.get("replication_lag_seconds") is not None:
        changes, seconds = report.get("replication_lag_changes") or 0, report["replication_lag_seconds"]
        rows.insert(
            1, ("lag behind its peers", f"{changes:,} changes, {seconds:.1f} s" if changes or seconds else "none")
        )
    return _table([f"<th>{escape(name)}</th><td>{escape(value)}</td>" for name, value in rows])


def _change(cluster: Mapping[str, Any] | None) -> str:
    """The change of the cluster's nodes that is under way."""
    change = None if cluster is None else cluster.get("change")
    if not change:
        return ""
    waits = ", ".join(map(str, change["waits_for"]))
    rows = [
        ("what", str(change.get("what", change["kind"]))),
        ("moved", f"{change['done']:,} of {change['total']:,} replicas, {len(change['moving']):,} under way"),
        *([("waits for", waits)] if waits else []),
    ]
    told = _table([f"<th>{escape(name)}</th><td>{escape(value)}</td>" for name, value in rows])
    bar = f'<progress max="{max(1, int(change["total"]))}" value="{int(change["done"])}"></progress>'
    return f"<h2>The cluster changes</h2>\n{bar}\n{told}"


def _repairs(report: Mapping[str, Any]) -> str:
    """What is being pulled from peers, partition by partition."""
    repairs, waiting = report.get("repairs") or [], report.get("repairs_waiting") or 0
    rows = [
        f"<td>partition {int(repair['partition'])}</td><td>from {escape(str(repair['source']))}</td>"
        f"<td>{repair['records']:,} records of {repair['changes_missing']:,} changes</td>"
        f"<td>{repair['seconds']:g} s</td>"
        for repair in repairs
    ]
    if waiting:
        rows.append(f"<td>{waiting:,} more wait</td><td></td><td></td><td></td>")
    return f"<h2>Repairs</h2>\n{_table(rows)}" if rows else ""


def _peers(peers: Mapping[str, Any], urls: Mapping[str, str]) -> str:
    """The other nodes, also those that were not heard of yet."""
    rows = []
    for node in sorted(peers.keys() | urls.keys()):
        peer = peers.get(node)
        alive = bool(peer and peer["alive"])
        state = str(peer["state"]) if peer and alive else "away" if peer else "not heard yet"
        name = f"<a href={_quoted(urls[node])}>{escape(node)}</a>" if node in urls else escape(node)
        lag = f"{peer['lag_changes']:,} changes behind" if peer and peer["lag_changes"] else ""
        if peer and not alive:
            lag = f"{lag or 'nothing missing'}, heard {peer['silent_seconds']:.0f} s ago"
        shown = f"<span class={_quoted(state if alive else 'away')}>● {escape(state)}</span>"
        rows.append(f"<td>{name}</td><td>{shown}</td><td>{escape(lag)}</td>")
    return f"<h2>Peers</h2>\n{_table(rows)}" if rows else ""


def _table(rows: list[str]) -> str:
    return "<table>\n" + "".join(f"<tr>{row}</tr>\n" for row in rows) + "</table>" if rows else ""


def _quoted(value: str) -> str:
    return f'"{escape(value, quote=True)}"'


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((index for index, (value, _) in enumerate(parts) if value), 3)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2])
