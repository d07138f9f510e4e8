"""A replica turn by turn: what waits for what, what leaves when, and what a restart, a late page or an old disk may not
break. Most of these are bugs that the simulator found, told as short stories."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from records import Records

from crdt_spine.core import codec
from crdt_spine.core.actors import actor_name, node_of
from crdt_spine.core.causality import Vector
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Ack, Announcement, Delete, Delta, Edit, Store, SyncPage, encode
from crdt_spine.core.replica import Replica
from crdt_spine.core.turn import Turn

decode_delta = msgspec.json.Decoder(Delta).decode
decode_entry = msgspec.json.Decoder(Delta | SyncPage).decode
NOW = 1_763_000_000_000
NAMES = ("a", "b", "c")


class Node:
    """A replica of one partition with a journal; `turn` commits and gives what may then leave."""

    def __init__(self, name: str, journal: list[bytes] | None = None, incarnation: str = "1") -> None:
        self.name = name
        self.records = Records()
        peers = {0: tuple(other for other in NAMES if other != name)}
        self.replica = Replica(name, actor_name("r", name, incarnation), self.records, HybridClock(), peers, 2)
        self.partition = self.replica.partitions[0]
        self.journal = journal or []
        self.done: list[Any] = []
        for row in self.journal:
            self.replica.replay([row], decode_entry)
        self.replica.recovered()

    def write(self, operation: Store | Edit | Delete, id: str = "", now: int = NOW, **options: Any) -> None:
        self.replica.write(0, operation, "agent", id, now, id, **options)

    def turn(self) -> Turn:
        turn = self.replica.end_turn()
        self.journal += turn.journal
        self.done += [waiting.ticket for waiting in self.replica.persisted(turn)]
        return turn

    def deltas(self) -> list[Delta]:
        return [decode_delta(raw) for _, raw in self.turn().deltas]

    def takes(self, *deltas: Delta, now: int = NOW) -> bool:
        """Receive, and commit; was the last one applied?"""
        applied = False
        for delta in deltas:
            applied = self.replica.receive(delta, encode(delta), now)
        self.turn()
        return applied

    def page(self, have: Vector, *, whole: bool = False, **fields: Any) -> SyncPage:
        """since(have), in one page."""
        return SyncPage(
            partition=0,
            records=[(record.id, codec.to_json(record)) for record in self.records.changed(0, have, None, 999)],
            upto=dict(self.replica.durable[0]),
            operations=self.replica.operations_since(0, have),
            clock=self.partition.forgotten_time,
            whole=whole,
            **fields,
        )

    def merges(self, page: SyncPage, now: int = NOW) -> None:
        self.replica.merge_page(page, encode(page), now)
        self.turn()

    def announcement(self, **fields: Any) -> Announcement:
        return Announcement(
            node=self.name, actor=self.replica.actor, state="up", now=NOW, vectors=dict(self.replica.durable), **fields
        )

    def hears(self, *others: Node) -> None:
        for other in others:
            self.done += [waiting.ticket for waiting in self.replica.hear(other.announcement())[0]]

    def tags(self, id: str = "m") -> set[str]:
        return set(self.records[id].tags)

    @property
    def vector(self) -> Vector:
        return self.partition.vector


def store(id: str = "m", **fields: Any) -> Store:
    return Store(i=0, id=id, content="text", **fields)


def edit(id: str = "m", **fields: Any) -> Edit:
    return Edit(i=0, id=id, **fields)


def forget_everywhere(*nodes: Node) -> None:
    """Let all announce, and drop the tombstones."""
    for node in nodes:
        node.hears(*[other for other in nodes if other is not node])
        node.partition.collect(list(node.records.values()), [other.name for other in nodes if other is not node])


@pytest.fixture
def a() -> Node:
    return Node("a")


@pytest.fixture
def b() -> Node:
    return Node("b")


@pytest.fixture
def c() -> Node:
    return Node("c")


# -- what waits for what ----------------------------------------------------------------------------------------------


def test_an_actors_changes_apply_in_their_order_and_once(a: Node, b: Node) -> None:
    deltas = []
    for tag in "xyz":
        a.write(store(tag, tags=(tag,)))
        deltas += a.deltas()
    assert not b.takes(deltas[2])
    assert not b.takes(deltas[1])
    assert (b.vector, b.partition.waiting_changes) == ({}, 2)
    assert b.takes(deltas[0])
    assert (b.vector, b.partition.waiting_changes, b.partition.waiting) == ({"r/a@1": 3}, 0, {})
    before = dict(b.records)
    assert b.takes(*deltas)
    assert b.records == before


def test_a_change_waits_for_what_its_coordinator_had_seen(a: Node, b: Node, c: Node) -> None:
    a.write(store(tags=("x",)))
    born = a.deltas()[0]
    b.takes(born)
    b.write(edit(remove=("x",)))
    removal = b.deltas()[0]
    assert not c.takes(removal)
    assert "m" not in c.records
    c.takes(born)
    assert c.tags() == set()


def test_a_change_depends_on_what_came_between_two_changes_of_its_turn(a: Node, b: Node, c: Node) -> None:
    a.write(store())
    born = a.deltas()[0]
    b.takes(born)
    c.takes(born)
    a.write(edit(add=("x",)))
    added = a.deltas()[0]
    b.write(edit(importance=0.1))  # opens the turn's delta before the tag is here
    b.replica.receive(added, encode(added), NOW)
    b.write(edit(remove=("x",)))
    important, removal = b.deltas()  # the first one must not say that it had seen the tag
    assert (important.deps, removal.deps) == ({"r/a@1": 1}, {"r/a@1": 2})
    assert c.takes(important)
    assert not c.takes(removal)
    assert c.takes(added)
    assert c.tags() == set()


def test_a_change_to_a_record_that_a_page_brought_depends_on_its_version(a: Node, b: Node, c: Node) -> None:
    a.write(store(tags=("x",)))
    born = a.deltas()[0]
    b.merges(msgspec.structs.replace(a.page({}), next="m"))  # the sync breaks off behind this page
    assert b.vector == {}
    b.write(edit(remove=("x",)))
    removal = b.deltas()[0]
    assert removal.deps == {"r/a@1": 1}
    assert not c.takes(removal)
    c.takes(born)
    assert c.tags() == set()


def test_what_a_record_has_already_is_not_applied_there_again(a: Node, b: Node) -> None:
    a.write(store(tags=("x",)))
    born = a.deltas()[0]
    a.write(edit(remove=("x",)))
    a.turn()
    b.merges(msgspec.structs.replace(a.page({}), next="m"))
    b.takes(born)
    assert b.vector == {"r/a@1": 1}
    assert b.tags() == set()


def test_a_change_from_the_future_waits_until_its_time_has_come(a: Node, b: Node) -> None:
    a.write(store(), now=NOW + 60_000)
    delta = a.deltas()[0]
    assert not b.takes(delta)
    assert b.partition.waiting_changes == 1
    b.replica.drain(NOW + 59_000)
    assert "m" not in b.records
    b.replica.drain(NOW + 59_600)
    assert b.records["m"].alive
    b.turn()
    assert b.replica.durable[0] == {"r/a@1": 1}


def test_a_page_from_the_future_is_refused_and_changes_nothing(a: Node, b: Node) -> None:
    a.write(store(), now=NOW + 60_000)
    a.turn()
    with pytest.raises(codec.Garbled):
        b.merges(a.page({}))
    assert (b.records, b.vector) == ({}, {})
    b.merges(a.page({}), now=NOW + 60_000)
    assert b.records["m"].alive


def test_what_is_stamped_here_is_above_what_the_source_of_a_sync_has_forgotten(a: Node, b: Node) -> None:
    a.write(store(), now=NOW + 400)
    a.write(Delete(i=0, id="m"), now=NOW + 400)
    a.turn()
    assert a.partition.collect(list(a.records.values()), []) == 1
    b.merges(a.page({}))
    b.write(store(), now=NOW - 3_600_000)
    assert b.records["m"].life.origin.time > (NOW + 400) << 16


def test_who_is_an_hour_behind_takes_no_page_from_who_has_forgotten_a_deletion_of_that_hour(a: Node, b: Node) -> None:
    """It would have the deletion by its vector, and store the memory again at a time before that. Here the memory would
    live, and where the tombstone still is it would not."""
    a.write(store())
    a.write(Delete(i=0, id="m"))
    a.turn()
    assert a.partition.collect(list(a.records.values()), []) == 1
    with pytest.raises(codec.Garbled, match="forgotten are stamped ahead"):
        b.merges(a.page({}), now=NOW - 3_600_000)
    assert b.vector == {} and b.replica.clock.highest < NOW << 16
    b.merges(a.page({}), now=NOW)
    c = Node("c")
    c.merges(b.page({}), now=NOW)
    for node in (b, c):
        assert node.vector == a.vector
        node.write(store(), now=NOW - 3_600_000)
        assert node.records["m"].life.origin.time > NOW << 16, "and who has it from there forgets it as well"


def test_who_has_forgotten_nothing_gives_pages_also_when_its_clock_was_far_ahead_once(a: Node, b: Node) -> None:
    a.write(store())
    a.turn()
    a.replica.clock.observe((NOW + 3_600_000) << 16)
    b.merges(a.page({}))
    assert b.vector == {"r/a@1": 1} and b.replica.clock.highest <= (NOW + 500) << 16


def test_no_page_can_push_the_clock_into_the_future(a: Node, b: Node) -> None:
    with pytest.raises(codec.Garbled):
        b.merges(msgspec.structs.replace(a.page({}), clock=1 << 62))
    assert b.replica.clock.highest <= (NOW + 500) << 16


# -- what leaves when -------------------------------------------------------------------------------------------------


def test_nothing_is_said_or_shown_before_it_is_durable(a: Node) -> None:
    a.write(store(acks=1), "one")
    assert not a.replica.settled("m")
    turn = a.replica.end_turn()
    assert turn.journal == [raw for _, raw in turn.deltas] != []
    assert a.replica.durable[0] == {}
    assert not a.replica.settled("m")
    assert a.replica.behind(0, {"r/a@1": 1})
    a.write(edit(content="more", acks=1), "two")
    assert [waiting.ticket for waiting in a.replica.persisted(turn)] == ["one"]
    assert a.replica.durable[0] == {"r/a@1": 1}
    assert not a.replica.settled("m")  # the second change is not durable yet
    a.turn()
    assert a.replica.settled("m")
    assert a.done == ["two"]


def test_a_write_is_done_when_enough_replicas_have_it_and_told_once(a: Node, b: Node, c: Node) -> None:
    a.write(store(), "default")
    a.write(store("n", acks=3), "all")
    delta = a.deltas()[0]
    assert a.done == []
    b.replica.receive(delta, encode(delta), NOW)
    acks = b.turn().acks
    assert acks == {"r/a@1": {0: 2}}
    for _ in range(2):
        a.done += [w.ticket for w in a.replica.ack(Ack(node="b", actor="r/a@1", reached={0: 2}))]
    a.done += [w.ticket for w in a.replica.ack(Ack(node="stranger", actor="r/a@1", reached={0: 2}))]
    assert a.done == ["default"]
    c.takes(delta)
    a.hears(c)  # its acknowledgement was lost; its announcement says the same
    assert a.done == ["default", "all"]


def test_a_write_without_its_quorum_is_given_back_with_how_many_have_it(a: Node) -> None:
    a.write(store(), "one")
    a.turn()
    assert a.replica.expire(NOW + 9_999) == []
    assert [(waiting.ticket, acks) for waiting, acks in a.replica.expire(NOW + 10_000)] == [("one", 1)]
    assert a.replica.expire(NOW + 20_000) == []


def test_a_large_turn_leaves_in_several_messages_that_follow_each_other(a: Node, b: Node) -> None:
    for number in range(12):
        a.write(Store(i=0, id=f"m{number}", content="x" * 60_000))
    deltas = a.deltas()
    assert len(deltas) > 2
    assert b.takes(*deltas)
    assert len(b.records) == 12


# -- retries ----------------------------------------------------------------------------------------------------------


def test_a_retry_is_answered_and_not_applied_again(a: Node, b: Node) -> None:
    a.write(store(acks=1), "op")
    delta = a.deltas()[0]
    a.write(store(acks=1), "op")
    assert a.deltas() == []
    assert a.done == ["op", "op"]
    b.takes(delta)
    b.write(store(acks=1), "op")
    assert b.deltas() == []
    assert b.vector == a.vector == {"r/a@1": 1}


def test_a_first_attempt_that_comes_after_its_retry_is_not_applied_again(a: Node) -> None:
    a.write(store(acks=1), "op")
    a.turn()
    a.write(store(acks=1), "op")
    assert a.deltas() == []


def test_operations_are_remembered_through_a_sync_and_a_restart(a: Node, b: Node) -> None:
    a.write(store(acks=1), "op")
    a.turn()
    b.merges(a.page({}))
    for again in (Node("a", a.journal), Node("b", b.journal)):
        again.write(store(acks=1), "op")
        assert again.deltas() == []
    flushed = Node("b")  # the row is in the tables already: only its operations are read
    flushed.replica.remember(b.journal, decode_entry)
    assert flushed.replica.operations.get("op") == (0, "r/a@1", 1) and len(flushed.replica.operations) == 1


def test_an_operation_that_two_coordinators_took_is_known_by_the_change_that_is_here(a: Node, b: Node) -> None:
    a.write(store(acks=1), "op")
    a.turn()
    b.write(store(acks=1), "op")
    b.turn()
    b.merges(msgspec.structs.replace(a.page({}), records=[], next="m"))  # names the operation, and breaks off
    b.hears(Node("a", incarnation="2"))
    b.write(store(acks=1), "op")
    assert b.deltas() == []


def test_an_operation_that_was_heard_of_and_lost_is_applied(a: Node, b: Node) -> None:
    b.hears(a)
    a.write(store(acks=1), "op")
    a.turn()
    b.merges(msgspec.structs.replace(a.page({}), records=[], next="m"))
    b.hears(Node("a", incarnation="2"))
    b.write(store(acks=1), "op")
    assert len(b.deltas()) == 1
    assert b.done == ["op"]


def test_what_a_node_alone_had_that_was_given_up_is_applied_once_the_others_say_that_they_have_it_not(
    a: Node, b: Node, c: Node
) -> None:
    a.write(store(acks=1), "op")
    a.turn()
    heard_of = msgspec.structs.replace(a.page({}), records=[], upto={})  # it names the operation, and came before it
    b.merges(heard_of)
    c.merges(heard_of)

    def retry() -> int:
        b.write(store(), "op")
        return len(b.deltas())

    def says(node: Node, epoch: int) -> None:
        b.replica.hear(node.announcement(epoch=epoch))

    assert retry() == 0
    for node in (b, c):
        node.replica.change_peers(node.replica.peers, {0: frozenset("a")}, epoch=7, dead="a")
    says(c, epoch=6)
    assert retry() == 0, "c may have got it from a since"
    says(c, epoch=7)
    assert retry() == 1
    assert retry() == 0, "it is known by the new change now"
    assert b.replica.operations.get("op") == (0, "r/b@1", 1)


def test_what_another_one_has_of_a_node_that_was_given_up_is_waited_for(a: Node, b: Node, c: Node) -> None:
    a.write(store(acks=1), "op")
    c.takes(*a.deltas())
    b.merges(msgspec.structs.replace(a.page({}), records=[], upto={}))
    b.replica.change_peers(b.replica.peers, {0: frozenset("a")}, epoch=7, dead="a")
    b.replica.hear(c.announcement(epoch=7))
    b.write(store(), "op")
    assert b.deltas() == []
    b.merges(c.page({}))
    b.hears(c)
    assert b.done == ["op"]


def test_a_lost_operation_whose_record_came_ahead_of_its_vector_is_not_applied_twice(a: Node, b: Node, c: Node) -> None:
    b.hears(a)
    a.write(store(acks=1))
    a.turn()
    a.write(edit(add=("x",)), "op")
    a.turn()
    b.merges(msgspec.structs.replace(a.page({}), next="m"))  # and breaks off
    b.write(edit(remove=("x",)))
    b.turn()
    b.hears(Node("a", incarnation="2"))
    b.write(edit(add=("x",)), "op")
    (delta,) = b.deltas()
    assert b.tags() == set()
    c.merges(b.page({}))
    b.hears(c)
    assert b.done[-1] == "op"
    assert delta.changes[0].operation == "op"
    assert c.records == b.records


def test_what_is_held_back_of_a_node_goes_when_it_is_given_up_while_it_leaves(a: Node, b: Node) -> None:
    a.write(store())
    a.turn()
    a.write(edit(add=("x",)))
    held = a.deltas()
    b.replica.change_peers(b.replica.peers, {0: frozenset("a")}, epoch=6)
    b.takes(*held)
    assert b.partition.waiting_changes == 1
    b.replica.change_peers(b.replica.peers, {0: frozenset("a")}, epoch=7, dead="a")
    assert b.partition.waiting == {}


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_a_restart_brings_back_what_was_durable_and_goes_on_above_it(a: Node) -> None:
    a.write(store(), now=NOW + 400)
    a.write(edit(add=("x",)), now=NOW + 400)
    a.turn()
    again = Node("a", a.journal)
    assert (again.records, again.vector) == (a.records, a.vector)
    assert again.replica.durable[0] == a.vector
    again.write(edit(add=("y",)), now=NOW - 3_600_000)
    assert again.records["m"].times["r/a@1"] > a.records["m"].times["r/a@1"]
    assert again.vector == {"r/a@1": 3}


def test_an_own_change_to_a_record_ahead_of_the_vector_survives_a_restart(a: Node, b: Node) -> None:
    a.write(store())
    a.turn()
    b.merges(msgspec.structs.replace(a.page({}), next="m"))
    b.write(edit(add=("x",)))
    b.turn()
    again = Node("b", b.journal)
    assert again.vector == b.vector == {"r/b@1": 1}
    assert again.tags() == {"x"}
    assert again.partition.waiting == {}


def test_a_row_that_is_replayed_does_not_bring_back_what_was_forgotten_after_it(a: Node, b: Node, c: Node) -> None:
    a.write(store())
    born = a.deltas()
    page = a.page({})
    a.write(Delete(i=0, id="m"))
    deleted = a.deltas()
    for node in (b, c):
        node.takes(*born, *deleted)
    forget_everywhere(a, b, c)
    assert "m" not in b.records
    b.merges(page)  # from a journal row, or late from the network
    assert "m" not in b.records


def test_a_new_name_may_come_in_the_middle_of_a_turn(a: Node, b: Node) -> None:
    a.write(store())
    a.replica.actor = actor_name("r", "a", "2")
    a.write(edit(add=("x",)))
    deltas = a.deltas()
    assert [(delta.actor, delta.first, delta.deps) for delta in deltas] == [
        ("r/a@1", 1, {}),
        ("r/a@2", 1, {"r/a@1": 1}),
    ]
    assert b.takes(*deltas)
    assert b.tags() == {"x"}


# -- tombstones and old disks -----------------------------------------------------------------------------------------


def test_a_tombstone_is_kept_until_every_replica_has_it(a: Node, b: Node, c: Node) -> None:
    a.write(store())
    a.write(Delete(i=0, id="m"))
    deltas = a.deltas()
    b.takes(*deltas)
    a.hears(b)
    a.hears(c)
    assert a.partition.collect(list(a.records.values()), ["b", "c"]) == 0
    c.takes(*deltas)
    a.hears(c)
    assert (a.partition.tombstones, a.partition.memories) == (1, 0)
    assert a.partition.collect(list(a.records.values()), ["b", "c"]) == 1
    assert (a.partition.tombstones, a.partition.memories, a.records) == (0, 0, {})


def test_an_announcement_counts_once_everything_in_it_is_here(a: Node, b: Node) -> None:
    a.write(store())
    deltas = a.deltas()
    assert b.replica.hear(a.announcement()) == ([], [0])
    assert b.partition.stable(["a"]) == {}
    b.takes(*deltas)
    assert b.replica.hear(a.announcement()) == ([], [])
    assert b.partition.stable(["a"]) == {"r/a@1": 1}
    assert b.partition.stable(["a", "c"]) == {}


def test_a_disk_that_was_rolled_back_is_noticed_by_what_its_node_had_made(a: Node, b: Node) -> None:
    a.write(store())
    copy = list(a.journal)
    b.takes(*a.deltas())
    assert not a.replica.lost(b.announcement())
    assert Node("a", copy).replica.lost(b.announcement())


def test_a_disk_that_was_rolled_back_is_noticed_by_what_its_node_had(a: Node, b: Node) -> None:
    b.write(store())
    a.takes(*b.deltas())
    b.hears(a)
    answer = b.announcement(known_of="a", known=b.replica.known_of("a"))
    assert not a.replica.lost(answer)
    assert Node("a").replica.lost(answer)
    assert not Node("c").replica.lost(answer)


def test_a_disk_that_was_rolled_back_is_noticed_by_a_change_that_is_still_held_back(a: Node, b: Node) -> None:
    a.write(store())
    a.turn()
    a.write(edit(add=("x",)))
    b.takes(*a.deltas())
    assert b.partition.waiting_changes == 1
    assert Node("a").replica.lost(b.announcement(known_of="a", known=b.replica.known_of("a")))


def test_comparing_everything_forgets_what_was_deleted_and_forgotten_meanwhile(a: Node, b: Node, c: Node) -> None:
    a.write(store("gone"))
    a.write(store("stays"))
    born = a.deltas()
    b.takes(*born)
    old = Node("b", list(b.journal), incarnation="2")
    old.write(store("own"))
    old.turn()
    c.takes(*born)
    a.write(Delete(i=0, id="gone"))
    deleted = a.deltas()
    b.takes(*deleted)
    c.takes(*deleted)
    forget_everywhere(a, b, c)
    assert old.records["gone"].alive
    old.merges(a.page({}, whole=True))
    assert sorted(old.records) == ["own", "stays"]
    assert old.partition.memories == 2


def test_what_a_node_lost_with_its_disk_is_not_waited_for(a: Node, b: Node) -> None:
    a.write(store(), "lost")
    a.turn()
    a.write(edit(add=("x",)), "held back")
    b.takes(*a.deltas())
    assert b.partition.waiting_changes == 1
    b.hears(Node("a", incarnation="2"))
    assert (b.partition.waiting_changes, b.partition.waiting) == (0, {})


def test_a_name_says_region_and_node() -> None:
    assert node_of(actor_name("eu", "spine-1", "k2")) == ("eu", "spine-1")


def test_a_page_replayed_after_a_restart_tells_again_how_late_the_forgotten_deletions_were(a: Node, b: Node) -> None:
    a.write(store(), now=NOW)
    a.turn()
    b.merges(msgspec.structs.replace(a.page({}), clock=(NOW + 400) << 16))
    again = Node("b", b.journal)
    assert again.replica.clock.highest == b.replica.clock.highest == (NOW + 400) << 16
    assert again.partition.forgotten_time == b.partition.forgotten_time == (NOW + 400) << 16


# -- tokens that nobody can reach --------------------------------------------------------------------------------------


def said(*nodes: Node) -> Any:
    """What these nodes announced since an actor made its last change."""
    return lambda actor: {node.name: dict(node.replica.durable) for node in nodes}


def test_what_a_lost_disk_had_is_unreachable_once_all_replicas_say_that_they_do_not_have_it(a: Node, b: Node) -> None:
    a.write(store())
    a.deltas()  # lost, and the disk with them
    token = dict(a.vector)
    again, c = Node("a", incarnation="2"), Node("c")
    for node in (b, c):
        node.hears(Node("a"))
        assert node.replica.unreachable(0, token, said(a, c)) is None, "its node may come back"
        node.hears(again)
        assert node.replica.may_be_unreachable(0, token)
    assert b.replica.unreachable(0, token, said(again)) is None, "c may have it"
    assert b.replica.unreachable(0, token, said()) is None
    assert b.replica.unreachable(0, token, said(again, c)) == ("r/a@1", "node a goes on as r/a@2, without it")
    assert again.replica.unreachable(0, token, said(b, c)) == ("r/a@1", "node a goes on as r/a@2, without it")


def test_what_another_replica_has_or_holds_back_is_not_unreachable(a: Node, b: Node, c: Node) -> None:
    a.write(store())
    first = a.deltas()
    a.write(store("other"))
    second = a.deltas()
    token = dict(a.vector)
    again = Node("a", incarnation="2")
    b.hears(again)
    c.takes(*first, *second)
    assert b.replica.unreachable(0, token, said(again, c)) is None, "c has it"
    c = Node("c")
    b.takes(*second)
    assert b.replica.unreachable(0, token, said(again, c)) is None, "b holds it back"


def test_of_retired_disks_and_of_strangers_nothing_more_is_waited_for(a: Node, b: Node, c: Node) -> None:
    b.replica.retirement.change_nodes(NAMES)
    b.replica.retirement.disks["a"] = "r/a@1"
    b.replica.retirement.retired.add("r/a@1")
    assert b.replica.unreachable(0, {"r/a@1": 7}, said(c)) == ("r/a@1", "node a was away for too long and is retired")
    stranger = b.replica.unreachable(0, {"r/zoe@1": 7}, said(c))
    assert stranger == ("r/zoe@1", "no node of the cluster is called 'zoe'")
    assert b.replica.unreachable(0, {"elsewhere/zoe@1": 7}, said(c)) is None, "of other regions nothing is known"


def test_its_own_changes_a_node_knows_or_has_lost(a: Node) -> None:
    a.write(store())
    a.turn()
    assert a.replica.unreachable(0, {"r/a@1": 1}, said()) is None
    assert a.replica.unreachable(0, {"r/a@1": 2}, said()) == (
        "r/a@1", "node a has lost it: its disk is an older one",
    )  # fmt: skip


def test_whether_a_retry_was_done_is_not_known_where_a_sync_broke_off(a: Node, b: Node, c: Node) -> None:
    # The page brings the memory; the operations that are in it, and the vector, come with the last one.
    a.write(store(), "op")
    a.turn()
    page = a.page({})
    b.merges(msgspec.structs.replace(page, next="m", operations={}))
    assert b.replica.is_unsure(0, "m")
    assert not a.replica.is_unsure(0, "m")
    b.merges(page)
    assert not b.replica.is_unsure(0, "m")
    b.write(store(), "op")
    assert not b.deltas()  # it is answered, and not done again


def test_what_its_nodes_disk_took_along_leaves_nobody_unsure(a: Node, b: Node, c: Node) -> None:
    b.hears(a)
    a.write(store(), "op")
    a.turn()
    b.merges(msgspec.structs.replace(a.page({}), next="m", operations={}))
    b.hears(c, Node("a", incarnation="2"))  # which has nothing, nor has anybody else
    assert not b.replica.is_unsure(0, "m")


def test_a_name_that_was_not_heard_yet_is_not_a_former_one(a: Node, b: Node, c: Node) -> None:
    """A page told of a node's new name before the node itself could: what it had done under it was taken for lost, and
    done again when it was tried again."""
    b.hears(a)
    new = Node("a", incarnation="2")
    new.write(store(), "op")
    new.turn()
    b.merges(msgspec.structs.replace(new.page({}), next="m"))
    b.hears(c)
    assert b.replica.is_unsure(0, "m")
    assert not b.replica.may_be_unreachable(0, new.vector), "a token with it is not stale"
    b.hears(a)  # what was on its way from before
    assert b.replica.is_unsure(0, "m")
    b.hears(Node("a", incarnation="3"))  # by now it has lost its disk again
    assert not b.replica.is_unsure(0, "m")


def stranded(source: Node, target: Node, id: str) -> None:
    """The target gets a memory of the source by a sync that breaks off before its vector."""
    source.write(store(id), f"op {id}")
    source.turn()
    target.merges(msgspec.structs.replace(source.page(target.vector), next=id, operations={}))


def test_what_is_stranded_at_one_replica_comes_to_all_once_its_actor_has_ended(a: Node, b: Node, c: Node) -> None:
    stranded(a, b, "m")
    b.replica.look_for_stranded(0)
    assert not b.replica.stranded  # it may come as it should
    for node in (b, c):
        node.replica.members = frozenset("bc")
        node.replica.look_for_stranded(0)
    said = b.announcement(stranded=b.replica.stranded)
    assert c.replica.hear(said)[1] == [0]
    c.merges(b.page(c.vector))
    assert c.records["m"] == b.records["m"]
    assert c.replica.hear(said)[1] == [0]  # it has not looked again
    c.replica.look_for_stranded(0)
    assert c.replica.stranded == b.replica.stranded
    assert not c.replica.hear(said)[1]


def test_replicas_at_which_different_changes_are_stranded_pull_from_each_other(a: Node, b: Node, c: Node) -> None:
    for node in (b, c):
        node.hears(a)
    stranded(a, b, "m")
    stranded(a, c, "n")
    c.records.pop("m")  # it asked behind that id
    new = Node("a", incarnation="2")
    for node in (b, c):
        node.hears(new)  # its disk is lost, and all that it had
        node.replica.look_for_stranded(0)
    assert b.replica.hear(c.announcement(stranded=c.replica.stranded))[1] == [0]
    assert c.replica.hear(b.announcement(stranded=b.replica.stranded))[1] == [0]
    b.merges(c.page(b.vector))
    c.merges(b.page(c.vector))
    for node in (b, c):
        node.replica.look_for_stranded(0)
    assert b.records == c.records
    assert b.records.keys() == {"m", "n"}
    assert b.replica.stranded == c.replica.stranded != {}
    assert new.replica.hear(b.announcement(stranded=b.replica.stranded))[1] == [0]
