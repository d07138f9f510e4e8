"""What the checks give back: exact types, the same values, copies of what could change later."""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine import limits, validation
from crdt_spine.core.clock import moment
from crdt_spine.errors import InvalidInput
from crdt_spine.memory import Consistency

PLAIN = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
KEYS = st.text(PLAIN, min_size=1, max_size=9)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(PLAIN)
)
JSON = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=10
)


class Colour(enum.StrEnum):
    RED = "red"


class OldColour(str, enum.Enum):  # noqa: UP042  its str() is not its value
    RED = "red"


class Text(str):
    pass


class Pairs(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __init__(self, items: dict[str, Any]) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@pytest.mark.parametrize("value", [Colour.RED, OldColour.RED, Text("red"), "red"])
def test_every_kind_of_string_becomes_a_plain_one(value: str) -> None:
    for checked in (
        validation.content(value),
        validation.id(value),
        validation.agent(value),
        validation.thread(value),
        validation.tags("tags", [value])[0],
        next(iter(validation.metadata({value: 1}))),
        validation.metadata({"k": value})["k"],
        validation.metadata({"k": [{value: value}]})["k"][0]["red"],
    ):
        assert type(checked) is str
        assert checked == "red"


@given(st.text())
def test_a_text_is_refused_or_given_back_as_it_was(value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = -1
    good = 0 < size <= 20 and "\0" not in value
    try:
        assert validation.text("name", value, 20) == value
        assert good
    except InvalidInput as error:
        assert "name" in str(error)
        assert not good


@pytest.mark.parametrize(("character", "count"), [("x", 128), ("é", 64), ("字", 42), ("🦊", 32)])
def test_lengths_are_counted_in_bytes(character: str, count: int) -> None:
    assert validation.agent(character * count)
    with pytest.raises(InvalidInput, match="at most 128"):
        validation.agent(character * (count + 1))


@given(st.dictionaries(KEYS, JSON.filter(lambda value: value is not None), max_size=5))
def test_metadata_is_given_back_equal_and_travels_unchanged(value: dict[str, Any]) -> None:
    checked = validation.metadata(value)
    assert checked == value
    assert msgspec.json.decode(msgspec.json.encode(checked)) == checked
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(checked)) == checked


def test_metadata_is_a_copy_of_any_mapping() -> None:
    inner = [1]
    given_ones: list[Mapping[str, Any]] = [
        {"k": inner}, OrderedDict(k=inner), defaultdict(list, k=inner), MappingProxyType({"k": inner}),
        Pairs({"k": inner}),
    ]  # fmt: skip
    checked = [validation.metadata(value) for value in given_ones]
    inner.append(2)
    assert checked == [{"k": [1]}] * 5
    assert all(type(value) is dict for value in checked)
    assert validation.metadata({"k": (1, (2,))}) == {"k": [1, [2]]}


def test_only_an_update_may_pass_none_for_a_key() -> None:
    assert validation.metadata({"k": None}, removals=True) == {"k": None}
    assert validation.metadata({"k": [None]}) == {"k": [None]}
    with pytest.raises(InvalidInput, match=r"metadata\['k'\] is None"):
        validation.metadata({"k": None})


def test_tags_keep_their_order_and_come_once() -> None:
    assert validation.tags("tags", ["b", "a", "b"]) == ("b", "a")
    assert set(validation.tags("tags", {"b", "a"})) == {"a", "b"}
    assert validation.tags("tags", (tag for tag in "abca")) == ("a", "b", "c")
    assert validation.tags("tags", ()) == validation.tags("tags", []) == ()


def test_every_kind_of_whole_number_becomes_a_plain_one() -> None:
    """A limit that the encoder can't take once held up everything that was to be sent along with it."""

    class Whole(int):
        pass

    assert type(validation.limit(Whole(5))) is int
    assert type(validation.ttl_milliseconds(Whole(5))) is int


def test_times_to_live_are_whole_milliseconds_and_at_least_one() -> None:
    assert validation.ttl_milliseconds(None) is None
    assert validation.ttl_milliseconds(1) == 1000
    assert validation.ttl_milliseconds(0.0015) == 1
    assert validation.ttl_milliseconds(1e-9) == 1
    assert validation.ttl_milliseconds(limits.TTL_SECONDS_MAX) == limits.TTL_SECONDS_MAX * 1000


def test_times_are_the_same_moment_in_every_zone() -> None:
    noon = datetime(2026, 1, 31, 12, 0, 0, 123_000, tzinfo=UTC)
    forms: list[Any] = [
        noon, noon.astimezone(timezone(timedelta(hours=-9, minutes=-30))), "2026-01-31T12:00:00.123Z",
        "2026-01-31T14:00:00.123+02:00", "20260131T120000.123Z",
    ]  # fmt: skip
    for form in forms:
        time = validation.time("since", form)
        assert time is not None
        assert moment(time) == noon
    assert validation.time("since", None) is None


def test_levels_are_taken_by_name() -> None:
    assert [validation.consistency(level) for level in ("eventual", "causal", Consistency.STRONG, None)] == [
        Consistency.EVENTUAL, Consistency.CAUSAL, Consistency.STRONG, None,
    ]  # fmt: skip


def test_paths_are_taken_as_text_or_as_paths() -> None:
    assert validation.path("a/b") == validation.path(Path("a/b")) == "a/b"


def test_a_refusal_says_what_is_wrong_and_what_is_allowed() -> None:
    check = validation
    said: dict[str, Any] = {
        "content is 262,145 bytes long in UTF-8; at most 262,144 are allowed": lambda: check.content("x" * 262_145),
        "content has a lone surrogate at position 1": lambda: check.content("a\ud800"),
        "content has a NUL character at position 2": lambda: check.content("ab\0"),
        "content must be a string, not bytes": lambda: check.content(b"x"),
        "content must not be empty": lambda: check.content(""),
        "tags must be a list, tuple or set of strings, not str": lambda: check.tags("tags", "urgent"),
        "since must say its time zone": lambda: check.time("since", datetime(2026, 1, 1)),
        "limit must be a whole number from 1 to 1,000, not 0": lambda: check.limit(0),
        "must be one of eventual, read-your-writes, causal, strong; not 'x'": lambda: check.consistency("x"),
        "metadata['k']['d'] must be a JSON value": lambda: check.metadata({"k": {"d": object()}}),
        "whole numbers must fit 64 bits": lambda: check.metadata({"k": 1 << 63}),
    }
    for words, call in said.items():
        with pytest.raises(InvalidInput) as refused:
            call()
        assert words in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 10**5000, "x" * 2_000_000, [0] * 1_000_000],
    ids=["400 digits", "below zero", "5000 digits", "text", "list"],
)
def test_the_largest_numbers_and_texts_are_refused_in_a_short_line(value: Any) -> None:
    """A ttl of four hundred digits once raised OverflowError, and ended the import whose line had it."""
    checks: list[Any] = [
        validation.importance, validation.ttl_milliseconds, validation.consistency, validation.limit,
        lambda value: validation.seconds("timeout", value), lambda value: validation.time("since", value),
    ]  # fmt: skip
    if isinstance(value, int):
        checks.append(lambda value: validation.metadata({"k": value}))
    for check in checks:
        with pytest.raises(InvalidInput) as refused:
            check(value)
        assert len(str(refused.value)) < 300


def test_a_value_whose_repr_fails_is_refused_all_the_same() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    with pytest.raises(InvalidInput, match="not a value of type Broken"):
        validation.importance(Broken())


def test_a_time_to_wait_says_both_of_its_bounds() -> None:
    with pytest.raises(InvalidInput, match="above 0 and below 86,400, not 100000"):
        validation.seconds("timeout", 100_000)
