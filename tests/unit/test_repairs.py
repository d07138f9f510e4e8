"""How repairs are spread, how lag and load are counted, and what the report makes of it."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
from records import Records
from rich.console import Console

from crdt_spine.cli.sizes import bytes_text, count_text
from crdt_spine.cli.status_view import cluster_view, partition_view
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Hello, NodeInfo
from crdt_spine.core.replica import Replica
from crdt_spine.node.lag import Lag, shortfalls
from crdt_spine.node.load import Load
from crdt_spine.node.repairs import Repairs
from crdt_spine.report import cluster_report, skew


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# -- whom to ask ----------------------------------------------------------------------------------------------------


def test_partitions_are_pulled_from_all_who_have_them() -> None:
    repairs, asked = Repairs(), []
    for number in range(8):
        source = repairs.source({"a": 100, "b": 95, "c": 10, "d": 0})
        assert source is not None
        repairs.begin(number, source, 100)
        asked.append(source)
    assert asked == ["a", "b"] * 4  # c has next to nothing of it, d nothing
    repairs.end(0)
    repairs.end(2)
    assert repairs.source({"a": 100, "b": 100}) == "a"
    assert repairs.source({"d": 0}) is None
    assert [one["partition"] for one in repairs.report()] == [1, 3, 4, 5, 6, 7]


# -- lag and load ---------------------------------------------------------------------------------------------------


def test_lag_counts_from_when_something_was_known_to_be_missing() -> None:
    clock = Clock()
    durable = {0: {"x": 1}, 1: {"x": 5}}
    lag = Lag(durable, clock)
    lag.hear("b", {0: {"x": 3}, 1: {"x": 5}, 7: {"x": 9}})
    clock.now += 2
    lag.hear("b", {0: {"x": 9}})
    assert lag.seconds() == {0: 2.0}
    assert lag.changes({"b": {0: {"x": 9}}, "c": {0: {"x": 4}, 1: {"x": 5}}}) == {0: 8}
    durable[0] = {"x": 3}
    assert lag.seconds() == {}  # what was missing then is here
    lag.hear("b", {0: {"x": 9}})
    clock.now += 1
    assert lag.seconds() == {0: 1.0}
    lag.forget("b")
    assert lag.seconds() == {}


def test_a_peer_lags_by_what_it_has_neither_made_nor_announced_nor_acknowledged() -> None:
    announced, acknowledged, own = "r/b@1", "r/a@1", "r/c@1"
    replica = Replica("a", "r/a@1", Records(), HybridClock(), {0: ("b", "c"), 1: ("b",), 2: ("c",)}, 2)
    replica.durable = {
        0: {announced: 10, acknowledged: 20, own: 30}, 1: {announced: 5}, 2: {announced: 1, own: 3}
    }  # fmt: skip
    replica.quorums[0].reached("c", {announced: 4})
    replica.quorums[0].reached("c", {acknowledged: 18})
    assert shortfalls(replica, "c", own) == {0: 6 + 2, 2: 1}  # it has no replica of 1
    assert shortfalls(replica, "c", "r/c@2") == {0: 6 + 2 + 30, 2: 1 + 3}  # it lost its disk, and what it had made
    replica.quorums[0].reached("c", {announced: 10, acknowledged: 21})
    replica.quorums[2].reached("c", {announced: 1})
    assert shortfalls(replica, "c", own) == {}


def test_load_is_a_rate_of_the_last_seconds() -> None:
    clock = Clock()
    load = Load(2, clock)
    for _ in range(60):
        load.counts[1] += 50
        clock.now += 1
        load.look()
    assert load.rates == [0.0, pytest.approx(50, rel=0.01)]
    for _ in range(60):
        clock.now += 1
        load.look()
    assert load.rates[1] < 1


# -- the report -----------------------------------------------------------------------------------------------------


def test_skew_is_the_largest_share_against_everybodys() -> None:
    assert skew([10, 10, 10]) == {"ideal": 10, "max": 10, "max_over_ideal": 1, "deviation": 0}
    assert skew([0, 20]) == {"ideal": 10, "max": 20, "max_over_ideal": 2, "deviation": 10}
    assert skew([]) == {"ideal": 0, "max": 0, "max_over_ideal": 0, "deviation": 0}


def report_of(count: int, partitions: int = 64) -> dict[str, Any]:
    """Of nodes of which the last one is down and the one before it catches up."""
    names = [f"spine-{k + 1}" for k in range(count)]
    hello = Hello(
        cluster="production-memory", region="eu", node=names[0], state="up", nodes=[NodeInfo(id=n) for n in names],
        partitions=partitions, factor=3, write_quorum=2,
    )  # fmt: skip
    layout = Layout(hello)
    change = {
        "kind": "add", "comes": "spine-9", "goes": None, "dead": False, "done": 12, "total": 48, "moving": {"3": "x"},
        "waits_for": ["spine-9"], "what": "spine-9 is being added",
    }  # fmt: skip
    nodes: list[dict[str, Any]] = []
    for index, name in enumerate(names[:-1]):
        last = index == count - 2
        held = [number for number, replicas in layout.replicas.items() if name in replicas]
        one = {"memories": 15_625, "bytes": 4_000_000, "operations_per_second": 31.2, "lag_seconds": 3.0 * last,
               "lag_changes": 40 * last}  # fmt: skip
        nodes.append(
            {
                "id": name, "state": "up", "zone": f"us-east-1{'abc'[index % 3]}", "partitions": len(held),
                "memories": 15_625 * len(held), "bytes": 4_000_000 * len(held), "pid": 4242,
                "operations_per_second": 31.2 * len(held), "replication_lag_seconds": 3.0 * last,
                "replication_lag_changes": 40 * len(held) * last, "unflushed": 30_000, "feeds": 3,
                "quorum_failures": 2, "tombstones": 12_000, "oldest_tombstone_seconds": 4_000.0,
                "tombstones_wait_for": {names[-1]: 500.0}, "by_partition": {str(number): one for number in held},
                "cluster": {"epoch": 7 + last, "members": {}, "change": change},
                "gossip": {"nodes": {names[-1]: {"state": "down"}}}, "repairs_waiting": 30 * last,
                "repairs": [
                    {"partition": 3, "source": "spine-1", "whole": False, "records": 10, "bytes": 5_000,
                     "changes_missing": 40, "seconds": 0.3}
                ] if last else [],
            }
        )  # fmt: skip
    nodes.append({"id": names[-1], "zone": None, "state": "down", "problem": "no replica answered within 2 s"})
    return cluster_report(hello, layout, nodes)


def drawn(view: Any, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return cast("io.StringIO", console.file).getvalue().splitlines()


def test_no_skew_is_shown_where_there_are_too_few_memories_to_be_spread() -> None:
    report = report_of(4)
    few = report | {"skew": {"partitions": {
        "memories": skew([1] + [0] * 63), "bytes": skew([400] + [0] * 63), "operations_per_second": skew([64.0] * 64)
    }}}  # fmt: skip
    text = "\n".join(drawn(cluster_view(few), 200))
    assert "skew of partitions: memories –, bytes –, load 1.00× (σ 0%)   too few memories" in text
    assert "64.00×" not in text
    empty = report | {"skew": {"partitions": dict.fromkeys(("memories", "bytes", "operations_per_second"), skew([0]))}}
    assert "skew" not in "\n".join(drawn(cluster_view(empty), 200))
    assert "skew of partitions: memories 1.00×" in "\n".join(drawn(cluster_view(report), 200))


def test_what_a_newcomer_has_taken_is_told_with_the_change() -> None:
    report = report_of(4)
    nodes = [*report["nodes"], {"id": "spine-9", "state": "up", "taken": {"records": 1_204, "bytes": 1_200_000}}]
    hello = Hello(
        cluster="c", region="eu", node="spine-1", state="up", nodes=[NodeInfo(id="spine-1")], partitions=1, factor=1,
        write_quorum=1,
    )  # fmt: skip
    text = "\n".join(drawn(cluster_view(cluster_report(hello, Layout(hello), nodes)), 200))
    assert "12 of 48 replicas moved, 1 under way, 1,204 records, 1.2 MB; waits for spine-9" in text


def test_the_report_has_what_the_nodes_said_of_partitions_repairs_and_members() -> None:
    report = report_of(4)
    assert report.keys() >= {"cluster", "region", "nodes", "partitions", "quorum_failures"}
    assert (report["cluster"], report["partitions"], report["quorum_failures"]) == ("production-memory", 64, 6)
    assert report["membership"]["epoch"] == 8, "the newest that a node knows"
    assert report["repairs"][0] | {"seconds": 0} == {
        "node": "spine-3", "partition": 3, "source": "spine-1", "whole": False, "records": 10, "bytes": 5_000,
        "changes_missing": 40, "seconds": 0,
    }  # fmt: skip
    assert 1 <= report["skew"]["nodes"]["memories"]["max_over_ideal"] < 1.1
    behind = [one for one in report["by_partition"].values() if one["behind"]]
    assert behind
    assert all(one["behind"] == {"spine-3": 40} and one["lag_seconds"] == 3.0 for one in behind)


def with_dead_nodes(*heard: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Of five nodes in as many partitions, each on all nodes, of which the last two are dead. `heard`: who knows what
    of spine-4; nobody has heard spine-5."""
    names = [f"spine-{k}" for k in range(1, 6)]
    hello = Hello(
        cluster="c", region="eu", node=names[0], state="up", nodes=[NodeInfo(id=name) for name in names],
        partitions=5, factor=5, write_quorum=2,
    )  # fmt: skip
    one = {"memories": 10, "bytes": 4_000, "operations_per_second": 0.0, "lag_seconds": 0.0, "lag_changes": 0}
    nodes: list[dict[str, Any]] = [
        {
            "id": name, "state": "up", "zone": "zone-1", "partitions": 5, "memories": 50, "bytes": 20_000, "pid": 4242,
            "operations_per_second": 0.0, "replication_lag_seconds": 0.0, "replication_lag_changes": 0,
            "by_partition": {str(number): dict(one) for number in range(5)},
            "peers": {"spine-4": dict(heard)[name]} if name in dict(heard) else {},
        }
        for name in names[:3]
    ]  # fmt: skip
    nodes[2]["by_partition"]["4"] |= {"lag_seconds": 1.5, "lag_changes": 30}
    nodes += [{"id": name, "zone": None, "state": "down", "problem": "no replica answered"} for name in names[3:]]
    return cluster_report(hello, Layout(hello), nodes)


def test_a_dead_node_was_shown_without_any_lag() -> None:
    report = with_dead_nodes(
        ("spine-1", {"silent_seconds": 130.5, "behind": {"0": 1_200, "1": 7, "4": 40}}),
        ("spine-2", {"silent_seconds": 130.1, "behind": {"0": 1_200, "4": 45}}),  # it has acknowledgements for 1
        ("spine-3", {"silent_seconds": 131.0, "behind": {"0": 1_201, "1": 7, "4": 10}}),  # it misses something in 4
    )
    dead, never = report["nodes"][3:]
    assert dead["behind"] == {"0": 1_200, "4": 40}
    assert (dead["replication_lag_changes"], dead["replication_lag_seconds"]) == (1_240, 130.1)
    assert dead["silent_seconds"] == 130.1
    assert (never["replication_lag_changes"], never["replication_lag_seconds"], never["silent_seconds"]) == (None,) * 3
    partitions = report["by_partition"]
    assert {number: one["behind"] for number, one in partitions.items()} == {
        "0": {"spine-4": 1_200}, "1": {}, "2": {}, "3": {}, "4": {"spine-3": 30, "spine-4": 40}
    }  # fmt: skip
    assert [(one["lag_changes"], one["lag_seconds"]) for one in partitions.values()] == [
        (1_200, 130.1), (0, 0.0), (0, 0.0), (0, 0.0), (40, 130.1)
    ]  # fmt: skip
    lines = {line.split()[0]: line for line in drawn(cluster_view(report, columns=80, rows=23)) if line.strip()}
    assert lines["spine-4"].endswith("1,240 changes, 2.2 min")
    assert lines["spine-5"].rstrip().endswith("–")
    text = "\n".join(drawn(partition_view(report), 120))
    assert "1.2 k spine-4" in text
    assert "40 spine-3, spine-4" in text


def test_a_dead_node_that_misses_nothing_is_not_behind() -> None:
    report = with_dead_nodes(("spine-1", {"silent_seconds": 12.3, "behind": {}}))
    dead = report["nodes"][3]
    assert (dead["replication_lag_changes"], dead["replication_lag_seconds"], dead["silent_seconds"]) == (0, 0.0, 12.3)
    assert not any(one["behind"].get("spine-4") for one in report["by_partition"].values())
    assert "none, heard 12 s ago" in "\n".join(drawn(cluster_view(report, columns=80)))


@pytest.mark.parametrize("count", [4, 40])
def test_watching_fits_a_terminal_of_80_columns_and_24_lines(count: int) -> None:
    report = report_of(count)
    for view in (cluster_view, partition_view):
        lines = drawn(view(report, columns=80, rows=23))
        assert len(lines) <= 24, "\n".join(lines)
        assert max(map(len, lines)) <= 80
    shown = "\n".join(drawn(cluster_view(report, columns=80, rows=23)))
    down = f"spine-{count}"
    for words in (down, "no replica answered", "spine-9 is being added", "30 wait", "waits for spine-9"):
        assert words in " ".join(shown.split())


def test_amounts_are_short() -> None:
    assert [bytes_text(n) for n in (0, 999, 1_000, 12_345, 999_960, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "12.3 kB", "1.0 MB", "5.0 TB",
    ]  # fmt: skip
    assert [count_text(n) for n in (0, 12.4, 1_250, 1_000_000)] == ["0", "12", "1.2 k", "1.0 M"]
