"""A session's idea of a node's clock: never ahead of it, and soon right again when the clock is set."""

from __future__ import annotations

import pytest

from crdt_spine.lateness import CALM_SECONDS, LATE_SECONDS_MAX, WRITE_SECONDS_MAX, Lateness

WITHIN = int(WRITE_SECONDS_MAX * 1_000)


def test_without_any_answer_nothing_is_said() -> None:
    assert Lateness().by("one", 5.0) == 0


@pytest.mark.parametrize("way", [0.0, 0.002, 0.4])
def test_the_estimate_is_never_ahead_of_the_clock(way: float) -> None:
    known = Lateness()
    known.heard("one", 1_000_000, 10.0 + way)  # it left at 10.0
    assert known.by("one", 12.0) <= 1_002_000 + WITHIN
    assert known.by("one", 12.0) >= 1_002_000 + WITHIN - way * 1_000 - 1


def test_the_answer_that_was_on_its_way_for_the_shortest_time_counts() -> None:
    known = Lateness()
    known.heard("one", 1_000_000, 10.001)
    known.heard("one", 1_001_000, 11.300)  # this process was busy
    assert known.by("one", 12.0) == pytest.approx(1_002_000 + WITHIN, abs=2)


def test_a_clock_that_was_set_back_is_believed_after_a_while() -> None:
    known = Lateness()
    known.heard("one", 1_000_000, 0.0)
    for second in range(1, 300):
        known.heard("one", 1_000_000 + second * 1_000 - 2_000, float(second))
    assert known.by("one", 300.0) == pytest.approx(1_298_000 + WITHIN, abs=50)


def test_a_clock_that_was_set_forward_is_believed_at_once() -> None:
    known = Lateness()
    known.heard("one", 1_000_000, 0.0)
    known.heard("one", 3_600_000, 1.0)
    assert known.by("one", 1.0) == 3_600_000 + WITHIN


def test_of_a_node_that_has_not_answered_yet_another_ones_clock_is_taken() -> None:
    known = Lateness()
    known.heard("one", 1_000_000, 10.0)
    assert known.by("two", 10.0) == 1_000_000 + WITHIN
    known.heard("two", 500, 10.0)
    assert known.by("two", 10.0) == 500 + WITHIN


def test_a_node_that_finds_everything_late_is_given_more_time_until_it_does_not() -> None:
    known = Lateness()
    known.heard("one", 1_000_000, 0.0)
    known.refused("one", 1.0)
    for _ in range(100):  # a whole batch
        known.refused("one", 1.01)
    assert known.window("one", 1.1) == 2 * WRITE_SECONDS_MAX
    assert known.by("one", 1.1) == pytest.approx(1_001_100 + 2 * WITHIN, abs=2)
    for second in range(2, 20):
        known.refused("one", float(second))
    assert known.window("one", 20.0) == LATE_SECONDS_MAX
    assert known.window("two", 20.0) == WRITE_SECONDS_MAX
    for n in range(1, 5):
        later = known.window("one", 20.0 + n * (CALM_SECONDS + 0.1))
    assert later == WRITE_SECONDS_MAX
