"""The cluster's report, put together from its nodes': the document of `spine status --json`."""

from __future__ import annotations

from typing import Any

from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Hello


def cluster_report(hello: Hello, layout: Layout, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """What all nodes said, and what follows from it. A node that did not answer has state "down" and a `problem`."""
    serving = {node["id"] for node in nodes if node.get("state") in ("up", "full")}
    without_quorum = [
        number
        for number, replicas in layout.replicas.items()
        if len(serving.intersection(replicas)) < min(hello.write_quorum, len(replicas))
    ]
    for node in nodes:
        node.setdefault("partitions", 0)
        node.setdefault("memories", 0)
        node.setdefault("replication_lag_seconds", None)
        node.setdefault("pid", None)
    return {
        "cluster": hello.cluster,
        "region": hello.region,
        "nodes": nodes,
        "partitions": hello.partitions,
        "replication": {"factor": hello.factor, "write_quorum": hello.write_quorum},
        "partitions_without_quorum": without_quorum,
        "quorum_failures": sum(node.get("quorum_failures", 0) for node in nodes),
    }
