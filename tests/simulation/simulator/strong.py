"""A node's side of strong operations: it drives core/strong.py and answers other nodes' rounds, as a real one does.

Rounds and answers are messages like all others: lost, doubled, late, or cut off. What an answer says is durable before
it leaves, and so is what an agent is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from crdt_spine.core.causality import Vector
from crdt_spine.core.messages import Ack, Delete, Edit, Get, Round, Rounded, Store, Term, encode
from crdt_spine.core.rounds import Inheritance, answer
from crdt_spine.core.strong import Answer, Ask, Pull, Send, Strong
from crdt_spine.core.terms import NEVER
from simulator.repair import Sync

if TYPE_CHECKING:
    from crdt_spine.core.replica import Turn
    from simulator.node import Node

SILENT_MILLISECONDS = 2_500  # who was not heard for so long is taken to be gone
LIVELY_MILLISECONDS = 100  # who was heard so lately
STANDING_MILLISECONDS = 400  # between two questions for others' promises, while the own ones may be forgotten
TICK_MILLISECONDS = 20

_decode_round = msgspec.json.Decoder(Round).decode
_decode_rounded = msgspec.json.Decoder(Rounded).decode

Told = Callable[[Answer], None]


class StrongSide:
    """One process's: it begins anew with each start of the node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        # Rounds are numbered from above those of the process before: answers to those may still be on their way.
        self.core = Strong(node.replica, self._is_present, self._is_lively, node.world.now << 20)
        self.inheritance = Inheritance(node.replica)
        self.heard_at: dict[str, int] = {}
        self._asking: dict[int, Told] = {}
        self._standing = 0  # of the questions for standings, the last one's number, downwards
        self._planned = self._ticking = False
        if node.cluster.strong:
            node.later(node.world.second.between(1, STANDING_MILLISECONDS), self._inherit)

    def _is_present(self, name: str) -> bool:
        heard = self.heard_at.get(name)
        return heard is not None and heard >= self.node.world.now - SILENT_MILLISECONDS

    def _is_lively(self, name: str) -> bool:
        return self.heard_at.get(name, -LIVELY_MILLISECONDS) > self.node.world.now - LIVELY_MILLISECONDS

    def void(self) -> None:
        """The disk may be an old copy, so its promises may be too."""
        self.inheritance.void()

    # -- agents -----------------------------------------------------------------------------------------------------

    def take(
        self, operation: Get | Store | Edit | Delete, agent: str, operation_id: str, token: Vector, retry: bool,
        told: Told,
    ) -> None:  # fmt: skip
        """An agent's strong operation; no answer: ask another node, with the same operation id."""
        node = self.node
        number = node.cluster.partition_of(operation.id)
        if not node.serving or node.disk.full or node.stage(number) != "member":
            return
        ticket = node.cluster.new_ticket()
        self._asking[ticket] = told
        self.core.ask(Ask(ticket, number, operation, agent, operation_id, retry, None, dict(token)), self._at)
        self.stir()

    # -- rounds -----------------------------------------------------------------------------------------------------

    def take_round(self, asker: str, number: int, raw: bytes) -> None:
        """Another node's question. Who does not know yet whether its disk is its last one says nothing."""
        node, asked = self.node, _decode_round(raw)
        if not node.serving:
            return
        said, at_once = answer(node.replica, node.cluster.partitions, asked, node.membership.epoch, node.now)
        partitions, held = node.replica.partitions, dict(node.replica.partitions)

        def leave() -> None:
            if any(partitions.get(number) is not held.get(number) for number in asked.terms):
                return  # dropped meanwhile
            node.boundary("before a round is answered")
            answered = encode(said)
            node.send(asker, lambda there: there.strong.take_rounded(number, answered), "round")

        if at_once:
            leave()
            return
        node.touch()
        node.barrier(leave)

    def take_rounded(self, number: int, raw: bytes) -> None:
        """The answer to a question of this process's."""
        said = _decode_rounded(raw)
        if number < 0:
            self.inheritance.hear(said)
            if self.inheritance.settle():
                self.node.cluster.counts["promises inherited"] += 1
                self.node.touch()
        else:
            self.core.heard(number, said)
        self.stir()

    def terms(self, reached: Vector) -> dict[int, Term]:
        """What an acknowledgement says of these partitions."""
        promises = self.node.replica.promises
        return {number: promises.term(number) for number in reached if promises.term(number) != NEVER}  # type: ignore[misc]

    def acked(self, ack: Ack) -> None:
        self.core.acked(ack)
        self.stir()

    def settled(self, turn: Turn) -> None:
        """It is durable."""
        self.core.settled(turn)
        self.stir()

    def _inherit(self) -> None:
        node = self.node
        wanted = tuple(self.inheritance.wanted) if node.serving else ()
        if wanted:
            self._standing -= 1
            asked = Round(node=node.name, epoch=node.membership.epoch, standings=wanted)
            for peer in sorted({peer for number in wanted for peer in node.replica.counting_peers(number)}):
                self._send(peer, self._standing, asked)
            if self.inheritance.settle():  # alone
                node.touch()
        node.later(STANDING_MILLISECONDS, self._inherit)

    def _send(self, target: str, number: int, asked: Round) -> None:
        node = self.node
        raw, life = encode(asked), node.life

        def deliver(there: Node) -> None:
            if node.life == life:  # else its inbox is gone, and with it who asked
                there.strong.take_round(node.name, number, raw)

        node.boundary("before a round")
        node.send(target, deliver, "round")

    # -- turns ------------------------------------------------------------------------------------------------------

    @property
    def _at(self) -> float:
        return self.node.world.now / 1000

    def stir(self) -> None:
        """Go on, once this turn of the event loop is over."""
        if not self._planned and (self.core.open or self.core.leads):
            self._planned = True
            self.node.later(0, self._turn)

    def _turn(self) -> None:
        node, core = self.node, self.core
        self._planned = False
        core.epoch = node.membership.epoch
        effects = core.turn(node.now, self._at)
        node.touch()
        for effect in effects:
            match effect:
                case Answer():
                    node.boundary("before an answer")
                    self._asking.pop(effect.ask.ticket)(effect)
                case Send():
                    self._send(effect.node, effect.number, effect.round)
                case Pull() if effect.number not in node.repair.syncs and effect.number not in node.suspect:
                    vector = dict(node.replica.partitions[effect.number].vector)
                    node.repair._start(Sync(effect.number, effect.node, vector, False))
        if core.open and not self._ticking:
            self._ticking = True
            node.later(TICK_MILLISECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self.stir()
