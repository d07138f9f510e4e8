"""A record comes back from bytes and from JSON as it was; equal records are equal bytes; anything else is refused."""

from __future__ import annotations

import msgspec
import pytest
from executions import Histories, histories
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core import codec
from crdt_spine.core.record import Record


def records(history: Histories) -> list[Record]:
    return [state.record for state in history.states if state.record is not None]


@given(histories)
def test_a_record_comes_back_from_bytes_and_from_json(history: Histories) -> None:
    for record in records(history):
        assert codec.from_bytes(record.id, codec.to_bytes(record)) == record
        assert codec.from_json(record.id, codec.to_json(record)) == record


@given(histories)
def test_from_the_tables_to_a_page_it_is_the_same_without_being_decoded(history: Histories) -> None:
    for record in records(history):
        for have in ({}, record.version):
            assert codec.stored_to_json(record.id, codec.to_bytes(record), have) == codec.to_json(record, have)


@given(histories)
def test_equal_records_are_equal_bytes_however_they_came_to_be(history: Histories) -> None:
    by_changes: dict[frozenset[tuple[str, int]], bytes] = {}
    for state in history.states:
        if state.record is not None:
            data = codec.to_bytes(state.record)
            assert by_changes.setdefault(state.seen, data) == data


@given(histories)
def test_what_is_left_out_may_as_well_be_said(history: Histories) -> None:
    """As programs did before: every field to the end, and a list for every tag."""
    for record in records(history):
        said = msgspec.msgpack.decode(codec.to_bytes(record), type=codec.Stored)
        tags = {tag: [at] if isinstance(at, int) else at for tag, at in said.tags.items()}
        longer = msgspec.msgpack.encode(msgspec.structs.replace(said, tags=tags))
        assert len(longer) > len(codec.to_bytes(record))
        assert codec.from_bytes(record.id, longer) == record


@given(histories, st.data())
def test_damaged_bytes_are_refused_or_are_another_record(history: Histories, data: st.DataObject) -> None:
    for record in records(history)[-2:]:
        whole = codec.to_bytes(record)
        at = data.draw(st.integers(0, len(whole) - 1))
        with pytest.raises(codec.Garbled):
            codec.from_bytes(record.id, whole[:at])
        try:
            other = codec.from_bytes(record.id, whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :])
        except codec.Garbled:
            continue
        assert codec.from_bytes(record.id, codec.to_bytes(other)) == other


@given(st.one_of(st.binary(max_size=60), st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=2)),
    lambda inner: st.one_of(st.lists(inner, max_size=11), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
).map(msgspec.msgpack.encode)))  # fmt: skip
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(codec.Garbled):
        codec.from_bytes("m", garbage)
    with pytest.raises(codec.Garbled):
        codec.from_json("m", msgspec.Raw(garbage))


def test_what_is_no_record_gets_into_no_page() -> None:
    for garbage in (b"", b"\x91", b"\x80", b"\xc0", b"\xff" * 9):
        with pytest.raises(codec.Garbled):
            codec.stored_to_json("m", garbage)


@pytest.mark.parametrize("depth", [1, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    with pytest.raises(codec.Garbled):
        codec.from_json("m", msgspec.Raw(b"[" * depth))
    with pytest.raises(codec.Garbled):
        codec.from_bytes("m", b"\x91" * depth)
