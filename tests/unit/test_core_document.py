"""A memory's document, story by story: what is one text, what survives, what is sent, what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pycrdt
import pytest
from records import Records

from crdt_spine.core import codec, writes
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.document import (
    NOTHING,
    Document,
    canonical,
    complete,
    edited,
    folded,
    key_of,
    merged,
    opened,
    part,
    seed,
    state_vector,
    text_in,
    text_of,
    updates_of,
)
from crdt_spine.core.messages import Change, Delete, Edit, EditDocument, Store, SyncPage
from crdt_spine.core.open_documents import OpenDocuments
from crdt_spine.core.record import Record, apply, completes, merge, same_memory
from crdt_spine.core.registers import Origin, Register
from crdt_spine.core.replica import Replica
from crdt_spine.limits import (
    CONTENT_BYTES_MAX,
    DOCUMENT_BYTES_MAX,
    DOCUMENT_TAIL_BYTES_MAX,
    DOCUMENT_TAIL_EDITS_MAX,
    OPEN_DOCUMENTS_BYTES_MAX,
    OPEN_DOCUMENTS_MAX,
)

ID = "plan"
HELLO = Register(Origin(10, "r/a@1", 1, "ada"), "hello")


class Editor:
    """One Yjs client and the record it sees. `type` gives the operation that makes its text another one."""

    def __init__(self, client: int, actor: str = "r/a@1") -> None:
        self.client = client
        self.actor = actor

    def insert(self, record: Record | None, at: int, text: str, delete: int = 0) -> EditDocument:
        updates = [] if record is None else updates_of(record.content, record.document)
        live = opened(updates, self.client)
        before = live.get_state()
        content = live.get("content", type=pycrdt.Text)
        if delete:
            del content[at : at + delete]
        if text:
            content.insert(at, text)
        clock = state_vector(before).get(self.client, 0)
        base = None if record is None else key_of(record.content)
        return EditDocument(i=0, id=ID, update=live.get_update(before), client=self.client, clock=clock, base=base)


def wrote(record: Record | None, operation: Any, time: int, actor: str = "r/a@1", n: int | None = None) -> Record:
    """The record after an operation that this actor coordinated."""
    return apply(record, change_of(record, operation, time), origin_of(record, time, actor, n))


def origin_of(record: Record | None, time: int, actor: str, n: int | None = None) -> Origin:
    n = n if n is not None else 1 + (0 if record is None else record.version.get(actor, 0))
    return Origin(time, actor, n, "ada")


def change_of(record: Record | None, operation: Any, time: int) -> Change:
    match operation:
        case Store():
            return writes.store(operation, record, time, "ada", "")
        case Edit():
            return writes.edit(operation, record, time, "ada", "")
        case Delete():
            return writes.delete(operation, record, time, "ada", "")
    return writes.edit_document(operation, record, time, "ada", "", OpenDocuments())


@pytest.fixture
def stored() -> Record:
    return wrote(None, Store(i=0, id=ID, content="hello"), 10)


def typed(count: int, client: int = 7, text: str = "x") -> list[bytes]:
    """So many updates of one client, each inserting at the end."""
    live = opened([seed(HELLO)], client)
    updates: list[bytes] = []
    watching = live.observe(lambda event: updates.append(event.update))
    content = live.get("content", type=pycrdt.Text)
    for _ in range(count):
        content += text
    live.unobserve(watching)
    return updates


def document(updates: Iterable[bytes], actor: str = "r/a@1", first: int = 2) -> Document:
    made: Document | None = None
    for n, update in enumerate(updates, first):
        made = edited(HELLO, made, actor, n, update)
    assert made is not None
    return made


# -- one text --------------------------------------------------------------------------------------------------------


def test_everybody_seeds_a_content_in_the_same_way_and_each_content_in_its_own() -> None:
    other = Register(Origin(11, "r/a@1", 2, "ada"), "hello")
    again = Register(Origin(10, "r/a@1", 1, "ada"), "hello")
    assert seed(HELLO) == seed(again) != seed(other)
    both = opened([seed(HELLO), seed(again)])
    assert text_in(both) == "hello"


def test_two_agents_that_begin_at_the_same_time_do_not_double_the_text(stored: Record) -> None:
    one = wrote(stored, Editor(1).insert(stored, 0, "oh, "), 20, "r/a@1")
    other = wrote(stored, Editor(2).insert(stored, 5, " there"), 20, "r/b@1")
    both = merge(one, other)
    assert both.text == merge(other, one).text == "oh, hello there"
    assert both == merge(other, one)


def test_an_update_is_applied_and_merged_to_the_same_text(stored: Record) -> None:
    one, other = Editor(1).insert(stored, 0, "A"), Editor(2).insert(stored, 0, "B")
    first = change_of(stored, one, 20), Origin(20, "r/a@1", 2, "ada")
    second = change_of(stored, other, 20), Origin(20, "r/b@1", 1, "ada")
    ways = [
        apply(apply(stored, *first), *second),
        apply(apply(stored, *second), *first),
        merge(apply(stored, *first), apply(stored, *second)),
    ]
    assert {way.text for way in ways} in ({"ABhello"}, {"BAhello"})
    assert ways[0] == ways[1] == ways[2]


def test_a_memory_without_a_document_reads_as_its_content(stored: Record) -> None:
    assert stored.document is None and stored.text == "hello"
    assert text_of(None, None) == ""


def test_astral_characters_and_combining_ones_survive() -> None:
    record = wrote(None, Store(i=0, id=ID, content="a🦊é"), 10)
    at = len("a🦊".encode())
    after = wrote(record, Editor(1).insert(record, at, "👩‍👩‍👧"), 20)
    assert after.text == "a🦊👩‍👩‍👧é"


# -- whose edits ------------------------------------------------------------------------------------------------------


def test_an_edit_without_a_memory_makes_one_that_the_next_one_edits() -> None:
    born = wrote(None, Editor(1).insert(None, 0, "first"), 10)
    assert born.alive and born.text == "first" and born.life.value.agent == "ada"
    assert born.content is not None and born.content.value == ""
    assert wrote(born, Editor(2).insert(born, 5, " second"), 20).text == "first second"
    with pytest.raises(writes.Refused) as refused:
        wrote(born, Editor(3).insert(None, 0, "third"), 30)
    assert refused.value.error == "VersionConflict"


@pytest.mark.parametrize("order", ["content first", "edit first", "merged"])
def test_a_content_written_anew_wins_over_concurrent_edits_of_the_old_one(stored: Record, order: str) -> None:
    edit = change_of(stored, Editor(1).insert(stored, 0, "lost "), 40), Origin(40, "r/b@1", 1, "ada")
    anew = change_of(stored, Edit(i=0, id=ID, content="anew"), 30), Origin(30, "r/a@1", 2, "ada")
    match order:
        case "content first":
            record = apply(apply(stored, *anew), *edit)
        case "edit first":
            record = apply(apply(stored, *edit), *anew)
        case _:
            record = merge(apply(stored, *edit), apply(stored, *anew))
    assert record.text == "anew" and record.document is None
    assert record.version == {"r/a@1": 2, "r/b@1": 1}, "the edit has been here"


def test_a_delete_wins_over_a_concurrent_edit_and_a_later_store_begins_anew(stored: Record) -> None:
    edit = change_of(stored, Editor(1).insert(stored, 0, "late "), 40), Origin(40, "r/b@1", 1, "ada")
    gone = wrote(stored, Delete(i=0, id=ID), 30)
    for dead in (apply(gone, *edit), merge(gone, apply(stored, *edit)), merge(apply(stored, *edit), gone)):
        assert not dead.alive and dead.document is None
        assert wrote(dead, Store(i=0, id=ID, content="back"), 50).text == "back"


def test_an_edit_of_a_content_that_is_gone_is_refused(stored: Record) -> None:
    edit = Editor(1).insert(stored, 0, "x")
    for record, error in (
        (wrote(stored, Edit(i=0, id=ID, content="anew"), 30), "VersionConflict"),
        (wrote(stored, Delete(i=0, id=ID), 30), "NotFound"),
        (None, "NotFound"),
    ):
        with pytest.raises(writes.Refused) as refused:
            wrote(record, edit, 40)
        assert refused.value.error == error


def test_an_edit_counts_as_a_change_that_readers_see(stored: Record) -> None:
    after = wrote(stored, Editor(1).insert(stored, 0, "x"), 20)
    assert after.updated == 20 and after.version != stored.version
    assert not same_memory(stored, after)


# -- folding ----------------------------------------------------------------------------------------------------------


def test_a_long_tail_is_folded_by_half_and_reads_as_before() -> None:
    updates = typed(3 * DOCUMENT_TAIL_EDITS_MAX)
    made: Document | None = None
    for n, update in enumerate(updates, 2):
        made = edited(HELLO, made, "r/a@1", n, update)
        assert len(made.tail) <= DOCUMENT_TAIL_EDITS_MAX
        assert made.reached == {"r/a@1": n}
    assert made is not None and len(made.tail) >= DOCUMENT_TAIL_EDITS_MAX // 2
    assert text_of(HELLO, made) == "hello" + "x" * len(updates)


def test_large_edits_do_not_pile_up() -> None:
    updates = typed(6, text="y" * (DOCUMENT_TAIL_BYTES_MAX // 2))
    made = document(updates)
    assert sum(len(update) for _, _, update in made.tail) <= DOCUMENT_TAIL_BYTES_MAX
    assert len(text_of(HELLO, made)) == 5 + 6 * (DOCUMENT_TAIL_BYTES_MAX // 2)


def test_documents_that_were_folded_at_different_times_merge_to_the_same() -> None:
    shared = document(typed(10))
    one = shared
    for n, update in enumerate(typed(5, client=8), 1):
        one = edited(HELLO, one, "r/b@1", n, update)
    other = shared
    for n, update in enumerate(typed(5, client=9), 1):
        other = edited(HELLO, other, "r/c@1", n, update)
    wanted = canonical(HELLO, merged(HELLO, one, other))
    assert sorted(wanted[0]) == sorted("hello" + "x" * 20)
    for mine in range(len(one.tail) + 1):
        for theirs in range(len(other.tail) + 1):
            a, b = folded(HELLO, one, mine), folded(HELLO, other, theirs)
            both = merged(HELLO, a, b)
            assert both == merged(HELLO, b, a)
            assert canonical(HELLO, both) == canonical(HELLO, merged(HELLO, b, a)) == wanted
            assert merged(HELLO, both, a) == both == merged(HELLO, b, both)


def test_folding_forgets_what_was_deleted() -> None:
    live = opened([seed(HELLO)], 7)
    updates: list[bytes] = []
    watching = live.observe(lambda event: updates.append(event.update))
    content = live.get("content", type=pycrdt.Text)
    content += "secret" * 100
    del content[5:]
    live.unobserve(watching)
    made = document(updates)
    assert b"secret" in updates[0]
    small = folded(HELLO, made, len(made.tail))
    assert b"secret" not in (small.base or b"") and text_of(HELLO, small) == "hello"


def test_what_cannot_be_applied_yet_is_not_lost_by_folding() -> None:
    """A coordinator refuses such an update; should a peer send one all the same, no replica may lose it."""
    first, second, third = typed(3)
    early = document([third, second])
    assert text_of(HELLO, early) == "hello"
    assert text_of(HELLO, edited(HELLO, folded(HELLO, early, 2), "r/b@1", 1, first)) == "helloxxx"


def test_bytes_that_are_no_update_change_nothing_anywhere() -> None:
    made = document([b"\xff\xff\xff", *typed(1), b""])
    assert text_of(HELLO, made) == "hellox"
    assert text_of(HELLO, folded(HELLO, made, 3)) == "hellox"


# -- what travels -----------------------------------------------------------------------------------------------------


def test_who_has_the_base_is_sent_only_later_edits() -> None:
    updates = typed(2 * DOCUMENT_TAIL_EDITS_MAX)
    before, after = document(updates[:-3]), document(updates)
    assert after.seen
    sent = part(after, before.reached)
    assert sent.base is None and [n for _, n, _ in sent.tail] == [n for _, n, _ in after.tail[-3:]]
    both = merged(HELLO, before, sent)
    assert both == after and text_of(HELLO, both) == text_of(HELLO, after)
    assert merged(HELLO, sent, before) == both and merged(HELLO, sent, before).base


def test_who_lacks_something_of_the_base_is_sent_everything() -> None:
    made = document(typed(2 * DOCUMENT_TAIL_EDITS_MAX))
    assert part(made, {}) is made
    assert part(made, {"r/a@1": made.seen["r/a@1"] - 1}) is made
    short = document(typed(3))
    assert part(short, {}) is short
    assert part(short, {"r/a@1": 3}) == short and part(short, {"r/a@1": 3}).base is None


def test_a_part_is_merged_only_where_the_rest_is(stored: Record) -> None:
    record = wrote(stored, Editor(1).insert(stored, 0, "x"), 20)
    whole = wrote(record, Editor(1).insert(record, 0, "y"), 30)
    sent = codec.from_json(ID, codec.to_json(whole, {"r/a@1": 2}))
    assert sent.document is not None and sent.document.base is None
    assert completes(record, sent, {}) and merge(record, sent) == whole
    assert merge(record, sent).text == "yxhello"
    assert not completes(stored, sent, {}), "the first edit is not here"
    assert not completes(None, sent, {}) and completes(None, sent, {"r/a@1": 2})
    anew = wrote(whole, Edit(i=0, id=ID, content="anew"), 40)
    assert completes(anew, sent, {}) and merge(anew, sent) == anew


def test_a_page_with_a_part_that_cannot_be_completed_is_refused_and_changes_nothing(stored: Record) -> None:
    record = wrote(stored, Editor(1).insert(stored, 0, "x"), 20)
    whole = wrote(record, Editor(1).insert(record, 0, "y"), 30)
    for mine, completed in ((stored, False), (record, True), (None, False)):
        records = Records({} if mine is None else {ID: mine})
        replica = Replica("c", "r/c@1", records, HybridClock(), {0: ("a", "b")}, 2)
        state = codec.to_json(whole, {"r/a@1": 2})
        page = SyncPage(partition=0, records=[(ID, state)], upto={"r/a@1": 3})
        if completed:
            replica.merge_page(page, b"", 1_000)
            assert records[ID] == whole and records[ID].text == "yxhello"
        else:
            with pytest.raises(codec.Incomplete):
                replica.merge_page(page, b"", 1_000)
            assert records.get(ID) is mine and replica.end_turn().empty


def test_a_record_with_a_document_comes_back_from_bytes_and_json(stored: Record) -> None:
    record = stored
    for at in range(100):
        record = wrote(record, Editor(1).insert(record, 0, "z"), 20 + at)
    assert record.document is not None and record.document.base
    for back in (codec.from_bytes(ID, codec.to_bytes(record)), codec.from_json(ID, codec.to_json(record))):
        assert back == record and back.text == record.text == "z" * 100 + "hello"


def test_a_record_without_a_document_is_not_a_byte_longer_for_it(stored: Record) -> None:
    names = codec.Stored.__struct_fields__
    assert len(msgspec.msgpack.decode(codec.to_bytes(stored))) <= names.index("document")


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(record: Record | None, operation: EditDocument, documents: OpenDocuments | None = None) -> writes.Refused:
    documents = documents or OpenDocuments()
    with pytest.raises(writes.Refused) as caught:
        writes.edit_document(operation, record, 50, "ada", "", documents)
    if record is not None:
        assert documents.text(record) == record.text, "the live document is not left with half of it"
    return caught.value


def test_what_is_no_update_and_what_builds_on_nothing_is_refused(stored: Record) -> None:
    first = Editor(1).insert(stored, 0, "a")
    one = wrote(stored, first, 20)
    second = Editor(1).insert(one, 1, "b")
    for update in (b"\xff", b"\1\1\1", second.update):
        operation = msgspec.structs.replace(first, update=update)
        assert refused(stored, operation).error == "InvalidInput"
    assert refused(None, msgspec.structs.replace(second, base=None, clock=0)).error == "InvalidInput"


def test_a_deletion_of_what_is_not_there_is_refused(stored: Record) -> None:
    one = wrote(stored, Editor(1).insert(stored, 0, "a"), 20)
    deletion = Editor(2).insert(one, 0, "", delete=1)
    assert complete(deletion.update, b"\1\1\1") and not complete(deletion.update, b"\0")
    assert refused(stored, deletion).error == "InvalidInput"


def test_a_client_id_that_was_used_for_something_else_is_refused(stored: Record) -> None:
    """An agent that was restored from a copy goes on with the same client id: replicas would differ for ever."""
    one, other = Editor(1).insert(stored, 0, "one"), Editor(1).insert(stored, 0, "other")
    record = wrote(stored, one, 20)
    assert refused(record, other).error == "VersionConflict"


def test_without_that_check_a_client_id_used_twice_makes_replicas_differ(stored: Record) -> None:
    """Why it is checked."""
    one, other = Editor(1).insert(stored, 0, "one"), Editor(1).insert(stored, 0, "two")
    base = seed(stored.content)
    here, there = opened([base, one.update, other.update]), opened([base, other.update, one.update])
    assert here.get_state() == there.get_state() and text_in(here) != text_in(there)


def test_a_text_may_not_grow_beyond_its_limit_but_shrink_towards_it(stored: Record) -> None:
    half = "x" * (CONTENT_BYTES_MAX // 2)
    one = wrote(stored, Editor(1).insert(stored, 0, half), 20, "r/a@1")
    other = wrote(stored, Editor(2).insert(stored, 0, half), 20, "r/b@1")
    over = merge(one, other)
    assert len(over.text) == CONTENT_BYTES_MAX + 5
    assert refused(over, Editor(3).insert(over, 0, "y")).error == "InvalidInput"
    less = wrote(over, Editor(3).insert(over, 0, "", delete=1000), 30, "r/a@1")
    assert len(less.text) == CONTENT_BYTES_MAX - 995
    at_limit = wrote(less, Editor(3).insert(less, 0, "y" * 995), 40, "r/a@1")
    assert len(at_limit.text) == CONTENT_BYTES_MAX


def test_a_document_whose_past_is_too_large_says_how_to_go_on(stored: Record) -> None:
    record, clock = stored, 0
    live = opened([seed(stored.content)], 5)
    root = live.get("scratch", type=pycrdt.Array)
    for time in range(20, 60):
        before = live.get_state()
        root.append("z" * (DOCUMENT_BYTES_MAX // 10))
        operation = EditDocument(
            i=0, id=ID, update=live.get_update(before), client=5, clock=clock, base=key_of(stored.content)
        )
        clock = state_vector(live.get_state())[5]
        if time >= 29:
            error = refused(record, operation)
            assert error.error == "InvalidInput" and "update(content=" in str(error)
            break
        record = wrote(record, operation, time)
    assert record.text == "hello"


# -- live documents ----------------------------------------------------------------------------------------------------


def test_a_live_document_follows_its_record_and_goes_back_to_an_older_one(stored: Record) -> None:
    documents = OpenDocuments()
    states = [stored]
    for at in range(100):
        states.append(wrote(states[-1], Editor(1).insert(states[-1], 0, str(at % 10)), 20 + at))
    for record in (*states[::7], states[3], states[-1], states[50], stored):
        assert documents.text(record) == record.text
    anew = wrote(states[-1], Edit(i=0, id=ID, content="anew"), 500)
    edit = wrote(anew, Editor(2).insert(anew, 0, "all "), 501)
    assert documents.text(edit) == "all anew" and documents.text(anew) == "anew"


def test_live_documents_are_bounded(stored: Record) -> None:
    documents = OpenDocuments()
    record = wrote(stored, Editor(1).insert(stored, 0, "x"), 20)
    for i in range(OPEN_DOCUMENTS_MAX * 2):
        documents.text(msgspec.structs.replace(record, id=f"plan-{i}"))
    assert len(documents) == OPEN_DOCUMENTS_MAX
    large = wrote(stored, Editor(1).insert(stored, 0, "x" * (CONTENT_BYTES_MAX - 10)), 20)
    for i in range(10):
        documents.text(msgspec.structs.replace(large, id=f"large-{i}"))
    assert len(documents) <= OPEN_DOCUMENTS_BYTES_MAX // CONTENT_BYTES_MAX + 1


def test_an_empty_update_is_complete_everywhere() -> None:
    assert complete(NOTHING, b"\0")
    assert complete(seed(HELLO), opened([seed(HELLO)]).get_state()) and not complete(seed(HELLO), b"\0")
