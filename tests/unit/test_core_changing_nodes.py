"""The nodes of a cluster change while it runs: whose word counts then, whose silence, clock and changes."""

from __future__ import annotations

from records import Records

from crdt_spine.core.actors import actor_name
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.drift import ANNOUNCEMENTS_IN_A_ROW, ClockWatch
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Change, Delta, Hello, NodeInfo, encode
from crdt_spine.core.replica import Replica
from crdt_spine.core.retirement import Retirement

NOW = 1_763_000_000_000


def disk(node: str, began: str = "1") -> str:
    return actor_name("r", node, began)


def hear(retirement: Retirement, node: str, silent: dict[str, int]) -> None:
    retirement.hear(node, disk(node), silent, (), serves=True)


def test_a_newcomer_counts_for_the_majority_and_who_left_is_not_waited_for() -> None:
    mine = Retirement("a", ("a", "b", "c"), disk("a"), 5.0)
    mine.serves = True
    for node in "bc":
        hear(mine, node, {})
    mine.change_nodes(("a", "b", "c", "d", "e"))
    assert mine.majority == 3
    mine.tick(3.0)
    mine.tick(3.0)
    hear(mine, "b", {"c": 6})
    assert mine.due() == [], "two of five say so"
    hear(mine, "d", {"c": 6})
    assert mine.due() == [disk("c")]
    mine.change_nodes(("a", "b", "d"))
    assert mine.due() == []
    assert mine.silent.keys() == {"b", "d"} and disk("c") not in mine.disks.values()
    mine.change_nodes(("a", "b", "c"))
    assert mine.silent["c"] == 0.0, "whoever comes back has not been silent before"


def test_the_silence_of_who_stays_goes_on_being_counted() -> None:
    mine = Retirement("a", ("a", "b", "c"), disk("a"), 5.0)
    mine.tick(3.0)
    mine.change_nodes(("a", "b", "c", "d"))
    mine.tick(1.0)
    assert mine.silent == {"b": 4.0, "c": 4.0, "d": 1.0}


def test_the_majority_that_can_accuse_a_clock_follows_the_nodes() -> None:
    clocks = ClockWatch(3, 500)
    for _ in range(ANNOUNCEMENTS_IN_A_ROW):
        for node in "bc":
            clocks.heard(node, NOW - 3_000, NOW, 3_000)
    assert clocks.ahead("bc") == 3_000
    clocks.change_nodes("bcde")
    assert clocks.ahead("bcde") == 0, "two of five"
    clocks.change_nodes("b")
    assert clocks.ahead("b") == 0, "c is gone, and nobody is sure between two"


def delta(node: str) -> Delta:
    change = Change(id="m", time=NOW << 16, agent="ada", content="x", alive=True)
    return Delta(partition=0, actor=disk(node), first=1, deps={}, changes=[change])


def test_what_somebody_sends_who_is_no_node_any_more_is_refused() -> None:
    replica = Replica("a", disk("a"), Records(), HybridClock(), {0: ("b",)}, 1)
    replica.members = frozenset({"b", "c"})
    assert replica.receive(delta("gone"), encode(delta("gone")), NOW), "there is nothing that a repair could bring"
    assert replica.partitions[0].vector == {}
    other_region = Delta(partition=0, actor="s/gone@1", first=1, deps={}, changes=delta("c").changes)
    for welcome in (delta("b"), delta("c"), other_region):
        replica.receive(welcome, encode(welcome), NOW)
    assert replica.partitions[0].vector == {disk("b"): 1, disk("c"): 1, "s/gone@1": 1}


def test_the_layout_is_the_registers_where_there_is_one_and_every_node_coordinates_its_share() -> None:
    nodes = [NodeInfo(id=id) for id in "abcd"]
    hello = Hello(
        cluster="c", region="r", node="a", state="up", nodes=nodes, partitions=8, factor=3, write_quorum=2, epoch=5,
        replicas={number: ("a", "b", "c") if number % 2 else ("b", "c", "d") for number in range(8)},
    )  # fmt: skip
    layout = Layout(hello)
    assert all(sorted(layout.replicas[number]) == sorted(hello.replicas[number]) for number in range(8))
    first = [layout.replicas[number][0] for number in range(8)]
    assert sorted(first.count(node) for node in "abcd") == [2, 2, 2, 2]
