"""What each consistency level costs: `python -m benchmarks.levels`; `--quick` to see that it works.

One agent, one call at a time, on three local nodes: the median latency of writes and reads at each level, in turn, call
by call, so that whatever else the machine does meets all of them alike. Beside them the same write on a cluster of one
node, which is what a write costs without any replica, running at the same time.

Ratios are to the one-node write, and for reads to the eventual read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.offered import machine_load
from crdt_spine import Consistency, Spine
from crdt_spine.bench.driver import percentile
from crdt_spine.cli.opening import run
from crdt_spine.supervisor import Supervisor

CONTENT = "the reviewer noted that the build is red again since the last merge " * 5  # 345 bytes
IDS = 200
Call = Callable[[int], Awaitable[object]]


async def measured(calls: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each call, by name."""
    with tempfile.TemporaryDirectory(prefix="spine-levels-") as folder:
        async with (
            Supervisor(Path(folder) / "three", nodes=3, nats_port=0, http_port=0) as three,
            Supervisor(Path(folder) / "one", nodes=1, nats_port=0, http_port=0) as one,
            Spine.connect(three.url, agent="levels") as spine,
            Spine.connect(one.url, agent="levels") as alone,
        ):
            steps: dict[str, Call] = {"write, one node": _write(alone, Consistency.EVENTUAL)}
            for level in Consistency:
                steps[f"write, {level.value}"] = _write(spine, level)
                steps[f"read, {level.value}"] = _read(spine, level)
            found: dict[str, list[float]] = {name: [] for name in steps}
            for number in range(warmup + calls):
                for name, step in steps.items():
                    begin = time.perf_counter()
                    await step(number)
                    if number >= warmup:
                        found[name].append(time.perf_counter() - begin)
            return found


def _id(number: int, level: Consistency) -> str:
    return f"{level.value}-{number % IDS}"


def _write(spine: Spine, level: Consistency) -> Call:
    return lambda number: spine.store(CONTENT, id=_id(number, level), tags=["ci"], consistency=level)


def _read(spine: Spine, level: Consistency) -> Call:
    return lambda number: spine.get(_id(number, level), consistency=level)


def summary(found: dict[str, list[float]]) -> list[dict[str, object]]:
    """A row for each: milliseconds, and the ratio."""
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    rows: list[dict[str, object]] = []
    for name, seconds in sorted(found.items(), key=lambda one: (not one[0].startswith("write"), one[0])):
        base = "write, one node" if name.startswith("write") else f"read, {Consistency.EVENTUAL.value}"
        rows.append(
            {
                "what": name,
                "p50 ms": round(medians[name] * 1e3, 3),
                "p99 ms": round(percentile(sorted(seconds), 99.0) * 1e3, 3),
                "ratio": round(medians[name] / medians[base], 2),
                "to": base,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000, help="of each kind and round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="each with fresh clusters (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="every round, and the medians of the rounds")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    calls, rounds, warmup = (20, 1, 5) if arguments.quick else (arguments.calls, arguments.rounds, IDS)
    each = [summary(run(measured(calls, warmup))) for _ in range(rounds)]
    middle = [
        {
            **rows[0],
            **{key: statistics.median(float(str(row[key])) for row in rows) for key in ("p50 ms", "p99 ms", "ratio")},
        }
        for rows in zip(*each, strict=True)
    ]
    if arguments.json:
        print(json.dumps({"rounds": each, "medians": middle, "load": machine_load()}))
        return
    for row in middle:
        print(f"{row['what']:<26} p50 {row['p50 ms']:>7.3f} ms  p99 {row['p99 ms']:>8.3f} ms  {row['ratio']:>5.2f} ×")
    print(machine_load())


if __name__ == "__main__":
    main()
