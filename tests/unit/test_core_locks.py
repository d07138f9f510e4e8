"""The rules of locks against a stream in memory, with several instances that run at once, lose answers and die."""

from __future__ import annotations

import random
import re
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt_spine.core import locks
from crdt_spine.core.fences import Fence, token_of
from crdt_spine.core.lock_messages import Acquire, LockAnswer, Release, Renew
from crdt_spine.core.locks import Kept

EPOCH = 3
TTL = 10


class Stream:
    """What JetStream does, on virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sequence = 0
        self.messages: dict[int, tuple[str, bytes, float]] = {}
        self.granted: list[tuple[int, str]] = []  # (sequence, nonce) of leases in the order in which they came to be
        self.enqueued: list[str] = []

    def at(self, path: str) -> list[int]:
        self.messages = {s: m for s, m in self.messages.items() if m[2] > self.now}
        pattern = re.compile(re.escape(path).replace(r"\*", "[^.]+").replace(">", ".+"))
        return [s for s, m in self.messages.items() if pattern.fullmatch(m[0])]

    def kept(self, sequence: int) -> Kept | None:
        return Kept(sequence, self.messages[sequence][1]) if sequence else None

    def do(self, step: locks.Step, told: list[Fence], offers: dict[str, int]) -> Any:
        match step:
            case locks.Put(path, value, expected, seconds, whole):
                if max(self.at(whole or path), default=0) != expected:
                    return None
                before = self.at(path)
                for old in before:
                    del self.messages[old]
                self.sequence += 1
                self.messages[self.sequence] = (path, value, self.now + seconds)
                held = locks.lease_in(Kept(0, value))
                if held is not None and held.token == 0:
                    assert not before, "a lease was given while there was one"
                    assert not whole or not self.at(locks.waiting_path("a")), "it was given to one who was not in line"
                    self.granted.append((self.sequence, held.nonce))
                elif held is None:
                    self.enqueued.append(path.rpartition(".")[2])
                return self.sequence
            case locks.Last(path):
                return self.kept(max(self.at(path), default=0))
            case locks.First(path):
                return self.kept(min(self.at(path), default=0))
            case locks.Drop(sequence):
                return self.messages.pop(sequence, None) is not None
            case locks.Tell(fence):
                told.append(fence)
            case locks.Ask(_, offer):
                offers[offer.nonce] = offer.sequence
                return True
        return None


def run(stream: Stream, rule: Generator[locks.Step, Any, Any]) -> Any:
    """A rule to its end, with nobody in between."""
    result: Any = None
    while True:
        try:
            step = rule.send(result)
        except StopIteration as end:
            return end.value
        result = stream.do(step, [], {})


def asked(nonce: str, lock: str = "a", wait: float | None = None) -> Acquire:
    return Acquire(lock=lock, nonce=nonce, agent=nonce, ttl=TTL, inbox="_INBOX.x", wait=wait)


def nonce(number: int) -> str:
    return f"nonce{number:04}"


def test_a_free_lock_is_given_at_once_and_its_nodes_are_told_before() -> None:
    stream, told = Stream(), list[Fence]()
    rule = locks.acquire(asked("nonce0001"), EPOCH)
    sequence = stream.do(next(rule), told, {})
    step = rule.send(sequence)
    assert step == locks.Tell(Fence("a", token_of(EPOCH, 1)))
    with pytest.raises(StopIteration) as end:
        rule.send(None)
    assert end.value.value == LockAnswer(state="granted", token=token_of(EPOCH, 1), sequence=1)


def test_an_attempt_whose_answer_was_lost_is_known_by_its_nonce() -> None:
    stream = Stream()
    rule = locks.acquire(asked("nonce0001"), EPOCH)
    stream.do(next(rule), [], {})  # it was taken, and nobody heard of it
    step = rule.send(None)
    assert step == locks.Last(locks.held_path("a"))
    assert isinstance(rule.send(stream.do(step, [], {})), locks.Tell)
    again = run(stream, locks.acquire(asked("nonce0001"), EPOCH))
    assert again == LockAnswer(state="granted", token=token_of(EPOCH, 1), sequence=1)


def test_who_does_not_wait_is_told_who_holds_it() -> None:
    stream = Stream()
    run(stream, locks.acquire(asked("nonce0001"), EPOCH))
    assert run(stream, locks.acquire(asked("nonce0002", wait=0), EPOCH)) == LockAnswer(state="held", holder="nonce0001")
    assert stream.enqueued == []


def test_nobody_gets_in_between_when_the_lock_is_free_and_somebody_waits() -> None:
    stream = Stream()
    run(stream, locks.acquire(asked("nonce0001"), EPOCH))
    run(stream, locks.acquire(asked("nonce0002"), EPOCH))
    stream.now += TTL
    assert run(stream, locks.acquire(asked("nonce0003"), EPOCH)).state == "waiting"
    run(stream, locks.serve("a", EPOCH))
    assert [nonce for _, nonce in stream.granted] == ["nonce0001", "nonce0002"]


def test_a_place_in_line_stays_however_often_one_asks() -> None:
    stream = Stream()
    for number in (1, 2, 3, 2, 2, 3, 2):
        run(stream, locks.acquire(asked(nonce(number)), EPOCH))
    assert stream.enqueued == ["nonce0002", "nonce0003"]


def test_a_renewed_lease_keeps_its_token_and_begins_its_time_anew() -> None:
    stream = Stream()
    given = run(stream, locks.acquire(asked("nonce0001"), EPOCH))
    stream.now += TTL - 1
    more = run(stream, locks.renew(renewal("nonce0001", given), EPOCH))
    assert (more.state, more.token) == ("granted", given.token) and more.sequence > given.sequence
    again = run(stream, locks.renew(renewal("nonce0001", given), EPOCH))  # its answer was lost
    assert (again.state, again.token) == ("granted", given.token)
    stream.now += TTL - 1
    assert run(stream, locks.acquire(asked("nonce0002", wait=0), EPOCH)).state == "held"
    stream.now += 1
    assert run(stream, locks.renew(renewal("nonce0001", again), EPOCH)).state == "lost"


def renewal(nonce: str, given: LockAnswer) -> Renew:
    return Renew(lock="a", nonce=nonce, agent=nonce, ttl=TTL, token=given.token, sequence=given.sequence)


def test_a_lease_of_another_epoch_is_lost_and_a_made_up_token_refused() -> None:
    stream = Stream()
    given = run(stream, locks.acquire(asked("nonce0001"), EPOCH))
    assert run(stream, locks.renew(renewal("nonce0001", given), EPOCH + 1)).state == "lost"
    made_up = LockAnswer(state="granted", token=token_of(EPOCH, 99), sequence=given.sequence)
    assert run(stream, locks.renew(renewal("nonce0001", made_up), EPOCH)).state == "refused"


def test_who_gives_up_leaves_the_line_and_what_it_was_given_meanwhile() -> None:
    stream = Stream()
    for number in (1, 2, 3):
        run(stream, locks.acquire(asked(nonce(number)), EPOCH))
    assert run(stream, locks.release(Release(lock="a", nonce="nonce0002"), EPOCH)).state == "released"
    run(stream, locks.release(Release(lock="a", nonce="nonce0001", sequence=1), EPOCH))
    run(stream, locks.serve("a", EPOCH))
    assert [nonce for _, nonce in stream.granted] == ["nonce0001", "nonce0003"]
    run(stream, locks.release(Release(lock="a", nonce="nonce0003"), EPOCH))
    assert not stream.messages


def test_an_instance_that_stood_still_gives_nothing_out_of_turn() -> None:
    stream, offers = Stream(), dict[str, int]()
    for number in (1, 2, 3):
        run(stream, locks.acquire(asked(nonce(number)), EPOCH))
    run(stream, locks.release(Release(lock="a", nonce="nonce0001", sequence=1), EPOCH))
    slow = locks.serve("a", EPOCH)
    seen = stream.do(next(slow), [], {})  # that the second one is next; here it stands still
    run(stream, locks.serve("a", EPOCH))
    run(stream, locks.release(Release(lock="a", nonce="nonce0002"), EPOCH))
    with pytest.raises(StopIteration):
        while True:
            seen = stream.do(slow.send(seen), [], offers)
    assert offers.keys() == {"nonce0003"}


def test_garbage_in_the_line_is_thrown_away() -> None:
    stream = Stream()
    stream.do(locks.Put(locks.waiting_path("a", "x"), b"{}", 0, 100), [], {})
    run(stream, locks.acquire(asked("nonce0001"), EPOCH))
    run(stream, locks.serve("a", EPOCH))
    assert [nonce for _, nonce in stream.granted] == ["nonce0001"]


@given(st.text(min_size=1, max_size=30))
def test_a_name_becomes_a_part_of_a_subject_and_back(name: str) -> None:
    part = locks.part_of(name)
    assert locks.lock_of(part) == name and re.fullmatch(r"[A-Za-z0-9_-]+", part)


class World:
    """Agents with one attempt each, instances that run rules step by step in any order, with everything going wrong."""

    def __init__(self, seed: int, agents: int, faults: float) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.stream = Stream()
        self.told: list[Fence] = []
        self.offers: dict[str, int] = {}
        self.agents = [nonce(number) for number in range(agents)]
        self.begun: list[str] = []
        self.done: set[str] = set()
        self.leases: dict[str, LockAnswer] = {}
        self.running: list[tuple[str, Generator[locks.Step, Any, Any], Any]] = []

    def go(self) -> None:
        for _ in range(100_000):
            if len(self.done) == len(self.agents) and not self.running:
                return
            self.something()
        raise AssertionError(f"{len(self.done)} of {len(self.agents)} were served")

    def something(self) -> None:
        if self.running and self.random.random() < 0.8:
            self.step(self.random.randrange(len(self.running)))
            return
        if self.random.random() < 0.05:
            self.stream.now += self.random.choice([0.5, 1, 4])
        waiting = [agent for agent in self.begun if agent not in self.done]
        if len(self.begun) < len(self.agents) and self.random.random() < 0.5:
            self.begun.append(self.agents[len(self.begun)])
            self.start("acquire", self.begun[-1])
        elif waiting:
            if self.leases and self.random.random() < 0.7:
                self.start("release", next(iter(self.leases)))
            elif len(self.running) < 12:
                self.start("acquire", self.random.choice(waiting))

    def start(self, what: str, agent: str) -> None:
        if what == "acquire":
            self.running.append((agent, locks.acquire(asked(agent), EPOCH), None))
            self.running.append((agent, locks.serve("a", EPOCH), None))
        else:
            given = self.leases.pop(agent)
            self.done.add(agent)
            rule = locks.release(Release(lock="a", nonce=agent, sequence=given.sequence), EPOCH)
            self.running += [(agent, rule, None), (agent, locks.serve("a", EPOCH), None)]

    def step(self, index: int) -> None:
        agent, rule, result = self.running[index]
        if self.random.random() < self.faults:  # the instance dies
            del self.running[index]
            return
        try:
            step = rule.send(result)
        except StopIteration as end:
            del self.running[index]
            if isinstance(end.value, LockAnswer) and end.value.state == "granted" and agent not in self.done:
                self.leases[agent] = end.value
            return
        if isinstance(step, locks.Ask):
            self.stream.do(step, self.told, self.offers)
            if step.offer.sequence in self.stream.at(locks.held_path("a")):
                place = rule.gi_frame.f_locals["first"].sequence
                earlier = [other for other in self.stream.at(locks.waiting_path("a")) if other < place]
                assert not earlier, f"{step.offer.nonce} was served out of turn"
            result = step.offer.nonce not in self.done
        else:
            lost = isinstance(step, locks.Put) and self.random.random() < self.faults
            if lost and self.random.random() < 0.5:
                result = None  # it never arrived
            else:
                result = self.stream.do(step, self.told, self.offers)
                result = None if lost else result
        self.running[index] = (agent, rule, result)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 6), st.sampled_from([0.0, 0.02, 0.1]))
def test_everybody_is_served_in_line_whatever_is_lost_and_whoever_dies(seed: int, agents: int, faults: float) -> None:
    world = World(seed, agents, faults)
    world.go()
    sequences = [sequence for sequence, _ in world.stream.granted]  # `Stream` has looked at their order in line
    assert sequences == sorted(set(sequences)) and len(sequences) >= agents
    if not faults:
        assert {nonce for _, nonce in world.stream.granted} == set(world.agents)
