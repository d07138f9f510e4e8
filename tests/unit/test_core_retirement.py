"""Who is retired, when, and by whose word; and that what a retired disk has comes back on no road."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from records import Records

from crdt_spine.core import codec
from crdt_spine.core.actors import actor_name
from crdt_spine.core.causality import Vector
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Ack, Announcement, Delete, Delta, Edit, Store, SyncPage, Write, encode
from crdt_spine.core.replica import Replica
from crdt_spine.core.retirement import TICK_SECONDS_MAX, Retirement

WEEK = 7 * 86_400
NAMES = ("a", "b", "c")


def disk(node: str, began: str = "1") -> str:
    return actor_name("r", node, began)


class Gossip:
    """Nodes that announce to each other once a second; `cut` are links (from, to) that carry nothing."""

    def __init__(self, *names: str, seconds: float = 60.0) -> None:
        self.nodes = {name: Retirement(name, names, disk(name), seconds) for name in names}
        self.starting: set[str] = set()  # who does not serve
        self.away: set[str] = set()
        self.cut: set[tuple[str, str]] = set()

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            here = [node for name, node in self.nodes.items() if name not in self.away]
            for node in here:
                node.serves = node.node not in self.starting
                node.tick(1.0)
                node.adopt(node.due())
            said = {node.node: (node.disk, node.said(), sorted(node.retired)) for node in here}
            for node in here:
                for other, words in said.items():
                    if other != node.node and (other, node.node) not in self.cut:
                        node.hear(other, *words, serves=other not in self.starting)

    def isolate(self, *names: str) -> None:
        others = self.nodes.keys() - set(names)
        self.cut |= {(one, other) for one in names for other in others}
        self.cut |= {(other, one) for one in names for other in others}

    def retired(self) -> dict[str, set[str]]:
        return {name: node.retired for name, node in self.nodes.items()}


def test_who_is_silent_for_long_enough_is_retired_by_the_others() -> None:
    gossip = Gossip(*NAMES)
    gossip.run(5)
    gossip.away = {"c"}
    gossip.run(55)
    assert gossip.nodes["a"].said()["c"] in (54, 55)
    assert not gossip.nodes["a"].retired
    gossip.run(10)
    assert [gossip.retired()[name] for name in ("a", "b")] == [{disk("c")}, {disk("c")}]
    assert gossip.nodes["a"].is_away("c") and not gossip.nodes["a"].is_away("b")


def test_who_is_back_in_time_begins_at_nothing_again() -> None:
    gossip = Gossip(*NAMES)
    for _ in range(3):
        gossip.away = {"c"}
        gossip.run(50)
        gossip.away = set()
        gossip.run(2)
    assert not any(gossip.retired().values())


def test_an_isolated_node_retires_nobody_and_is_retired() -> None:
    gossip = Gossip(*NAMES)
    gossip.run(2)
    gossip.isolate("c")
    gossip.run(200)
    assert gossip.retired() == {"a": {disk("c")}, "b": {disk("c")}, "c": set()}
    gossip.cut.clear()
    gossip.run(2)
    assert gossip.nodes["c"].expelled, "it hears of it as soon as it hears anybody"
    assert not gossip.nodes["a"].expelled and not gossip.nodes["b"].expelled


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_cut_link_retires_nobody(both_ways: bool) -> None:
    """Of three, its ends are two: each can only speak for itself."""
    gossip = Gossip(*NAMES)
    gossip.run(2)
    gossip.cut = {("a", "b"), ("b", "a")} if both_ways else {("a", "b")}
    gossip.run(500)
    assert not any(gossip.retired().values())


def test_two_nodes_never_retire_each_other() -> None:
    gossip = Gossip("a", "b")
    gossip.run(2)
    gossip.away = {"b"}
    gossip.run(1_000)
    assert not any(gossip.retired().values())


def test_a_minority_of_five_retires_nobody_and_is_retired() -> None:
    gossip = Gossip("a", "b", "c", "d", "e")
    gossip.run(2)
    gossip.isolate("d", "e")
    gossip.run(100)
    assert gossip.nodes["a"].retired == gossip.nodes["c"].retired == {disk("d"), disk("e")}
    assert gossip.retired()["d"] == gossip.retired()["e"] == set()


def test_two_nodes_are_not_retired_one_after_the_other_while_the_first_has_nothing_yet() -> None:
    """Of a, b, c: c is retired and begins anew; before it serves, a and b are cut off in turn. Were both retired by the
    word of who has nothing, nobody would be left who has anything."""
    gossip = Gossip(*NAMES)
    gossip.run(2)
    gossip.away = {"c"}
    gossip.run(70)
    gossip.nodes["c"] = Retirement("c", NAMES, disk("c", "2"), 60.0)
    gossip.starting, gossip.away = {"c"}, set()
    gossip.run(2)
    for name in ("a", "b"):
        gossip.away = {name}
        gossip.run(200)
    assert gossip.retired() == {name: {disk("c")} for name in NAMES}, "the word of c does not count"
    gossip.away = set()
    gossip.run(2)
    gossip.starting = set()
    gossip.away = {"a"}
    gossip.run(70)
    assert gossip.nodes["b"].is_away("a") and gossip.nodes["c"].is_away("a"), "now it does: b and c have all"


def test_who_does_not_serve_retires_nobody() -> None:
    gossip = Gossip("a", "b", "c", "d")
    gossip.run(2)
    gossip.starting, gossip.away = {"a"}, {"d"}
    gossip.run(70)
    assert not any(gossip.retired().values()), "a says so, too, but that leaves two of four"
    gossip.starting = set()
    gossip.run(3)
    assert [gossip.retired()[name] for name in "abc"] == [{disk("d")}] * 3


def test_the_word_of_who_does_not_serve_does_not_count_where_enough_others_serve() -> None:
    node = Retirement("a", ("a", "b", "c", "d", "e"), disk("a"), 60.0)
    node.hear("e", disk("e"), {}, (), serves=True)
    for _ in range(60):
        node.tick(1.0)
    node.serves = True
    node.hear("b", disk("b"), {"e": 1_000}, (), serves=False)
    node.hear("c", disk("c"), {"e": 1_000}, (), serves=True)
    node.hear("d", disk("d"), {}, (), serves=True)
    assert node.due() == []
    node.hear("b", disk("b"), {"e": 1_000}, (), serves=True)
    assert node.due() == [disk("e")]
    node.serves = False
    assert node.due() == [], "nor does the own"


def test_a_retirement_that_leaves_too_few_who_serve_is_adopted_once_there_are_enough() -> None:
    node = Retirement("a", NAMES, disk("a"), 60.0)
    node.hear("b", disk("b"), {}, [disk("c")], serves=True)
    assert not node.retired, "it does not serve itself: b alone does"
    node.serves = True
    node.hear("b", disk("b"), {}, [disk("c")], serves=False)
    assert not node.retired
    node.hear("b", disk("b"), {}, [disk("c")], serves=True)
    assert node.retired == {disk("c")}
    node.hear("c", disk("c", "2"), {}, [disk("b")], serves=False)
    assert node.retired == {disk("c")}, "c serves no more"
    node.hear("c", disk("c", "2"), {}, [disk("b")], serves=True)
    assert node.is_away("b")


def test_a_disk_that_was_replaced_is_retired_at_once() -> None:
    """A node that begins anew has to know that its earlier disk was, before it serves."""
    node = Retirement("a", NAMES, disk("a", "2"), 60.0)
    node.hear("b", disk("b", "2"), {}, [disk("a"), disk("b")], serves=True)
    assert node.retired == {disk("a"), disk("b")} and node.knows_another_disk


def test_no_retirement_leaves_less_than_a_majority() -> None:
    node = Retirement("a", ("a", "b", "c", "d", "e"), disk("a"), 60.0)
    node.serves = True
    for name in "bcde":
        node.hear(name, disk(name), {}, (), serves=True)
    assert node.adopt([disk("d"), disk("e")]) == [disk("d"), disk("e")]
    assert node.adopt([disk("c")]) == []
    assert node.adopt([disk("a")]) == [disk("a")], "but what is said of oneself is believed"


def test_what_a_retired_node_says_counts_no_more() -> None:
    node = Retirement("a", ("a", "b", "c", "d", "e"), disk("a"), 60.0)
    node.serves = True
    for name in "bcde":
        node.hear(name, disk(name), {}, (), serves=True)
    node.adopt([disk("b")])
    for _ in range(100):
        node.tick(1.0)
        node.hear("b", disk("b"), {"e": 1_000}, [disk("d")], serves=True)
        node.hear("c", disk("c"), {"e": 1_000}, (), serves=True)
    assert node.retired == {disk("b")}
    assert not node.due(), "two of five, b does not count"
    node.hear("d", disk("d"), {"e": 1_000}, (), serves=True)
    assert node.due() == [disk("e")]


def test_words_that_are_not_new_count_no_more() -> None:
    node = Retirement("a", NAMES, disk("a"), 60.0)
    node.serves = True
    node.hear("c", disk("c"), {}, (), serves=True)
    node.hear("b", disk("b"), {"c": 1_000}, (), serves=True)
    for _ in range(100):
        node.tick(1.0)
    assert node.due() == [], "b was not heard either"
    node.hear("b", disk("b"), {"c": 1_000}, (), serves=True)
    assert node.due() == [disk("c")]


def test_a_jump_of_time_makes_nobody_look_silent() -> None:
    node = Retirement("a", NAMES, disk("a"), 60.0)
    for name in "bc":
        node.hear(name, disk(name), {}, (), serves=True)
    node.tick(WEEK)
    node.tick(-WEEK)
    assert max(node.silent.values()) <= TICK_SECONDS_MAX


def test_a_restart_neither_forgets_nor_hurries() -> None:
    before = Gossip(*NAMES)
    before.run(2)
    before.away = {"c"}
    before.run(40)
    after = Gossip(*NAMES)
    for name in ("a", "b"):
        saved = msgspec.msgpack.decode(msgspec.msgpack.encode(before.nodes[name].saved))
        after.nodes[name].restore(saved)
    after.away = {"c"}
    after.run(10)
    assert not any(after.retired().values()), "50 of 60 seconds, however long nobody was up in between"
    after.run(15)
    assert after.retired()["a"] == {disk("c")}
    again = Retirement("a", NAMES, disk("a"), 60.0)
    again.restore(after.nodes["a"].saved)
    assert again.is_away("c") and again.refuses(disk("c", "9"))


def test_a_node_of_which_nobody_knows_a_name_is_not_retired() -> None:
    gossip = Gossip(*NAMES)
    gossip.away = {"c"}
    gossip.run(100)
    assert not any(gossip.retired().values())


def test_a_new_name_on_the_old_disk_does_not_help_but_a_new_disk_does() -> None:
    node = Retirement("a", NAMES, disk("a"), 60.0)
    node.serves = True
    node.hear("b", disk("b"), {}, (), serves=True)
    node.hear("c", disk("c"), {}, (), serves=True)
    node.adopt([disk("c")])
    assert node.refuses(disk("c")) and node.refuses(disk("c", "2"))
    node.hear("c", disk("c"), {}, (), serves=True)
    assert node.is_away("c")
    node.hear("c", disk("c", "2"), {}, (), serves=True)
    assert not node.is_away("c") and not node.refuses(disk("c", "2"))
    node.hear("c", disk("c"), {}, (), serves=True)
    assert node.is_away("c"), "the old disk was put in again"
    assert not node.refuses("elsewhere/c@1") and not node.refuses(disk("b"))


# -- what follows for replicas ---------------------------------------------------------------------------------------


NOW = 1_763_000_000_000


class Node:
    """A replica of one partition."""

    def __init__(self, name: str, began: str = "1") -> None:
        self.name = name
        self.records = Records()
        actor = disk(name, began)
        peers = {0: tuple(other for other in NAMES if other != name)}
        self.retirement = Retirement(name, NAMES, actor, 60.0)
        self.retirement.serves = True
        self.replica = Replica(name, actor, self.records, HybridClock(), peers, 2, retirement=self.retirement)
        self.partition = self.replica.partitions[0]
        self.done: list[Any] = []

    def write(self, operation: Write) -> Delta:
        self.replica.write(0, operation, "agent", f"{self.name}-{operation}", NOW, operation.id)
        turn = self.turn()
        return msgspec.json.decode(turn.deltas[0][1], type=Delta)

    def turn(self) -> Any:
        turn = self.replica.end_turn()
        self.done += [waiting.ticket for waiting in self.replica.persisted(turn)]
        return turn

    def takes(self, *deltas: Delta) -> None:
        for delta in deltas:
            self.replica.receive(delta, encode(delta), NOW)
        self.turn()

    def hears(self, *others: Node) -> None:
        for other in others:
            announcement = Announcement(
                node=other.name, actor=other.replica.actor, state="up", now=NOW, disk=other.retirement.disk,
                vectors={0: dict(other.replica.durable[0])}, retired=tuple(other.retirement.retired),
            )  # fmt: skip
            if self.replica.heed(announcement):
                self.done += [waiting.ticket for waiting in self.replica.hear(announcement)[0]]

    def page(self, have: Vector, *, whole: bool = False) -> SyncPage:
        found = self.records.changed(0, have, None, 100)
        return SyncPage(
            partition=0, records=[(record.id, codec.to_json(record)) for record in found],
            upto=dict(self.replica.durable[0]), whole=whole, forgotten=dict(self.partition.forgotten),
        )  # fmt: skip

    def pulls(self, source: Node) -> str:
        """since(the own vector); what this node thinks of the page."""
        have = dict(self.partition.vector)
        page = source.page(have)
        verdict = self.replica.judge(page, have)
        if verdict == "too late":
            self.retirement.adopt([self.retirement.disk])
        if verdict in ("too late", "not believed"):
            return verdict
        if verdict == "incomplete":
            page = source.page({}, whole=True)
        self.replica.merge_page(page, encode(page), NOW + 1_000)
        self.turn()
        return verdict

    def forgets(self) -> int:
        return self.replica.collect(0, [record for record in self.records.values() if not record.alive], NOW)

    def lives(self) -> set[str]:
        return {id for id, record in self.records.items() if record.alive}


def exchange(*nodes: Node) -> None:
    for _ in range(2):
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.pulls(other)
                    node.hears(other)


def store(id: str) -> Store:
    return Store(i=0, id=id, content=id)


class Story:
    """All three have `x`; then c is away, x is deleted at a, c changes it (or does nothing), and c is retired at a,
    which forgets x."""

    def __init__(self, *, busy: bool = True) -> None:
        self.a, self.b, self.c = (Node(name) for name in NAMES)
        born = self.a.write(store("x"))
        self.b.takes(born)
        self.c.takes(born)
        exchange(self.a, self.b, self.c)
        self.deleted = self.a.write(Delete(i=0, id="x"))
        self.b.takes(self.deleted)
        self.a.hears(self.b)
        if busy:
            self.changed = self.c.write(Edit(i=0, id="x", importance=0.9))
            self.made = self.c.write(store("only-c"))

    def retire(self) -> None:
        assert self.a.forgets() == 0, "c has not seen it"
        self.a.replica.let_go(self.a.retirement.adopt([disk("c")]))
        assert self.a.forgets() == 1
        assert not self.a.records


@pytest.fixture
def story() -> Story:
    return Story()


def test_nobody_waits_for_a_retired_replica_and_nothing_of_it_is_taken(story: Story) -> None:
    story.retire()
    a = story.a
    a.takes(story.changed, story.made)
    a.hears(story.c)
    assert not a.records and disk("c") not in a.partition.vector
    assert a.retirement.refused[disk("c")] == 3


def test_a_retired_replica_counts_for_no_quorum(story: Story) -> None:
    story.retire()
    a = story.a
    a.write(store("y"))
    n = a.partition.vector[disk("a")]
    assert not a.replica.ack(Ack(node="c", actor=disk("a"), reached={0: n}))
    a.hears(story.c)
    assert "y" not in a.done
    assert a.replica.ack(Ack(node="b", actor=disk("a"), reached={0: n}))


def test_what_a_node_that_has_not_heard_takes_meets_its_tombstone(story: Story) -> None:
    """Road 2: b is behind, takes what c changed, and hands it on."""
    story.retire()
    story.b.takes(story.changed, story.made)
    story.a.hears(story.b)
    assert story.a.pulls(story.b) == "useful"
    exchange(story.a, story.b)
    assert story.a.lives() == story.b.lives() == {"only-c"}
    assert story.a.partition.vector == story.b.partition.vector


@pytest.mark.parametrize("busy", [False, True])
def test_a_new_disk_that_was_filled_from_the_retired_one_is_of_no_use(busy: bool) -> None:
    """Road 3: b lost its disk, and fills the new one from c, which nobody told it not to believe."""
    story = Story(busy=busy)
    story.retire()
    b = Node("b", "2")
    assert b.pulls(story.c) == "useful"
    assert "x" in b.lives()
    story.a.hears(b)
    assert story.a.pulls(b) == "not believed"
    story.a.takes(b.write(store("new")))
    assert not story.a.records, "nor is what it coordinates"
    assert b.pulls(story.a) == "too late"
    assert b.retirement.expelled


def test_a_new_disk_that_has_nothing_of_others_asks_for_the_whole(story: Story) -> None:
    story.retire()
    b = Node("b", "2")
    b.write(store("new"))
    assert b.pulls(story.a) == "incomplete"
    assert b.partition.forgotten == story.a.partition.forgotten, "it hands on that it can't tell either"
    story.a.hears(b)
    assert story.a.pulls(b) == "useful", "it has what was forgotten, as far as that goes"
    assert story.a.lives() == b.lives() == {"new"}
    assert Node("c", "2").pulls(b) == "incomplete"


def test_what_was_deleted_and_forgotten_does_not_enter_by_any_sync(story: Story) -> None:
    """Were a disk believed that should not be."""
    story.retire()
    page = story.c.page({})
    assert {id for id, _ in page.records} == {"x", "only-c"}
    story.a.replica.merge_page(page, encode(page), NOW)
    assert story.a.lives() == {"only-c"}
    whole = story.a.page({}, whole=True)
    story.c.replica.merge_page(whole, encode(whole), NOW)
    assert story.c.lives() == {"only-c"}, "though its last change was never there"


def test_even_the_retired_disk_itself_learns_it_from_a_page(story: Story) -> None:
    """Should it ask before it hears that it is retired."""
    story.retire()
    assert story.c.pulls(story.a) == "too late"
    assert story.c.retirement.expelled


def test_a_replica_that_was_waited_for_needs_no_comparison(story: Story) -> None:
    story.retire()
    story.a.write(store("y"))
    assert story.b.pulls(story.a) == "useful"
    story.b.write(store("z"))
    story.a.hears(story.b)
    assert story.a.pulls(story.b) == "useful"
    exchange(story.a, story.b)
    assert story.a.lives() == story.b.lives() == {"y", "z"}


def test_without_a_retirement_nothing_is_forgotten_early_and_nothing_compared(story: Story) -> None:
    assert story.a.forgets() == 0
    assert story.a.replica.waits_for(0, story.a.records["x"]) == ["c"]
    exchange(story.a, story.b, story.c)
    assert story.a.forgets() == 1
    assert not story.a.partition.forgotten
    assert story.a.lives() == story.b.lives() == story.c.lives() == {"only-c"}


def test_what_waits_here_of_a_disk_goes_when_it_is_retired(story: Story) -> None:
    a = story.a
    a.takes(story.made)
    assert a.partition.waiting_changes == 1, "the change before it is missing"
    a.replica.let_go(a.retirement.adopt([disk("c")]))
    assert a.partition.waiting_changes == 0
    assert disk("c") not in a.partition.heard
    assert a.replica.waits_for(0, a.records["x"]) == []
