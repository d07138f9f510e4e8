"""Replicas through loss, doubling, reordering, partitions, crashes, skewed clocks, old disks, and nodes that come and
go: seeds must be well, and rules whose absence the checkers must notice. `make simulate` runs thousands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from simulator.boundaries import BOUNDARIES, MEMBERSHIP_BOUNDARIES, STRONG_BOUNDARIES
from simulator.rules import RULES
from simulator.run import run
from simulator.scenario import CRASHES, SCENARIOS

SEEDS_A_TEST = 25
SEEDS_A_SCENARIO = 15
STRONG_RULES = ("majority", "stranded")  # the others are looked at without strong operations
FIRST = {"stranded": 585}  # the seeds from which on a rule's absence shows soon; 0 for the others
RUN = Path(__file__).parent / "run.py"

#: Where a rule matters most, so that few seeds suffice.
REVEALING = {
    "deps": "syncs", "record-deps": "syncs", "skip-seen": "syncs", "last-page": "syncs", "seen-adds": "syncs",
    "no-holes": "syncs", "thread-order": "crashes", "rolled-back": "rollbacks", "journal-first": "full-disks",
    "retired": "retirements", "joined-first": "growth", "handed-over": "farewells", "level": "burials",
    "settled": "settling", "member-first": "growth", "given-up": "burials", "stranded": "burials",
}  # fmt: skip


@pytest.mark.parametrize("first", range(0, 8 * SEEDS_A_TEST, SEEDS_A_TEST))
def test_everything_is_well_once_the_trouble_is_over(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        outcome = run(seed)
        assert not outcome.problem, outcome.read()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_everything_is_well_where_it_is_hardest(scenario: str) -> None:
    for seed in range(SEEDS_A_SCENARIO):
        outcome = run(seed, scenario=SCENARIOS[scenario])
        assert not outcome.problem, outcome.read()


def test_an_append_that_is_heard_of_late_is_in_its_writers_past_with_all_it_was_built_on() -> None:
    outcome = run(9161, strong=False)
    assert not outcome.problem, outcome.read()


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(815, id="a newcomer whose clock is behind stores what was deleted and forgotten before it came"),
        pytest.param(1192, id="a node dies while who came for it is a member and has not all that a majority had"),
        pytest.param(621, id="an operation that was asked for again comes late, at a node that began anew"),
    ],
)
def test_what_once_went_wrong_is_well(seed: int) -> None:
    outcome = run(seed, strong=False)
    assert not outcome.problem, outcome.read()


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_some_seed_fails(rule: str) -> None:
    first = FIRST.get(rule, 0)
    for seed in range(first, first + 150):
        scenario = SCENARIOS[REVEALING.get(rule, "deletes")]
        outcome = run(seed, without=rule, scenario=scenario, strong=rule in STRONG_RULES)
        if outcome.problem:
            assert outcome.read().splitlines()[-1].strip()
            assert f"seed {seed}: " in outcome.read()
            return
    pytest.fail(f"no seed noticed that this is not kept: {RULES[rule]}")


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(1099, id="a primary an hour behind deletes, and the next one is asked again"),
        pytest.param(2499, id="a primary an hour behind compares and sets, and the next one is asked again"),
        pytest.param(9244, id="a page tells of a node's new name before the node itself does"),
        pytest.param(7996, id="a change is turned back, and who had come dies with what one other has"),
    ],
)
def test_what_once_went_wrong_beside_strong_operations_is_well(seed: int) -> None:
    outcome = run(seed)
    assert not outcome.problem, outcome.read()


def test_what_a_page_brought_of_a_node_that_was_given_up_comes_to_all() -> None:
    outcome = run(585, scenario=SCENARIOS["burials"])
    assert not outcome.problem, outcome.read()
    assert outcome.counts["stranded elsewhere"]


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
    for scenario in ("rollbacks", "retirements", "growth", "burials", "settling"):
        for seed in range(9):
            counts.update(run(seed, scenario=SCENARIOS[scenario]).counts)
    faults = ["desert", "crash", "pause", "part", "mend", "break off", "clock", "full disk", "copy", "roll back"]
    messages = ["sent", "lost", "doubled", "cut", "straggling"]
    changes = [
        "add", "remove", "replace", "remove dead", "replace dead", "cancel", "cancel dead", "cancel dead again",
        "named", "pulling", "member", "leaving", "dropped", "interrupted", "too late",
    ]  # fmt: skip
    for what in (
        *[f"fault {kind}" for kind in faults], *[f"message {kind}" for kind in messages],
        *[f"membership {kind}" for kind in changes], "tombstones collected", "torn rows found", "rows pruned",
        "operation done", "operation read",
        "operation strong cas", "operation strong cas version", "promises inherited", "histories checked",
        "reads with a token at another node", "operation thread read",
        "thread entries read", "retired", "reseeded", "told that it is dead", "refused from the dead",
    ):  # fmt: skip
        assert counts[what] > 0, f"{what} never happened: {counts}"


def test_nodes_crash_between_any_two_of_their_effects() -> None:
    counts: Counter[str] = Counter()
    for seed in range(30):
        outcome = run(seed, scenario=CRASHES)
        assert not outcome.problem, outcome.read()
        counts.update(outcome.counts)
    for where in BOUNDARIES + MEMBERSHIP_BOUNDARIES + STRONG_BOUNDARIES:
        assert counts[f"crash {where}"] > 0, f"none crashed {where}: {counts}"


def test_the_program_says_how_many_ran_and_fails_when_one_did() -> None:
    well = _run("--seeds", "4", "--jobs", "2")
    assert "4 seeds ran, 0 failed" in well.stdout
    assert well.returncode == 0
    ill = _run("--seeds", "2", "--without", "persist-before-send")
    assert "2 seeds ran, 2 failed" in ill.stdout
    assert "seed 0: publishing: " in ill.stdout
    again = next(line for line in ill.stdout.splitlines() if "again: " in line).split("run.py ")[1]
    assert again == "--seeds 1 --first 0 --story --without persist-before-send"
    assert "seed 0: publishing: " in _run(*again.split()).stdout
    assert ill.returncode == 1


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUN), *arguments], capture_output=True, text=True, check=False)
