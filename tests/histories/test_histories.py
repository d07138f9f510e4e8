"""Histories of real processes under real faults: strong ones are linearizable, others are found not to be.

Many more, and longer ones: `make histories`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from histories import history
from histories.broken import RULES, take_away
from histories.history import Operation, by_key
from histories.linearizability import Verdict
from histories.models import model_of, verdicts
from histories.recording import Recorded, record
from histories.shortest import shortest

pytestmark = [pytest.mark.xdist_group("histories"), pytest.mark.timeout(240)]

LOOKED_FOR_SECONDS = 120.0  # until one of the histories shows what is looked for; a fast machine makes many meanwhile
HISTORIES_MAX = 1000
BROKEN_MIN = 3  # times that something breaks while nodes that keep all rules are looked at
AIMED_OPERATIONS = 120  # of those under one fault after the other
SHOWN_MAX = 12  # operations that contradict each other; usually two or three


async def test_strong_operations_are_linearizable_while_nodes_and_links_fail(tmp_path: Path) -> None:
    made = record(
        tmp_path, count=HISTORIES_MAX, operations=500, seed="1", level="strong",
        faults=("kill", "stop", "cut", "delay", "stall-in", "half-open", "clock", "broker-kill"),
    )  # fmt: skip
    done: list[Operation] = []
    async for one in _until_broken(made):
        history.write(tmp_path / f"{one.name}.jsonl", one.operations)
        done += history.read(tmp_path / f"{one.name}.jsonl")
        assert _wrong(one.operations) == [], f"the history is in {tmp_path / one.name}.jsonl"
    answered = [one for one in done if one.outcome == "ok"]
    assert len(answered) > 400, "there was hardly any load"
    kinds = {one.operation for one in answered if "refused" not in one.output}
    assert kinds == {"read", "write", "cas", "update", "delete", "acquire"}
    assert any(one.output.get("refused") == "version" for one in answered), "nobody was too late"


async def test_eventual_operations_are_found_not_to_be(tmp_path: Path) -> None:
    await _found(tmp_path, "eventual", ("cut", "half-open"))


async def test_strong_writes_with_reads_of_any_one_replica_are_found_not_to_be(tmp_path: Path) -> None:
    await _found(tmp_path, "strong", ("cut", "half-open"), "primary-reads")


@pytest.mark.parametrize("rule", ["reads", "majority"])
async def test_nodes_that_do_not_keep_a_rule_are_found_out(rule: str, tmp_path: Path) -> None:
    await _found(tmp_path, "strong", RULES[rule].faults, rule, AIMED_OPERATIONS, aimed=True)


async def test_under_the_same_faults_nodes_that_keep_all_rules_are_linearizable(tmp_path: Path) -> None:
    faults = RULES["reads"].faults
    made = record(
        tmp_path, count=HISTORIES_MAX, operations=AIMED_OPERATIONS, seed="1", level="strong", faults=faults, keys=2,
        aimed=True,
    )  # fmt: skip
    async for one in _until_broken(made):
        assert _wrong(one.operations) == []


async def _until_broken(made: AsyncGenerator[Recorded, None]) -> AsyncIterator[Recorded]:
    """Histories until enough has been broken in them: a fast machine may be done with one before the first fault."""
    broken, until = 0, time.monotonic() + LOOKED_FOR_SECONDS
    async with contextlib.aclosing(made):
        async for one in made:
            yield one
            broken += sum(one.faults.values())
            if broken >= BROKEN_MIN or time.monotonic() > until:
                break
    assert broken >= BROKEN_MIN, "hardly anything was broken"


async def _found(
    folder: Path, level: str, faults: tuple[str, ...], without: str = "", operations: int = 500, *, aimed: bool = False
) -> None:
    """Record until a history is not linearizable, and show a person why."""
    made = record(
        folder, count=HISTORIES_MAX, operations=operations, seed="1", level=level, faults=faults, without=without,
        keys=2, aimed=aimed,
    )  # fmt: skip
    wrong: list[Verdict] = []
    recorded: list[Operation] = []
    until = time.monotonic() + LOOKED_FOR_SECONDS
    async for one in made:
        recorded, wrong = one.operations, _wrong(one.operations)
        if wrong or time.monotonic() > until:
            break
    await made.aclose()
    assert wrong, "nothing showed"
    assert wrong[0].stuck is not None
    history_of_one = by_key(recorded)[wrong[0].key]
    part = shortest(history_of_one, model_of(history_of_one))
    assert part is not None and 1 <= len(part.operations) <= SHOWN_MAX


def _wrong(operations: list[Operation]) -> list[Verdict]:
    return [verdict for verdict in verdicts(operations) if verdict.linearizable is not True]


def test_only_known_rules_are_taken_away() -> None:
    with pytest.raises(KeyError, match="no rule"):
        take_away("deps")
