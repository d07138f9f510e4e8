"""The cluster's report, put together from its nodes': the document of `spine status --json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Hello

#: What is to be spread evenly, over nodes and over partitions.
SHARED = ("memories", "bytes", "operations_per_second")


def cluster_report(hello: Hello, layout: Layout, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """What all nodes said, and what follows from it. A node that did not answer has state "down", a `problem`, and the
    lag that the others know of: `silent_seconds` since one of them heard it, the changes that it misses, and `behind`,
    the same by partition. Without that, none of them has heard it since it began."""
    serving = {node["id"] for node in nodes if node.get("state") in ("up", "full")}
    without_quorum = [
        number
        for number, replicas in layout.replicas.items()
        if len(serving.intersection(replicas)) < min(hello.write_quorum, len(replicas))
    ]
    for node in nodes:
        if node.get("state") == "down":
            node.update(_heard_of(node["id"], layout, nodes))
        node.setdefault("partitions", 0)
        node.setdefault("memories", 0)
        node.setdefault("replication_lag_seconds", None)
        node.setdefault("pid", None)
    partitions = _by_partition(layout, nodes)
    return {
        "cluster": hello.cluster,
        "region": hello.region,
        "nodes": nodes,
        "partitions": hello.partitions,
        "replication": {"factor": hello.factor, "write_quorum": hello.write_quorum, "read_quorum": hello.read_quorum},
        "partitions_without_quorum": without_quorum,
        "quorum_failures": sum(node.get("quorum_failures", 0) for node in nodes),
        "membership": _newest(nodes),
        "repairs": [{"node": node["id"], **repair} for node in nodes for repair in node.get("repairs", ())],
        "skew": {
            "nodes": _skews([node for node in nodes if node["id"] in serving]),
            "partitions": _skews(partitions.values()),
        },
        "by_partition": partitions,
    }


def skew(values: Sequence[float]) -> dict[str, float]:
    """How unevenly something is spread: `ideal` is everybody's share, `max` the largest one, `max_over_ideal` their
    ratio (1: even; 0 where there is nothing), `deviation` the standard deviation."""
    ideal = fmean(values) if values else 0.0
    most = max(values, default=0.0)
    return {
        "ideal": round(ideal, 1),
        "max": most,
        "max_over_ideal": round(most / ideal, 3) if ideal else 0.0,
        "deviation": round(pstdev(values), 1) if values else 0.0,
    }


def _skews(holders: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    held = list(holders)
    return {name: skew([holder.get(name, 0) for holder in held]) for name in SHARED}


def _heard_of(down: str, layout: Layout, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """How far a node that does not say it itself is behind, by the others' word. What each knows is a bound: it may not
    have heard of all that the silent one has. The lowest is the best, of those who miss nothing themselves."""
    tellers = [node for node in nodes if "behind" in node.get("peers", {}).get(down, {})]
    if not tellers:
        return {"silent_seconds": None, "replication_lag_changes": None}
    behind: dict[str, int] = {}
    for number in [str(number) for number, replicas in sorted(layout.replicas.items()) if down in replicas]:
        bounds = [
            (node["by_partition"][number]["lag_changes"], node["peers"][down]["behind"].get(number, 0))
            for node in tellers
            if number in node["by_partition"]
        ]
        level = [changes for lag, changes in bounds if not lag]
        if changes := min(level) if level else max((changes for _, changes in bounds), default=0):
            behind[number] = changes
    silent = min(node["peers"][down]["silent_seconds"] for node in tellers)
    return {
        "silent_seconds": silent,
        "replication_lag_seconds": silent if behind else 0.0,
        "replication_lag_changes": sum(behind.values()),
        "behind": behind,
    }


def _by_partition(layout: Layout, nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each partition with its replicas, the preferred coordinator first: as large as the replica that has most of it,
    asked as often as all of them together, as far behind as the one that is furthest, be it down."""
    said: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for node in nodes:
        for number, one in node.get("by_partition", {}).items():
            said.setdefault(number, []).append((node["id"], one))
    away = [node for node in nodes if node.get("behind")]
    found: dict[str, dict[str, Any]] = {}
    for number, replicas in sorted(layout.replicas.items()):
        ones = said.get(str(number), [])
        behind = {id: one["lag_changes"] for id, one in ones if one["lag_changes"]}
        lags = [one["lag_seconds"] for _, one in ones]
        for node in away:
            if changes := node["behind"].get(str(number)):
                behind[node["id"]] = changes
                lags.append(node["silent_seconds"])
        found[str(number)] = {
            "replicas": list(replicas),
            "memories": max((one["memories"] for _, one in ones), default=0),
            "bytes": max((one["bytes"] for _, one in ones), default=0),
            "operations_per_second": round(sum(one["operations_per_second"] for _, one in ones), 1),
            "lag_seconds": max(lags, default=0.0),
            "lag_changes": max(behind.values(), default=0),
            "behind": behind,
        }
    return found


def _newest(nodes: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The cluster's members as the node knows them that has heard the latest of them."""
    known = [node["cluster"] for node in nodes if node.get("cluster")]
    newest: dict[str, Any] | None = max(known, key=lambda cluster: int(cluster["epoch"]), default=None)
    if newest is None or not newest["change"]:
        return newest
    comes = newest["change"]["comes"]
    taken: dict[str, int] = next((node.get("taken", {}) for node in nodes if node["id"] == comes), {})
    return {**newest, "change": {**newest["change"], **taken}}
