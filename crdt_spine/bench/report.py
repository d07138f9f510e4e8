"""A report as a table for people, as Markdown for RESULTS.md, as JSON for programs.

Every figure is the median over the rounds; rates also show the least and the greatest, so that nobody reads a ratio
into noise. A ratio is the first system's rate over that of its row. Latencies are milliseconds, CPU is microseconds per
operation and process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from rich.table import Table

from crdt_spine.bench.driver import Latency, Measurement
from crdt_spine.bench.rounds import Cell, Report
from crdt_spine.bench.workload import Workload

Row = tuple[str, ...]

RATE_COLUMNS: Row = ("workload", "system", "ops/s", "least – greatest", "reads p50 / p99", "writes p50 / p99", "ratio")
CPU_COLUMNS: Row = ("workload", "system", "µs/op", "by process", "other load")


def rate_rows(report: Report) -> list[Row]:
    """Throughput and latency: a row for each workload and system."""
    return [
        (
            workload.name,
            cell.system,
            f"{cell.rate:,.0f}" + _remarks(cell),
            _spread(cell),
            _latency(cell, "reads"),
            _latency(cell, "writes"),
            _ratio(report, workload, cell.system),
        )
        for workload, cell in _cells(report)
    ]


def cpu_rows(report: Report) -> list[Row]:
    """CPU by process: a row for each workload and system."""
    rows: list[Row] = []
    for workload, cell in _cells(report):
        names = dict.fromkeys(name for measurement in cell.rounds for name in measurement.cpu_microseconds)
        by_process = ", ".join(f"{name} {_figure(cell.median(_cpu_of(name)))}" for name in names)
        others = cell.median(lambda measurement: measurement.others_cores)
        rows.append(
            (
                workload.name,
                cell.system,
                _figure(cell.median(lambda measurement: measurement.cpu_microseconds_total)),
                by_process,
                "?" if others is None else f"{others:.2f} cores",
            )
        )
    return rows


def tables(report: Report) -> list[Table]:
    """The report for a terminal."""
    rates = Table(*RATE_COLUMNS, title="Throughput and latency (ms)", title_justify="left")
    for index in (2, 4, 5, 6):
        rates.columns[index].justify = "right"
    cpu = Table(*CPU_COLUMNS, title="CPU per operation (µs)", title_justify="left")
    cpu.columns[2].justify = "right"
    for table, rows in ((rates, rate_rows(report)), (cpu, cpu_rows(report))):
        for row in rows:
            table.add_row(*row)
    return [rates, cpu]


def markdown(report: Report) -> str:
    """The report as Markdown: the machine, the notes and both tables."""
    rounds = max((len(cell.rounds) for cell in report.cells), default=0)
    lines = [report.machine.sentence() + ".", ""]
    lines += [f"- {note}" for note in (*report.notes, f"Medians of {rounds} rounds." if rounds > 1 else "One round.")]
    for title, columns, rows in (
        ("Throughput and latency (milliseconds)", RATE_COLUMNS, rate_rows(report)),
        ("CPU per operation (microseconds)", CPU_COLUMNS, cpu_rows(report)),
    ):
        lines += ["", f"### {title}", "", *_markdown_table(columns, rows)]
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> bytes:
    """All measurements of all rounds, one JSON document."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


def _markdown_table(columns: Row, rows: Iterable[Row]) -> list[str]:
    def line(cells: Row) -> str:
        return f"| {' | '.join(cells)} |"

    return [line(columns), line(("---",) * len(columns)), *map(line, rows)]


def _cells(report: Report) -> list[tuple[Workload, Cell]]:
    return [
        (workload, cell)
        for workload in report.workloads
        for system in report.systems
        if (cell := report.cell(workload, system)) is not None
    ]


def _cpu_of(process: str) -> Callable[[Measurement], float | None]:
    return lambda measurement: measurement.cpu_microseconds.get(process)


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _latency(cell: Cell, kind: str) -> str:
    def figure(percentile: str) -> str:
        def of(measurement: Measurement) -> float | None:
            latency: Latency | None = getattr(measurement, kind)
            return None if latency is None else getattr(latency, percentile)

        return _figure(cell.median(of))

    return "–" if all(getattr(each, kind) is None for each in cell.rounds) else f"{figure('p50')} / {figure('p99')}"


def _spread(cell: Cell) -> str:
    rates = [measurement.rate for measurement in cell.rounds]
    return f"{min(rates):,.0f} – {max(rates):,.0f}" if len(rates) > 1 else ""


def _ratio(report: Report, workload: Workload, other: str) -> str:
    ratio = report.ratio(workload, other)
    return "" if ratio is None else f"{ratio:.2f}×"


def _remarks(cell: Cell) -> str:
    """What must not be overlooked: failures, and an open loop that fell behind."""
    errors: dict[str, int] = {}
    for measurement in cell.rounds:
        for name, count in measurement.errors.items():
            errors[name] = errors.get(name, 0) + count
    remarks = [f"{count:,} {name}" for name, count in errors.items()]
    if cell.workload.rate is not None and (behind := cell.median(lambda measurement: measurement.backlog)):
        remarks.append(f"{behind:,.0f} behind at the end")
    return f" ({', '.join(remarks)})" if remarks else ""
