"""A thousand sessions on virtual time, through failovers and from hand to hand: by their tokens they never see less
than they may rely on; without, they do."""

from __future__ import annotations

from collections import Counter

import pytest
from session_bed import RULES, World

SESSIONS = 20  # in a world
OPERATIONS = 25  # of a session


def run(seeds: range, without: str = "") -> tuple[Counter[str], Counter[str]]:
    """Violations by guarantee, and what happened."""
    found: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed, SESSIONS, OPERATIONS, without)
        world.run()
        found += world.found
        counts += world.counts
    return found, counts


@pytest.mark.timeout(120)
def test_a_thousand_sessions_keep_all_four_guarantees() -> None:
    found, counts = run(range(1_000 // SESSIONS))
    assert not found
    assert counts["deaths"] > 100 and counts["tokens handed over"] > 1_000, counts
    assert counts["answers of another node"] > 3_000, counts


@pytest.mark.timeout(60)
@pytest.mark.parametrize("rule", RULES)
def test_without_a_part_of_it_guarantees_are_violated(rule: str) -> None:
    found, _ = run(range(5), rule)
    assert found.keys() >= RULES[rule], found


def test_a_world_is_one_seed() -> None:
    first, second = World(7, SESSIONS, OPERATIONS, "token on reads"), World(7, SESSIONS, OPERATIONS, "token on reads")
    first.run()
    second.run()
    assert (first.now, first.found, first.counts) == (second.now, second.found, second.counts)
