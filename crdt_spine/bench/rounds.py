"""Systems side by side: each workload on each system in turn, several times over, and never two of them at once.

What is compared runs within seconds of each other, because a shared machine is faster at one hour than at the next:
trust the ratios of one run more than figures of two. Every measurement starts its system anew, with its own data,
loads all ids, and ends it; so no measurement pays for what an earlier one left behind, and no other system idles
beside it. The order is turned round in every other round, so that none is always the one that comes second.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from crdt_spine.bench.driver import Measurement, Target, measure, preload
from crdt_spine.bench.machine import Machine
from crdt_spine.bench.workload import Workload


class Running(msgspec.Struct, frozen=True):
    """A system that is up: where to send operations, and its processes (name → pid), the driver's among them."""

    target: Target
    processes: Mapping[str, int]


class System(Protocol):
    """Something that can be measured; `running()` starts it fresh and ends it with everything it made."""

    @property
    def name(self) -> str: ...

    def running(self) -> AbstractAsyncContextManager[Running]: ...


class Cell(msgspec.Struct, frozen=True):
    """All rounds of one workload on one system."""

    workload: Workload
    system: str
    rounds: tuple[Measurement, ...]

    def median(self, figure: Callable[[Measurement], float | None]) -> float | None:
        """The median over the rounds that have the figure; None if none has."""
        figures = [value for each in self.rounds if (value := figure(each)) is not None]
        return statistics.median(figures) if figures else None

    @property
    def rate(self) -> float:
        """Median of operations a second."""
        return statistics.median(each.rate for each in self.rounds)


class Report(msgspec.Struct, frozen=True):
    """Everything a run found out. The first system is the one that the others are compared with."""

    machine: Machine
    systems: tuple[str, ...]
    notes: tuple[str, ...]
    cells: tuple[Cell, ...]

    def cell(self, workload: Workload, system: str) -> Cell | None:
        """The rounds of this workload on this system."""
        return next((cell for cell in self.cells if cell.workload == workload and cell.system == system), None)

    def ratio(self, workload: Workload, other: str) -> float | None:
        """The first system's rate over another one's; None unless both ran it."""
        if other == self.systems[0]:
            return None
        ours, theirs = self.cell(workload, self.systems[0]), self.cell(workload, other)
        return None if ours is None or theirs is None or theirs.rate == 0 else ours.rate / theirs.rate

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """Each workload once, in the order in which they ran."""
        return tuple(dict.fromkeys(cell.workload for cell in self.cells))


async def compare(
    systems: Sequence[System],
    workloads: Sequence[Workload],
    *,
    rounds: int,
    machine: Machine,
    notes: Sequence[str] = (),
    progress: Callable[[str, Workload, Measurement], None] = lambda system, workload, measurement: None,
) -> Report:
    """Run every workload on every system `rounds` times; `progress` hears of each measurement when it is done."""
    cells: list[Cell] = []
    for workload in workloads:
        found: dict[str, list[Measurement]] = {system.name: [] for system in systems}
        for round_number in range(rounds):
            for system in systems if round_number % 2 == 0 else tuple(reversed(systems)):
                async with system.running() as running:
                    await preload(running.target, workload.preload())
                    measurement = await measure(running.target, workload, running.processes)
                found[system.name].append(measurement)
                progress(system.name, workload, measurement)
        cells += [Cell(workload, name, tuple(measurements)) for name, measurements in found.items()]
    return Report(machine, tuple(system.name for system in systems), tuple(notes), tuple(cells))
