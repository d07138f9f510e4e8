"""Whose clock is wrong: the own one, if a majority of the nodes says so, several times in a row; not for load."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from crdt_spine.core.drift import ANNOUNCEMENTS_IN_A_ROW, ClockWatch, describe

NOW = 1_763_000_000_000
DRIFT = 500


def watch(nodes: int = 3) -> ClockWatch:
    return ClockWatch(nodes, DRIFT)


def announce(
    clocks: ClockWatch, off: Mapping[str, int], *, delay: int = 0, times: int = ANNOUNCEMENTS_IN_A_ROW
) -> None:
    """Each peer announces so often. Its clock is `off` milliseconds from the own one, and every announcement, those of
    this node included, is `delay` milliseconds on its way."""
    for _ in range(times):
        for node, difference in off.items():
            clocks.heard(node, NOW + difference - delay, NOW, max(0, -difference - delay))


def ahead(clocks: ClockWatch, *alive: str) -> int:
    return clocks.ahead(alive or ("b", "c", "d", "e"))


def test_clocks_that_differ_as_little_as_they_may_are_right() -> None:
    clocks = watch()
    announce(clocks, {"b": DRIFT, "c": -DRIFT})
    assert ahead(clocks) == 0


@pytest.mark.parametrize("off", [3_000, -3_000, DRIFT + 1, -DRIFT - 1])
def test_two_of_three_that_agree_can_accuse_the_third(off: int) -> None:
    clocks = watch()
    announce(clocks, {"b": off, "c": off})
    assert ahead(clocks) == -off


def test_one_of_three_can_not_accuse() -> None:
    clocks = watch()
    announce(clocks, {"b": 3_000, "c": 0})
    assert ahead(clocks) == 0
    announce(clocks, {"b": 3_000})
    assert ahead(clocks, "b") == 0, "nor if it is the only one that is left"


def test_one_of_two_can_not_accuse() -> None:
    clocks = watch(2)
    announce(clocks, {"b": -60_000})
    assert ahead(clocks) == 0


def test_who_accuses_must_agree_with_the_others_that_do() -> None:
    clocks = watch()
    announce(clocks, {"b": 3_000, "c": -3_000})
    assert ahead(clocks) == 0, "the own clock is between theirs"
    announce(clocks, {"b": 3_000, "c": 60_000})
    assert ahead(clocks) == 0, "at least one of these two is wrong itself"


def test_of_five_it_takes_three() -> None:
    clocks = watch(5)
    announce(clocks, {"b": -2_000, "c": -2_100, "d": 0, "e": -60_000})
    assert ahead(clocks) == 0
    announce(clocks, {"d": -2_200})
    assert ahead(clocks) == 2_100


def test_one_announcement_more_or_less_changes_nothing() -> None:
    clocks = watch()
    announce(clocks, {"b": 3_000, "c": 3_000}, times=ANNOUNCEMENTS_IN_A_ROW - 1)
    assert ahead(clocks) == 0, "not often enough in a row"
    announce(clocks, {"b": 0, "c": 0}, times=1)
    announce(clocks, {"b": 3_000, "c": 3_000}, times=1)
    assert ahead(clocks) == 0, "not in a row"
    announce(clocks, {"b": 3_000, "c": 3_000})
    assert ahead(clocks) == -3_000
    announce(clocks, {"b": 10, "c": 10}, times=1)
    assert ahead(clocks) != 0, "nor is an accusation taken back for one"


def test_it_goes_on_when_the_clocks_agree_again() -> None:
    clocks = watch()
    announce(clocks, {"b": -3_000, "c": -3_000})
    assert ahead(clocks) == 3_000
    announce(clocks, {"b": -20, "c": 20})
    assert ahead(clocks) == 0


def test_who_is_gone_does_not_accuse_any_more() -> None:
    clocks = watch()
    announce(clocks, {"b": -3_000, "c": -3_000})
    assert ahead(clocks, "b", "c") == 3_000
    assert ahead(clocks, "b") == 0


@pytest.mark.parametrize("delay", [400, 5_000, 60_000])
def test_load_does_not_look_like_a_wrong_clock(delay: int) -> None:
    clocks = watch()
    announce(clocks, {"b": 0, "c": 20}, delay=delay)
    assert ahead(clocks) == 0


def test_a_wrong_clock_is_seen_through_delays_that_are_shorter() -> None:
    clocks = watch()
    announce(clocks, {"b": -3_000, "c": -3_000}, delay=1_000)
    assert ahead(clocks) == 2_000, "at least as much"


def test_the_difference_is_said_in_words() -> None:
    assert describe(3_210) == "3.2 s ahead of the clocks of most nodes"
    assert describe(-60_000) == "60.0 s behind the clocks of most nodes"
