"""What a peer sends wrong is refused as a whole: cut off, of another version, with fields that mean nothing here."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt_spine.core import messages
from crdt_spine.core.fences import Fence
from crdt_spine.core.messages import (
    Ack,
    Announcement,
    Bundle,
    Change,
    Claim,
    Delta,
    FeedBatch,
    FeedClose,
    FeedCredit,
    FeedOpen,
    FeedUpdate,
    Get,
    Hello,
    NodeInfo,
    Promised,
    RecordsAnswer,
    RecordsRequest,
    Request,
    Response,
    Result,
    Round,
    Rounded,
    Rumours,
    Standing,
    Store,
    StraysAnswer,
    StraysRequest,
    SyncPage,
    SyncRequest,
    Unreadable,
    Vitals,
    bundled,
    deltas_of,
    encode,
)
from crdt_spine.core.selection import Selection
from crdt_spine.limits import BATCH_BYTES_TARGET, BATCH_OPERATIONS_MAX

RAW = msgspec.Raw(b'{"id":"m"}')
EXAMPLES: list[Any] = [
    Delta(
        partition=3, actor="r/a@1", first=7, deps={"r/b@1": 2},
        changes=[
            Change(id="m", time=5 << 16, agent="x", alive=True, content="text", add=("t",), metadata={"k": [1, None]}),
            Change(id="m", time=6 << 16, agent="x", expires=None, remove={"t": (("r/a@1", 7),)}, operation="s-1"),
        ],
    ),
    Ack(node="a", actor="r/b@1", reached={0: 5}),
    Fence(lock="a", token=7),
    Announcement(node="a", actor="r/a@1", state="up", now=5, vectors={0: {"r/a@1": 7}}, zone="z"),
    SyncRequest(partition=0, have={}, upto={"r/a@1": 7}, after="m"),
    SyncPage(partition=0, records=[("m", msgspec.Raw(b"[1]"))], upto={"r/a@1": 7}, operations={"s-1": ("r/a@1", 7)}),
    Request(session="s", agent="x", operations=[Get(i=1, id="m"), Store(i=2, id="m", content="text")]),
    Response(node="a", results=[Result(i=1, memory=RAW)], seen={0: {"r/a@1": 7}}),
    FeedOpen(feed="f", inbox="i", selection=Selection(tags=("t",)), partitions=(0, 1), credit=10),
    FeedCredit(feed="f", taken=3),
    FeedClose(feed="f"),
    FeedBatch(
        feed="f", number=0,
        updates=[FeedUpdate(partition=0, kind="stored", memory=RAW, id="m", version={"a": 1}, position={"a": 1})],
    ),
    Hello(
        cluster="c", region="r", node="a", state="up", nodes=[NodeInfo(id="a")], partitions=64, factor=3, write_quorum=2
    ),
    Bundle(deltas=[msgspec.Raw(b"{}"), msgspec.Raw(b"[1,2]")]),
    RecordsRequest(have=[("m", {"r/a@1": 7}), ("n", {})]),
    Round(node="a", epoch=3, terms={4: (2, 1_763_000_000_100)}, have=[("m", {"r/a@1": 7})], standings=(5,)),
    Rounded(
        node="b", refused={1: (9, "c")}, absent=(2,), bounds={3: 1_763_000_000_000}, news=[(0, {"r/b@1": 2})],
        lacking=(1,), standings={5: Standing(term=(1, "a"), bound=7, ready=True, vector={"r/a@1": 7})},
    ),
    Promised({4: (2, "a")}, (4,), 1_763_000_001_000),
    RecordsAnswer(through=2, states=[(0, msgspec.Raw(b"[1]"))], absent=(1,)),
    StraysRequest(partitions=(3, 5)),
    StraysAnswer(keys={3: ({"r/a@1": 7}, b"keys")}),
    Claim(node="a", process="p", pid=7, host="h", settled=True),
    Rumours(node="a", roster="0123456789abcdef", asks=True, beats={"b": 1_700_000_000_000}, table=b"123456",
            vitals=(Vitals("b", 1_700_000_000_000, 3, "up"),)),
]  # fmt: skip
every = pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)


def fields(message: Any) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(encode(message))
    return document


def refused(message: Any, data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=type(message))
    except Unreadable:
        return True
    return False


def test_every_message_has_an_example() -> None:
    versioned = {
        kind.__name__
        for kind in (*vars(messages).values(), Fence)
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__struct_config__.tag_field == "type"
    }  # fmt: skip
    assert versioned == {type(message).__name__ for message in EXAMPLES}


@every
def test_a_message_comes_back_and_names_its_version(message: Any) -> None:
    assert msgspec.json.decode(encode(message), type=type(message)) == message
    assert fields(message)["type"].endswith("/1")


@every
def test_a_message_of_a_newer_version_is_refused(message: Any) -> None:
    newer = fields(message) | {"type": type(message).__struct_config__.tag[:-1] + "2"}
    assert refused(message, encode(newer))


@every
def test_a_field_that_means_nothing_here_is_refused(message: Any) -> None:
    assert refused(message, encode(fields(message) | {"urgent": True}))


@every
def test_a_message_that_was_cut_off_is_refused(message: Any) -> None:
    whole = encode(message)
    assert not refused(message, whole)
    for end in range(len(whole)):
        assert refused(message, whole[:end])


@every
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_message_is_refused_or_is_another_message(message: Any, data: st.DataObject) -> None:
    whole = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    if not refused(message, bytes(whole)):
        other = msgspec.json.decode(bytes(whole), type=type(message))
        assert msgspec.json.decode(encode(other), type=type(message)) == other


@every
@pytest.mark.parametrize("garbage", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b"0"])
def test_garbage_is_refused(message: Any, garbage: bytes) -> None:
    assert refused(message, garbage)


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": -1}, {"partition": -1}, {"deps": {"r/b@1": -2}}, {"first": 1 << 63}, {"first": 1.5}, {"first": True},
        {"actor": None}, {"changes": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_delta_with_numbers_that_count_nothing_is_refused(wrong: dict[str, Any]) -> None:
    assert refused(EXAMPLES[0], encode(fields(EXAMPLES[0]) | wrong))


@pytest.mark.parametrize(
    "wrong",
    [{"time": -1}, {"time": 1 << 63}, {"expires": -5}, {"created": -1}, {"remove": {"t": [["r/a@1", -7]]}}],
    ids=str,
)
def test_a_change_with_a_time_that_no_calendar_has_is_refused(wrong: dict[str, Any]) -> None:
    delta = fields(EXAMPLES[0])
    delta["changes"][0] |= wrong
    assert refused(EXAMPLES[0], encode(delta))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_sync_of_no_records_a_page_is_refused(limit: int) -> None:
    assert refused(EXAMPLES[3], encode(fields(EXAMPLES[3]) | {"limit": limit}))


PEERS = {0: ("b", "c"), 1: ("b", "c"), 2: ("c", "d"), 3: ("b", "c"), 4: ()}


def deltas(*partitions: int, content: str = "x") -> list[tuple[int, bytes]]:
    changes = [Change(id="m", time=1, agent="x", alive=True, content=content)]
    return [(n, encode(Delta(partition=n, actor="r/a@1", first=1, deps={}, changes=changes))) for n in partitions]


def test_deltas_for_the_same_replicas_travel_together_with_their_own_bytes() -> None:
    sent = deltas(0, 1, 2, 3)
    messages = bundled(sent, PEERS)
    assert [number for number, _ in messages] == [0, 2]
    assert [raw for _, raw in deltas_of(messages[0][1])] == [sent[0][1], sent[1][1], sent[3][1]]
    assert [delta.partition for delta, _ in deltas_of(messages[0][1])] == [0, 1, 3]
    assert messages[1][1] == sent[2][1]


def test_a_delta_that_nobody_else_needs_goes_nowhere() -> None:
    assert bundled(deltas(4), PEERS) == []
    assert bundled([], PEERS) == []


def test_a_bundle_is_no_larger_than_a_batch() -> None:
    sent = deltas(0, 1, 3, content="x" * (BATCH_BYTES_TARGET // 2 - 200))
    assert [len(deltas_of(message)) for _, message in bundled(sent, PEERS)] == [2, 1]
    many = deltas(*[0] * (BATCH_OPERATIONS_MAX + 1))
    assert [len(deltas_of(message)) for _, message in bundled(many, PEERS)] == [BATCH_OPERATIONS_MAX, 1]


@pytest.mark.parametrize("spoilt", [b"{}", b"null", encode(EXAMPLES[1]), encode(EXAMPLES[0])[:-1]], ids=str)
def test_a_bundle_with_one_delta_that_is_none_is_refused_whole(spoilt: bytes) -> None:
    whole = encode(EXAMPLES[0])
    with pytest.raises(Unreadable):
        deltas_of(bundled([(0, whole), (1, spoilt), (3, whole)], PEERS)[0][1])
