"""What a session thinks of its nodes, driven by a clock of the test's."""

from __future__ import annotations

from collections import Counter

import pytest

from crdt_spine.health import (
    DOUBT_SECONDS,
    FRESH_SECONDS,
    HINT_SECONDS,
    PATIENCE_SECONDS_MAX,
    PATIENCE_SECONDS_MIN,
    PATIENCE_UNKNOWN_SECONDS,
    PING,
    PING_PAUSE_SECONDS_MAX,
    PING_SECONDS,
    QUERY,
    READ,
    RELAPSE_SECONDS,
    WRITE,
    Health,
    Track,
)


class Watch:
    """Three nodes and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.health = Health(lambda: self.now, Counter())
        self.health.keep("abc")

    def answers(self, node: str, seconds: float, times: int = 20, kind: int = READ) -> None:
        """It answers so many requests, ten milliseconds apart."""
        for _ in range(times):
            self.now += 0.01
            self.health.hear(node, self.now)
            self.health.measured(node, kind, seconds, self.now)

    def pings(self, node: str, seconds: float | None, upto: float = 30.0) -> int:
        """It is pinged until it is well, or the time is over: how often?"""
        end, times = self.now + upto, 0
        while node in self.health.trouble and self.now < end:
            self.now += 0.05
            for one in self.health.to_ping(self.now):
                times += one == node
                took = seconds if one == node else 0.001
                self.now += 0 if took is None else took
                self.health.ponged(one, took, self.now)
        return times


@pytest.fixture
def watch() -> Watch:
    return Watch()


# -- the 99th percentile ---------------------------------------------------------------------------------------------


def test_the_percentile_is_the_one_of_a_sorted_list_up_to_a_quarter() -> None:
    track = Track()
    samples = [0.001 * (1 + n % 100) for n in range(1000)]
    for sample in samples:
        track.add(sample, 0.0)
    assert track.p99 is not None
    assert 0.099 <= track.p99 <= 0.099 * 1.26


@pytest.mark.parametrize("seconds", [1e-7, 0.0001, 0.0013, 0.02, 0.7, 30.0])
def test_a_percentile_of_equal_answers_is_just_above_them(seconds: float) -> None:
    track = Track()
    for _ in range(50):
        track.add(seconds, 0.0)
    assert track.p99 is not None
    assert max(seconds, 5e-5) <= track.p99 <= max(seconds * 1.26, 1.3e-4)


def test_old_answers_lose_their_weight() -> None:
    track = Track()
    for _ in range(1000):
        track.add(1.0, 0.0)
    for _ in range(20_000):
        track.add(0.01, 0.0)
    assert track.p99 is not None
    assert track.p99 < 0.02


def test_a_read_is_waited_for_as_long_as_nearly_all_take_within_bounds(watch: Watch) -> None:
    health = watch.health
    assert health.patience("a", READ) == PATIENCE_UNKNOWN_SECONDS[READ]
    watch.answers("a", 0.001, 50)
    assert health.patience("a", READ) == PATIENCE_SECONDS_MIN
    watch.answers("b", 0.04, 50)
    assert 0.04 <= health.patience("b", READ) <= 0.051
    watch.answers("c", 5.0, 50)
    assert health.patience("c", READ) == PATIENCE_SECONDS_MAX
    assert health.patience("a", QUERY) == PATIENCE_UNKNOWN_SECONDS[QUERY], "queries are another matter"


# -- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [READ, WRITE])
def test_a_node_that_is_much_slower_than_another_is_left(watch: Watch, kind: int) -> None:
    watch.answers("b", 0.002, kind=kind)
    watch.answers("a", 0.004, kind=kind)
    assert watch.health.well("a")
    watch.answers("a", 0.2, kind=kind)
    assert not watch.health.well("a")
    assert watch.health.trouble["a"].why == "slow"
    assert watch.health.counts["moved_away"] == 1


def test_a_cluster_that_is_slow_as_a_whole_is_nobodys_fault(watch: Watch) -> None:
    for _ in range(50):
        for node in "abc":
            watch.answers(node, 0.3, 1)
    watch.answers("a", 0.7, 1)
    assert watch.health.all_well


def test_one_bad_moment_is_no_reason_to_leave(watch: Watch) -> None:
    watch.answers("b", 0.002)
    watch.answers("a", 0.002)
    watch.answers("a", 0.19, 1)
    watch.answers("a", 0.002, 5)
    assert watch.health.all_well
    assert watch.health.cost("a") > 0.1, "but one to rather go elsewhere"


def test_whether_a_node_is_slow_alone_is_asked_of_the_others(watch: Watch) -> None:
    """A session that uses one partition knows nothing of the others' nodes."""
    watch.answers("a", 0.001)
    assert watch.health.to_ping(watch.now) == []
    for _ in range(80):
        watch.answers("a", 0.2, 1)
        for node in watch.health.to_ping(watch.now):
            watch.health.ponged(node, 0.2 if node == "a" else 0.001, watch.now)
    assert list(watch.health.trouble) == ["a"]


def test_heavy_operations_do_not_make_a_node_slow(watch: Watch) -> None:
    """It answers pings as fast as the others: what takes long is what is asked of it."""
    for _ in range(40):
        watch.answers("a", 0.2, 1)
        for node in watch.health.to_ping(watch.now):
            watch.health.ponged(node, 0.001, watch.now)
    assert watch.health.all_well


def test_what_was_measured_long_ago_is_no_comparison(watch: Watch) -> None:
    watch.answers("b", 0.002)
    watch.now += FRESH_SECONDS + 1
    watch.answers("a", 0.2)
    assert watch.health.all_well


# -- doubt, hints ----------------------------------------------------------------------------------------------------


def test_reads_leave_a_node_that_was_outrun_and_return_when_it_says_something(watch: Watch) -> None:
    health = watch.health
    assert health.doubt("a", watch.now)
    assert not health.doubt("a", watch.now), "that is known"
    assert not health.well("a")
    assert health.well("a", reads=False), "its writes may be under way"
    health.judge(watch.now + DOUBT_SECONDS / 2)
    health.hear("a", watch.now)
    assert health.well("a")
    assert health.counts["moved_away"] == 1


def test_a_node_that_stays_silent_after_it_was_outrun_is_left_for_writes_too(watch: Watch) -> None:
    watch.health.doubt("a", watch.now)
    watch.health.judge(watch.now + DOUBT_SECONDS + 0.01)
    assert not watch.health.well("a", reads=False)
    assert watch.health.counts["moved_away"] == 1, "once"


def test_what_was_heard_counts_for_more_than_a_hint(watch: Watch) -> None:
    watch.answers("a", 0.001)
    watch.health.hint(["a", "b", "nobody"], watch.now)
    assert list(watch.health.trouble) == ["b"]
    watch.now += HINT_SECONDS + 0.1
    watch.health.hint(["a"], watch.now)
    assert sorted(watch.health.trouble) == ["a", "b"]


# -- coming back -----------------------------------------------------------------------------------------------------


def test_a_node_comes_back_with_its_first_good_answer(watch: Watch) -> None:
    watch.health.fail("a", "gone", watch.now)
    assert watch.pings("a", None, 5) <= 5 / PING_PAUSE_SECONDS_MAX + 4, "more and more seldom"
    assert watch.pings("a", 0.001) == 1
    assert watch.health.all_well


def test_a_slow_answer_is_no_good_one(watch: Watch) -> None:
    watch.health.fail("a", "slow", watch.now)
    assert watch.pings("a", 0.4, 5) > 3
    assert not watch.health.all_well


def test_an_answer_to_what_was_asked_before_the_trouble_proves_nothing(watch: Watch) -> None:
    watch.now += 10
    watch.health.fail("a", "silent", watch.now)
    watch.health.measured("a", READ, 0.03, watch.now + 0.02)
    assert not watch.health.well("a")
    watch.health.measured("a", READ, 0.03, watch.now + 0.04)
    assert watch.health.well("a")


def test_who_is_in_trouble_again_and_again_has_to_prove_more(watch: Watch) -> None:
    needed = []
    for _ in range(7):
        watch.health.fail("a", "silent", watch.now)
        needed.append(watch.pings("a", 0.001))
        watch.now += 1
    assert needed == [1, 2, 3, 4, 5, 5, 5]
    watch.now += RELAPSE_SECONDS
    watch.health.fail("a", "silent", watch.now)
    assert watch.pings("a", 0.001) == 1


def test_a_ping_that_nobody_answers_is_a_bad_one(watch: Watch) -> None:
    watch.health.fail("a", "silent", watch.now)
    assert watch.health.to_ping(watch.now) == ["a"]
    assert watch.health.to_ping(watch.now + PING_SECONDS / 2) == [], "one at a time"
    assert watch.health.to_ping(watch.now + PING_SECONDS + 0.5) == ["a"] or (
        watch.health.to_ping(watch.now + 2 * PING_SECONDS) == ["a"]
    )


def test_a_node_that_was_slow_begins_anew(watch: Watch) -> None:
    watch.answers("b", 0.002)
    watch.answers("a", 0.5)
    assert not watch.health.well("a")
    watch.pings("a", 0.001)
    watch.answers("b", 0.002)
    watch.answers("a", 0.002)
    assert watch.health.all_well


def test_nodes_that_left_are_forgotten_and_newcomers_are_unknown(watch: Watch) -> None:
    watch.health.fail("a", "gone", watch.now)
    watch.health.doubt("b", watch.now)
    watch.health.keep("cd")
    assert watch.health.all_well
    assert watch.health.cost("d") == 0
    watch.health.fail("a", "gone", watch.now)  # somebody had an operation under way there
    assert watch.health.to_ping(watch.now + 2) == []
    assert watch.health.all_well


def test_pings_measure_all_alike(watch: Watch) -> None:
    watch.answers("a", 0.03, kind=PING)
    assert watch.health.cost("a", READ) >= 0.03
