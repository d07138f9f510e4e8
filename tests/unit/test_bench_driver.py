"""The benchmark's driver against targets whose behaviour is known: what it reports must be what they did."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from crdt_spine.bench.cpu import CpuMeter, cpu_seconds
from crdt_spine.bench.driver import measure, percentile, preload, summarize
from crdt_spine.bench.machine import describe_machine, file_system
from crdt_spine.bench.report import as_json, markdown
from crdt_spine.bench.rounds import Cell, Report, Running, compare
from crdt_spine.bench.workload import Operation, Workload


class KnownTarget:
    """Answers after a known time, fails or stalls when it is told to, and counts."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self.contents: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.under_way = 0
        self.under_way_max = 0
        self.fails = False
        self.open = asyncio.Event()
        self.open.set()

    async def write(self, operation: Operation) -> None:
        await self._answer("writes")
        self.contents[operation.id] = operation.content

    async def read(self, operation: Operation) -> None:
        await self._answer("reads")

    async def _answer(self, kind: str) -> None:
        self.counts[kind] += 1
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            await self.open.wait()
            await asyncio.sleep(self.seconds)
            if self.fails:
                raise LookupError("as told")
        finally:
            self.under_way -= 1


def short(**changes: object) -> Workload:
    return msgspec.structs.replace(Workload(seconds=0.3, warmup_seconds=0.05, in_flight=8, ids=50), **changes)


def test_equal_seeds_give_equal_operations_and_other_seeds_give_others() -> None:
    def operations(seed: int) -> list[Operation]:
        return list(islice(Workload(seed=seed).operations(), 1_000))

    assert operations(7) == operations(7)
    assert operations(7) != operations(8)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_every_stretch_of_a_workload_has_its_share_of_writes(share: float) -> None:
    operations = Workload(write_share=share).operations()
    for _ in range(20):
        writes = sum(operation.write for operation in islice(operations, 200))
        assert abs(writes - 200 * share) <= 1


def test_a_write_has_the_size_and_the_tags_that_the_workload_says() -> None:
    for operation in islice(Workload(write_share=1.0, content_bytes=350, tags=2).operations(), 500):
        assert len(operation.content.encode()) == 350
        assert len(set(operation.content)) > 10, "words, not a repeated letter"
        assert len(set(operation.tags)) == 2


def test_the_preload_has_every_id_that_operations_ask_for() -> None:
    workload = Workload(ids=300)
    preloaded = [operation.id for operation in workload.preload()]
    assert len(preloaded) == len(set(preloaded)) == 300
    assert {operation.id for operation in islice(workload.operations(), 10_000)} == set(preloaded)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0.0, 1.0), (50.0, 50.0), (50.1, 51.0), (99.0, 99.0), (99.9, 100.0), (100.0, 100.0)]
)
def test_a_percentile_is_the_value_of_its_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1, 101)], percent) == expected


def test_a_summary_is_in_milliseconds_and_does_not_need_order() -> None:
    latency = summarize([0.003, 0.001, 0.002])
    assert latency is not None
    assert (latency.count, latency.p50, latency.max) == (3, 2.0, 3.0)
    assert latency.mean == pytest.approx(2.0)
    assert summarize([]) is None


async def test_a_preload_writes_everything_before_it_returns() -> None:
    target, workload = KnownTarget(0), short(ids=700)
    await preload(target, workload.preload())
    assert target.contents == {operation.id: operation.content for operation in workload.preload()}


async def test_a_preload_that_fails_says_so() -> None:
    target = KnownTarget(0)
    target.fails = True
    with pytest.raises(LookupError):
        await preload(target, short().preload())


async def test_a_closed_loop_has_as_many_operations_under_way_as_it_was_told() -> None:
    target = KnownTarget(0.01)
    measurement = await measure(target, short(in_flight=8), {})
    assert target.under_way_max == 8
    assert target.under_way == 0, "nothing is left under way"
    # 8 callers, each at most one operation per 10 ms.
    assert 0 < measurement.operations <= 8 * (measurement.seconds / 0.01 + 1)
    assert measurement.reads is not None and measurement.writes is not None
    assert abs(measurement.reads.count - measurement.writes.count) <= 8 + 1
    assert measurement.reads.p50 >= 9.0
    assert not measurement.errors


async def test_what_completes_while_warming_up_is_not_counted() -> None:
    target = KnownTarget(0.001)
    measurement = await measure(target, short(warmup_seconds=0.3, seconds=0.1), {})
    assert measurement.operations < sum(target.counts.values()) / 2
    assert measurement.seconds == pytest.approx(0.1, abs=0.09)


async def test_failures_are_counted_by_type_and_are_no_operations() -> None:
    target = KnownTarget(0.0)
    target.fails = True
    measurement = await measure(target, short(), {})
    assert measurement.operations == 0
    assert measurement.reads is None and measurement.writes is None
    assert set(measurement.errors) == {"LookupError"}
    # A failing target is asked again after a pause: 8 callers, 10 ms.
    assert measurement.errors["LookupError"] <= 8 * (measurement.seconds / 0.01 + 1)


async def test_an_open_loop_offers_its_rate_whatever_the_latency_is() -> None:
    target = KnownTarget(0.05)
    measurement = await measure(target, short(rate=1_000.0, in_flight=1, seconds=0.6, warmup_seconds=0.2), {})
    assert measurement.rate == pytest.approx(1_000, rel=0.2)
    assert measurement.backlog < 200
    assert target.under_way_max > 20, "50 ms each at 1,000 a second are about 50 under way"


async def test_an_open_loop_ends_as_soon_as_the_operations_under_way_are_answered() -> None:
    """Callers that finish one operation after the end must not wait for an arrival that never comes."""
    began = time.perf_counter()
    await measure(KnownTarget(0.05), short(rate=1_000.0, seconds=0.2, warmup_seconds=0.1), {})
    assert time.perf_counter() - began < 30.0


async def test_a_stall_is_in_the_latencies_of_all_that_should_have_started_meanwhile() -> None:
    """More are due while it stalls than may be under way: those that can't even start count from when they should."""
    target = KnownTarget(0.0)

    async def stall() -> None:
        await asyncio.sleep(0.2)
        target.open.clear()
        await asyncio.sleep(1.0)
        target.open.set()

    stalling = asyncio.create_task(stall())
    workload = short(rate=8_000.0, write_share=0.0, warmup_seconds=0.1, seconds=1.5)
    measurement = await measure(target, workload, {})
    await stalling
    assert target.under_way_max == 2_048
    # Of about 12,000, some 8,000 were due during the stall, and only 2,048 of them were under way then. Counted from
    # when they really started, five in six would look quick.
    assert measurement.reads is not None
    assert measurement.reads.p50 > 100.0


async def test_an_open_loop_that_falls_behind_reports_its_backlog_and_what_it_kept_up_with() -> None:
    target = KnownTarget(0.5)  # 2,048 under way, 0.5 s each: about 4,000 a second at best
    measurement = await measure(target, short(rate=12_000.0, warmup_seconds=0.5, seconds=1.0), {})
    assert measurement.rate < 6_000
    assert measurement.backlog > 3_000
    assert target.under_way_max == 2_048
    assert target.under_way == 0


def test_cpu_time_of_another_process_is_read_and_a_gone_one_has_none() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    spin = "import time\nprint(flush=True)\nwhile time.process_time() < 0.6: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        meter = CpuMeter({"child": child.pid, "this": os.getpid(), "nobody": 2**22 + 1})
        meter.start()
        child.stdout.readline()
        use = meter.stop()
        child.communicate("\n")
    assert 0.3 < use.seconds["child"] <= 0.65
    assert use.seconds["this"] < 0.3
    assert "nobody" not in use.seconds
    assert use.others_cores is not None
    assert cpu_seconds(child.pid) is None


async def test_cpu_per_operation_is_the_processes_time_over_the_operations() -> None:
    class Busy(KnownTarget):
        async def read(self, operation: Operation) -> None:
            began = time.process_time()
            while time.process_time() - began < 0.001:
                pass
            await asyncio.sleep(0)

    measurement = await measure(Busy(), short(write_share=0.0), {"client": os.getpid()})
    assert measurement.cpu_microseconds["client"] == pytest.approx(1_000, rel=0.3)


class KnownSystem:
    """Knows whether it is up, and refuses to be up beside another."""

    up: ClassVar[Counter[str]] = Counter()
    order: list[str]

    def __init__(self, name: str, seconds: float, order: list[str]) -> None:
        self.name = name
        self._seconds = seconds
        self.order = order

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        assert not +self.up, "two systems at once"
        self.up[self.name] += 1
        self.order.append(self.name)
        try:
            yield Running(KnownTarget(self._seconds), {"client": os.getpid()})
        finally:
            self.up[self.name] -= 1


async def test_systems_take_turns_and_are_never_up_together() -> None:
    order: list[str] = []
    heard: list[tuple[str, float]] = []
    workload = short(seconds=0.2)
    report = await compare(
        [KnownSystem("quick", 0.002, order), KnownSystem("slow", 0.02, order)],
        [workload],
        rounds=3,
        machine=describe_machine(),
        progress=lambda system, _, measurement: heard.append((system, measurement.rate)),
    )
    assert order == ["quick", "slow", "slow", "quick", "quick", "slow"]
    assert [system for system, _ in heard] == order
    quick, slow = report.cell(workload, "quick"), report.cell(workload, "slow")
    assert quick is not None and slow is not None
    assert len(quick.rounds) == len(slow.rounds) == 3
    ratio = report.ratio(workload, "slow")
    assert ratio == quick.rate / slow.rate
    assert ratio > 2.0
    text = markdown(report)
    assert f"{ratio:.2f}×" in text
    assert "| 50 % writes, 8 in flight | quick |" in text


async def test_a_report_shows_failures_and_survives_json() -> None:
    target = KnownTarget(0.0)
    target.fails = True
    workload = short()
    measurement = await measure(target, workload, {})
    report = Report(describe_machine(), ("failing",), (), (Cell(workload, "failing", (measurement,)),))
    assert "LookupError" in markdown(report)
    assert msgspec.json.decode(as_json(report), type=Report) == report


def test_the_file_system_of_a_folder_is_named(tmp_path: Path) -> None:
    if not Path("/proc/mounts").exists():
        pytest.skip("needs /proc")
    assert file_system(Path("/proc")) == "proc"
    assert file_system(tmp_path) not in ("proc", "unknown")
