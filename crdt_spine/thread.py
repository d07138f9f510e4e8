"""A thread: a conversation of many agents, shown to each of them in causal order and never with a hole.

    thread = spine.thread("incident-7")
    await thread.append("The build on main is red.")
    for memory in await thread.read(): ...

The agent's side makes the vector clocks (core/thread.py has the theory): a context has all that this spine has read in
a thread, by `read` or by a subscription, and written to it; an append is its next event. Appended entries get ids that
lie in the partition of the thread's id, so that a thread with a hundred agents is kept, and held together, by one
partition's replicas; an append takes the session's token along, so its coordinator has whatever was read before it.
What lies elsewhere is named in `after`.

A read looks at all partitions, page by page, and gets with each page the vectors that this page is a picture of. Their
meet is its cut: no older page can lack what is within it, whatever came in while the next one was on its way, and
whichever nodes answered. Chandy, Lamport, "Distributed snapshots: determining global states of distributed systems"
(1985) has the idea of a consistent cut; `visible` makes the cut consistent.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from crdt_spine import validation
from crdt_spine.core.causality import join, join_into, meet
from crdt_spine.core.messages import Hit, Query, Store, Vectors
from crdt_spine.core.selection import Selection
from crdt_spine.core.thread import Entry, Lost, Relation, causal_order, relation, visible
from crdt_spine.errors import ConnectionFailed, InvalidInput, SpineError, StaleToken
from crdt_spine.levels import Levels, noting
from crdt_spine.limits import (
    QUERY_LIMIT_MAX,
    THREAD_ACTORS_MAX,
    THREAD_AGENTS_MAX,
    THREAD_ENTRIES_REMEMBERED_MAX,
    THREADS_REMEMBERED_MAX,
)
from crdt_spine.memory import Consistency, Memory
from crdt_spine.paging import merged_hits, place_of
from crdt_spine.session import Session
from crdt_spine.written import stored_memory

RECENT_ENTRIES = 100  # looked at for the number of an agent that has not read the thread
PATIENCE_SECONDS = 2.0  # before it is asked whether what a read waits for is lost for good
ASK_SECONDS = 2.0  # for a replica's answer to that

_decode_memory = msgspec.json.Decoder(Memory).decode


class Context:
    """What one agent has read and written in one thread, in this process.

    `clock` is the join of those entries' clocks, `dots` has, by partition, their changes, `lost` what no
    replica has any more. `known`: all of the agent's own earlier entries are in it.
    """

    def __init__(self) -> None:
        self.clock: dict[str, int] = {}
        self.dots: Vectors = {}
        self.lost: Lost = {}
        self.known = False
        self.turn = asyncio.Lock()  # numbers are given in the order of the calls

    def take(self, entries: Iterable[Entry]) -> None:
        """These entries are in the past of whatever comes next."""
        dots: Vectors = {}
        for entry in entries:
            join_into(self.clock, entry.clock)
            join_into(dots.setdefault(entry.partition, {}), entry.changes)
        self.reach(dots)

    def hear(self, clock: Mapping[str, int], partition: int, changes: Mapping[str, int]) -> None:
        """So is an entry that a subscription has told of."""
        join_into(self.clock, clock)
        self.dots[partition] = join(self.dots.get(partition, {}), changes)

    def reach(self, dots: Vectors) -> None:
        """These changes are in the past as well. A vector is replaced, never changed: operations under way have it."""
        for partition, changes in dots.items():
            self.dots[partition] = join(self.dots.get(partition, {}), changes)

    def next(self, operation: Store, agent: str, partition: int) -> Store:
        """The operation as the agent's next event. Its number is given even if the operation then fails: numbers need
        only rise, so that a gap is harmless; giving a number again would not be. Raises InvalidInput."""
        clock = {**self.clock, agent: self.clock.get(agent, 0) + 1}
        after = {number: dots for number, dots in self.dots.items() if number != partition}
        if len(clock) > THREAD_AGENTS_MAX:
            raise InvalidInput(
                f"{len(clock):,} agents have written to this thread; at most {THREAD_AGENTS_MAX:,} can: begin a new one"
            )
        if any(len(dots) > THREAD_ACTORS_MAX for dots in after.values()):
            raise InvalidInput(f"more than {THREAD_ACTORS_MAX:,} nodes have coordinated this thread: begin a new one")
        self.clock[agent] = clock[agent]
        return msgspec.structs.replace(operation, clock=clock, after=after)


class Contexts:
    """The contexts of a session by agent and thread: those in use, and the ones used last."""

    def __init__(self) -> None:
        self._in_use: WeakValueDictionary[tuple[str, str], Context] = WeakValueDictionary()
        self._last: OrderedDict[tuple[str, str], Context] = OrderedDict()

    def of(self, agent: str, thread: str) -> Context:
        """The one context of this agent in this thread."""
        key = agent, thread
        context = self._in_use.get(key)
        if context is None:
            context = self._in_use[key] = Context()
        self._last[key] = context
        self._last.move_to_end(key)
        if len(self._last) > THREADS_REMEMBERED_MAX:
            self._last.popitem(last=False)
        return context


class _Look(msgspec.Struct):
    """What a look at all partitions found; `cut` is what it is a picture of."""

    entries: list[Entry]
    memories: dict[str, Memory]
    cut: Vectors


class Thread:
    """One thread, as one agent reads and writes it: what `spine.thread(id)` returns."""

    def __init__(
        self, session: Session, id: str, agent: str, context: Context, prepare: Callable[..., Store],
        levels: Levels, chosen: Callable[[object], Consistency | None],
    ) -> None:  # fmt: skip
        self.id = id
        self.agent = agent
        self._session = session
        self._context = context
        self._prepare = prepare
        self._levels = levels
        self._chosen = chosen
        self._clocks: dict[str, tuple[str, Mapping[str, int]]] = {}  # id -> (agent, clock); what was met last is last

    def __repr__(self) -> str:
        return f"Thread(id={self.id!r}, agent={self.agent!r})"

    async def append(
        self, content: str, *, id: str | None = None, tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None, importance: float = 0.5, ttl: float | None = None,
        consistency: Consistency | str | None = None,
    ) -> Memory:  # fmt: skip
        """Store an entry that comes after everything that this spine has read and written in the thread so far; its
        arguments are those of `Spine.store`. Appends under way at once are in the order of their calls.

        Raises InvalidInput, QuorumFailed, ConnectionFailed; before the first one StaleToken.
        """
        level = self._chosen(consistency)
        operation = self._prepare(content, id, tags, metadata, importance, ttl)
        partition = self._session.layout.partition_of(operation.id)
        async with self._context.turn:
            if not self._context.known:
                await self._recall()
            operation = self._context.next(operation, self.agent, partition)
        # Always with the token, also where one acknowledgement is enough: the coordinator must have what was read, or
        # its delta's `deps` would not say so.
        result = await self._levels.perform(operation, level, use_token=True)
        self._levels.learn(operation.id, operation.tags)
        if result.born is not None:
            actor, n = result.born
            self._context.reach({partition: {actor: n}})
        memory = stored_memory(operation, result, self.agent)
        self._meet([memory], THREAD_ENTRIES_REMEMBERED_MAX)
        return memory

    async def read(self, *, consistency: Consistency | str | None = None) -> list[Memory]:
        """The thread in causal order: an entry stands behind everything that its writer had read or written before it.

        Where something before an entry has not reached the answering nodes, it is waited for, up to the call's
        timeout; what then is still missing hides what comes after it. With "eventual" nothing is waited for. Raises
        InvalidInput, StaleToken, ConnectionFailed.
        """
        level, because = self._levels.of(self._chosen(consistency))
        with noting("thread", self.id, level, because):
            return await self._read(wait=level != "eventual", strong=level == "strong")

    async def _read(self, wait: bool, strong: bool) -> list[Memory]:
        look = await self._look(wait, strong=strong)
        shown, lacking = visible(look.entries, look.cut, self._context.lost)
        if wait and lacking:
            look, shown = await self._complete(look, shown, lacking)
        self._context.take(shown)
        self._own(look.entries)
        self._context.known = True
        order = [look.memories[entry.id] for entry in causal_order(shown)]
        self._meet(order, max(THREAD_ENTRIES_REMEMBERED_MAX, len(order)))
        return order

    def relation(self, a: Memory | str, b: Memory | str) -> Relation:
        """How `a` stands to `b`: "before", "after" or "concurrent". Memories of this thread, or ids of entries that it
        has read or appended. What was not appended has no clock and is concurrent to everything. Raises InvalidInput.
        """
        (id, agent, clock), (other_id, other_agent, other_clock) = self._event("a", a), self._event("b", b)
        return "concurrent" if id == other_id else relation(agent, clock, other_agent, other_clock)

    # -- reading ----------------------------------------------------------------------------------------------------

    async def _look(
        self, wait: bool, token: Vectors | None = None, timeout: float | None = None, *, strong: bool = False
    ) -> _Look:  # fmt: skip
        """All there is, of replicas that have the session's token, or this one; `strong`: all that was acknowledged.
        Raises what `Session.run` does."""
        look = _Look([], {}, {})
        query = Query(
            i=0, selection=Selection(thread=self.id), order="oldest", limit=QUERY_LIMIT_MAX, causal=True, strong=strong
        )  # fmt: skip
        while True:
            results = await self._session.query(query, use_token=wait, token=token, timeout=timeout)
            cut = {number: vector for result in results for number, vector in result.cut.items()}
            first = query.after is None
            look.cut = cut if first else {number: meet((look.cut.get(number, {}), cut[number])) for number in cut}
            hits, more = merged_hits(results, QUERY_LIMIT_MAX)
            for hit in hits:
                memory = look.memories[hit.id] = _decode_memory(hit.memory)
                look.entries.append(self._entry(hit, memory))
            if not more or not hits:
                return look
            query = msgspec.structs.replace(query, after=place_of(hits[-1]))

    async def _complete(self, look: _Look, shown: list[Entry], lacking: Vectors) -> tuple[_Look, list[Entry]]:
        """Look again until nothing is lacking, or time is over."""
        session, context = self._session, self._context
        loop = asyncio.get_running_loop()
        deadline = loop.time() + session.timeout
        while lacking.keys() & session.layout.replicas.keys() and (left := deadline - loop.time()) > 0:
            # Not joined into the session's token: it may be what nobody has any more.
            token = {
                number: join(session.vectors.get(number, {}), lacking.get(number, {}))
                for number in session.vectors.keys() | lacking.keys()
            }
            try:
                look = await self._look(True, token, min(left, PATIENCE_SECONDS))
            except (StaleToken, ConnectionFailed):
                for number, spans in (await self._lost(lacking)).items():
                    context.lost[number] = {**context.lost.get(number, {}), **spans}
            shown, lacking = visible(look.entries, look.cut, context.lost)
        return look, shown

    async def _lost(self, lacking: Vectors) -> Lost:
        """What of this is lost for good: a change is on its coordinator's disk before anybody is told of
        it, so once every replica of its partition says that it has it not, that disk is gone and nobody else has it.
        For readers it is like deleted. Of other regions' changes nothing is known here."""
        session = self._session
        lost: Lost = {}

        async def ask(number: int, node: str) -> Mapping[str, int]:
            query = Query(
                i=session.number(), selection=Selection(thread=self.id), limit=1, partitions=(number,), causal=True
            )  # fmt: skip
            result = await session.run(query, (node,), use_token=False, timeout=ASK_SECONDS)
            return result.cut[number]

        for number, dots in lacking.items():
            try:
                cuts = await asyncio.gather(*[ask(number, node) for node in session.layout.replicas.get(number, ())])
            except SpineError:
                continue  # who does not answer may have it
            region = f"{session.hello.region}/"
            for actor, n in dots.items():
                last = max((cut.get(actor, 0) for cut in cuts), default=n)
                if last < n and actor.startswith(region):
                    lost.setdefault(number, {})[actor] = (last, n)
        return lost

    def _entry(self, hit: Hit, memory: Memory) -> Entry:
        assert hit.born is not None, "the node does not know of threads"
        actor, n = hit.born
        return Entry(
            id=hit.id, agent=memory.agent, clock=memory.clock, created=hit.created,
            partition=self._session.layout.partition_of(hit.id), actor=actor, n=n, after=hit.after,
            changes=hit.changes or {actor: n}, replaced=hit.replaced,
        )  # fmt: skip

    # -- the agent's past -------------------------------------------------------------------------------------------

    async def _recall(self) -> None:
        """An agent that writes before it has read: what it wrote itself, maybe long ago in another process, is in its
        past all the same, with everything that was in the past of that. What others wrote is not."""
        own = Query(
            i=0, selection=Selection(agent=self.agent, thread=self.id), order="newest", limit=1, causal=True
        )  # fmt: skip
        recent = msgspec.structs.replace(own, selection=Selection(thread=self.id), limit=RECENT_ENTRIES)
        answers = await asyncio.gather(self._session.query(own), self._session.query(recent))
        hits = [hit for results in answers for result in results for hit in result.hits or ()]
        self._own([self._entry(hit, _decode_memory(hit.memory)) for hit in hits])
        self._context.known = True

    def _own(self, entries: Iterable[Entry]) -> None:
        """The agent's own entries are in its past, also one that could not be shown. Of the others', only what they say
        of its numbers: where the own entry was deleted, its number must not be given again."""
        clock, agent = self._context.clock, self.agent
        mine = [entry for entry in entries if entry.agent == agent and entry.number]
        self._context.take(mine)
        for entry in mine:
            self._context.reach(entry.after)
            self._session.see({entry.partition: entry.changes})
        number = max((entry.clock.get(agent, 0) for entry in entries), default=0)
        if number > clock.get(agent, 0):
            clock[agent] = number

    # -- relation ---------------------------------------------------------------------------------------------------

    def _meet(self, memories: Iterable[Memory], at_most: int) -> None:
        """Know these entries by their ids, and of the others as many as there is room for."""
        for memory in memories:
            self._clocks.pop(memory.id, None)
            self._clocks[memory.id] = memory.agent, memory.clock
        while len(self._clocks) > at_most:
            del self._clocks[next(iter(self._clocks))]

    def _event(self, name: str, entry: object) -> tuple[str, str, Mapping[str, int]]:
        if isinstance(entry, Memory):
            if entry.thread != self.id:
                raise InvalidInput(f"{name} belongs to thread {validation.shown(entry.thread)}, not to {self.id!r}")
            return entry.id, entry.agent, entry.clock
        if not isinstance(entry, str):
            raise InvalidInput(f"{name} must be a Memory or an id, not {type(entry).__name__}")
        if entry not in self._clocks:
            raise InvalidInput(
                f"{name}: no entry {validation.shown(entry)} was read or appended by this Thread; read() it first, or "
                "pass the Memory"
            )
        return entry, *self._clocks[entry]
