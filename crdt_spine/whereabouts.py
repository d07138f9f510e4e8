"""Who holds what, as a session knows it, and how it learns what is new.

That may change while operations are under way. A node that knows a newer epoch says so, or "NotHere"; the nodes are
then asked anew, in the background, and everything that is sent from then on goes by the new layout.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Hello
from crdt_spine.discovery import discover
from crdt_spine.errors import ConnectionFailed
from crdt_spine.health import Health
from crdt_spine.lateness import Lateness
from crdt_spine.routing import Routing
from crdt_spine.transport.base import Transport

RENEW_SECONDS = 0.5  # for nodes to say who holds what
RENEW_SPREAD_SECONDS = 0.1  # within which many sessions ask, if nothing waits for it
RENEW_PAUSE_SECONDS = 0.2
WAIT_SECONDS = 0.05  # for what is new, where nobody asks


class Whereabouts:
    """`hello`, what the nodes say, and what follows from it: `layout`, `routing`. All three are others after a change;
    `changed` is called then. `turn` is the session's own number, by which sessions differ in what they do."""

    def __init__(
        self, transport: Transport, hello: Hello, turn: int, zone: str | None, health: Health, lateness: Lateness,
        counts: Counter[str], changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self.hello: Hello
        self.layout: Layout
        self.routing: Routing
        self._transport = transport
        self._turn = turn
        self._zone = zone
        self._health = health
        self._lateness = lateness
        self._counts = counts
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._wanted_epoch = 0
        self._renewing: asyncio.Task[None] | None = None
        self._closed = False
        self._adopt(hello)

    async def close(self) -> None:
        """Ask no more."""
        self._closed = True
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    def ask_who_holds_what(self) -> None:
        """A node does not hold what this session thinks it does: ask anew, in the background."""
        self.ask_anew(self.hello.epoch + 1, hurry=True)

    def ask_anew(self, epoch: int, hurry: bool = False) -> None:
        """Somebody knows of an epoch that this session does not know. `hurry`: something waits for it."""
        self._wanted_epoch = max(self._wanted_epoch, epoch)
        if not self._closed and (self._renewing is None or self._renewing.done()):
            self._renewing = self._loop.create_task(self._renew(hurry))

    async def renewed(self) -> None:
        """Wait a moment for who holds what, where that is being asked."""
        if self._renewing is not None and not self._renewing.done():
            await asyncio.wait((self._renewing,), timeout=RENEW_SECONDS)
        else:
            await asyncio.sleep(WAIT_SECONDS)

    def _adopt(self, hello: Hello) -> None:
        """From now on, everything goes by this."""
        now = self._loop.time()
        self.hello = hello
        if hello.now:
            self._lateness.heard(hello.node, hello.now, now)
        self.layout = Layout(hello)
        self.routing = Routing(hello, self.layout, self._turn, self._health, self._zone)
        self._health.keep(node.id for node in hello.nodes)
        self._health.hint(hello.down, now)

    async def _renew(self, hurry: bool) -> None:
        """Ask who holds what, until it is as new as somebody has said, or nobody says more."""
        if not hurry:
            await asyncio.sleep(RENEW_SPREAD_SECONDS * (self._turn % 100) / 100)
        asked = 0
        while asked < 2 or self._wanted_epoch > self.hello.epoch + 1:
            wanted = self._wanted_epoch
            asked += 1
            with contextlib.suppress(ConnectionFailed):
                hello = await discover(self._transport, self.hello.cluster, RENEW_SECONDS, epoch=wanted)
                if hello.epoch > self.hello.epoch and hello.identity == self.hello.identity:
                    self._counts["layouts"] += 1
                    self._adopt(hello)
                    self._changed()
            if self.hello.epoch >= self._wanted_epoch or asked > 10:
                break
            await asyncio.sleep(RENEW_PAUSE_SECONDS)
        self._wanted_epoch = self.hello.epoch
