"""Replicas of one partition that do strong operations, without a network or a clock: tests deliver, lose and commit
what they like, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from records import Records

from crdt_spine.core import codec
from crdt_spine.core.actors import actor_name, node_of
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Ack, Delete, Delta, Edit, Get, Round, Rounded, Store, SyncPage, encode
from crdt_spine.core.replica import Entry, Replica
from crdt_spine.core.rounds import Inheritance, answer, vouched
from crdt_spine.core.strong import Answer, Ask, Pull, Send, Strong

NAMES = ("a", "b", "c")
NOW = 1_763_000_000_000
_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_delta = msgspec.json.Decoder(Delta).decode

Message = tuple[str, str, Callable[["Member"], None]]  # from, to, what it does there


class Member:
    """One replica with its journal, and the messages that it owes once its turn is durable."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.name = name
        self.journal: list[bytes] = []
        self.incarnation = 0
        self.incarnations = 0
        self.up = False
        self.skew = 0  # milliseconds by which its clock is wrong
        self.start()

    def start(self, *, renamed: bool = True) -> None:
        """Begin with what the journal has."""
        self.incarnation += renamed or not self.incarnation
        self.incarnations += 1
        peers = {0: tuple(other for other in self.stage.names if other != self.name)}
        self.records = Records()
        actor = actor_name("r", self.name, str(self.incarnation))
        majority = len(self.stage.names) // 2 + 1
        self.replica = Replica(self.name, actor, self.records, HybridClock(), peers, majority)
        for row in self.journal:
            self.replica.replay([row], _decode_entry)
        self.replica.recovered()
        self.strong = Strong(
            self.replica,
            lambda node: self.stage.members[node].is_seen and not self.stage.doubts(),
            numbers=self.incarnations << 32,
        )  # fmt: skip
        self.inheritance = Inheritance(self.replica)
        self.held: list[Message] = []
        self.up = True

    def crash(self) -> None:
        """Everything is lost that is not in the journal; so is what others send until `start`."""
        self.up = False

    @property
    def is_seen(self) -> bool:
        """As a primary, by the others."""
        return self.up and not self.strong.abstains

    @property
    def now(self) -> int:
        return self.stage.now + self.skew

    def ask(self, ask: Ask) -> None:
        self.strong.ask(ask, self.stage.at)
        self.go_on()

    def go_on(self) -> None:
        """The end of a loop turn."""
        for effect in self.strong.turn(self.now, self.stage.at):
            match effect:
                case Send():
                    self.stage.post(self.name, effect.node, self._question(effect))
                case Pull():
                    self.pull(self.stage.members[effect.node])
                case Answer():
                    self.stage.answers.append((self.name, effect))

    def commit(self) -> None:
        """Make the turn durable; what waited for that leaves."""
        turn = self.replica.end_turn()
        self.journal += turn.journal
        self.replica.persisted(turn)
        held, self.held = self.held, []
        for message in held:
            self.stage.post(*message)
        for _, raw in turn.deltas:
            for other in self.stage.names:
                if other != self.name:
                    self.stage.post(self.name, other, lambda member, raw=raw: member.take_delta(raw))
        for actor, reached in turn.acks.items():
            node = node_of(actor)[1]
            if node != self.name:
                ack = Ack(node=self.name, actor=actor, reached=reached, terms=vouched(self.replica, actor, reached))
                self.stage.post(self.name, node, lambda member, ack=ack: member.take_ack(ack))
        self.strong.settled(turn)
        self.go_on()

    def take_delta(self, raw: bytes) -> None:
        delta = _decode_delta(raw)
        if not self.replica.receive(delta, raw, self.now):
            self.pull(self.stage.members[node_of(delta.actor)[1]])  # something before it was lost

    def take_ack(self, ack: Ack) -> None:
        self.strong.acked(ack)
        self.replica.ack(ack)
        self.go_on()

    def pull(self, other: Member) -> None:
        """since(own vector), in one page."""
        if not other.up:
            return
        other.commit()
        have = dict(self.replica.partitions[0].vector)
        page = SyncPage(
            partition=0,
            records=[(record.id, codec.to_json(record)) for record in other.records.changed(0, have, None, 999)],
            upto=dict(other.replica.durable[0]), operations=other.replica.operations_since(0, have),
        )  # fmt: skip
        try:
            self.replica.merge_page(page, encode(page), self.now)
        except codec.Garbled:
            return  # from the future
        self.commit()

    def inherit(self) -> None:
        """Ask the others what they have promised, and be ready if that was enough."""
        for other in self.stage.names:
            member = self.stage.members.get(other)
            if member is not None and member.up and other != self.name:
                said, _ = answer(
                    member.replica, 1, Round(node=self.name, standings=(0,)), member.strong.epoch, member.now
                )  # fmt: skip
                member.commit()
                self.inheritance.hear(said)
        if self.inheritance.settle():
            self.commit()

    def _question(self, effect: Send) -> Callable[[Member], None]:
        asker = self

        def take(member: Member) -> None:
            said, at_once = answer(member.replica, 1, effect.round, member.strong.epoch, member.now)
            reply = (member.name, asker.name, lambda one: one.take_answer(effect.number, said))
            if at_once:
                member.stage.post(*reply)
            else:
                member.held.append(reply)

        return take

    def take_answer(self, number: int, said: Rounded) -> None:
        self.strong.heard(number, said)
        self.go_on()


class Stage:
    """The members, and the messages on their way."""

    def __init__(self, names: Iterable[str] = NAMES) -> None:
        self.names = tuple(names)
        self.now = NOW
        self.at = 0.0
        self.wire: list[Message] = []
        self.answers: list[tuple[str, Answer]] = []
        self.lossy: Callable[[str, str], bool] = lambda source, target: False
        self.doubts: Callable[[], bool] = lambda: False  # is a node that is up taken to be gone?
        self.members: dict[str, Member] = {}
        for name in self.names:
            self.members[name] = Member(self, name)
        for member in self.members.values():
            member.inherit()

    def post(self, source: str, target: str, deliver: Callable[[Member], None]) -> None:
        if not self.lossy(source, target):
            self.wire.append((source, target, deliver))

    def deliver(self, index: int = 0) -> None:
        """Hand over one message."""
        _, target, deliver = self.wire.pop(index)
        if self.members[target].up:
            deliver(self.members[target])

    def pass_time(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.at += milliseconds / 1000
        for member in self.members.values():
            if member.up:
                member.go_on()

    def settle(self, milliseconds: int = 0) -> None:
        """Deliver and commit everything, then let time pass, until nothing happens any more."""
        end = self.at + milliseconds / 1000
        while True:
            while self.wire:
                self.deliver()
            for member in self.members.values():
                if member.up:
                    member.commit()
            if not self.wire:
                if self.at >= end:
                    return
                self.pass_time(25)

    # -- operations, each settled before the next ------------------------------------------------------------------

    def do(self, node: str, operation: Get | Store | Edit | Delete, id: str = "", milliseconds: int = 400,
           **options: Any) -> Answer:  # fmt: skip
        """What comes of an operation at a node."""
        before = len(self.answers)
        ask = Ask(None, 0, operation, "agent", id or f"op-{before}-{self.at}", **options)
        self.members[node].ask(ask)
        self.settle(milliseconds)
        found = [answer for _, answer in self.answers[before:] if answer.ask is ask]
        assert found, "it was not answered"
        return found[0]


def content_of(answer: Answer) -> str | None:
    """What a reader is shown."""
    record = answer.record
    return None if record is None or not record.alive or record.content is None else record.content.value
