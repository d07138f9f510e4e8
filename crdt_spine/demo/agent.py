"""One agent of the demo: it writes its memories, reads some of them back, follows others and edits what they wrote.

Which memories of others it edits is decided by their ids alone, so everyone who comes upon such a memory edits it, and
at once: these are the concurrent edits that the nodes have to merge. Tags are only added, so what a subscription has
to bring can be told afterwards from what the nodes hold.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Coroutine
from typing import Any, Final

from crdt_spine.demo.cast import Follow, Player
from crdt_spine.demo.ledger import Feed, Ledger
from crdt_spine.demo.sample import Row
from crdt_spine.demo.scene import AgentView, excerpt
from crdt_spine.errors import SpineError
from crdt_spine.memory import Memory
from crdt_spine.spine import Spine
from crdt_spine.subscription import Updates

READ_BACK_EVERY: Final = 4  # own memories stored
THREAD_READ_EVERY: Final = 7
FINISHED_EVERY: Final = 5
EDITED_ONE_IN: Final = 4  # of the others' memories that arrive; half of these edits change the content too
CONTENT_EDITED_MAX: Final = 2_000  # characters; longer ones are left as they are
TAGS_EDITED_MAX: Final = 50  # on a memory; others may add theirs
PAGE_READ: Final = 200


class Agent:
    """A player at work over its own connection. `number` tells players apart where a name may be too long."""

    def __init__(self, player: Player, number: int, spine: Spine, ledger: Ledger, view: AgentView) -> None:
        self.player = player
        self._number = number
        self._spine = spine
        self._ledger = ledger
        self._view = view
        self._random = random.Random(player.name)
        self._own: dict[str, tuple[str | None, frozenset[str]]] = {}  # id -> thread, tags; what this agent knows of it
        self._finished: set[str] = set()
        self._arrived: asyncio.Queue[Memory] = asyncio.Queue()

    def subscriptions(self) -> list[tuple[Follow, Updates]]:
        """What it follows, opened now."""
        return [(follow, self._subscribe(follow)) for follow in self.player.follows]

    def _subscribe(self, follow: Follow) -> Updates:
        tags = () if follow.tag is None else (follow.tag,)
        return self._spine.subscribe(tags=tags, thread=follow.thread, agent=follow.agent)

    # -- writing ----------------------------------------------------------------------------------------------------

    async def write(self, seconds: float) -> None:
        """Store its memories in order, spread over about `seconds`, reading and updating some in between."""
        loop = asyncio.get_running_loop()
        began, step = loop.time(), seconds / max(1, len(self.player.rows))
        for index, row in enumerate(self.player.rows):
            due = began + step * (index + self._random.uniform(0.1, 0.9))
            await asyncio.sleep(max(0.0, due - loop.time()))
            memory = await self._store(row)
            if memory is None:
                continue
            if index % READ_BACK_EVERY == 1:
                await self._read_back()
            if index % THREAD_READ_EVERY == 3 and memory.thread is not None:
                await self._read_thread(memory.thread)
            if index % FINISHED_EVERY == 4:
                await self._finish()

    async def _store(self, row: Row) -> Memory | None:
        spine = self._spine if row.agent == self.player.name else self._spine.for_agent(row.agent)
        memory = await self._ledger.store(row.agent, row.arguments, spine.store(**row.arguments))
        if memory is not None:
            self._own[memory.id] = (memory.thread, memory.tags)
            self._view.stored += 1
            self._view.last = excerpt(memory.content)
        return memory

    async def _finish(self) -> None:
        """One of its memories is settled: it says so with a tag, and it matters more now."""
        open_ones = [id for id in self._own if id not in self._finished and len(self._own[id][1]) < TAGS_EDITED_MAX]
        if not open_ones:
            return
        id = self._random.choice(open_ones)
        self._finished.add(id)
        importance = round(self._random.uniform(0.8, 1.0), 2)
        memory = await self._ledger.update(
            self.player.name, id, {"importance": importance}, frozenset({"done"}),
            self._spine.update(id, importance=importance, add_tags=["done"]),
        )  # fmt: skip
        if memory is not None:
            self._own[id] = (self._own[id][0], self._own[id][1] | {"done"})
            self._view.edited += 1

    # -- reading ----------------------------------------------------------------------------------------------------

    async def _read_back(self) -> None:
        """Whatever it wrote itself must be there, whichever node answers."""
        id = self._random.choice(list(self._own))
        memory = await self._reading("get", self._spine.get(id))
        if memory is not FAILED:
            thread, tags = self._own[id]
            holds = memory is not None and memory.thread == thread and tags <= memory.tags
            self._ledger.read(self.player.name, f"memory {id}", holds)

    async def _read_thread(self, thread: str) -> None:
        """All it wrote in a thread must be on the thread's page, if that page has the whole thread."""
        own = {id for id, (where, _) in self._own.items() if where == thread}
        page = await self._reading("query", self._spine.query(thread=thread, limit=PAGE_READ))
        if page is not FAILED and page.cursor is None:
            self._ledger.read(self.player.name, f"thread {thread}", own <= {memory.id for memory in page.memories})

    async def _reading(self, what: str, reading: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await reading
        except SpineError as error:
            self._ledger.fail(self.player.name, what, error)
            return FAILED

    # -- following --------------------------------------------------------------------------------------------------

    async def follow(self, feed: Feed, updates: Updates) -> None:
        """Take what a subscription brings, until cancelled."""
        try:
            async for update in updates:
                self._ledger.deliver(feed, update)
                self._view.received += 1
                if update.kind == "stored" and update.memory.id not in self._own:
                    self._arrived.put_nowait(update.memory)
        except SpineError as error:
            self._ledger.fail(self.player.name, f"following {feed.follow}", error)

    async def edit(self) -> None:
        """Edit some of what arrives from others, until cancelled."""
        seen: set[str] = set()
        while True:
            memory = await self._arrived.get()
            try:
                chosen = zlib.crc32(memory.id.encode())
                if chosen % EDITED_ONE_IN == 0 and memory.id not in seen and len(memory.tags) < TAGS_EDITED_MAX:
                    seen.add(memory.id)
                    await self._edit(memory, content=chosen // EDITED_ONE_IN % 2 == 0)
            finally:
                self._arrived.task_done()

    async def edited_all(self) -> None:
        """Return once everything that arrived has been looked at."""
        await self._arrived.join()

    async def _edit(self, memory: Memory, *, content: bool) -> None:
        """A note of its own beside everyone else's, a tag that all add, and for some memories the content, too."""
        key = f"note_{self._number}"
        note = f"read by {self.player.name} in {excerpt(memory.thread or 'no thread')}"
        values: dict[str, Any] = {f"metadata.{key}": note}
        changes: dict[str, Any] = {"metadata": {key: note}, "add_tags": ["read"]}
        if content and len(memory.content) <= CONTENT_EDITED_MAX:
            values["content"] = changes["content"] = f"{memory.content} [{self.player.name} agrees]"
        edited = await self._ledger.update(
            self.player.name, memory.id, values, frozenset({"read"}), self._spine.update(memory.id, **changes)
        )
        if edited is not None:
            self._view.edited += 1
            self._view.last = excerpt(f"+ {memory.agent}: {memory.content}")


FAILED: Final = object()  # a read that raised, and is in the ledger
