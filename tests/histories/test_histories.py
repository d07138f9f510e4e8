"""Histories of real processes under real faults: strong ones are linearizable, others are found not to be.

Many more, and longer ones: `make histories`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from histories import history
from histories.broken import take_away
from histories.history import Operation
from histories.linearizability import Verdict, check
from histories.models import Register
from histories.recording import record

pytestmark = [pytest.mark.xdist_group("histories"), pytest.mark.timeout(240)]

ROUNDS_MAX = 12  # of histories that are recorded until one shows what is wrong


async def test_strong_operations_are_linearizable_while_nodes_and_links_fail(tmp_path: Path) -> None:
    made = record(
        tmp_path, count=2, operations=500, seed="1", level="strong",
        faults=("kill", "stop", "cut", "delay", "stall-in", "half-open", "clock", "broker-kill"),
    )  # fmt: skip
    done: list[Operation] = []
    async for one in made:
        history.write(tmp_path / f"{one.name}.jsonl", one.operations)
        done += history.read(tmp_path / f"{one.name}.jsonl")
        assert _wrong(one.operations) == [], f"the history is in {tmp_path / one.name}.jsonl"
    answered = [one for one in done if one.outcome == "ok"]
    assert len(answered) > 400, "there was hardly any load"
    kinds = {one.operation for one in answered if "refused" not in one.output}
    assert kinds == {"read", "write", "cas", "update", "delete"}
    assert any(one.output.get("refused") == "version" for one in answered), "nobody was too late"


async def test_eventual_operations_are_found_not_to_be(tmp_path: Path) -> None:
    await _found(tmp_path, "eventual", ("cut", "half-open"))


async def test_strong_writes_with_reads_of_any_one_replica_are_found_not_to_be(tmp_path: Path) -> None:
    await _found(tmp_path, "strong", ("cut", "half-open"), "primary-reads")


async def _found(folder: Path, level: str, faults: tuple[str, ...], without: str = "") -> None:
    """Record until a history is not linearizable."""
    made = record(
        folder, count=ROUNDS_MAX, operations=500, seed="1", level=level, faults=faults, without=without, keys=2
    )
    wrong: list[Verdict] = []
    async for one in made:
        wrong = _wrong(one.operations)
        if wrong:
            break
    await made.aclose()
    assert wrong, "nothing showed"
    assert wrong[0].stuck is not None


def _wrong(operations: list[Operation]) -> list[Verdict]:
    return [verdict for verdict in check(operations, Register()) if verdict.linearizable is not True]


def test_only_known_rules_are_taken_away() -> None:
    with pytest.raises(KeyError, match="no rule"):
        take_away("deps")
