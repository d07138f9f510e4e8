"""A flush takes a quarter of a processor while agents are busy, and all of it when somebody waits."""

from __future__ import annotations

import pytest

from crdt_spine.limits import FLUSH_SHARE_MAX
from crdt_spine.node.flush_share import BUSY_OPERATIONS_PER_SECOND, FlushShare


class Machine:
    """Time that passes by working and by sleeping, with agents that ask for so much a second."""

    def __init__(self, rate: float) -> None:
        self.now = self.worked = 0.0
        self.rate = rate
        self.hurry = False

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.worked += seconds

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def share(self) -> FlushShare:
        return FlushShare(
            lambda: int(self.rate * self.now), lambda: self.hurry, clock=lambda: self.now, worked=lambda: self.worked,
            sleep=self.sleep,
        )  # fmt: skip


def flushed(machine: Machine) -> float:
    """How long a flush of a second's work takes."""
    rest = machine.share()
    began = machine.now
    for _ in range(1_001):
        rest()
        machine.work(0.001)
    return machine.now - began


def test_while_agents_are_busy_a_flush_takes_its_share() -> None:
    assert flushed(Machine(10 * BUSY_OPERATIONS_PER_SECOND)) == pytest.approx(1 / FLUSH_SHARE_MAX, rel=0.05)


def test_else_it_takes_what_it_can_get() -> None:
    assert flushed(Machine(BUSY_OPERATIONS_PER_SECOND / 2)) == pytest.approx(1.001)


def test_nor_does_it_rest_while_somebody_waits() -> None:
    machine = Machine(10 * BUSY_OPERATIONS_PER_SECOND)
    machine.hurry = True
    assert flushed(machine) == pytest.approx(1.001)
