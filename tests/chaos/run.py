"""One run: a cluster of real processes, agents at work, faults by a seed; then the recorded history is checked.

python tests/chaos/run.py --seed 7 --seconds 120 --faults kill,stop --nodes 3      exit 1 if something does not hold

The history of a run that fails is kept, and its folder printed; `--check FOLDER` looks at one again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "simulation")]

from chaos import packets  # noqa: E402
from chaos.agents import REGISTERS, TAGGED, WITHOUT  # noqa: E402
from chaos.checkers import CHECKERS, check  # noqa: E402
from chaos.cluster import Cluster  # noqa: E402
from chaos.ending import end  # noqa: E402
from chaos.faults import FAULTS, PACKETS, Faults, Stops  # noqa: E402
from chaos.history import History, Op, Recorder  # noqa: E402

from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent  # noqa: E402

AGENTS = 10
PROCESSES = 2
SUBSCRIBERS = 2
SETTLE_SECONDS_MAX = 60.0  # for subscribers, after the end
START_SECONDS_MAX = 60.0
TELL_SECONDS = 10.0
KINDS = ", ".join((*FAULTS, *PACKETS))


async def chaos(
    folder: Path, *, seed: str, seconds: float, faults: tuple[str, ...], nodes: int, say: bool = True, without: str = ""
) -> tuple[list[str], Counter[str]]:
    """One run; what does not hold, and how often each fault happened. The history is in `folder`/history."""
    logs = folder / "history"
    logs.mkdir(parents=True)
    recorder = Recorder(logs / "main.jsonl")
    cluster = Cluster(folder / "cluster", nodes)
    children: list[BoundProcess] = []
    try:
        await cluster.start()
        partitions = len(cluster.holders())
        await _preload(cluster, recorder)
        listeners = [f"subscriber-{number}" for number in range(SUBSCRIBERS)]
        until = time.monotonic() + seconds
        ears = await _agents(
            cluster, listeners, f"{seed}/ears", partitions, until + START_SECONDS_MAX, logs / "ears.jsonl"
        )
        children.append(ears)
        await _until_they_listen(logs, listeners, ears)
        until = time.monotonic() + seconds
        names = [f"a{number}" for number in range(AGENTS)]
        for number in range(PROCESSES):
            out = logs / f"agents-{number}.jsonl"
            working = await _agents(cluster, names[number::PROCESSES], seed, partitions, until, out, without)
            children.append(working)
        kinds = Stops if without == "deadlines" else Faults
        chance = kinds(cluster, random.Random(f"{seed}/faults"), recorder, faults)
        breaking = asyncio.create_task(chance.run(until))
        while not breaking.done():
            await asyncio.wait([breaking], timeout=TELL_SECONDS)
            if say:
                _tell(logs, until, chance.counts)
        await breaking
        await _over(children[1:], SETTLE_SECONDS_MAX)
        await end(cluster, recorder, chance.problems)
        await _over([ears], SETTLE_SECONDS_MAX)
    finally:
        for child in children:
            await child.stop(0)
        await cluster.stop()
        recorder.close()
    return check(History.read(sorted(logs.glob("*.jsonl")))), chance.counts


async def _preload(cluster: Cluster, recorder: Recorder) -> None:
    for kind, count in (("register", REGISTERS), ("tagged", TAGGED)):
        for number in range(count):
            id, began = f"{kind[0]}-{number}", time.monotonic()
            await cluster.observer.store(f"first.{id}", id=id, tags=[kind])
            recorder.add(
                Op(
                    session="observer", do="store", kind=kind, level="read-your-writes", call=began,
                    back=time.monotonic(), outcome="ok", id=id, value=f"first.{id}",
                )
            )  # fmt: skip


async def _agents(
    cluster: Cluster, names: list[str], seed: str, partitions: int, until: float, out: Path, without: str = ""
) -> BoundProcess:
    """A process with these agents, each behind a link of its own."""
    urls = [f"{name}={(await cluster.link_for(name)).url}" for name in names]
    command = [sys.executable, "-m", "chaos.agents", "--agents", *urls, "--seed", seed, "--until", str(until)]
    with out.with_suffix(".log").open("wb") as log:
        return await spawn_bound_to_parent(
            [*command, "--partitions", str(partitions), "--out", str(out), "--without", without],
            output=log,
            environment={"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        )


async def _until_they_listen(logs: Path, names: list[str], process: BoundProcess) -> None:
    async with asyncio.timeout(START_SECONDS_MAX):
        while not all((logs / f"ears.{name}").exists() for name in names):
            assert not process.exited.is_set(), (logs / "ears.log").read_text()
            await asyncio.sleep(0.05)


async def _over(children: list[BoundProcess], seconds: float) -> None:
    """Wait until these have ended by themselves, for so long."""
    waits = [asyncio.ensure_future(child.exited.wait()) for child in children]
    await asyncio.wait(waits, timeout=seconds)
    for wait in waits:
        wait.cancel()


def _tell(logs: Path, until: float, faults: Counter[str]) -> None:
    lines = sum(path.read_bytes().count(b"\n") for path in logs.glob("agents-*.jsonl"))
    left = max(0.0, until - time.monotonic())
    broken = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
    print(f"{left:4.0f} s left, {lines:,} operations; faults: {broken or 'none yet'}", flush=True)


def _summary(history: History, faults: Counter[str]) -> str:
    outcomes = Counter(f"{op.do} {op.outcome}" for op in history.ops)
    lines = [f"  {name:<22} {count:>7,}" for name, count in sorted(outcomes.items())]
    lines.append("faults: " + ", ".join(f"{count} × {name}" for name, count in sorted(faults.items())))
    if history.end is not None:
        lines.append(
            f"{len(history.ops):,} operations, {len(history.told):,} updates told, {len(history.final()):,} memories; "
            f"replicas equal after {history.end.converged - history.end.healed:.1f} s"
        )
    return "\n".join(lines)


def main() -> int:
    """0: everything holds; 1: something does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", default=None, help="chooses faults and operations (default: a new one)")
    parser.add_argument("--seconds", type=float, default=150.0, help="of faults (default %(default)s)")
    parser.add_argument("--faults", default="", help=f"some of {KINDS}, by commas (default: all)")
    parser.add_argument("--nodes", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--without", choices=WITHOUT, default="", help="; ".join(map(": ".join, WITHOUT.items())))
    parser.add_argument("--check", type=Path, help="the folder of a history: no run, only look at it again")
    arguments = parser.parse_args()
    if arguments.check is not None:
        return _verdict(check(History.read(sorted(arguments.check.glob("*.jsonl")))))
    usual = ("stop",) if arguments.without == "deadlines" else (*FAULTS, *PACKETS)
    faults = tuple(arguments.faults.split(",")) if arguments.faults else usual
    if unknown := set(faults) - FAULTS.keys() - PACKETS.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {KINDS}")
    if arguments.nodes < 3:
        parser.error("--nodes must be 3 or more")
    faults = _with_packets(faults, asked=bool(arguments.faults))
    seed = arguments.seed or str(random.SystemRandom().randrange(1_000_000))
    print(f"seed {seed}, {arguments.seconds:g} s, {arguments.nodes} nodes, faults: {', '.join(faults)}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="spine-chaos-"))
    keep = True
    try:
        violations, counts = asyncio.run(
            chaos(
                folder,
                seed=seed,
                seconds=arguments.seconds,
                faults=faults,
                nodes=arguments.nodes,
                without=arguments.without,
            )
        )
        print(_summary(History.read(sorted((folder / "history").glob("*.jsonl"))), counts))
        keep = bool(violations)
        return _verdict(violations)
    finally:
        if keep:
            print(f"the history is kept in {folder / 'history'}")
            for data in [path for path in (folder / "cluster").glob("*") if path.name != "copies"]:
                for log in data.glob("*.log"):
                    shutil.copy(log, folder / "history" / f"{data.name}-{log.name}")
            shutil.rmtree(folder / "cluster", ignore_errors=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _with_packets(faults: tuple[str, ...], *, asked: bool) -> tuple[str, ...]:
    """The faults that can happen here. Where packets can be lost, this program begins anew, in a namespace; where they
    can't, it says why: those faults are left out, or, if they were asked for, it ends with 2."""
    if packets.inside() or not set(faults) & PACKETS.keys():
        return faults
    reason = packets.why_not()
    if not reason:
        packets.enter([sys.executable, *sys.argv])
    print(f"without {', '.join(PACKETS)}: {reason}", flush=True)
    if asked:
        sys.exit(2)
    return tuple(name for name in faults if name not in PACKETS)


def _verdict(violations: list[str]) -> int:
    for violation in violations[:20]:
        print("VIOLATION", violation)
    if violations:
        print(f"{len(violations)} violations")
    else:
        print(f"all of it holds: {', '.join(CHECKERS)}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
