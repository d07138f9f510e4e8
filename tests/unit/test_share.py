"""Work that can wait takes its share of a processor while agents ask for something, and all of it while nobody does."""

from __future__ import annotations

import pytest

from crdt_spine.limits import (
    CATCH_UP_SHARE_MAX,
    FLUSH_SHARE_ASIDE_MAX,
    FLUSH_SHARE_MAX,
    SYNC_PAGE_RECORDS_MAX,
    SYNC_PAGE_SECONDS_TARGET,
    SYNC_SHARE_MAX,
    TAKING_SHARE_MAX,
)
from crdt_spine.node.share import (
    FLUSH_OPERATIONS_PER_SECOND,
    IDLE_SECONDS,
    RECORDS_MIN,
    TAKING_SHARE_MIN,
    Demand,
    FlushShare,
    PageShare,
)


class Machine:
    """Time that passes by working and by sleeping, with agents that ask this node for `rate` operations a second and
    the others for `elsewhere`."""

    def __init__(self, rate: float = 0.0, elsewhere: float = 0.0) -> None:
        self.now = 100.0
        self.worked = self.operations = 0.0
        self.rate = rate
        self.elsewhere = elsewhere
        self.hurry = False
        self.demand = Demand(lambda: int(self.operations), lambda: self.elsewhere, clock=lambda: self.now)
        self.sleep(1.0)
        assert self.demand.here == pytest.approx(rate, rel=0.01)

    def work(self, seconds: float) -> None:
        self.worked += seconds
        self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.operations += seconds * self.rate

    async def sleep_aside(self, seconds: float) -> None:
        self.sleep(seconds)

    def pages(self, share: float, share_elsewhere: float | None = None) -> PageShare:
        return PageShare(
            self.demand, share, share_elsewhere, clock=lambda: self.now, process=lambda: self.worked,
            sleep=self.sleep_aside,
        )  # fmt: skip

    def giving(self) -> PageShare:
        return self.pages(SYNC_SHARE_MAX)

    def taking(self) -> PageShare:
        return self.pages(TAKING_SHARE_MAX, CATCH_UP_SHARE_MAX)

    def resting(self) -> FlushShare:
        return FlushShare(self.demand, lambda: self.hurry, worked=lambda: self.worked, sleep=self.sleep)


async def paged(machine: Machine, share: PageShare, pages: int = 200, beside: float = 0.0) -> float:
    """How many seconds it takes to give or take so many pages, of 10 ms each, while the process works as much
    `beside`."""
    began = machine.now
    for _ in range(pages):
        async with share.turn():
            machine.work(0.01)
            share.spent(0.01, 128)
        machine.work(beside)
    return machine.now - began


# -- pages ----------------------------------------------------------------------------------------------------------


async def test_while_nobody_asks_pages_are_whole_and_follow_at_once() -> None:
    for share in ((machine := Machine()).giving(), machine.taking()):
        assert await paged(machine, share) == pytest.approx(2.0)
        assert share.records_max() == SYNC_PAGE_RECORDS_MAX


async def test_while_agents_are_served_pages_take_their_share_of_the_time_and_no_more() -> None:
    machine = Machine(rate=1_000)
    giving, taking = machine.giving(), machine.taking()
    assert await paged(machine, giving) == pytest.approx(2.0 / SYNC_SHARE_MAX, rel=0.05)
    assert giving.seconds == pytest.approx(2.0)
    assert await paged(machine, taking) == pytest.approx(2.0 / TAKING_SHARE_MAX, rel=0.05)


async def test_a_node_that_catches_up_while_agents_ask_the_others_leaves_them_room() -> None:
    machine = Machine(elsewhere=500)
    assert await paged(machine, machine.taking()) == pytest.approx(2.0 / CATCH_UP_SHARE_MAX, rel=0.05)
    beside = 0.03  # what pages bring is journaled and brought into the tables: that counts as well
    assert await paged(machine, machine.taking(), beside=beside) == pytest.approx(8.0 / CATCH_UP_SHARE_MAX, rel=0.05)
    assert await paged(machine, machine.giving()) == pytest.approx(2.0), "it is to give what it has"


async def test_a_node_that_is_sent_more_than_its_share_catches_up_all_the_same() -> None:
    machine = Machine(elsewhere=500)
    beside = 0.01 / TAKING_SHARE_MIN  # for each page so much that there is never room for one
    assert await paged(machine, machine.taking(), beside=beside) == pytest.approx(200 * (0.01 + beside), rel=0.05)


async def test_what_a_process_did_for_agents_before_is_no_reason_to_wait() -> None:
    machine = Machine(elsewhere=500)
    taking = machine.taking()
    await paged(machine, taking, pages=1)
    machine.work(100 * IDLE_SECONDS)
    assert await paged(machine, taking, pages=1) == pytest.approx(0.01)
    machine.sleep(100 * IDLE_SECONDS)
    began = machine.now
    await paged(machine, taking)
    assert machine.now - began == pytest.approx(2.0 / CATCH_UP_SHARE_MAX, rel=0.05), "nor a reason to hurry"


async def test_a_page_is_as_large_as_the_time_that_an_agent_may_wait() -> None:
    machine = Machine(rate=1_000)
    share = machine.giving()
    share.spent(0.05, 500)  # 100 µs a record
    assert share.records_max() == max(RECORDS_MIN, int(SYNC_PAGE_SECONDS_TARGET / 1e-4))
    share.spent(10.0, 500)
    assert share.records_max() == RECORDS_MIN
    machine.rate = 0
    machine.sleep(1.0)
    assert share.records_max() == SYNC_PAGE_RECORDS_MAX


# -- a flush --------------------------------------------------------------------------------------------------------


def flushed(machine: Machine) -> float:
    """How long a flush of a second's work takes."""
    rest = machine.resting()
    began = machine.now
    for _ in range(1_001):
        rest()
        machine.work(0.001)
    return machine.now - began


def test_while_agents_are_busy_a_flush_takes_its_share() -> None:
    assert flushed(Machine(10 * FLUSH_OPERATIONS_PER_SECOND)) == pytest.approx(1 / FLUSH_SHARE_MAX, rel=0.05)


def test_else_it_takes_what_it_can_get() -> None:
    assert flushed(Machine(FLUSH_OPERATIONS_PER_SECOND / 2)) == pytest.approx(1.001)


def test_it_takes_half_where_agents_ask_the_other_nodes_alone() -> None:
    assert flushed(Machine(elsewhere=500)) == pytest.approx(1 / FLUSH_SHARE_ASIDE_MAX, rel=0.05)


def test_nor_does_it_rest_while_somebody_waits() -> None:
    machine = Machine(10 * FLUSH_OPERATIONS_PER_SECOND)
    machine.hurry = True
    assert flushed(machine) == pytest.approx(1.001)
