"""The hybrid clock never goes back, through a full counter too; vectors are sets of dots, written short."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.causality import join, meet, missing, version_text, within
from crdt_spine.core.clock import HybridClock, at_milliseconds, milliseconds_of, moment

vectors = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 4))
Dots = set[tuple[str, int]]


def dots(vector: dict[str, int]) -> Dots:
    """The naive vector: every dot it stands for."""
    return {(actor, n) for actor, last in vector.items() for n in range(1, last + 1)}


@given(vectors, vectors)
def test_a_vector_is_the_set_of_its_dots(one: dict[str, int], other: dict[str, int]) -> None:
    assert dots(join(one, other)) == dots(one) | dots(other)
    assert dots(meet([one, other])) == dots(one) & dots(other)
    assert within(one, other) == (dots(one) <= dots(other))
    assert missing(one, other) == len(dots(other) - dots(one))
    assert (version_text(one) == version_text(other)) == (one == other)


def test_the_meet_of_nothing_is_nothing() -> None:
    assert meet([]) == {}


@given(st.lists(st.tuples(st.sampled_from(["tick", "observe", "restart"]), st.integers(0, 1 << 40)), max_size=40))
def test_the_clock_only_rises(history: list[tuple[str, int]]) -> None:
    clock = HybridClock()
    last = 0
    for kind, milliseconds in history:
        if kind == "tick":
            time = clock.tick(milliseconds)
            assert time > last
            assert time >= at_milliseconds(milliseconds)
        elif kind == "observe":
            clock.observe(at_milliseconds(milliseconds))
        else:
            clock = HybridClock(clock.highest)
        assert clock.highest >= last
        last = clock.highest


@given(st.integers(1, 1 << 40), st.integers(0, 3))
def test_a_full_counter_carries_into_the_milliseconds(milliseconds: int, more: int) -> None:
    clock = HybridClock(at_milliseconds(milliseconds) + 0xFFFF)
    times = [clock.tick(milliseconds - more) for _ in range(3)]
    assert times == sorted(set(times))
    assert milliseconds_of(times[0]) == milliseconds + 1


@given(st.integers(0, (1 << 47) - 1), st.integers(0, 0xFFFF))
def test_every_time_that_fits_the_tables_has_a_moment(milliseconds: int, counter: int) -> None:
    assert moment(at_milliseconds(milliseconds) + counter).tzinfo is not None
