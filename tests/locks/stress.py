"""Contenders for one lock, in processes that are killed and paused as are the instances of the lock service; and what
must be true of what they saw."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent
from crdt_spine.supervisor import Supervisor, lock_service

CONTENDER = Path(__file__).with_name("contender.py")
LOCK = "contended"
SERVICES = ("locks", "locks-2", "locks-3")
PAUSE_SECONDS = (0.2, 4.0)  # below and above a lease


class History:
    """What was seen, in the order of time once it is complete."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.disturbed: list[tuple[str, float, float]] = []  # process, from, until
        self.granted = 0

    def add(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.granted += event["event"] == "granted"

    def ordered(self) -> list[dict[str, Any]]:
        return sorted(self.events, key=lambda event: float(event["at"]))


class Contenders:
    """A process with some agents; a new one where it was killed."""

    def __init__(self, url: str, name: str, agents: int, history: History) -> None:
        self.url, self.agents, self.history = url, agents, history
        self.name = name
        self.generation = 0
        self.process: BoundProcess | None = None
        self.reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.generation += 1
        name = f"{self.name}-{self.generation}"
        self.process = await spawn_bound_to_parent(
            [sys.executable, CONTENDER, self.url, LOCK, name, str(self.agents)],
            environment={"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        self.reader = asyncio.create_task(self._read(self.process))

    async def _read(self, process: BoundProcess) -> None:
        assert process.output is not None
        while line := await process.output.readline():
            if line.startswith(b"{"):
                try:
                    self.history.add(json.loads(line))
                except ValueError:
                    pass  # it was killed in the middle of a word
            else:
                print(self.name, line.decode().rstrip(), file=sys.stderr)

    async def kill(self) -> None:
        assert self.process is not None and self.reader is not None
        await self.process.stop(0)
        await self.reader
        self.history.disturbed.append((f"{self.name}-{self.generation}.", 0.0, float("inf")))

    async def pause(self, seconds: float) -> None:
        assert self.process is not None
        now = asyncio.get_running_loop().time
        begun, name = now(), f"{self.name}-{self.generation}."
        await paused(self.process.pid, seconds)
        self.history.disturbed.append((name, begun, now()))


async def paused(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


async def run(
    folder: Path, *, seed: int, contenders: int, acquisitions: int, nodes: int = 1, seconds_max: float = 600,
    fault_seconds: float = 2.0,
) -> History:  # fmt: skip
    """Have so many contenders acquire the lock so often, with a fault every so often. Raises TimeoutError."""
    chance, history = random.Random(seed), History()
    supervisor = Supervisor(
        folder, nodes=nodes, nats_port=0, http_port=0, services=[lock_service(name) for name in SERVICES]
    )
    async with supervisor, asyncio.timeout(seconds_max):
        processes = max(2, contenders // 5)
        groups = [
            Contenders(supervisor.url, f"p{number}", contenders // processes, history) for number in range(processes)
        ]
        await asyncio.gather(*(group.start() for group in groups))
        meddling = asyncio.create_task(_meddle(chance, supervisor, groups, fault_seconds))
        try:
            while history.granted < acquisitions:
                await asyncio.sleep(0.1)
                if meddling.done():
                    meddling.result()
        finally:
            meddling.cancel()
            await asyncio.gather(meddling, return_exceptions=True)
            await asyncio.gather(*(group.kill() for group in groups))
    return history


async def _meddle(
    chance: random.Random, supervisor: Supervisor, groups: list[Contenders], fault_seconds: float
) -> None:
    while True:
        await asyncio.sleep(fault_seconds * (0.5 + chance.random()))
        group, service = chance.choice(groups), chance.choice(SERVICES)
        pid = next((child.pid for child in supervisor.children if child.id == service), None)
        match chance.choice(("kill group", "pause group", "kill service", "pause service")):
            case "kill group":
                await group.kill()
                await group.start()
            case "pause group":
                await group.pause(chance.choice(PAUSE_SECONDS))
            case "kill service" if pid is not None:
                os.kill(pid, signal.SIGKILL)
            case "pause service" if pid is not None:
                await paused(pid, chance.choice(PAUSE_SECONDS))


# -- what must be true -------------------------------------------------------------------------------------------------


def problems(history: History) -> list[str]:
    """Everything that must not be."""
    events = history.ordered()
    return [*_tokens(events), *_writes(events), *_answers(events, history), *_order(events, history)]


def _tokens(events: list[dict[str, Any]]) -> Iterable[str]:
    """Who asked after another one was granted the lock has a higher token; no token is given twice."""
    asked: dict[str, int] = {}  # agent -> the highest token that was granted when it asked
    seen: set[int] = set()
    highest = 0
    for event in events:
        if event["event"] == "asked":
            asked[event["agent"]] = highest
        elif event["event"] == "granted":
            token = event["token"]
            if token in seen:
                yield f"the token {token} was given twice"
            if token <= asked[event["agent"]]:
                yield f"{event['agent']} was given {token} after {asked[event['agent']]} had been"
            seen.add(token)
            highest = max(highest, token)


def _writes(events: list[dict[str, Any]]) -> Iterable[str]:
    """What was written under an older lease was begun before anything was written under a newer one."""
    begun: dict[int, int] = {}  # token -> the highest token that had been written with when it began
    highest = 0
    for event in events:
        token = event.get("token", 0)
        if event["event"] == "writes":
            begun[token] = highest
        elif event["event"] == "wrote":
            if token < begun[token]:
                yield f"a write under {token} was taken after one under {begun[token]}"
            highest = max(highest, token)


def _answers(events: list[dict[str, Any]], history: History) -> Iterable[str]:
    """Everybody was granted the lock, or told that it was not to be had; but for those who asked shortly before the
    end, or were killed."""
    waiting: dict[str, float] = {}
    for event in events:
        if event["event"] == "asked":
            waiting[event["agent"]] = event["at"]
        elif event["event"] in ("granted", "gave up"):
            waiting.pop(event["agent"], None)
    ended = events[-1]["at"]
    killed = tuple(name for name, begun, _ in history.disturbed if not begun)
    for agent, at in waiting.items():
        if ended - at > 45 and not agent.startswith(killed):
            yield f"{agent} was left waiting for {ended - at:.0f} s"


def _order(events: list[dict[str, Any]], history: History) -> Iterable[str]:
    """Who was told that it is in line before another one asked has the lock before that one; but for those who were
    paused, or killed, meanwhile."""
    line: dict[str, tuple[float, float]] = {}  # agent -> asked, in line
    waits: list[tuple[float, float, float, int, str]] = []  # asked, in line, granted, token, agent
    for event in events:
        agent = event["agent"]
        if event["event"] == "asked":
            line[agent] = (event["at"], float("inf"))
        elif event["event"] == "waiting":
            line[agent] = (line[agent][0], min(event["at"], line[agent][1]))
        elif event["event"] == "granted":
            waits.append((*line[agent], event["at"], event["token"], agent))
    for asked, _, _, token, agent in waits:
        for _, in_line, granted, other_token, other in waits:
            if (
                in_line < asked < granted
                and other_token > token
                and not _was_disturbed(history, other, in_line, granted)
            ):
                late = f"{other} in line since {in_line:.3f}, {other_token}"
                yield f"{agent} asked at {asked:.3f} and had {token}; {late}"


def _was_disturbed(history: History, agent: str, begun: float, ended: float) -> bool:
    return any(
        agent.startswith(name) and start and start < ended + 1 and stop > begun - 1
        for name, start, stop in history.disturbed
    )
