"""A node's part in locks: it hears of every lease that is given, and answers which it knows of (core/fences.py).

What it is told is durable with the next commit, some milliseconds later; what a fenced write says is durable with that
write (`Replica.keep_fence`), and an epoch before the service is told that it is known.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import msgspec

from crdt_spine.core.fences import Fence, Fences
from crdt_spine.core.lock_messages import (
    EpochAnswer,
    EpochQuestion,
    FencesAnswer,
    FencesQuestion,
    NodeQuestion,
)
from crdt_spine.core.messages import Unreadable, encode
from crdt_spine.core.replica import Replica
from crdt_spine.core.subjects import Subjects
from crdt_spine.node.committer import Committer
from crdt_spine.transport.base import Message, Subscription, Transport

ASK_SECONDS: Final = 5.0
ASKS: Final = 3

_decode = msgspec.json.Decoder(NodeQuestion).decode
_decode_fences = msgspec.json.Decoder(FencesAnswer).decode


class FenceKeeper:
    """Keeps the `Fences` of a replica."""

    def __init__(
        self, node: str, replica: Replica, committer: Committer, transport: Transport, subjects: Subjects
    ) -> None:
        self.refused = 0
        self._node = node
        self._replica = replica
        self._committer = committer
        self._transport = transport
        self._subjects = subjects
        self._inbox = f"_INBOX.spinefences.{secrets.token_hex(6)}"

    @property
    def fences(self) -> Fences:
        return self._replica.fences

    async def start(self) -> list[Subscription]:
        """Hear of leases from now on."""
        return [
            await self._transport.subscribe(self._inbox, self._take_fences),
            await self._transport.subscribe(self._subjects.fence, self._take),
        ]

    async def ask_others(self) -> None:
        """Come to know what the others do: a node that is new, or was away, has not heard of leases that still hold."""
        for _ in range(ASKS):
            self._transport.send(self._subjects.fence, encode(FencesQuestion(node=self._node)), self._inbox)
            await asyncio.sleep(ASK_SECONDS)
        await asyncio.Event().wait()  # a part of a node does not end

    async def _take(self, message: Message) -> None:
        try:
            question = _decode(message.payload)
        except Unreadable:
            self.refused += 1
            return
        match question:
            case Fence():
                if self._replica.keep_fence(question):
                    self._committer.touch(awaited=False)
            case EpochQuestion(epoch=epoch):
                if self._replica.keep_epoch(epoch):
                    self._committer.touch()
                if await self._committer.durable() and message.reply:
                    known = self.fences
                    answer = EpochAnswer(node=self._node, epoch=known.epoch, newest=known.highest)
                    self._transport.send(message.reply, encode(answer))
            case FencesQuestion(node=node):
                if node != self._node and message.reply:
                    known = self.fences
                    tokens, floor, epoch = dict(known.tokens), known.floor, known.epoch
                    self._transport.send(message.reply, encode(FencesAnswer(tokens=tokens, floor=floor, epoch=epoch)))

    def _take_fences(self, message: Message) -> None:
        if message.nobody:
            return
        try:
            answer = _decode_fences(message.payload)
        except Unreadable:
            self.refused += 1
            return
        self.fences.join(answer.tokens, answer.floor, answer.epoch)
