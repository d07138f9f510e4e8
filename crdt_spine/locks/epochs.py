"""In which epoch leases are given out: the word of a majority of the nodes, so that tokens rise for ever.

Sequences begin at one again when the stream of leases is made anew: the brokers lost their disks, somebody deleted it,
or an old copy of it was restored. No clock is asked; what was given before, nodes know (core/fences.py):

- an epoch is known, durably, by a majority of the nodes before its stream is made, and before anything is given in it;
- it is above all that a majority of the nodes knows, hence above every epoch in which anything was ever given;
- a stream whose epoch a node knows a higher one of, or whose last sequence is below a token that a node knows in its
  epoch, is not the one that gave those tokens: it is discarded, and made anew in a higher epoch.

Leases that were held in a discarded stream are lost; their holders learn it when they renew them, and are fenced off.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from crdt_spine.core.fences import EPOCH_MAX, token_of
from crdt_spine.core.lock_messages import EpochAnswer, EpochQuestion
from crdt_spine.core.messages import Unreadable, encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.errors import ConnectionFailed
from crdt_spine.transport.base import Disconnected, Leases, Message, Transport

log = logging.getLogger(__name__)

ANSWERS_SECONDS_MAX: Final = 1.0  # for a majority of the nodes
AGAIN_SECONDS: Final = 0.3

_decode = msgspec.json.Decoder(EpochAnswer).decode


class Epochs:
    """Finds or makes the stream of leases. `nodes` tells who belongs to the cluster now."""

    def __init__(
        self, transport: Transport, subjects: Subjects, leases: Leases, nodes: Callable[[], Awaitable[frozenset[str]]]
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._leases = leases
        self._nodes = nodes

    async def open(self) -> int:
        """The epoch in which leases are to be given out from now on, however long it takes to know. Raises ConfigError
        where the broker can't keep leases."""
        told = ""
        while True:
            try:
                return await self._opened()
            except (Disconnected, TimeoutError) as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("no locks are given out yet: %s", told)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _opened(self) -> int:
        while True:
            known, newest = await self._ask(0)
            found = await self._leases.find()  # after the question: what nodes were told of is in it
            if found is not None and known <= found[0] and newest <= token_of(*found) and found[0]:
                await self._ask(found[0])
                self._leases.use(found[0])
                return found[0]
            epoch = max(known, 0 if found is None else found[0]) + 1
            assert epoch <= EPOCH_MAX, "the stream of leases was made anew half a million times"
            first = known == 0 and found is None  # then it is nothing that anybody has to know
            log.log(logging.INFO if first else logging.WARNING,
                    "leases are given out in the new epoch %d (nodes know %d, the brokers have %s)",
                    epoch, known, "none" if found is None else found)  # fmt: skip
            await self._ask(epoch)
            if found is not None:
                await self._leases.discard()
            await self._leases.make(epoch)

    async def _ask(self, epoch: int) -> tuple[int, int]:
        """Let a majority of the nodes know of an epoch: the highest epoch and the newest token that they know."""
        answers: dict[str, EpochAnswer] = {}
        enough = asyncio.Event()
        try:
            nodes = await self._nodes()
        except ConnectionFailed as error:
            raise TimeoutError(str(error)) from error
        needed = len(nodes) // 2 + 1

        def take(message: Message) -> None:
            if message.nobody:
                return
            try:
                answer = _decode(message.payload)
            except Unreadable:
                return
            if answer.node in nodes and answer.epoch >= epoch:
                answers[answer.node] = answer
                if len(answers) >= needed:
                    enough.set()

        inbox = f"_INBOX.spine.{secrets.token_hex(6)}"
        subscription = await self._transport.subscribe(inbox, take)
        try:
            async with asyncio.timeout(ANSWERS_SECONDS_MAX):
                self._transport.send(self._subjects.fence, encode(EpochQuestion(epoch=epoch)), inbox)
                await enough.wait()
        except TimeoutError:
            missing = ", ".join(sorted(nodes - answers.keys()))
            message = f"{len(answers)} of {needed} nodes say which leases they know of, not {missing}"
            raise TimeoutError(message) from None
        finally:
            await subscription.cancel()
        return max(answer.epoch for answer in answers.values()), max(answer.newest for answer in answers.values())
