"""Strong operations under random schedules: messages lost and reordered, replicas that crash between any two steps, are
paused, and take over from each other while what they wrote last is on its way. Every history must be linearizable:
there is an order of its operations, each between its call and its answer, that one copy of the memory could have
done."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strong_stage import Member, Stage, content_of

from crdt_spine.core.messages import Delete, Edit, Get, Store
from crdt_spine.core.strong import Answer, Ask

pytestmark = pytest.mark.timeout(120)

RETRIES_MAX = 6


class Done(msgspec.Struct, eq=False):
    """One operation of a history. `end` is infinite where nobody knows what came of it."""

    kind: str  # "read", "store", "cas", "delete"
    wrote: str | None
    expected: str | None  # of a compare-and-set: the value whose version it named
    begin: int
    end: float = float("inf")
    saw: str | None = None
    result: str = "unknown"  # "ok", "conflict", "unknown"

    def step(self, state: str | None) -> tuple[bool, str | None]:
        """Could it have come to this on a memory with this content, and what is that afterwards?"""
        match self.kind, self.result:
            case "read", _:
                return self.saw == state, state
            case "cas", "conflict":
                return state != self.expected, state
            case "cas", "unknown":
                return True, self.wrote if state == self.expected else state
            case "cas", _:
                return state == self.expected and state is not None, self.wrote
            case "delete", "conflict":
                return state is None, state
            case "delete", "unknown":
                return True, None
            case "delete", _:
                return state is not None, None
            case _:
                return True, self.wrote


def linearizable(history: list[Done]) -> bool:
    """Is there an order? Wing and Gong (1993), with what Lowe (2017) remembers: which operations are in it, and what
    the memory is then."""
    known: set[tuple[frozenset[int], str | None]] = set()
    certain = frozenset(n for n, one in enumerate(history) if one.result != "unknown")
    stack: list[tuple[frozenset[int], str | None]] = [(frozenset(), None)]
    while stack:
        taken, state = stack.pop()
        if certain <= taken:
            return True
        if (taken, state) in known:
            continue
        known.add((taken, state))
        first_end = min(one.end for n, one in enumerate(history) if n not in taken)
        for n, one in enumerate(history):
            if n not in taken and one.begin <= first_end:
                fits, after = one.step(state)
                if fits:
                    stack.append((taken | {n}, after))
    return False


class Agents:
    """Ask for one memory, one operation each at a time, and repeat elsewhere what is not known to be done."""

    def __init__(self, stage: Stage, random: Random, count: int) -> None:
        self.stage = stage
        self.random = random
        self.history: list[Done] = []
        self.time = 0
        self.idle = list(range(count))
        self.under_way: dict[int, tuple[Done, Ask, int, int]] = {}  # ask -> (.., which agent, retries)
        self.versions: dict[int, tuple[str, str]] = {}  # what an agent has read last: version and content
        self.answered = 0
        self.number = 0

    def begin(self) -> None:
        if not self.idle:
            return
        agent = self.idle.pop(self.random.randrange(len(self.idle)))
        self.number += 1
        self.time += 1
        value, id = f"v{self.number}", f"s{agent}-{self.number}"
        kind = self.random.choice(("read", "read", "read", "store", "store", "cas", "cas", "cas", "cas", "delete"))
        version, expected = self.versions.get(agent, ("", ""))
        if kind == "cas" and not version:
            kind = "read"
        operation: Get | Store | Edit | Delete
        match kind:
            case "read":
                operation = Get(i=0, id="m", strong=True)
            case "store":
                operation = Store(i=0, id="m", content=value, strong=True)
            case "delete":
                operation = Delete(i=0, id="m", strong=True)
            case _:
                operation = Edit(i=0, id="m", content=value, if_version=version, strong=True)
        done = Done(kind, None if kind in ("read", "delete") else value, expected if kind == "cas" else None, self.time)
        self.history.append(done)
        self._send(done, Ask(None, 0, operation, f"agent-{agent}", id), agent, 0, self.random.choice(self.stage.names))

    def _send(self, done: Done, ask: Ask, agent: int, retries: int, node: str) -> None:
        self.under_way[id(ask)] = done, ask, agent, retries
        member = self.stage.members[node]
        if member.up:
            member.ask(ask)

    def look(self) -> None:
        """Take the answers; ask again where there is none, now and then."""
        while self.answered < len(self.stage.answers):
            _, answer = self.stage.answers[self.answered]
            self.answered += 1
            found = self.under_way.pop(id(answer.ask), None)
            if found is not None:
                self._take(answer, *found)

    def repeat(self, key: int) -> None:
        """Nothing was heard of this one: it is asked of another node, too."""
        done, ask, agent, retries = self.under_way.pop(key)
        self._again(done, ask, agent, retries, self.random.choice(self.stage.names))

    def _again(self, done: Done, ask: Ask, agent: int, retries: int, node: str) -> None:
        if retries >= RETRIES_MAX:
            self.idle.append(agent)  # nobody knows
            return
        again = Ask(None, 0, ask.operation, ask.agent, ask.operation_id, retry=True)
        self._send(done, again, agent, retries + 1, node)

    def _take(self, answer: Answer, done: Done, ask: Ask, agent: int, retries: int) -> None:
        self.time += 1
        if answer.error == "Elsewhere":
            self._again(done, ask, agent, retries, answer.primary or self.random.choice(self.stage.names))
            return
        if answer.error == "QuorumFailed":
            if answer.outcome == "unknown" and self.random.random() < 0.7:
                self._again(done, ask, agent, retries, self.random.choice(self.stage.names))
                return
            if answer.outcome == "not applied":
                self.history.remove(done)
            self.idle.append(agent)
            return
        done.end, done.result = self.time, "conflict" if answer.error else "ok"
        assert answer.error in ("", "VersionConflict", "NotFound"), answer
        done.saw = content_of(answer) if done.kind == "read" else None
        if not answer.error and answer.record is not None and done.kind == "read" and answer.record.alive:
            self.versions[agent] = answer.record.etag, content_of(answer) or ""
        if not answer.error and done.kind == "store" and answer.version:
            self.versions[agent] = answer.version, done.wrote or ""
        self.idle.append(agent)


def run(seed: int, operations: int = 14, names: str = "abc") -> list[Done]:
    """A random schedule: its history."""
    random = Random(seed)
    stage = Stage(names)
    agents = Agents(stage, random, 4)
    loss = random.choice((0.0, 0.02, 0.2))
    cut: set[str] = set()
    doubt = random.choice((0.0, 0.1, 0.5))
    stage.doubts = lambda: random.random() < doubt
    stage.lossy = lambda source, target: random.random() < loss or bool(cut & {source, target})
    for member in stage.members.values():
        member.skew = random.randrange(-200, 200)
    crashes = random.choice((0.0, 0.01, 0.03))
    for _ in range(operations * 45):
        dice = random.random()
        member = random.choice(list(stage.members.values()))
        if dice < 0.05 and agents.number < operations:
            agents.begin()
        elif dice < 0.55 and stage.wire:
            reordered = random.random() < 0.2
            stage.deliver(random.randrange(len(stage.wire)) if reordered else 0)
        elif dice < 0.75 and member.up:
            member.commit()
        elif dice < 0.90:
            stage.pass_time(random.choice((1, 5, 25, 60, 200)))
        elif dice < 0.92 and agents.under_way:
            agents.repeat(random.choice(list(agents.under_way)))
        elif dice < 0.94 and member.up:
            member.pull(random.choice(list(stage.members.values())))
        elif dice < 0.94 + crashes:
            _break(stage, member, random, cut)
        agents.look()
    cut.clear()
    for member in stage.members.values():
        if not member.up:
            _mend(member)
    loss = doubt = 0.0
    for _ in range(40):  # what is still under way comes to an end
        stage.settle(500)
        agents.look()
        for key in list(agents.under_way):
            agents.repeat(key)
        for member, other in _pairs(stage):
            member.pull(other)
    agents.look()
    return agents.history


def _break(stage: Stage, member: Member, random: Random, cut: set[str]) -> None:
    match random.choice(("crash", "pause", "cut", "mend")):
        case "crash":
            member.crash()
            member.start(renamed=random.random() < 0.5)
        case "pause":
            member.up = False
        case "cut" if not cut:
            cut.add(member.name)
        case _:
            cut.clear()
            for one in stage.members.values():
                if not one.up:
                    one.up = True


def _mend(member: Member) -> None:
    member.up = True


def _pairs(stage: Stage) -> Iterator[tuple[Member, Member]]:
    for member in stage.members.values():
        for other in stage.members.values():
            if member is not other:
                yield member, other


@settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None,
)  # fmt: skip
@given(st.integers(0, 1 << 32))
def test_every_schedule_gives_a_linearizable_history(seed: int) -> None:
    history = run(seed)
    assert linearizable(history), "\n".join(map(repr, history))


def test_the_schedules_reach_what_they_are_to_test() -> None:
    histories = [run(seed) for seed in range(20)]
    results = [one.result for history in histories for one in history]
    assert results.count("ok") > 20 * 5
    assert results.count("conflict") > 15
    assert results.count("unknown") > 2
    assert all(map(linearizable, histories))


def test_the_checker_tells_a_lost_update() -> None:
    first = Done("store", "v1", None, 1, 2, result="ok")
    one = Done("cas", "v2", "v1", 3, 6, result="ok")
    other = Done("cas", "v3", "v1", 4, 7, result="ok")
    assert linearizable([first, one])
    assert not linearizable([first, one, other])
    stale = Done("read", None, None, 8, 9, saw="v1", result="ok")
    assert not linearizable([first, one, stale])
