"""JSON lines become what `store` takes, and what is exported imports as the same memory."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from crdt_spine import Spine
from crdt_spine.errors import InvalidInput
from crdt_spine.interchange import TARGETS, FieldMap, export_line
from crdt_spine.memory import Memory

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SAMPLE = Path(__file__).parents[2] / "examples" / "agents_sample.jsonl"


def read(record: object, *maps: str, only_mapped: bool = False) -> dict[str, Any]:
    arguments = FieldMap.parse(maps, only_mapped=only_mapped).arguments(json.dumps(record), NOW)
    assert arguments is not None
    return arguments


def refusal(record: object, *maps: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(record, *maps)
    return str(caught.value)


def test_fields_named_like_targets_need_no_map() -> None:
    record = {
        "content": "text", "id": "m1", "tags": ["a", "b"], "metadata": {"k": [1]}, "agent": "x", "thread": "t",
        "importance": 1, "ttl": 60,
    }  # fmt: skip
    assert read(record) == {**record, "tags": ("a", "b"), "importance": 1.0}


def test_a_map_names_the_field_of_a_target_and_the_rest_becomes_metadata() -> None:
    record = {"text": "hello", "speaker": "Ann", "conversation": 26, "turn": "D1:3", "scores": [1, {"a": None}]}
    assert read(record, "content=text", "agent=speaker", "thread=conversation") == {
        "content": "hello", "agent": "Ann", "thread": "26", "metadata": {"turn": "D1:3", "scores": [1, {"a": None}]},
    }  # fmt: skip


def test_only_mapped_drops_the_rest() -> None:
    record = {"text": "hello", "turn": 3, "thread": "t", "metadata": {"kept": True}}
    expected = {"content": "hello", "thread": "t", "metadata": {"kept": True}}
    assert read(record, "content=text", only_mapped=True) == expected


def test_a_field_named_like_a_target_that_is_mapped_elsewhere_is_metadata() -> None:
    assert read({"text": "a", "content": "b"}, "content=text") == {"content": "a", "metadata": {"content": "b"}}
    assert read({"id": "a", "content": "b"}, "thread=id") == {"content": "b", "thread": "a"}


def test_one_field_can_be_several_targets() -> None:
    expected = {"content": "a", "agent": "x", "tags": ("x",)}
    assert read({"content": "a", "who": "x"}, "agent=who", "tags=who") == expected


def test_nulls_are_nothing() -> None:
    record = {"content": "a", "thread": None, "tags": None, "other": None, "metadata": {"k": None}, "ttl": None}
    assert read(record) == {"content": "a"}


@pytest.mark.parametrize(
    ("tags", "expected"), [("one", ("one",)), (["b", "a", "b"], ("b", "a")), ([], ()), (7, ("7",))]
)
def test_tags_are_a_list_or_one_alone(tags: object, expected: tuple[str, ...]) -> None:
    assert read({"content": "a", "tags": tags})["tags"] == expected


@pytest.mark.parametrize(
    "value",
    [
        "2023-05-08T13:56:00Z",
        "2023-05-08T15:56:00+02:00",
        "2023-05-08T13:56:00",  # without a zone: UTC
        "2023-05-08 13:56",
        1683554160,
        1683554160.0,
    ],
)
def test_created_at_is_a_time_with_or_without_a_zone_or_seconds(value: object) -> None:
    created = read({"content": "a", "at": value}, "created_at=at")["created_at"]
    assert created == datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
    assert created.tzinfo is not None


def test_what_expires_lives_as_long_as_is_left() -> None:
    assert read({"content": "a", "expires_at": "2026-01-31T12:01:30Z"})["ttl"] == 90
    gone = json.dumps({"content": "a", "expires_at": "2026-01-31T12:00:00Z"})
    assert FieldMap().arguments(gone, NOW) is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "there is no content: no field 'content'; the fields are none"),
        ({"text": "x", "who": "y"}, "the fields are text, who (map one: content=FIELD)"),
        ({"content": None}, "the content, field 'content', is null"),
        ({"content": 5}, "content must be a string, not int"),
        ({"content": ""}, "content must not be empty"),
        ({"content": "a\0"}, "NUL"),
        ({"content": "x" * 300_000}, "at most 262,144"),
        ({"content": "a", "id": ["x"]}, "id must be a string, not list"),
        ({"content": "a", "id": True}, "id must be a string, not bool"),
        ({"content": "a", "id": ""}, "id must not be empty"),
        ({"content": "a", "agent": 1.5}, "agent must be a string, not float"),
        ({"content": "a", "thread": {}}, "thread must be a string, not dict"),
        ({"content": "a", "tags": {"x": 1}}, "tags must be a list of texts, not an object"),
        ({"content": "a", "tags": ["x", []]}, "a tag in tags must be a string, not list"),
        ({"content": "a", "metadata": "x"}, "metadata must be an object, not a text"),
        ({"content": "a", "metadata": []}, "metadata must be an object, not a list"),
        ({"content": "a", "metadata": {"k": 1}, "k": 2}, "the field 'k' is also a key of metadata"),
        ({"content": "a", "big": 1 << 70}, "64 bits"),
        ({"content": "a", **{f"f{n}": n for n in range(70)}}, "at most 64"),
        ({"content": "a", "importance": "high"}, "importance must be a number from 0 to 1"),
        ({"content": "a", "importance": 2}, "importance must be a number from 0 to 1"),
        ({"content": "a", "ttl": -1}, "ttl must be a number of seconds above 0"),
        ({"content": "a", "ttl": 10**400}, "ttl must be a number of seconds above 0"),
        ({"content": "a", "ttl": 5, "expires_at": 1e10}, "both ttl and expires_at"),
        ({"content": "a", "created_at": "yesterday"}, "must be an ISO 8601 time"),
        ({"content": "a", "created_at": 1683554160000}, "it looks like milliseconds"),
        ({"content": "a", "created_at": -1}, "seconds since 1970"),
        ({"content": "a", "created_at": "1950-01-01T00:00:00Z"}, "between the years 1970"),
        ({"content": "a", "created_at": False}, "seconds since 1970, not true or false"),
        ([1], "must be a JSON object, not a list"),
        ("x", "must be a JSON object, not a text"),
        (None, "must be a JSON object, not null"),
    ],
)
def test_what_can_not_be_a_memory_is_refused_with_the_reason(record: object, reason: str) -> None:
    assert reason in refusal(record)


@pytest.mark.parametrize(
    "record",
    [
        {"x" * 100_000: 1},
        {"content": "a", "created_at": "x" * 100_000},
        {"content": "a", "importance": "x" * 100_000},
        {"content": "a", "created_at": 10**300},
        {"content": "a", "metadata": {"x" * 100_000: 1}, "x" * 100_000: 2},
    ],
)
def test_a_reason_is_short_however_long_the_line_is(record: object) -> None:
    assert len(refusal(record)) < 300


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "empty"),
        (b"  \n", "empty"),
        ("{", "no JSON"),
        ('{"content": "a"} x', "no JSON"),
        ('{"content": NaN}', "no JSON"),
        ('{"content": "\\ud800"}', "no JSON"),
        (b'{"content": "\xff"}', "no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"content": "a", "deep": ' + "[" * 20 + "]" * 20 + "}", "nested deeper than 16"),
        ('{"content": "\ud800"}', "no JSON"),
    ],
)
def test_a_line_that_is_no_json_is_refused(line: str | bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        FieldMap().arguments(line, NOW)


def test_a_byte_order_mark_and_a_newline_do_no_harm() -> None:
    for line in ('\ufeff{"content": "ä"}\r\n', '\ufeff{"content": "ä"}\n'.encode()):
        assert FieldMap().arguments(line, NOW) == {"content": "ä"}


@pytest.mark.parametrize(
    ("maps", "reason"),
    [
        (["text=content", "speaker=agent"], "text, speaker are no targets of a map; there are content, id, tags"),
        (["Content=text"], "Content is no target"),
        (["content", "=text", "agent="], "'content' is no map; it looks like content=text (target=field); '=text'"),
        (["content=a", "content=b"], "content is mapped to 'a' and to 'b'; choose one"),
    ],
)
def test_maps_that_are_none_are_all_named(maps: list[str], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        FieldMap.parse(maps)
    assert reason in str(caught.value)


def test_a_field_may_have_an_equals_sign_in_its_name() -> None:
    assert read({"a=b": "x"}, "content=a=b") == {"content": "x"}


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
json_values = st.recursive(
    st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner | st.none(), max_size=3) | st.dictionaries(texts, inner | st.none(), max_size=3),
    max_leaves=5,
)
moments = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
)
memories = st.builds(
    Memory,
    id=texts,
    content=texts,
    agent=texts,
    created_at=moments,
    updated_at=moments,
    version=texts,
    tags=st.frozensets(texts, max_size=4),
    metadata=st.dictionaries(texts | st.sampled_from(TARGETS), json_values, max_size=4),
    thread=st.none() | texts,
    clock=st.dictionaries(texts, st.integers(1, 9), max_size=2),
    importance=st.floats(0, 1),
    expires_at=st.none() | st.integers(1, 10**9).map(lambda seconds: NOW + timedelta(milliseconds=seconds)),
)


@given(memories)
def test_what_is_exported_imports_as_the_same_memory(memory: Memory) -> None:
    line = export_line(memory)
    assert b"\n" not in line
    arguments = FieldMap().arguments(line, NOW)
    assert arguments is not None
    assert set(arguments.pop("tags", ())) == memory.tags
    assert arguments.pop("metadata", {}) == memory.metadata
    ttl = arguments.pop("ttl", None)
    assert (None if ttl is None else NOW + timedelta(seconds=ttl)) == memory.expires_at
    assert arguments.pop("thread", None) == memory.thread
    assert arguments == {
        "id": memory.id, "content": memory.content, "agent": memory.agent, "importance": memory.importance,
        "created_at": memory.created_at,
    }  # fmt: skip


@given(st.lists(memories, min_size=1, max_size=3, unique_by=lambda memory: memory.id))
# Two nodes are opened for each example: no time is spent on shrinking one.
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
async def test_memories_survive_being_exported_and_imported_elsewhere(originals: list[Memory]) -> None:
    now = datetime.now(UTC)
    originals = [
        msgspec.structs.replace(original, expires_at=original.expires_at and now + timedelta(days=1))
        for original in originals
    ]
    async with Spine.open(":memory:", agent="importer") as one, Spine.open(":memory:", agent="importer") as other:
        for original in originals:
            await copy(original, one)
            first = await one.get(original.id)
            assert first is not None
            assert_same(first, original)
            await copy(first, other)
            second = await other.get(original.id)
            assert second is not None
            assert_same(second, first)


async def copy(memory: Memory, spine: Spine) -> None:
    arguments = FieldMap().arguments(export_line(memory), datetime.now(UTC))
    assert arguments is not None
    await spine.for_agent(arguments.pop("agent")).store(**arguments)


def assert_same(one: Memory, other: Memory) -> None:
    for field in ("id", "content", "agent", "created_at", "tags", "metadata", "thread", "importance"):
        assert getattr(one, field) == getattr(other, field), field
    if one.expires_at is None or other.expires_at is None:
        assert one.expires_at == other.expires_at
    else:
        assert abs(one.expires_at - other.expires_at) < timedelta(minutes=1)


def test_times_are_written_in_utc() -> None:
    zone = timezone(timedelta(hours=2))
    memory = Memory(
        id="a", content="b", agent="c", version="", updated_at=NOW, created_at=datetime(2026, 1, 1, 1, tzinfo=zone)
    )
    arguments = FieldMap().arguments(export_line(memory), NOW)
    assert arguments is not None
    assert arguments["created_at"] == datetime(2025, 12, 31, 23, tzinfo=UTC)


def test_every_line_of_the_sample_is_a_memory() -> None:
    lines = SAMPLE.read_bytes().splitlines()
    read_lines = [FieldMap().arguments(line, NOW) for line in lines]
    assert len(read_lines) >= 240
    memories = [arguments for arguments in read_lines if arguments is not None]
    assert len({arguments["content"] for arguments in memories}) == len(lines)
    assert all({"agent", "thread", "tags", "importance"} <= arguments.keys() for arguments in memories)
    assert len({arguments["agent"] for arguments in memories}) >= 6
    assert len({arguments["thread"] for arguments in memories}) >= 12
    assert len({tag for arguments in memories for tag in arguments["tags"]}) >= 15
