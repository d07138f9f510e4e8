"""One process is a node: who starts asks whether another one is that node already, and is refused where it is.

Two processes under one id would answer the same agents from different disks, and acknowledge for each other what only
one of them has. A process first listens on its node's claim subject and then asks there; the broker says at once that
nobody else listens (it does not count the asker itself), so a start costs one round trip. A dead predecessor's
subscription ends with its connection. Of two that start at the same moment, both hear the other's question, and the one
with the smaller name goes on. A predecessor that holds its subscription and does not answer (stopped, or cut off a
moment ago) is waited for a little, then the start goes on: it will hear of it when it wakes up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time

import msgspec

from crdt_spine.core.messages import Claim, Unreadable, encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.errors import ConfigError
from crdt_spine.transport.base import Disconnected, Message, NobodyListens, Subscription, Transport

log = logging.getLogger(__name__)

CLAIM_SECONDS_MAX = 1.5  # how long one that does not answer keeps a start waiting
ASK_SECONDS = 0.3  # for one answer

_PROCESS = secrets.token_hex(8)  # of this process: a node that begins anew in it is no other one
_decode = msgspec.json.Decoder(Claim).decode


class NodeClaim:
    """A process's hold of its node's id. `take`, and `release` before the connection is closed."""

    def __init__(self, transport: Transport, subjects: Subjects, node: str, process: str = _PROCESS) -> None:
        self.transport = transport
        self.subject = subjects.claim(node)
        self.mine = Claim(node=node, process=process, pid=os.getpid(), host=socket.gethostname())
        self._settled = False
        self._lost_to: Claim | None = None
        self._subscription: Subscription | None = None

    async def take(self) -> None:
        """Raises ConfigError: another live process is this node."""
        self._subscription = await self.transport.subscribe(self.subject, self._hear)
        deadline = time.monotonic() + CLAIM_SECONDS_MAX
        try:
            while not await self._is_free():
                if time.monotonic() >= deadline:
                    log.warning(
                        "another process listens as node %s and does not answer; it is taken for dead", self.mine.node
                    )
                    break
            if self._lost_to is not None:
                raise _in_use(self._lost_to)
        except BaseException:
            await self.release()
            raise
        self._settled = True

    async def release(self) -> None:
        """Another process may be this node from now on."""
        if self._subscription is not None:
            await self._subscription.cancel()
            self._subscription = None

    async def _is_free(self) -> bool:
        """Ask once. Raises ConfigError."""
        try:
            other = _decode(await self.transport.request(self.subject, encode(self.mine), ASK_SECONDS))
        except NobodyListens:
            return True
        except TimeoutError:
            return False
        except (Disconnected, *Unreadable):
            await asyncio.sleep(ASK_SECONDS)
            return False
        if self._has_priority(other):
            raise _in_use(other)
        return True

    def _has_priority(self, other: Claim) -> bool:
        """Does this node belong to the other process rather than to this one, which starts?"""
        return other.process != self.mine.process and (other.settled or other.process < self.mine.process)

    def _hear(self, message: Message) -> None:
        try:
            other = _decode(message.payload)
        except Unreadable:
            return
        if other.process == self.mine.process:
            return
        if self._settled:
            log.error(
                "another process says that it is node %s: pid %d on %s; this one goes on, and tells it so",
                other.node, other.pid, other.host,
            )  # fmt: skip
        elif self._has_priority(other):
            self._lost_to = other
        if message.reply:
            self.transport.send(message.reply, encode(msgspec.structs.replace(self.mine, settled=self._settled)))


def _in_use(other: Claim) -> ConfigError:
    return ConfigError(
        f"another live process is node {other.node!r} of this cluster: pid {other.pid} on {other.host}; stop that one, "
        "or give this one an id and a data folder of its own"
    )
