"""Which level tags demand: the strictest, in a total order, whatever the order of tags and overrides."""

from __future__ import annotations

from itertools import permutations
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.levels import RANK, Demand, Overrides, stricter
from crdt_spine.core.messages import Level
from crdt_spine.memory import Consistency

LEVELS: list[Level] = ["eventual", "read-your-writes", "causal", "strong"]
overrides = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(LEVELS))
tags = st.lists(st.sampled_from("abcdefgh"), max_size=5)


def test_levels_are_in_a_total_order() -> None:
    assert list(RANK) == LEVELS == list(get_args(Level)) == [level.value for level in Consistency]
    for index, one in enumerate(LEVELS):
        assert [stricter(one, other) for other in LEVELS] == [index > place for place in range(4)]


@given(overrides, tags, tags)
def test_the_strictest_tag_counts(levels: dict[str, Level], some: list[str], others: list[str]) -> None:
    by_tag = Overrides([((tag,), level) for tag, level in levels.items()])
    demand = by_tag.demand(some, others)
    matched = [levels[tag] for tag in some + others if tag in levels]
    if not matched:
        assert demand is None
        return
    assert demand is not None
    assert levels[demand.tag] == demand.level == max(matched, key=LEVELS.index)
    assert demand == by_tag.demand(others, some) == by_tag.demand({*some, *others})


def test_overrides_are_read_as_the_file_has_them() -> None:
    listed: list[tuple[tuple[str, ...], Level]] = [(("a", "b"), "strong"), (("c",), "eventual")]
    for order in permutations(listed):
        both = Overrides(order)
        assert both.demand(["c", "b"]) == Demand("strong", "b")
        assert both.demand(["c"]) == Demand("eventual", "c")
        assert both.demand(["d"]) is None and both
    assert not Overrides() and not Overrides([((), "strong")])
