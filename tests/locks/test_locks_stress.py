"""A short run of `make locks`, and that its checkers find what they are to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stress import History, problems, run

pytestmark = [pytest.mark.asyncio, pytest.mark.xdist_group("locks")]


async def test_contenders_that_are_killed_and_paused_never_hold_a_lock_twice(tmp_path: Path) -> None:
    history = await run(tmp_path, seed=5, contenders=10, acquisitions=60, seconds_max=100, fault_seconds=1.0)
    assert problems(history) == []
    assert history.disturbed


def seen(*events: tuple[str, str, int]) -> History:
    history = History()
    for at, (agent, event, token) in enumerate(events):
        more: dict[str, Any] = {"token": token} if token else {}
        history.add({"at": float(at + 1), "agent": agent, "event": event, **more})
    return history


async def test_the_checkers_find_what_must_not_be() -> None:
    good = [("a", "asked", 0), ("a", "granted", 5), ("a", "writes", 5), ("a", "wrote", 5), ("a", "released", 5)]
    assert problems(seen(*good)) == []
    assert "twice" in problems(seen(*good, ("b", "asked", 0), ("b", "granted", 5)))[0]
    assert "after 5 had been" in problems(seen(*good, ("b", "asked", 0), ("b", "granted", 4)))[0]
    late = [("b", "asked", 0), ("b", "granted", 4), *good, ("b", "writes", 4), ("b", "wrote", 4)]
    assert "a write under 4 was taken after one under 5" in problems(seen(*late))
    barged = [("a", "asked", 0), ("a", "waiting", 0), ("b", "asked", 0), ("b", "granted", 6), ("a", "granted", 7)]
    assert "in line since" in problems(seen(*barged))[0]
    left = seen(*good, ("b", "asked", 0))
    left.add({"at": 100.0, "agent": "a", "event": "asked"})
    assert "left waiting" in problems(left)[0]
