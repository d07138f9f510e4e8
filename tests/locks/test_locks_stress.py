"""A short run of `make locks`, and that its checkers find what they are to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contender import TTL_SECONDS
from recorded import holders
from stress import History, problems, run

pytestmark = [pytest.mark.asyncio, pytest.mark.xdist_group("locks")]


async def test_contenders_that_are_killed_and_paused_never_hold_a_lock_twice(tmp_path: Path) -> None:
    history = await run(tmp_path, seed=5, contenders=10, acquisitions=60, seconds_max=100, fault_seconds=1.0)
    assert problems(history) == []
    assert holders(history.ordered(), TTL_SECONDS) == []
    assert history.disturbed
    assert holders(twice(history.ordered()), TTL_SECONDS)


def twice(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same history, but that another one is given the lock as well, before its holder has written something."""
    wrote = {event["token"] for event in events if event["event"] == "wrote"}
    number, given = next((n, e) for n, e in enumerate(events) if e["event"] == "granted" and e["token"] in wrote)
    at, token = given["at"], given["token"]
    other = [
        {"at": at + 1e-6, "agent": "other", "event": "asked"},
        {"at": at + 2e-6, "agent": "other", "event": "granted", "token": token + 0.5},
    ]
    return [*events[: number + 1], *other, *events[number + 1 :]]


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


def held(*events: tuple[float, str, str, int]) -> list[str]:
    return holders(
        [{"at": at, "agent": agent, "event": event, "token": token} for at, agent, event, token in events], 2.0
    )


async def test_two_who_hold_the_lock_at_a_time_are_found_though_their_tokens_rise() -> None:
    first = [(1.0, "a", "asked", 0), (1.1, "a", "granted", 5)]
    second = [(1.5, "b", "asked", 0), (1.6, "b", "granted", 6)]
    late = [(3.5, "b", "asked", 0), (3.6, "b", "granted", 6)]
    assert "who held the lock when" in held(*first, *second)[0]
    assert held(*first, (1.2, "a", "writes", 5), (1.3, "a", "wrote", 5), (1.4, "a", "released", 5), *second) == []
    assert held(*first, *late) == [], "its time had passed"
    assert held(*first, *late, (3.7, "a", "writes", 5), (3.8, "a", "wrote", 5)), "and wrote behind the next one"
    assert held(*first, (1.4, "a", "released", 5), (1.5, "b", "asked", 0), (1.6, "b", "granted", 4)), "it did not rise"
    unheard = [(1.2, "c", "asked", 0), (1.3, "c", "gave up", 0)]
    assert held(*first, *unheard, (1.4, "a", "released", 5), *second) == []
