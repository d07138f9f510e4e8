"""Replicas through loss, doubling, reordering, partitions, crashes, skewed clocks and old disks: seeds must be well,
and rules whose absence the checkers must notice. `make simulate` runs thousands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from simulator.rules import RULES
from simulator.run import run
from simulator.scenario import DELETES, FULL_DISKS, ROLLBACKS, SYNCS, Scenario

SEEDS_A_TEST = 25
RUN = Path(__file__).parent / "run.py"

#: Where a rule matters most, so that few seeds suffice.
REVEALING = {
    "deps": SYNCS, "record-deps": SYNCS, "skip-seen": SYNCS, "last-page": SYNCS, "rolled-back": ROLLBACKS,
    "journal-first": FULL_DISKS,
}  # fmt: skip


@pytest.mark.parametrize("first", range(0, 8 * SEEDS_A_TEST, SEEDS_A_TEST))
def test_everything_is_well_once_the_trouble_is_over(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        outcome = run(seed)
        assert not outcome.problem, outcome.read()


@pytest.mark.parametrize(
    "scenario", [SYNCS, DELETES, ROLLBACKS, FULL_DISKS], ids=["syncs", "deletes", "rollbacks", "full-disks"]
)
def test_everything_is_well_where_it_is_hardest(scenario: Scenario) -> None:
    for seed in range(SEEDS_A_TEST):
        outcome = run(seed, scenario=scenario)
        assert not outcome.problem, outcome.read()


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_some_seed_fails(rule: str) -> None:
    for seed in range(150):
        outcome = run(seed, without=rule, scenario=REVEALING.get(rule, DELETES))
        if outcome.problem:
            assert outcome.read().splitlines()[-1].strip()
            assert f"seed {seed}: " in outcome.read()
            return
    pytest.fail(f"no seed noticed that this is not kept: {RULES[rule]}")


def test_a_seed_is_one_run() -> None:
    assert run(7).hash == run(7).hash
    assert run(7).hash != run(8).hash


def test_a_seed_is_the_same_run_in_another_process_with_other_hashes() -> None:
    stories = [
        subprocess.run(
            [sys.executable, str(RUN), "--seeds", "2", "--first", "7", "--jobs", "1", "--story"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
        ).stdout.splitlines()[:-1]  # the last line says how long it took
        for hash_seed in ("1", "2")
    ]  # fmt: skip
    assert stories[0] == stories[1]
    assert len(stories[0]) > 100


def test_every_fault_really_happens() -> None:
    counts: Counter[str] = Counter()
    for seed in range(20):
        counts.update(run(seed).counts)
    for seed in range(5):
        counts.update(run(seed, scenario=ROLLBACKS).counts)
    faults = ["crash", "pause", "part", "mend", "break off", "clock", "full disk", "copy", "roll back"]
    messages = ["sent", "lost", "doubled", "cut"]
    for what in (
        *[f"fault {kind}" for kind in faults], *[f"message {kind}" for kind in messages], "tombstones collected",
        "operation done", "operation read",
    ):  # fmt: skip
        assert counts[what] > 0, f"{what} never happened: {counts}"


def test_the_program_says_how_many_ran_and_fails_when_one_did() -> None:
    well = _run("--seeds", "4", "--jobs", "2")
    assert "4 seeds ran, 0 failed" in well.stdout
    assert well.returncode == 0
    ill = _run("--seeds", "2", "--without", "persist-before-send")
    assert "2 seeds ran, 2 failed" in ill.stdout
    assert "seed 0: publishing: " in ill.stdout
    assert ill.returncode == 1


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUN), *arguments], capture_output=True, text=True, check=False)
