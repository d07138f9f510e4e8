"""What a spine does with documents by itself: texts carried over, client ids lent, news joined to what is known."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.document import Document, opened, seed, text_in
from crdt_spine.core.messages import DocumentPart
from crdt_spine.core.registers import Origin, Register
from crdt_spine.document import PIECES_COMPARED_MAX, Documents, Known, _joined, carried, new_client, replace
from crdt_spine.limits import CLIENTS_REMEMBERED_MAX, CONTENT_BYTES_MAX

KEY = (10, "r/a@1")
texts = st.text(st.sampled_from("ab 🦊é\n"), max_size=12)


@pytest.mark.parametrize(
    ("before", "after", "now", "merged"),
    [
        ("The fox.", "The quick fox.", "The fox runs.", "The quick fox runs."),
        ("a🦊b", "a🦊→b", "[a🦊b]", "[a🦊→b]"),
        ("old", "old and more", "entirely new", "entirely new and more"),
        ("old", "NB: old", "entirely new", "NB: entirely new"),
        ("keep this", "keep", "keep this, too", "keep, too"),
        ("one two three", "one 2 three", "zero one two three four", "zero one 2 three four"),
        ("same", "same", "other", "other"),
        ("", "typed", "", "typed"),
    ],
)
def test_an_edit_is_carried_over_to_another_text(before: str, after: str, now: str, merged: str) -> None:
    assert carried(before, after, now) == merged


@given(texts, texts, texts)
def test_carrying_over_what_only_one_side_changed_is_that_change(before: str, after: str, other: str) -> None:
    assert carried(before, after, before) == after
    assert carried(before, before, other) == other


@given(texts, texts)
def test_a_text_is_replaced_by_another_one(before: str, after: str) -> None:
    live = opened([seed(Register(Origin(1, "", 0, ""), before))], 5)
    replace(live, before, after)
    assert text_in(live) == after


@pytest.mark.parametrize("unit", ["word ", "line\n", "x"])
def test_long_texts_are_compared_in_bearable_time(unit: str) -> None:
    text = unit * (CONTENT_BYTES_MAX // len(unit))
    began = time.monotonic()
    assert carried(text, text + "end", "start" + text) == "start" + text + "end"
    pieces = [f"{n}{unit}" for n in range(PIECES_COMPARED_MAX)]
    shuffled = "".join(random.Random(1).sample(pieces, len(pieces)))
    assert carried("".join(pieces), shuffled, "".join(pieces) + "end") == shuffled + "end"
    assert time.monotonic() - began < 20, "it takes a second"


def test_client_ids_are_never_the_readers_and_differ() -> None:
    clients = {new_client() for _ in range(1_000)}
    assert len(clients) == 1_000 and min(clients) > 0 and max(clients) < 1 << 53


def test_a_part_goes_only_with_what_it_builds_on() -> None:
    known = Known(KEY, "text", Document({"r/a@1": 5}, seed(Register(Origin(*KEY, 0, ""), "text")), ()), {7: 3})
    news = DocumentPart(key=KEY, seen={"r/a@1": 5}, base=None, tail=[("r/a@1", 6, b"\0\0")])
    joined = _joined(known, news)
    assert joined is not None and joined.document.reached == {"r/a@1": 6} and joined.clients == {7: 3}
    gap = DocumentPart(key=KEY, seen={"r/a@1": 6}, base=None)
    other = DocumentPart(key=(11, "r/a@1"), seen={"r/a@1": 5}, base=None)
    assert _joined(known, gap) is None and _joined(known, other) is None and _joined(None, news) is None


def test_another_content_begins_with_no_client_ids() -> None:
    known = Known(KEY, "text", Document({}, b"", ()), {7: 3})
    anew = _joined(known, DocumentPart(key=(11, "r/a@1"), content="anew"))
    assert anew is not None and anew.clients == {} and text_in(opened(anew.updates)) == "anew"


def test_a_client_id_is_lent_once_and_given_back_for_its_own_document_only() -> None:
    documents = Documents()
    known = Known(KEY, "text", Document({}, b"", ()), {})
    documents._keep("m", known)
    client, live = documents.lend("m", known)
    documents.give_back("m", (11, "r/a@1"), client, live)
    documents.give_back("other", KEY, client, live)
    assert known.clients == {}
    documents.give_back("m", KEY, client, live)
    assert known.clients == {client: 0}
    assert documents.lend("m", known)[0] == client and known.clients == {}
    for _ in range(CLIENTS_REMEMBERED_MAX + 3):
        documents.give_back("m", KEY, new_client(), live)
    assert len(known.clients) == CLIENTS_REMEMBERED_MAX
