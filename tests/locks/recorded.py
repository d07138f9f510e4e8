"""What contenders saw, as a history of one lock for the linearizability checker (tests/histories/histories/models.py).

The checkers in stress.py look at tokens and writes; this one at who may have held the lock when. A lease ends at some
time, or never: at the earliest when its release begins, or its time has passed since it was asked for. Attempts that
were given up, or whose process was killed, are left out: had they been given a lease, the others' answers would be no
easier to explain. So is a write that was rejected, for who is paused in line may be given a lease that it never hears
of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "histories"))

from histories.history import Operation
from histories.linearizability import IMPOSSIBLE, Effect, State, check
from histories.models import Held, Lock

LOCK = "contended"


class LockByTokens(Lock):
    """The same lock, with what makes the search quick: all acquisitions are known to have happened, so each is next to
    the one with the next lower token; and a lease ends only where it is held."""

    def effects(self, history: Sequence[Operation]) -> list[Effect | None]:
        tokens = sorted(one.output["token"] for one in history if one.operation == "acquire")
        before = dict(zip(tokens, [0, *tokens], strict=False))
        found = zip(history, super().effects(history), strict=True)
        return [effect and _narrowed(effect, one, before) for one, effect in found]


def _narrowed(effect: Effect, operation: Operation, before: dict[int, int]) -> Effect:
    def apply(lock: Held) -> State:
        match operation.operation:
            case "acquire" if lock.token != before[operation.output["token"]]:
                return IMPOSSIBLE
            case "expire" if lock.lease != operation.input["lease"]:
                return IMPOSSIBLE
        return effect.apply(lock)

    return effect._replace(apply=apply)


def holders(events: Iterable[dict[str, Any]], ttl_seconds: float) -> list[str]:
    """Why no order of what happened explains what these events, in the order of time, say; empty where one does."""
    return [
        f"who held the lock when: {verdict.reason or 'not known'}, at {verdict.stuck}"
        for verdict in check(operations(events, ttl_seconds), LockByTokens())
        if not verdict.linearizable
    ]


def operations(events: Iterable[dict[str, Any]], ttl_seconds: float) -> list[Operation]:
    """The operations that events are the ends of."""
    done: list[Operation] = []
    asked: dict[str, int] = {}  # agent -> when
    held: dict[str, tuple[str, int]] = {}  # agent -> its lease, and when its time may have passed
    since: dict[str, int] = {}  # agent -> when what it does now began

    def add(lease: str, operation: str, invoke: int, returned: int, **more: Any) -> None:
        done.append(
            Operation(
                process=f"{lease}/{operation}", operation=operation, key=LOCK, input={"lease": lease}, invoke=invoke,
                returned=returned, **more,
            )
        )  # fmt: skip

    def ends(agent: str, at: int) -> None:
        lease, expires = held.pop(agent)
        add(lease, "expire", min(at, expires), at, outcome="unknown")

    for event in events:
        agent, at = event["agent"], int(event["at"] * 1e9)
        match event["event"]:
            case "asked":
                asked[agent] = at
            case "granted":
                lease = f"{agent}#{event['token']}"
                held[agent] = lease, asked[agent] + int(ttl_seconds * 1e9)
                add(lease, "acquire", asked.pop(agent), at, output={"token": event["token"]})
            case "writes":
                since[agent] = at
            case "wrote" | "rejected" | "unknown":
                if event["event"] == "wrote":
                    add(held[agent][0], "write", since[agent], at, output={"fenced": False})
                since[agent] = at
            case "released":
                ends(agent, since.pop(agent, at))
    for agent in list(held):
        ends(agent, held[agent][1])
    return sorted(done, key=lambda one: one.invoke)
