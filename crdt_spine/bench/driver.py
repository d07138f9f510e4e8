"""Offers a workload to a target and measures what comes back.

Closed loop: `in_flight` callers, each with one operation under way. It finds the throughput, but its latencies
flatter a system that stalls, because while it stalls nobody calls (coordinated omission; Gil Tene, "How NOT to Measure
Latency"). Open loop: arrivals follow a timetable that doesn't care how the system is doing, and latency counts from
the moment at which an operation *should* have started. When more are under way than IN_FLIGHT_MAX, later ones wait
outside, and their waiting counts too.

Timers have a resolution of 1 ms, so arrivals come in handfuls and an open loop's latencies include up to 1 ms of that.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from crdt_spine.bench.cpu import CpuMeter
from crdt_spine.bench.workload import Operation, Workload

IN_FLIGHT_MAX: Final = 2_048  # operations under way in an open loop; bounds the driver's memory
ERROR_PAUSE_SECONDS: Final = 0.01  # a caller whose operation failed waits this long: a dead target is no tight loop
TICK_SECONDS: Final = 0.001
PRELOAD_IN_FLIGHT: Final = 256
STOP_SECONDS_MAX: Final = 10.0  # how long operations that are still under way at the end are waited for


class Target(Protocol):
    """What is measured. Both calls raise if the operation did not do what was asked."""

    async def write(self, operation: Operation) -> None: ...

    async def read(self, operation: Operation) -> None: ...


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds; percentiles by nearest rank."""

    count: int
    mean: float
    p50: float
    p99: float
    p999: float
    max: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `operations` is what *completed* in the `seconds` measured, failures (by type in `errors`) excluded.

    `cpu_microseconds` is CPU time per operation by process. `backlog` is how many operations of an open loop were due
    and not yet started at the end. `others_cores` is what the rest of the machine was busy with: much of it, and the
    run says little.
    """

    operations: int
    seconds: float
    reads: Latency | None
    writes: Latency | None
    errors: dict[str, int] = {}
    cpu_microseconds: dict[str, float] = {}
    others_cores: float | None = None
    backlog: int = 0

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def cpu_microseconds_total(self) -> float:
        """CPU time per operation over all processes."""
        return sum(self.cpu_microseconds.values())


class _Recorder:
    """Latencies of what completes while it is open. Arrays, because millions of float objects would wake the GC."""

    def __init__(self) -> None:
        self.open = False
        self.stopping = False  # callers finish the operation that they have under way, and end
        self.reads = array("d")
        self.writes = array("d")
        self.errors: Counter[str] = Counter()

    def failed(self, error: Exception) -> None:
        if self.open:
            self.errors[type(error).__name__] += 1


async def preload(target: Target, operations: Iterable[Operation]) -> None:
    """Write all `operations`; raises the first error."""
    remaining = iter(operations)

    async def caller() -> None:
        for operation in remaining:
            await target.write(operation)

    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(PRELOAD_IN_FLIGHT):
                callers.create_task(caller())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def measure(target: Target, workload: Workload, processes: Mapping[str, int]) -> Measurement:
    """Offer the load for `warmup_seconds`, then for `seconds` that count; CPU time is read of `processes`."""
    recorder, operations = _Recorder(), workload.operations()
    meter = CpuMeter(processes)
    timetable: _Timetable | None = None
    if workload.rate is None:
        callers = [_call_again(target, operations, recorder) for _ in range(workload.in_flight)]
    else:
        timetable = _Timetable(workload.rate)
        callers = [_call_on_time(target, operations, recorder, timetable) for _ in range(IN_FLIGHT_MAX)]
        callers.append(timetable.keep())
    gc.collect()
    gc.freeze()  # the prepared operations would otherwise be walked by every full collection
    tasks = [asyncio.ensure_future(caller) for caller in callers]
    try:
        await asyncio.sleep(workload.warmup_seconds)
        meter.start()
        begun, recorder.open = time.perf_counter(), True
        await asyncio.sleep(workload.seconds)
        recorder.open, ended = False, time.perf_counter()
        use = meter.stop()
        backlog = 0 if timetable is None else timetable.overdue()
    finally:
        gc.unfreeze()
        recorder.stopping = True
        if timetable is not None:
            timetable.close()
        _, hanging = await asyncio.wait(tasks, timeout=STOP_SECONDS_MAX)
        for task in hanging:
            task.cancel()
    for task in tasks:
        if task.done() and not task.cancelled() and (broken := task.exception()) is not None:
            raise broken  # the driver's own fault: a target's failures are counted
    completed = len(recorder.reads) + len(recorder.writes)
    return Measurement(
        operations=completed,
        seconds=ended - begun,
        reads=summarize(recorder.reads),
        writes=summarize(recorder.writes),
        errors=dict(recorder.errors),
        cpu_microseconds={name: seconds * 1e6 / max(1, completed) for name, seconds in use.seconds.items()},
        others_cores=use.others_cores,
        backlog=backlog,
    )


async def _call_again(target: Target, operations: Iterator[Operation], recorder: _Recorder) -> None:
    """A caller of the closed loop: the next operation as soon as the last one is answered."""
    clock = time.perf_counter
    while not recorder.stopping:
        operation = next(operations)
        await _perform(target, operation, clock(), recorder, clock)


async def _call_on_time(
    target: Target, operations: Iterator[Operation], recorder: _Recorder, timetable: _Timetable
) -> None:
    """A caller of the open loop: the next operation when it is due, or as soon after that as can be."""
    clock = time.perf_counter
    while True:
        intended = await timetable.next_arrival()
        if intended is None:
            return
        await _perform(target, next(operations), intended, recorder, clock)


async def _perform(
    target: Target, operation: Operation, since: float, recorder: _Recorder, clock: Callable[[], float]
) -> None:
    try:
        if operation.write:
            await target.write(operation)
        else:
            await target.read(operation)
    except Exception as error:  # whatever it is, it is the target's answer, and is counted
        recorder.failed(error)
        await asyncio.sleep(ERROR_PAUSE_SECONDS)
    else:
        if recorder.open:
            (recorder.writes if operation.write else recorder.reads).append(clock() - since)


class _Timetable:
    """Arrival k is due at start + k / rate. Callers take arrivals in order, so those who wait are sorted by time."""

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate
        self._start = time.perf_counter()
        self._taken = 0
        self._closed = False
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()

    async def next_arrival(self) -> float | None:
        """Wait until the next arrival is due; returns when it was due, which may be long ago. None: it is over."""
        due = self._start + self._taken * self._interval
        self._taken += 1
        if due > time.perf_counter() and not self._closed:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((due, gate))
            await gate
        return None if self._closed else due

    async def keep(self) -> None:
        """Let callers go when their time has come; runs until the timetable is closed."""
        while not self._closed:
            await asyncio.sleep(TICK_SECONDS)
            now = time.perf_counter()
            while self._waiting and self._waiting[0][0] <= now:
                self._open_next()

    def close(self) -> None:
        """End it, and let everybody go who still waits."""
        self._closed = True
        while self._waiting:
            self._open_next()

    def _open_next(self) -> None:
        gate = self._waiting.popleft()[1]
        if not gate.done():  # its caller may have been cancelled
            gate.set_result(None)

    def overdue(self) -> int:
        """How many arrivals were due by now and have not been taken by a caller."""
        return max(0, int((time.perf_counter() - self._start) / self._interval) - self._taken)


def summarize(seconds: Sequence[float]) -> Latency | None:
    """Mean and percentiles in milliseconds of latencies in seconds; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return Latency(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered) * 1e3,
        p50=percentile(ordered, 50.0) * 1e3,
        p99=percentile(ordered, 99.0) * 1e3,
        p999=percentile(ordered, 99.9) * 1e3,
        max=ordered[-1] * 1e3,
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` % of all are not above (nearest rank). `ordered` ascends."""
    rank = math.ceil(len(ordered) * percent / 100.0)
    return ordered[max(1, rank) - 1]
