"""The `spine bench` command; `benchmarks/run.py` and `benchmarks/peers.py` are the same with other defaults."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import click
import msgspec
from rich.console import Console

from crdt_spine.bench.driver import Measurement
from crdt_spine.bench.jetstream import JetStreamSystem
from crdt_spine.bench.machine import describe_machine
from crdt_spine.bench.report import as_json as json_text
from crdt_spine.bench.report import markdown, tables
from crdt_spine.bench.rounds import Report, System, compare
from crdt_spine.bench.spine_system import OwnCluster, RunningCluster
from crdt_spine.bench.workload import STANDARD, Workload
from crdt_spine.broker.binary import find_nats_server
from crdt_spine.errors import ConfigError, ConnectionFailed, SpineError
from crdt_spine.memory import Consistency

T = TypeVar("T")

QUICK_SECONDS: Final = 2.0
QUICK_WARMUP_SECONDS: Final = 0.5


async def bench_command(
    systems: Sequence[System],
    workloads: Sequence[Workload],
    *,
    rounds: int = 1,
    data: Path | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[str, Workload, Measurement], None] = lambda system, workload, measurement: None,
) -> Report:
    """Run the workloads on the systems; a report. Raises SpineError where a system can't be started."""
    try:
        server: str | None = str(find_nats_server())
    except ConfigError:
        server = None  # none is needed against a running cluster
    return await compare(
        systems,
        workloads,
        rounds=rounds,
        machine=describe_machine(data, server),
        notes=notes,
        progress=progress,
    )


def choose(
    shares: Sequence[float], depths: Sequence[int], rates: Sequence[float], seconds: float | None, quick: bool
) -> list[Workload]:
    """The workloads that the options mean: the standard ones, unless some are named."""
    if shares or depths or rates:
        chosen = [Workload(write_share=share, rate=rate) for share in shares or (0.5,) for rate in rates]
        if depths or not rates:
            chosen += [Workload(write_share=s, in_flight=depth) for s in shares or (0.5,) for depth in depths or (256,)]
    else:
        chosen = list(STANDARD)
    if quick:
        chosen = [
            msgspec.structs.replace(one, seconds=QUICK_SECONDS, warmup_seconds=QUICK_WARMUP_SECONDS) for one in chosen
        ]
    if seconds is not None:
        chosen = [msgspec.structs.replace(one, seconds=seconds) for one in chosen]
    return chosen


def run_fast(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one; every system is measured on the same loop. Raises SystemExit on SIGTERM, once
    what was made has been taken away again."""

    async def until_told_to_end() -> T:
        task = asyncio.ensure_future(main)
        with contextlib.suppress(NotImplementedError):  # Windows
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(until_told_to_end())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


@click.command("bench", context_settings={"show_default": True})
@click.option("--server", envvar="SPINE_SERVER", help="A running cluster; without it an own one is started and ended.")
@click.option(
    "--system",
    "names",
    type=click.Choice(["spine", "jetstream", "jetstream-direct"]),
    multiple=True,
    default=("spine",),
    help="What is measured; several: side by side, with the ratios. The peer's bucket is as nats-py makes it, or "
    "with direct gets: any server may answer, and late. Repeatable.",
)
@click.option("--write-share", "shares", type=click.FloatRange(0, 100), multiple=True, help="Percent. Repeatable.")
@click.option("--in-flight", "depths", type=click.IntRange(1, 10_000), multiple=True, help="Callers. Repeatable.")
@click.option(
    "--rate", "rates", type=click.FloatRange(1, 10_000_000), multiple=True, help="Open loop: operations a second."
)
@click.option("--seconds", type=click.FloatRange(0.1, 86_400), help="Measured per workload and round; 5 unless given.")
@click.option("--quick", is_flag=True, help="2 seconds each: to see that it works, not to publish.")
@click.option("--rounds", type=click.IntRange(1, 100), default=1, help="How often each is measured; medians count.")
@click.option("--nodes", type=click.IntRange(1, 32), default=3, help="Of the own cluster.")
@click.option(
    "--consistency",
    type=click.Choice([level.value for level in Consistency]),
    help="Of every operation; else the cluster's.",
)
@click.option("--sync-always", is_flag=True, help="The peer is durable before it acknowledges, as crdt_spine is.")
@click.option("--client-at", type=click.Choice(["leader", "follower"]), default="leader", help="The peer's client.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Where the systems keep what they store, for as long as they run; else the folder for temporary files.",
)
@click.option("--json", "as_json", is_flag=True, help="All measurements as one JSON document.")
@click.option("--markdown", "as_markdown", is_flag=True, help="The tables as Markdown.")
def bench(
    server: str | None,
    names: tuple[str, ...],
    shares: tuple[float, ...],
    depths: tuple[int, ...],
    rates: tuple[float, ...],
    seconds: float | None,
    quick: bool,
    rounds: int,
    nodes: int,
    consistency: str | None,
    sync_always: bool,
    client_at: str,
    data: Path | None,
    as_json: bool,
    as_markdown: bool,
) -> None:
    """Measure throughput, latency and CPU per operation.

    Without workload options: 50, 5 and 100 % writes with 64, 256 and 512 operations in flight, and an open loop at
    15,000 operations a second; 350-byte memories with two tags, 20,000 ids. Against a running cluster the load is
    real: its memories stay as they are, and the bench's own are deleted afterwards.
    """
    level = None if consistency is None else Consistency(consistency)
    systems: list[System] = []
    if "spine" in names:
        own = OwnCluster(data, nodes=nodes, consistency=level)
        systems.append(own if server is None else RunningCluster(server, consistency=level))
    for name in ("jetstream", "jetstream-direct"):
        if name in names:
            client: Literal["leader", "follower"] = "leader" if client_at == "leader" else "follower"
            direct = name == "jetstream-direct"
            systems.append(JetStreamSystem(data, sync_always=sync_always, client=client, direct_get=direct))
    workloads = choose([share / 100 for share in shares], depths, rates, seconds, quick)
    progress_to, results_to = Console(stderr=True), Console(width=None if sys.stdout.isatty() else 200)
    total, done = len(workloads) * len(systems) * rounds, 0

    def tell(system: str, workload: Workload, measurement: Measurement) -> None:
        nonlocal done
        done += 1
        failed = f", {sum(measurement.errors.values()):,} failed" if measurement.errors else ""
        progress_to.print(f"{done}/{total}  {workload.name}: {system} {measurement.rate:,.0f} ops/s{failed}")

    try:
        report = run_fast(
            bench_command(systems, workloads, rounds=rounds, data=data, notes=_notes(workloads, data), progress=tell)
        )
    except SpineError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(4 if isinstance(error, ConnectionFailed) else 1) from error
    if as_json:
        click.echo(json_text(report))
    elif as_markdown:
        click.echo(markdown(report), nl=False)
    else:
        results_to.print(report.machine.sentence(), highlight=False)
        for note in report.notes:
            results_to.print(f"- {note}", highlight=False)
        for table in tables(report):
            results_to.print(table)


def _notes(workloads: Sequence[Workload], data: Path | None) -> list[str]:
    first = workloads[0]
    notes = [
        f"{first.seconds:g} s measured after {first.warmup_seconds:g} s of warming up; {first.ids:,} ids, "
        f"{first.content_bytes}-byte memories, {first.tags} tags; one client; clients and servers share the machine.",
    ]
    if any(workload.rate is not None for workload in workloads):
        notes.append("Offered load: latency counts from when an operation should have started.")
    if describe_machine(data or Path(tempfile.gettempdir())).file_system == "tmpfs":
        notes.append("The data is in memory (tmpfs), where an fsync costs nothing: give --data a folder on a disk.")
    return notes


if __name__ == "__main__":
    bench.main(prog_name="spine bench")
