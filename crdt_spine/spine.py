"""`Spine`: what an agent calls. One node in this process, or a cluster; the same interface.

    async with Spine.connect("nats://127.0.0.1:4222", agent="reviewer-1") as spine:
        memory = await spine.store("the build is red", tags=["ci"])
        page = await spine.query(tags=["ci"])

The way of a write from here: session.py → (transport) → node/service.py → core/replica.py → node/committer.py →
node/replication.py → the other replicas, and back.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import Any, Final

import msgspec

from crdt_spine import homing, past, validation
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.messages import Delete, Edit, Get, Query, Status, Store, Vector
from crdt_spine.core.placement import generated_id, placement_hash
from crdt_spine.core.selection import Selection
from crdt_spine.core.token import Cursor, cursor_of, token_text, token_vectors
from crdt_spine.document import Documents, Editing
from crdt_spine.errors import ConnectionFailed, InvalidInput, SpineError, StaleToken
from crdt_spine.limits import (
    CONNECT_SECONDS_MAX,
    ID_BYTES_MAX,
    OPERATION_SECONDS_MAX,
    QUERY_LIMIT_MAX,
    QUERY_TEXT_BYTES_MAX,
    THREAD_BYTES_MAX,
    TOKEN_BYTES_MAX,
)
from crdt_spine.memory import Conflict, Consistency, Memory, Page
from crdt_spine.paging import Order, page_of
from crdt_spine.report import cluster_report
from crdt_spine.session import Session
from crdt_spine.subscription import Updates
from crdt_spine.thread import Contexts, Thread
from crdt_spine.transport.nats import NatsTransport, check_url
from crdt_spine.written import stored_memory

_decode_memory = msgspec.json.Decoder(Memory).decode
_STORE_KEYS = ("content", "id", "tags", "metadata", "thread", "importance", "ttl", "created_at", "consistency")
_ORDERS: Final[tuple[Order, ...]] = ("newest", "oldest", "relevance")


class Spine:
    """An agent's view of the shared memory. Made by `open` or `connect`; use it as `async with`."""

    def __init__(self, agent: str, opening: Callable[[], Awaitable[tuple[Session, Callable[[], Awaitable[None]]]]],
                 consistency: Consistency | None, token: str | None) -> None:  # fmt: skip
        self.agent = agent
        self._opening = opening
        self._consistency = consistency
        self._token = token
        self._session: Session | None = None
        self._closing: Callable[[], Awaitable[None]] | None = None
        self._documents = Documents()
        self._contexts = Contexts()

    # -- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path, *, agent: str, consistency: Consistency | str | None = None,
             token: str | None = None) -> Spine:  # fmt: skip
        """One embedded node in this process, without a broker; `path` is its file, ":memory:" keeps nothing.

        Raises InvalidInput at once; ConfigError on entering where the file can't be used or is in use.
        """
        name, file = validation.agent(agent), validation.path(path)

        async def opening() -> tuple[Session, Callable[[], Awaitable[None]]]:
            from crdt_spine.embedded import open_session  # an agent of a cluster needs no storage engine

            return await open_session(file, name)

        return cls(name, opening, validation.consistency(consistency), validation.token(token))

    @classmethod
    def connect(
        cls, url: str, *, agent: str, consistency: Consistency | str | None = None, token: str | None = None,
        zone: str | None = None, cluster: str | None = None, timeout: float = OPERATION_SECONDS_MAX,
    ) -> Spine:  # fmt: skip
        """A cluster behind a NATS broker. `cluster` names it where the broker carries several; `timeout` is each
        call's, in seconds, retries included.

        Raises InvalidInput at once; on entering ConnectionFailed within 5 s where no broker or no node answers.
        """
        check_url(url)
        name = validation.agent(agent)
        seconds = validation.seconds("timeout", timeout)
        cluster = validation.optional("cluster", cluster, ID_BYTES_MAX)
        zone = validation.optional("zone", zone, ID_BYTES_MAX)

        async def opening() -> tuple[Session, Callable[[], Awaitable[None]]]:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + CONNECT_SECONDS_MAX
            transport = await NatsTransport.connect(url, f"spine agent {name}", CONNECT_SECONDS_MAX)
            try:
                left = max(0.5, deadline - loop.time())
                session = await Session.discover(transport, name, cluster=cluster, zone=zone, timeout=left)
            except BaseException:
                await transport.close()
                raise
            session.timeout = seconds

            async def closing() -> None:
                await session.close()
                await transport.close()

            return session, closing

        return cls(name, opening, validation.consistency(consistency), validation.token(token))

    async def __aenter__(self) -> Spine:
        if self._session is not None:
            raise InvalidInput("this spine is open already")
        self._session, self._closing = await self._opening()
        self._contexts = Contexts()  # what an earlier session had read is not in this one's token
        if self._token is not None:
            try:
                self._session.see(self._vectors(self._token))
            except InvalidInput:
                await self.close()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session; `async with` does it by itself."""
        closing, self._closing = self._closing, None
        if closing is not None:
            self._session = None
            await closing()

    def for_agent(self, agent: str) -> Spine:
        """The same connection and session, writing as another agent. It lives as long as this one."""
        other = Spine(validation.agent(agent), self._opening, self._consistency, None)
        other._session = self._live
        other._contexts = self._contexts
        return other

    # -- writing ----------------------------------------------------------------------------------------------------

    async def store(
        self, content: str, *, id: str | None = None, tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None, thread: str | None = None, importance: float = 0.5,
        ttl: float | None = None, created_at: datetime | None = None, consistency: Consistency | str | None = None,
    ) -> Memory:  # fmt: skip
        """Store a memory; an id that exists is replaced whole. `ttl` in seconds.

        `created_at` is for memories that are older than their storing (an import). Raises InvalidInput, QuorumFailed,
        ConnectionFailed.
        """
        session = self._live
        operation = self._store(session, content, id, tags, metadata, thread, importance, ttl, created_at, consistency)
        result = await session.on_memory(operation, operation.id, use_token=operation.acks != 1)
        return stored_memory(operation, result, self.agent)

    async def store_many(self, memories: Iterable[Mapping[str, Any]]) -> list[Memory]:
        """Store many at once: mappings with the arguments of `store`; the memories, in order.

        All are checked before the first is sent. If one fails, its error is raised after all others are done.
        """
        session = self._live
        if isinstance(memories, str | bytes | Mapping) or not isinstance(memories, Iterable):
            raise InvalidInput(f"memories must be a list of mappings, not {type(memories).__name__}")
        operations = []
        for index, one in enumerate(memories):
            if not isinstance(one, Mapping):
                raise InvalidInput(f"memory {index}: must be a mapping, not {type(one).__name__}")
            if unknown := [key for key in one if key not in _STORE_KEYS]:
                raise InvalidInput(
                    f"memory {index}: unknown {validation.shown(unknown[0])}; there are {', '.join(_STORE_KEYS)}"
                )
            if "content" not in one:
                raise InvalidInput(f"memory {index}: content is missing")
            try:
                operations.append(
                    self._store(
                        session, one["content"], one.get("id"), one.get("tags", ()), one.get("metadata"),
                        one.get("thread"), one.get("importance", 0.5), one.get("ttl"), one.get("created_at"),
                        one.get("consistency"),
                    )
                )  # fmt: skip
            except InvalidInput as error:
                raise InvalidInput(f"memory {index}: {error}") from None
        results = await asyncio.gather(
            *[session.on_memory(operation, operation.id, use_token=operation.acks != 1) for operation in operations],
            return_exceptions=True,
        )
        stored = []
        for operation, result in zip(operations, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            stored.append(stored_memory(operation, result, self.agent))
        return stored

    async def update(
        self, id: str, *, content: str | EllipsisType = ..., importance: float | EllipsisType = ...,
        ttl: float | EllipsisType | None = ..., metadata: Mapping[str, Any] | None = None,
        add_tags: Iterable[str] = (), remove_tags: Iterable[str] = (), if_version: str | None = None,
        consistency: Consistency | str | None = None,
    ) -> Memory:  # fmt: skip
        """Change parts of a memory; what is not named stays. `metadata`: keys to set, None removes one; `ttl` None:
        for ever. Raises NotFound, VersionConflict, InvalidInput, QuorumFailed, ConnectionFailed."""
        session = self._live
        expires: int | msgspec.UnsetType | None = msgspec.UNSET
        if ttl is not ...:
            milliseconds = validation.ttl_milliseconds(ttl)
            expires = None if milliseconds is None else at_milliseconds(_now() + milliseconds)
        operation = Edit(
            i=session.number(),
            id=validation.id(id),
            content=None if content is ... else validation.content(content),
            importance=None if importance is ... else validation.importance(importance),
            expires=expires,
            metadata=validation.metadata(metadata, removals=True),
            add=validation.tags("add_tags", add_tags),
            remove=validation.tags("remove_tags", remove_tags),
            if_version=validation.optional("if_version", if_version, TOKEN_BYTES_MAX),
            acks=self._acks(consistency),
            agent=self._other_agent(session),
        )
        if both := set(operation.add) & set(operation.remove):
            raise InvalidInput(f"tag {min(both)!r} is both in add_tags and in remove_tags")
        result = await session.on_memory(operation, operation.id, use_token=operation.acks != 1)
        return _decode_memory(result.memory)

    async def delete(self, id: str, *, consistency: Consistency | str | None = None) -> bool:
        """Delete a memory; was there one? Raises InvalidInput, QuorumFailed, ConnectionFailed."""
        session = self._live
        operation = Delete(
            i=session.number(), id=validation.id(id), acks=self._acks(consistency), agent=self._other_agent(session)
        )
        result = await session.on_memory(operation, operation.id, use_token=operation.acks != 1)
        return bool(result.existed)

    # -- reading ----------------------------------------------------------------------------------------------------

    async def get(self, id: str, *, consistency: Consistency | str | None = None) -> Memory | None:
        """The memory, or None. Raises InvalidInput, StaleToken, ConnectionFailed, and QuorumFailed where the cluster's
        read quorum is more than one replica and fewer answered."""
        session = self._live
        use_token = self._with_token(consistency)
        reads = 1 if session.hello.read_quorum > 1 and not use_token else None
        operation = Get(i=session.number(), id=validation.id(id), reads=reads)
        result = await session.on_memory(operation, operation.id, use_token=use_token)
        return _decode_memory(result.memory) if result.memory else None

    async def query(
        self, *, tags: Iterable[str] = (), any_tags: Iterable[str] = (), not_tags: Iterable[str] = (),
        agent: str | None = None, thread: str | None = None, since: datetime | None = None,
        until: datetime | None = None, metadata: Mapping[str, Any] | None = None, text: str | None = None,
        order: Order = "newest", limit: int = 50, cursor: str | None = None,
        consistency: Consistency | str | None = None,
    ) -> Page:  # fmt: skip
        """A page of the memories that fulfil every condition given.

        `since` (inclusive) and `until` (exclusive) are creation times. `text`: words, by their stem; ordered by time,
        a memory must have all of them; ordered by relevance, the more and the rarer words it has the earlier it comes.
        A page may be shorter than `limit` where memories are large; its cursor is None only at the end, stays valid
        while others write, and never shows a memory twice. It goes with the same conditions and order; `limit`, `since`
        and `until` may be others. Raises InvalidInput, StaleToken, ConnectionFailed.
        """
        session = self._live
        if order not in _ORDERS:
            raise InvalidInput(f"order must be newest, oldest or relevance, not {validation.shown(order)}")
        order = _ORDERS[_ORDERS.index(order)]  # a plain str, whatever was equal to it: the encoder takes nothing else
        if order == "relevance" and text is None:
            raise InvalidInput("order='relevance' needs text")
        selection = Selection(
            tags=validation.tags("tags", tags),
            any_tags=validation.tags("any_tags", any_tags),
            not_tags=validation.tags("not_tags", not_tags),
            agent=None if agent is None else validation.agent(agent),
            thread=validation.thread(thread),
            since=validation.time("since", since),
            until=validation.time("until", until),
            metadata=validation.metadata(metadata),
        )
        words = None if text is None else validation.text("text", text, QUERY_TEXT_BYTES_MAX)
        wanted = validation.limit(limit)
        which = _query_number(selection, order, words)
        place = Cursor(which, None, ()) if cursor is None else cursor_of(cursor, which)
        use_token = self._with_token(consistency)

        query = Query(
            i=0, selection=selection, order=order, limit=wanted, text=words, after=place.after, shown=place.shown
        )  # `Session.query` numbers what it sends
        return page_of(await homing.query(session, query, use_token=use_token), order, wanted, place)

    def subscribe(
        self, *, tags: Iterable[str] = (), any_tags: Iterable[str] = (), agent: str | None = None,
        thread: str | None = None, token: str | None = None,
    ) -> Updates:  # fmt: skip
        """What happens from now on, or after `token`, to memories that fulfil every condition: an async iterator.

        Operations of this spine that are issued later come after the subscription's beginning. After `token`, a
        memory that changed several times comes once, as it is now. Raises InvalidInput; while iterating
        ConnectionFailed where no node opens the feed.
        """
        session = self._live
        selection = Selection(
            tags=validation.tags("tags", tags),
            any_tags=validation.tags("any_tags", any_tags),
            agent=None if agent is None else validation.agent(agent),
            thread=validation.thread(thread),
        )
        return Updates(session, selection, None if token is None else self._vectors(token), self._heard)

    # -- threads ----------------------------------------------------------------------------------------------------

    def thread(self, id: str) -> Thread:
        """A conversation that is read in causal order: `append` comes after everything that this spine has read and
        written in it so far, `read` never shows an entry without what it may answer. Raises InvalidInput."""
        session = self._live
        name = validation.text("id", id, THREAD_BYTES_MAX)

        def prepare(
            content: object, id: object, tags: object, metadata: object, importance: object, ttl: object,
            consistency: object,
        ) -> Store:  # fmt: skip
            return self._store(
                session, content, id, tags, metadata, name, importance, ttl, None, consistency, beside=name
            )  # fmt: skip

        return Thread(session, name, self.agent, self._contexts.of(self.agent, name), prepare, self._with_token)

    def _heard(self, memory: Memory, partition: int, version: Vector) -> None:
        """What a subscription tells of a thread, its agent has read."""
        if memory.thread is not None:
            self._contexts.of(self.agent, memory.thread).hear(memory.clock, partition, version)

    # -- documents --------------------------------------------------------------------------------------------------

    def document(self, id: str, *, consistency: Consistency | str | None = None) -> Editing:
        """A memory's content to edit together with others: `async with` gives a `pycrdt.Doc` with the newest state,
        whose `doc.get("content", type=pycrdt.Text)` is the content; other root types travel along. Where there is no
        such memory, leaving the block makes one, if the block has changed something.

        What the block changed is merged with everyone else's when it is left; after an exception in it nothing is
        sent. Each block has a document of its own, in which nothing changes meanwhile. Was the whole content written
        anew meanwhile (store, update), the block's change of the text is carried over to it, without formatting and
        other root types; was the memory deleted, leaving raises NotFound. Further VersionConflict, InvalidInput,
        QuorumFailed, ConnectionFailed, StaleToken.
        """
        session = self._live
        acks, agent = self._acks(consistency), self._other_agent(session)
        return Editing(session, self._documents, validation.id(id), acks, agent)

    # -- what was ---------------------------------------------------------------------------------------------------

    async def history(self, id: str) -> list[Memory]:
        """The versions of a memory that this cluster still knows, newest first; of a living memory the first one is how
        it is now. Kept are some of each memory, and for some days (limits.py), also of one that was deleted. Raises
        InvalidInput, StaleToken, and ConnectionFailed where none of its replicas answers."""
        return await past.history(self._live, validation.id(id))

    async def conflicts(self, id: str | None = None, *, limit: int = QUERY_LIMIT_MAX) -> list[Conflict]:
        """The values that were lost to concurrent writes, of one memory or of all, newest first; at most `limit`. Who
        overwrites what they have seen is in no conflict. Kept for some days (limits.py). Raises InvalidInput,
        StaleToken, and ConnectionFailed where of some memories none of the replicas answers."""
        return await past.conflicts(self._live, None if id is None else validation.id(id), validation.limit(limit))

    # -- tokens -----------------------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """What this session wrote and saw, as text; a spine that is given it sees at least that."""
        session = self._live
        return token_text(session.hello.cluster, session.hello.region, session.vectors)

    async def wait_for(self, token: str, timeout: float = 5.0) -> None:
        """Return once this session reads at least what `token` has. Raises StaleToken after `timeout` seconds,
        InvalidInput where it is no token of this cluster."""
        session = self._live
        seconds = validation.seconds("timeout", timeout)
        vectors = self._vectors(token)

        try:
            async with asyncio.timeout(seconds):
                await session.reach(vectors, seconds)
        except (TimeoutError, StaleToken) as error:
            raise StaleToken(f"the token was not reached by any replica within {seconds:g} s") from error
        session.see(vectors)

    # -- the cluster ------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """How the cluster fares: the document of `spine status --json`."""
        session = self._live

        async def ask(node: str, zone: str | None) -> dict[str, Any]:
            try:
                result = await session.run(Status(i=session.number()), (node,), timeout=2.0)
            except SpineError as error:
                return {"id": node, "zone": zone, "state": "down", "problem": str(error)}
            report: dict[str, Any] = msgspec.json.decode(result.status)
            return report

        hello = session.hello
        nodes = await asyncio.gather(*[ask(node.id, node.zone) for node in hello.nodes])
        return cluster_report(hello, session.layout, list(nodes))

    @property
    def session(self) -> Session:
        """What carries this spine's operations: for programs that ask nodes about themselves (reshaping.py)."""
        return self._live

    # -- within -----------------------------------------------------------------------------------------------------

    @property
    def _live(self) -> Session:
        if self._session is None:
            raise ConnectionFailed("this spine is not open; use it as `async with Spine.connect(…) as spine`")
        return self._session

    def _store(
        self, session: Session, content: object, id: object, tags: object, metadata: object, thread: object,
        importance: object, ttl: object, created_at: object, consistency: object, *, beside: str | None = None,
    ) -> Store:  # fmt: skip
        """`beside`: a generated id lies in the partition of this key, else where the cluster's placement puts it."""
        milliseconds = validation.ttl_milliseconds(ttl)
        now = _now()
        distinct = validation.tags("tags", tags)
        if beside is None:
            beside = homing.placement_key(session.hello.placement, self.agent, distinct, tags)
        return Store(
            i=session.number(),
            id=self._new_id(now, beside) if id is None else validation.id(id),
            content=validation.content(content),
            tags=distinct,
            metadata=validation.metadata(metadata),
            thread=validation.thread(thread),
            importance=validation.importance(importance),
            expires=None if milliseconds is None else at_milliseconds(now + milliseconds),
            created=validation.time("created_at", created_at) or 0,
            acks=self._acks(consistency),
            agent=self._other_agent(session),
        )

    def _new_id(self, now: int, beside: str | None) -> str:
        random = int.from_bytes(os.urandom(12))
        return generated_id(random & 0xFFFF if beside is None else placement_hash(beside), now, random >> 16)

    def _other_agent(self, session: Session) -> str | None:
        return None if session.agent == self.agent else self.agent

    def _level(self, consistency: object) -> Consistency:
        level = self._consistency if consistency is None else validation.consistency(consistency)
        if level is None:
            level = self._consistency = Consistency(self._live.hello.default_level)
        if level is Consistency.STRONG:
            raise InvalidInput(
                "consistency 'strong' is not available yet; use 'read-your-writes' or 'causal', with if_version "
                "where one agent's write must not overwrite another's unseen"
            )
        return level

    def _acks(self, consistency: object) -> int | None:
        return 1 if self._level(consistency) is Consistency.EVENTUAL else None

    def _with_token(self, consistency: object) -> bool:
        return self._level(consistency) is not Consistency.EVENTUAL

    def _vectors(self, token: str) -> dict[int, dict[str, int]]:
        hello = self._live.hello
        return token_vectors(token, hello.cluster, hello.region, hello.partitions)


def _query_number(selection: Selection, order: str, words: str | None) -> int:
    """Which query a cursor belongs to: the same for the same conditions, in whatever order a set or a dict has them.

    Without the times: "the last two hours" begins later on every page, and a cursor goes on there all the same.
    """
    tags = [sorted(some) for some in (selection.tags, selection.any_tags, selection.not_tags)]
    same = [tags, selection.agent, selection.thread, selection.metadata, order, words]
    return zlib.crc32(msgspec.json.encode(same, order="deterministic"))


def _now() -> int:
    return time.time_ns() // 1_000_000
