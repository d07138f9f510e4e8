"""Whatever replicas do while one of them is away, is retired, and comes back, and another one loses its disk meanwhile:
in the end all have the same.

A walk of random steps over replicas of one partition, with no network, disk or time of their own: who writes, takes a
delta, pulls, hears and forgets when. The simulator does more and knows more of what is right; this reaches deeper into
one corner, where two disks are lost at once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import count
from typing import Any

import msgspec
import pytest
from records import Records

from crdt_spine.core import codec
from crdt_spine.core.actors import actor_name
from crdt_spine.core.causality import Vector
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Announcement, Delete, Delta, Edit, Store, SyncPage, Write, encode
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Refused, Replica
from crdt_spine.core.retirement import Retirement

NAMES = ("a", "b", "c", "d")
AWAY = "d"
IDS = ("x", "y", "z")
NOW = 1_763_000_000_000
LATER = NOW + 10_000_000  # no clock is ever found ahead
WALKS = 250


class Node:
    """A replica on a disk that begins empty."""

    def __init__(self, name: str, began: int = 1) -> None:
        self.name = name
        self.records = Records()
        actor = actor_name("r", name, str(began))
        peers = {0: tuple(other for other in NAMES if other != name)}
        self.retirement = Retirement(name, NAMES, actor, 60.0)
        self.retirement.serves = True
        self.replica = Replica(name, actor, self.records, HybridClock(), peers, 1, retirement=self.retirement)

    def end(self) -> Any:
        turn = self.replica.end_turn()
        self.replica.persisted(turn)
        return turn

    def page(self, have: Mapping[str, int], *, whole: bool = False) -> SyncPage:
        return SyncPage(
            partition=0, upto=dict(self.replica.durable[0]), whole=whole,
            forgotten=dict(self.replica.partitions[0].forgotten),
            records=[(one.id, codec.to_json(one)) for one in self.records.changed(0, have, None, 100)],
        )  # fmt: skip

    def living(self) -> dict[str, Record]:
        return {id: record for id, record in self.records.items() if record.alive}


class Walk:
    """One walk; `problem` is empty when all is well."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.nodes = {name: Node(name) for name in NAMES}
        self.here = set(NAMES)  # who reaches each other
        self.began = count(2)
        self.numbers = count()
        self.now = NOW
        self.flying: list[tuple[str, Node, Delta]] = []
        self.steps(20)
        self.meet()
        self.here = set(NAMES) - {AWAY}
        self.steps(self.chance.choice([10, 30]))
        judge, away = self.nodes[self.chance.choice("abc")], self.nodes[AWAY]
        judge.replica.let_go(judge.retirement.adopt([away.retirement.disk]))
        self.steps(self.chance.choice([0, 10, 20]))
        if self.chance.random() < 0.7:
            self.meet()
            loser = self.chance.choice("abc")
            self.nodes[loser] = Node(loser, next(self.began))
            self.here = {loser, AWAY}  # these two meet first
            self.steps(self.chance.choice([0, 20]))
        self.here = set(NAMES)
        self.steps(self.chance.choice([5, 40, 100]))
        for _ in range(3):
            self.meet()
        self.problem = self.difference()

    def steps(self, steps: int) -> None:
        for _ in range(steps):
            one, other = self.chance.choice(NAMES), self.chance.choice(NAMES)
            match self.chance.choices(("write", "take", "pull", "hear", "forget"), (30, 20, 15, 25, 10))[0]:
                case "write":
                    self.write(one)
                case "take" if self.flying:
                    self.take()
                case "pull":
                    self.pull(one, other)
                case "hear":
                    self.hear(one, other)
                case "forget":
                    dead = [record for record in self.nodes[one].records.values() if not record.alive]
                    self.nodes[one].replica.collect(0, dead, NOW)

    def meet(self) -> None:
        for _ in range(4):
            for one in NAMES:
                for other in NAMES:
                    self.pull(one, other)
                    self.hear(one, other)

    def write(self, name: str) -> None:
        node = self.nodes[name]
        self.now += self.chance.choice([0, 1, 5])
        i, id = next(self.numbers), self.chance.choice(IDS)
        what: list[Write] = [
            Store(i=i, id=id, content=f"{i}"), Edit(i=i, id=id, importance=i / 1_000), Delete(i=i, id=id)
        ]  # fmt: skip
        try:
            node.replica.write(
                0,
                self.chance.choices(what, (1, 2, 1))[0],
                "agent",
                f"{i}",
                self.now + self.chance.choice([0, -3, 3]),
                i,
            )
        except Refused:
            return
        for _, raw in node.end().deltas:
            delta = msgspec.json.decode(raw, type=Delta)
            reached = [other for other in self.here - {name} if name in self.here and self.chance.random() < 0.7]
            self.flying += [(name, self.nodes[other], delta) for other in sorted(reached)]

    def take(self) -> None:
        source, node, delta = self.flying.pop(self.chance.randrange(len(self.flying)))
        if node is self.nodes[node.name] and {source, node.name} <= self.here:
            node.replica.receive(delta, encode(delta), LATER)
            node.end()

    def pull(self, name: str, source_name: str) -> None:
        node, source = self.nodes[name], self.nodes[source_name]
        if name == source_name or not {name, source_name} <= self.here or node.retirement.is_away(source_name):
            return
        if node.retirement.disk in source.retirement.retired:
            return
        have = dict(node.replica.partitions[0].vector)
        page = source.page(have)
        verdict = node.replica.judge(page, have)
        if verdict == "too late":
            self.nodes[name] = Node(name, next(self.began))
        if verdict in ("too late", "not believed"):
            return
        page = page if verdict == "useful" else source.page({}, whole=True)
        node.replica.merge_page(page, encode(page), LATER)
        node.end()

    def hear(self, name: str, other_name: str) -> None:
        node, other = self.nodes[name], self.nodes[other_name]
        if name == other_name or not {name, other_name} <= self.here:
            return
        said = Announcement(
            node=other_name, actor=other.replica.actor, disk=other.retirement.disk, state="up", now=LATER,
            vectors={0: dict(other.replica.durable[0])}, retired=tuple(sorted(other.retirement.retired)),
        )  # fmt: skip
        if node.replica.heed(said):
            node.replica.hear(said)
        if node.retirement.expelled:
            self.nodes[name] = Node(name, next(self.began))

    def difference(self) -> str:
        first, *others = self.nodes.values()
        for other in others:
            if other.replica.partitions[0].vector != first.replica.partitions[0].vector:
                return f"{first.name} and {other.name} have different vectors"
            if other.living() != first.living():
                return f"{first.name} has {first.living()}, {other.name} has {other.living()}"
        return ""


def test_all_replicas_have_the_same_in_the_end() -> None:
    for seed in range(WALKS):
        assert not (problem := Walk(seed).problem), f"walk {seed}: {problem}"


_judge = Replica.judge


def _believe_all(self: Replica, page: SyncPage, have: Vector) -> str:
    """Whatever the source of a page never saw of what was forgotten here."""
    return _judge(self, msgspec.structs.replace(page, upto=self.partitions[page.partition].forgotten), have)


@pytest.mark.parametrize("judge", [_believe_all, lambda self, page, have: "useful"], ids=["source", "asker"])
def test_it_matters_what_the_source_of_a_sync_never_saw_and_what_the_asker(
    judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replica, "judge", judge)
    assert any(Walk(seed).problem for seed in range(4 * WALKS))
