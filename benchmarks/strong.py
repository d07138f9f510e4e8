"""Strong operations beside etcd with three members: `python -m benchmarks.strong`; `--quick` to see that it works.

64 in flight, half of them writes, three nodes here and three members there, systems in turn, each with fresh data: the
same machine in the same minutes. What etcd is and does there: etcd.py. Where there is no etcd, or no client for it, it
says so and measures crdt_spine alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.etcd import EtcdSystem, NoEtcd, find_etcd, version_of
from crdt_spine.bench.command import bench_command, run_fast
from crdt_spine.bench.report import as_json, markdown, tables
from crdt_spine.bench.rounds import System
from crdt_spine.bench.spine_system import OwnCluster
from crdt_spine.bench.workload import Workload
from crdt_spine.memory import Consistency


def etcd_or_reason(data: Path | None) -> tuple[list[System], str]:
    """etcd as a system, or none, and what there is to say of it."""
    try:
        import etcd3aio

        program = find_etcd()
    except (NoEtcd, ImportError) as missing:
        return [], f"NO PEER: {missing}" + (": pip install etcd3aio" if isinstance(missing, ImportError) else "")
    client = getattr(etcd3aio, "__version__", "")
    return [EtcdSystem(program, data)], f"{version_of(program)}, etcd3aio {client}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64])
    parser.add_argument("--write-share", type=float, nargs="+", default=[50.0], help="percent")
    parser.add_argument("--ids", type=int, default=20_000)
    parser.add_argument("--data", type=Path, default=None, help="the folder for what is stored")
    parser.add_argument("--level", choices=[level.value for level in Consistency], default=Consistency.STRONG.value)
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="every measurement of every round")
    output.add_argument("--markdown", action="store_true", help="the tables of RESULTS.md")
    arguments = parser.parse_args()
    rounds, seconds, warmup, ids = arguments.rounds, arguments.seconds, 1.0, arguments.ids
    if arguments.quick:
        rounds, seconds, warmup, ids = 1, 2.0, 0.5, min(ids, 500)
    workloads = [
        Workload(write_share=share / 100, in_flight=depth, seconds=seconds, warmup_seconds=warmup, ids=ids)
        for share in arguments.write_share
        for depth in arguments.in_flight
    ]
    peers, note = etcd_or_reason(arguments.data)
    print(note, file=sys.stderr, flush=True)
    systems: list[System] = [OwnCluster(arguments.data, consistency=Consistency(arguments.level)), *peers]
    report = run_fast(
        bench_command(
            systems, workloads, rounds=rounds, data=arguments.data, notes=[note],
            progress=lambda system, workload, found: print(
                f"{system}, {workload.name}: {found.rate:,.0f} ops/s, errors {found.errors or 'none'}",
                file=sys.stderr, flush=True,
            ),
        )
    )  # fmt: skip
    if arguments.json:
        sys.stdout.buffer.write(as_json(report) + b"\n")
    elif arguments.markdown:
        print(markdown(report))
    else:
        console = Console()
        console.print(*report.notes)
        for table in tables(report):
            console.print(table)


if __name__ == "__main__":
    main()
