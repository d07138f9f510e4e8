"""A selection against its conditions, each written down once more as a set or a comparison of JSON texts."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.selection import Selection

names = st.lists(st.sampled_from("abc"), unique=True, max_size=2).map(tuple)
values: Any = st.sampled_from([0, 1, 1.0, True, False, None, "1", [1], [True], [1.0], {"a": 1}, {"a": True}, {}])
metadata = st.dictionaries(st.sampled_from("pq"), values, max_size=2)
maybe = st.none() | st.sampled_from("xy")
selections = st.builds(
    Selection, tags=names, any_tags=names, not_tags=names, agent=maybe, thread=maybe,
    since=st.none() | st.integers(0, 4), until=st.none() | st.integers(0, 4), metadata=metadata,
)  # fmt: skip


def canonical(value: Any) -> str:
    """JSON in which 1 and 1.0 are one number, and true is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{canonical(value[key])}" for key in sorted(value)) + "}"
    return msgspec.json.encode(value).decode()


@given(selections, names, st.sampled_from("xyz"), st.none() | st.sampled_from("xyz"), st.integers(0, 4), metadata)
def test_a_memory_matches_when_every_condition_holds(
    selection: Selection, tags: tuple[str, ...], agent: str, thread: str | None, created: int, given: dict[str, Any]
) -> None:
    has = set(tags)
    conditions = [
        set(selection.tags) <= has,
        not selection.any_tags or bool(set(selection.any_tags) & has),
        not set(selection.not_tags) & has,
        selection.agent in (None, agent),
        selection.thread is None or selection.thread == thread,
        selection.since is None or selection.since <= created,
        selection.until is None or created < selection.until,
        {key: canonical(value) for key, value in selection.metadata.items()}
        == {key: canonical(given[key]) for key in selection.metadata if key in given},
    ]
    assert selection.matches(frozenset(tags), agent, thread, created, given) == all(conditions)
