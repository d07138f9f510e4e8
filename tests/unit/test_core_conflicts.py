"""What a replica finds out about lost values, case by case; that nothing is missing is for tests/laws to show."""

from __future__ import annotations

from typing import Any

import msgspec
import pycrdt
import pytest
from records import Records

from crdt_spine.core import codec
from crdt_spine.core.actors import actor_name
from crdt_spine.core.causality import Vector
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.conflicts import WHOLE, Finding, fields_of
from crdt_spine.core.document import key_of, opened, updates_of
from crdt_spine.core.messages import Delete, Delta, Edit, EditDocument, Store, SyncPage, encode
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica
from crdt_spine.core.whole import seal, written_whole
from crdt_spine.storage.recent import fold

NOW = 1_763_000_000_000
NAMES = ("a", "b", "c")
decode_delta = msgspec.json.Decoder(Delta).decode
decode_entry = msgspec.json.Decoder(Delta | SyncPage).decode


class Node:
    """A replica of one partition, and what it found; `receipts` are the receipts that it has after that."""

    def __init__(self, name: str, journal: list[bytes] | None = None) -> None:
        self.name = name
        self.records = Records()
        peers = {0: tuple(other for other in NAMES if other != name)}
        self.replica = Replica(name, actor_name("r", name, "1"), self.records, HybridClock(), peers, 2)
        self.findings: list[Finding] = []
        self.replica.report_to(self.findings.extend, lambda before, after: None)
        self.journal: list[bytes] = []
        for row in journal or []:
            self.replica.replay([row], decode_entry)
        self.replica.recovered()

    def write(self, operation: Store | Edit | Delete | EditDocument, later: int = 0) -> None:
        """Coordinate; the delta leaves with `sent`."""
        self.replica.write(0, operation, f"agent of {self.name}", "", NOW + NAMES.index(self.name) + later, None)

    def sent(self) -> list[Delta]:
        turn = self.replica.end_turn()
        self.journal += turn.journal
        self.replica.persisted(turn)
        return [decode_delta(raw) for _, raw in turn.deltas]

    def wrote(self, operation: Store | Edit | Delete | EditDocument, later: int = 0) -> list[Delta]:
        self.write(operation, later)
        return self.sent()

    def takes(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            assert self.replica.receive(delta, encode(delta), NOW)

    def syncs(self, other: Node) -> None:
        """since(own vector), all of it in one page."""
        have: Vector = self.replica.partitions[0].vector
        records = [(record.id, codec.to_json(record)) for record in other.records.changed(0, have, None, 99)]
        page = SyncPage(partition=0, records=records, upto=dict(other.replica.durable[0]))
        self.replica.merge_page(page, encode(page), NOW)
        self.sent()

    @property
    def receipts(self) -> list[tuple[str, Any, Any, str, str]]:
        """(field, lost, kept, the lost value's node, the kept one's), in the order of fields."""
        return sorted(
            (r.field, r.lost, r.kept, r.loser.agent[-1:], r.winner.agent[-1:])
            for r in fold([], self.findings).values()
            if r.field != WHOLE
        )


def store(content: str = "text", **fields: Any) -> Store:
    return Store(i=0, id="m", content=content, **fields)


def edit(**fields: Any) -> Edit:
    return Edit(i=0, id="m", **fields)


DELETE = Delete(i=0, id="m")


@pytest.fixture
def nodes() -> tuple[Node, Node, Node]:
    """Three replicas that have one memory."""
    a, b, c = Node("a"), Node("b"), Node("c")
    birth = a.wrote(store("birth", metadata={"k": 0}))
    b.takes(birth)
    c.takes(birth)
    return a, b, c


def test_of_two_concurrent_edits_the_one_that_loses_leaves_a_receipt_at_each_replica_that_sees_both(
    nodes: tuple[Node, Node, Node],
) -> None:
    a, b, c = nodes
    ones, others = a.wrote(edit(content="one", metadata={"k": 1})), b.wrote(edit(content="other", importance=0.9), 5)
    c.takes(ones)
    assert c.receipts == []
    c.takes(others)
    a.takes(others)
    b.takes(ones)
    assert a.receipts == b.receipts == c.receipts == [("content", "one", "other", "a", "b")]
    [receipt] = fold([], c.findings).values()
    assert (receipt.loser, receipt.winner) == (a.records["m"].metadata["k"].origin, a.records["m"].importance.origin)  # type: ignore[union-attr]


def test_who_has_seen_a_value_may_write_over_it(nodes: tuple[Node, Node, Node]) -> None:
    a, b, c = nodes
    ones = a.wrote(edit(content="one"))
    b.takes(ones)
    others = b.wrote(edit(content="other"), 5) + b.wrote(store("third"), 6) + b.wrote(DELETE, 7)
    a.takes(others)
    c.takes(ones + others)
    assert a.receipts == b.receipts == c.receipts == []
    assert a.findings == c.findings == []  # there was nothing to look at


def test_edits_of_different_fields_and_equal_values_lose_nothing(nodes: tuple[Node, Node, Node]) -> None:
    a, b, _ = nodes
    ones = a.wrote(edit(importance=0.25, content="same", metadata={"p": [1]}))
    others = b.wrote(edit(content="same", metadata={"q": 2}, add=("tag",)), 5)
    a.takes(others)
    b.takes(ones)
    assert a.receipts == b.receipts == []


def test_a_deletion_wins_over_a_concurrent_edit_whichever_is_later(nodes: tuple[Node, Node, Node]) -> None:
    a, b, c = nodes
    deletion, edition = a.wrote(DELETE), b.wrote(edit(content="late", metadata={"k": None}), 5)
    a.takes(edition)
    b.takes(deletion)
    c.takes(edition)
    c.takes(deletion)
    assert a.receipts == [("content", "late", None, "b", "a")]
    assert b.receipts == c.receipts == [("content", "late", None, "b", "a")]


def test_a_store_takes_what_a_concurrent_store_had_its_further_keys_too(nodes: tuple[Node, Node, Node]) -> None:
    a, b, _ = nodes
    ones = a.wrote(store("one", metadata={"k": 1, "p": 2}))
    others = b.wrote(store("other", metadata={"k": 3}), 5)
    a.takes(others)
    b.takes(ones)  # below the floor: it leaves nothing in the record
    lost = [("content", "one", "other", "a", "b"), ("metadata.k", 1, 3, "a", "b"), ("metadata.p", 2, None, "a", "b")]
    assert a.receipts == b.receipts == lost
    assert "p" not in b.records["m"].metadata


def test_an_edit_stamped_above_a_concurrent_store_takes_its_value(nodes: tuple[Node, Node, Node]) -> None:
    a, b, _ = nodes
    ones, others = a.wrote(store("one", importance=0.75)), b.wrote(edit(content="edited"), 5)
    a.takes(others)
    b.takes(ones)
    assert a.records["m"].content == b.records["m"].content
    assert a.receipts == b.receipts == [("content", "one", "edited", "a", "b")]


def test_a_sync_finds_what_the_two_sides_of_a_cut_wrote(nodes: tuple[Node, Node, Node]) -> None:
    a, b, _ = nodes
    a.wrote(edit(content="one"))
    a.wrote(edit(content="one more"), 1)  # saw the one before
    b.wrote(store("other", importance=0.9), 5)
    a.syncs(b)
    assert a.receipts == [("content", "one more", "other", "a", "b")]
    b.syncs(a)
    assert b.receipts == []  # its source has the receipt
    assert a.records == b.records


def test_a_sync_finds_what_comes_with_it_and_loses(nodes: tuple[Node, Node, Node]) -> None:
    a, b, _ = nodes
    a.wrote(edit(content="one"))
    b.wrote(edit(content="other"), 5)
    b.syncs(a)
    assert b.receipts == [("content", "one", "other", "a", "b")]


def test_a_sync_that_brings_what_overwrote_a_value_knowingly_is_no_conflict(nodes: tuple[Node, Node, Node]) -> None:
    a, b, c = nodes
    ones = a.wrote(edit(content="one", metadata={"p": 1}))
    b.takes(ones)
    c.takes(ones)
    b.wrote(edit(content="two"), 5)
    b.wrote(store("three"), 6)
    a.syncs(b)
    c.syncs(a)
    assert a.receipts == c.receipts == []


def test_a_receipt_is_withdrawn_when_a_writer_turns_out_to_have_seen_the_value(nodes: tuple[Node, Node, Node]) -> None:
    """At c, a's value had lost to b's. Then b's own neighbour turns out to have written over it knowingly."""
    a, b, c = nodes
    ones, others = a.wrote(edit(content="one")), b.wrote(edit(content="other"), 5)
    c.takes(ones)
    c.takes(others)
    assert c.receipts == [("content", "one", "other", "a", "b")]
    c.takes(a.wrote(edit(content="one again"), 9))
    assert c.receipts == [("content", "other", "one again", "b", "a")]


def test_what_comes_in_the_same_turn_after_a_write_was_not_seen_by_it(nodes: tuple[Node, Node, Node]) -> None:
    """The delta leaves at the end of the turn, and says that its writer had not seen the other change: other replicas
    notice the conflict, and so does this one when it replays its journal, where the other change comes first."""
    a, b, c = nodes
    ones = a.wrote(edit(content="one"))
    b.write(edit(content="other"), 5)
    b.takes(ones)
    b.write(edit(content="another"), 6)  # has seen both
    others = b.sent()
    c.takes(ones)
    c.takes(others)
    lost = [("content", "one", "other", "a", "b")]
    assert b.receipts == c.receipts == lost
    again = Node("b", b.journal)
    assert again.receipts == lost
    assert again.records == b.records


def test_a_text_that_was_edited_together_is_lost_with_its_edits(nodes: tuple[Node, Node, Node]) -> None:
    a, b, c = nodes
    edition = a.wrote(typed(a.records["m"], " of an idea"))
    written = b.wrote(edit(content="anew"), 5)
    a.takes(written)
    c.takes(written)
    c.takes(edition)
    assert a.receipts == [("content", "birth of an idea", "anew", "a", "b")]
    assert c.records == a.records
    assert c.receipts == []  # it never had the text with the edit; the replica that has it, has the receipt


def test_edits_of_one_text_are_no_conflict(nodes: tuple[Node, Node, Node]) -> None:
    a, b, _ = nodes
    ones, others = a.wrote(typed(a.records["m"], " of an idea")), b.wrote(typed(b.records["m"], "!", client=7), 5)
    a.takes(others)
    b.takes(ones)
    assert a.records["m"].text == b.records["m"].text
    assert a.receipts == b.receipts == []


def typed(record: Record, text: str, client: int = 5) -> EditDocument:
    """What a client sends that has put a text at the end."""
    live = opened(updates_of(record.content, record.document), client)
    before = live.get_state()
    live.get("content", type=pycrdt.Text).insert(len("birth"), text)
    return EditDocument(i=0, id="m", update=live.get_update(before), client=client, base=key_of(record.content))


# -- strong operations -------------------------------------------------------------------------------------------------


def whole(node: Node, operation: Edit | None = None) -> list[Delta]:
    """A strong edit at this node, or, without one, a strong read that seals the memory."""
    record = node.records["m"]
    time = max(node.replica.clock.highest + 1, (NOW + 9) << 16)
    agent = f"agent of {node.name}"
    change = seal("m", record, time, ()) if operation is None else written_whole(operation, record, time, agent, "", ())
    node.replica.write_whole(0, change, "")
    return node.sent()


def test_what_a_strong_write_leaves_as_it_is_stays_its_writers(nodes: tuple[Node, Node, Node]) -> None:
    a, b, c = nodes
    ones = b.wrote(edit(content="by b", metadata={"k": "by b"}))
    for node in (a, c):
        node.takes(ones)
    strongly = whole(a, edit(importance=0.9))
    late = c.wrote(edit(content="by c"), 20)
    for node in (b, c):
        node.takes(strongly)
    for node in (a, b):
        node.takes(late)
    # c had seen what it wrote over, though not that it was written whole meanwhile.
    assert a.receipts == b.receipts == c.receipts == []
    assert a.records["m"].content == c.records["m"].content
    assert a.records["m"].text == "by c"
    # Who has not seen it takes it from b, not from who carried it along.
    fields = fields_of(whole_again(a))
    assert (fields["metadata.k"].origin.agent, fields["content"].origin.agent) == ("agent of b", "agent of c")


def whole_again(node: Node) -> Record:
    """The memory after a strong write on a strong read."""
    whole(node)
    whole(node, edit(importance=0.1))
    return node.records["m"]


def test_what_a_strong_write_carried_along_and_loses_leaves_a_receipt_of_its_writer(
    nodes: tuple[Node, Node, Node],
) -> None:
    a, b, c = nodes
    ones = b.wrote(edit(content="by b"))
    others = c.wrote(edit(content="by c"), 30)  # c has not heard of that
    a.takes(ones)
    strongly = whole(a, edit(importance=0.9))
    a.takes(others)
    b.takes(others)
    b.takes(strongly)
    c.takes(ones)
    c.takes(strongly)
    assert a.records["m"].text == b.records["m"].text == c.records["m"].text == "by c"
    assert a.receipts == b.receipts == c.receipts == [("content", "by b", "by c", "b", "c")]


@pytest.mark.parametrize("operation", [None, edit(importance=0.9)])
def test_agents_at_one_coordinator_lose_what_others_wrote_and_not_what_was_carried_along(
    nodes: tuple[Node, Node, Node], operation: Edit | None
) -> None:
    a, b, _ = nodes
    a.takes(b.wrote(edit(content="by b")))
    before = dict(a.replica.partitions[0].vector)
    whole(a, operation)
    a.replica.write(0, edit(content="by c"), "agent of c", "", NOW + 10, None, before)
    a.sent()
    assert a.receipts == [], "it was seen before it was written whole"
    whole(a, operation)
    a.replica.write(0, edit(content="by a"), "agent of a", "", NOW + 11, None, {})
    a.sent()
    assert a.receipts == [("content", "by c", "by a", "c", "a")]
