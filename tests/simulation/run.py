"""Run seeds of the simulation; say how many ran and how many failed, and tell the story of those that failed.

python tests/simulation/run.py --seeds 1000 --first 0               seeds 0 … 999; exit 1 if any failed
python tests/simulation/run.py --seeds 1 --first 4711 --story       the whole story of one seed
python tests/simulation/run.py --without deps                       one rule less: some seeds must fail
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from functools import partial
from multiprocessing import Pool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "histories"))
sys.path.insert(0, str(Path(__file__).parent))

from simulator.rules import RULES
from simulator.run import Outcome, run
from simulator.scenario import SCENARIOS

PROGRESS_SECONDS = 15.0
STORIES_MAX = 3  # told in full length; the other failures are one line each


def main() -> int:
    """0: all seeds are well; 1: some failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: as many as cores)")
    parser.add_argument("--without", choices=RULES, help="; ".join(f"{name}: {text}" for name, text in RULES.items()))
    parser.add_argument("--scenario", choices=SCENARIOS, help="not the one that the seed chooses")
    parser.add_argument("--weak", action="store_true", help="nobody asks for a strong operation")
    parser.add_argument("--story", action="store_true", help="tell the whole story of every seed")
    arguments = parser.parse_args()

    began = told = time.monotonic()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    scenario = SCENARIOS.get(arguments.scenario)
    work = partial(_run, without=arguments.without, scenario=scenario, weak=arguments.weak, story=arguments.story)
    failed: list[int] = []
    counts: Counter[str] = Counter()
    ran = 0
    with Pool(arguments.jobs) as pool:
        for outcome in pool.imap(work, seeds, chunksize=4):
            ran += 1
            counts.update(outcome.counts)
            if outcome.problem:
                failed.append(outcome.seed)
                full = len(failed) <= STORIES_MAX
                print(outcome.read() if full else f"seed {outcome.seed}: {outcome.problem.splitlines()[0]}")
                print("  again:", *_command(outcome.seed, arguments), flush=True)
            elif arguments.story:
                print(outcome.read(len(outcome.story)))
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                print(f"{ran} of {len(seeds)} seeds ran, {len(failed)} failed", file=sys.stderr, flush=True)
    print(", ".join(f"{times} × {what}" for what, times in sorted(counts.items())))
    print(f"{ran} seeds ran, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    if failed:
        print("failed:", *failed[:50])
    return 1 if failed else 0


def _command(seed: int, arguments: argparse.Namespace) -> list[str]:
    """What runs this seed again, with its whole story."""
    command = [".venv/bin/python", "tests/simulation/run.py", "--seeds", "1", "--first", str(seed), "--story"]
    for name in ("scenario", "without"):
        value = getattr(arguments, name)
        command += [f"--{name}", value] if value else []
    return command + ["--weak"] * arguments.weak


def _run(seed: int, without: str | None, scenario: object, weak: bool, story: bool) -> Outcome:
    outcome = run(seed, without, scenario, strong=not weak)  # type: ignore[arg-type]
    if not outcome.problem and not story:
        outcome.story.clear()  # it need not travel between processes
    return outcome


if __name__ == "__main__":
    sys.exit(main())
