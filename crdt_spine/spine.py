"""`Spine`: what an agent calls. One node in this process, or a cluster; the same interface.

    async with Spine.connect("nats://127.0.0.1:4222", agent="reviewer-1") as spine:
        memory = await spine.store("the build is red", tags=["ci"])
        page = await spine.query(tags=["ci"])

The way of a write from here: session.py → (transport) → node/service.py → node/coordinator.py → core/replica.py →
node/committer.py → node/replication.py → the other replicas, and back.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import Any, Final, TypeVar

import msgspec

from crdt_spine import homing, levels, past, validation, wall_clock
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.lock_messages import LockState
from crdt_spine.core.messages import Delete, Edit, Get, Query, Status, Store, Vector, Vectors
from crdt_spine.core.placement import generated_id, placement_hash
from crdt_spine.core.selection import Selection
from crdt_spine.core.token import Cursor, cursor_of
from crdt_spine.document import Documents, Editing
from crdt_spine.errors import ConnectionFailed, InvalidInput, SpineError, StaleToken
from crdt_spine.levels import Levels
from crdt_spine.limits import (
    CONNECT_SECONDS_MAX,
    ID_BYTES_MAX,
    OPERATION_SECONDS_MAX,
    QUERY_LIMIT_MAX,
    QUERY_TEXT_BYTES_MAX,
    THREAD_BYTES_MAX,
    TOKEN_BYTES_MAX,
)
from crdt_spine.locks.client import Lease, LockClient, Locking, fence_of
from crdt_spine.memory import Conflict, Consistency, LevelInForce, Memory, Page
from crdt_spine.paging import Order, page_of
from crdt_spine.report import cluster_report
from crdt_spine.session import Session
from crdt_spine.subscription import Updates
from crdt_spine.thread import Contexts, Thread
from crdt_spine.transport.nats import NatsTransport, check_url
from crdt_spine.written import stored_memory

_decode_memory = msgspec.json.Decoder(Memory).decode
_STORE_KEYS = ("content", "id", "tags", "metadata", "thread", "importance", "ttl", "created_at", "consistency",
               "fence")  # fmt: skip
_ORDERS: Final[tuple[Order, ...]] = ("newest", "oldest", "relevance")
LOCKS_SECONDS_MAX: Final = 0.5  # that a status waits for the lock service once all nodes have answered

AnyWrite = TypeVar("AnyWrite", Store, Edit, Delete)


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
        self._locks: tuple[Session, LockClient] | None = None
        self._leveled: tuple[Session, Levels] | None = None

    # -- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path, *, agent: str, consistency: Consistency | str | None = None,
             token: str | None = None, token_secret: str | bytes | None = None,
             overrides: Mapping[str, Consistency | str] | None = None) -> Spine:  # fmt: skip
        """One embedded node in this process, without a broker; `path` is its file, ":memory:" keeps nothing.
        `overrides` maps tags to the levels that they demand, as cluster.yaml does for a cluster.

        Raises InvalidInput at once; ConfigError on entering where the file can't be used or is in use.
        """
        name, file = validation.agent(agent), validation.path(path)
        demanded, secret = validation.overrides(overrides), validation.token_secret(token_secret)

        async def opening() -> tuple[Session, Callable[[], Awaitable[None]]]:
            from crdt_spine.embedded import open_session  # an agent of a cluster needs no storage engine

            session, closing = await open_session(file, name, demanded)
            session.token_secret = secret
            return session, closing

        return cls(name, opening, validation.consistency(consistency), validation.token(token))

    @classmethod
    def connect(
        cls, url: str, *, agent: str, consistency: Consistency | str | None = None, token: str | None = None,
        zone: str | None = None, cluster: str | None = None, timeout: float = OPERATION_SECONDS_MAX,
        token_secret: str | bytes | None = None,
    ) -> Spine:  # fmt: skip
        """A cluster behind a NATS broker. `cluster` names it where the broker carries several; `timeout` is each
        call's, in seconds, retries included. `token_secret` (or SPINE_TOKEN_SECRET) signs the tokens that this spine
        gives, and only tokens signed with it are taken: all agents of a cluster have the same one, or none has.

        Raises InvalidInput at once; on entering ConnectionFailed within 5 s where no broker or no node answers, and
        StaleToken where the token is another cluster's.
        """
        check_url(url)
        name = validation.agent(agent)
        seconds = validation.seconds("timeout", timeout)
        cluster = validation.optional("cluster", cluster, ID_BYTES_MAX)
        zone = validation.optional("zone", zone, ID_BYTES_MAX)
        secret = validation.token_secret(token_secret)

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
            session.timeout, session.token_secret = seconds, secret

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
            except (InvalidInput, StaleToken):
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
        other._leveled = self._live, self._levels
        return other

    # -- writing ----------------------------------------------------------------------------------------------------

    async def store(
        self, content: str, *, id: str | None = None, tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None, thread: str | None = None, importance: float = 0.5,
        ttl: float | None = None, created_at: datetime | None = None, consistency: Consistency | str | None = None,
        fence: Lease | None = None,
    ) -> Memory:  # fmt: skip
        """Store a memory; an id that exists is replaced whole. `ttl` in seconds.

        `created_at` is for memories that are older than their storing (an import). `fence`: a lock that is held; the
        memory is not stored once somebody else has acquired it. Raises InvalidInput, QuorumFailed, ConnectionFailed,
        FenceRejected.
        """
        session = self._live
        level = self._chosen(consistency)
        operation = self._store(session, content, id, tags, metadata, thread, importance, ttl, created_at)
        return await self._stored(self._fenced(operation, fence), level)

    async def store_many(self, memories: Iterable[Mapping[str, Any]]) -> list[Memory]:
        """Store many at once: mappings with the arguments of `store`; the memories, in order.

        All are checked before the first is sent. If one fails, its error is raised after all others are done.
        """
        session = self._live
        if isinstance(memories, str | bytes | Mapping) or not isinstance(memories, Iterable):
            raise InvalidInput(f"memories must be a list of mappings, not {type(memories).__name__}")
        operations: list[tuple[Store, Consistency | None]] = []
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
                operation = self._store(
                    session, one["content"], one.get("id"), one.get("tags", ()), one.get("metadata"),
                    one.get("thread"), one.get("importance", 0.5), one.get("ttl"), one.get("created_at"),
                )  # fmt: skip
                level = self._chosen(one.get("consistency"))
                operation = self._fenced(operation, one.get("fence"))
                levels.check(operation, level)
                operations.append((operation, level))
            except InvalidInput as error:
                raise InvalidInput(f"memory {index}: {error}") from None
        stored = []
        for memory in await asyncio.gather(
            *[self._stored(operation, level) for operation, level in operations], return_exceptions=True
        ):
            if isinstance(memory, BaseException):
                raise memory
            stored.append(memory)
        return stored

    async def update(
        self, id: str, *, content: str | EllipsisType = ..., importance: float | EllipsisType = ...,
        ttl: float | EllipsisType | None = ..., metadata: Mapping[str, Any] | None = None,
        add_tags: Iterable[str] = (), remove_tags: Iterable[str] = (), if_version: str | None = None,
        consistency: Consistency | str | None = None, fence: Lease | None = None,
    ) -> Memory:  # fmt: skip
        """Change parts of a memory; what is not named stays. `metadata`: keys to set, None removes one; `ttl` None:
        for ever; `fence` as in `store`. Raises NotFound, VersionConflict, InvalidInput, QuorumFailed, ConnectionFailed,
        FenceRejected."""
        session = self._live
        expires: int | msgspec.UnsetType | None = msgspec.UNSET
        if ttl is not ...:
            milliseconds = validation.ttl_milliseconds(ttl)
            expires = None if milliseconds is None else at_milliseconds(wall_clock.now() + milliseconds)
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
            agent=self._other_agent(session),
        )
        if both := set(operation.add) & set(operation.remove):
            raise InvalidInput(f"tag {min(both)!r} is both in add_tags and in remove_tags")
        result = await self._levels.perform(self._fenced(operation, fence), self._chosen(consistency))
        memory = _decode_memory(result.memory)
        self._levels.learn(memory.id, memory.tags)
        return memory

    async def delete(
        self, id: str, *, consistency: Consistency | str | None = None, fence: Lease | None = None
    ) -> bool:  # fmt: skip
        """Delete a memory; was there one? `fence` as in `store`. Raises InvalidInput, QuorumFailed, ConnectionFailed,
        FenceRejected."""
        session = self._live
        operation = Delete(i=session.number(), id=validation.id(id), agent=self._other_agent(session))
        result = await self._levels.perform(self._fenced(operation, fence), self._chosen(consistency))
        self._levels.learn(operation.id, ())
        return bool(result.existed)

    # -- reading ----------------------------------------------------------------------------------------------------

    async def get(self, id: str, *, consistency: Consistency | str | None = None) -> Memory | None:
        """The memory, or None. Raises InvalidInput, StaleToken, ConnectionFailed, and QuorumFailed where the cluster's
        read quorum is more than one replica and fewer answered."""
        operation = Get(i=self._live.number(), id=validation.id(id))
        result = await self._levels.perform(operation, self._chosen(consistency))
        memory = _decode_memory(result.memory) if result.memory else None
        self._levels.learn(operation.id, () if memory is None else memory.tags)
        return memory

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
        level, because = self._levels.of(self._chosen(consistency))
        use_token = level != "eventual"

        query = Query(
            i=0, selection=selection, order=order, limit=wanted, text=words, after=place.after, shown=place.shown,
            strong=level == "strong",
        )  # fmt: skip  # `Session.query` numbers what it sends
        with levels.noting("query", None, level, because):
            return page_of(await homing.query(session, query, use_token=use_token), order, wanted, place)

    def subscribe(
        self, *, tags: Iterable[str] = (), any_tags: Iterable[str] = (), agent: str | None = None,
        thread: str | None = None, token: str | None = None,
    ) -> Updates:  # fmt: skip
        """What happens from now on, or after `token`, to memories that fulfil every condition: an async iterator.

        Operations of this spine that are issued later come after the subscription's beginning. After `token`, a
        memory that changed several times comes once, as it is now. Raises InvalidInput, and StaleToken where the token
        is another cluster's; while iterating ConnectionFailed where no node opens the feed, and StaleToken where no
        replica has what the token has: the subscription's `token` is then without what is lost for good.
        """
        session = self._live
        selection = Selection(
            tags=validation.tags("tags", tags),
            any_tags=validation.tags("any_tags", any_tags),
            agent=None if agent is None else validation.agent(agent),
            thread=validation.thread(thread),
        )
        return Updates(session, selection, None if token is None else self._vectors(token), self._heard)

    # -- locks ------------------------------------------------------------------------------------------------------

    def lock(self, name: str, *, ttl: float | None = None, wait: float | None = None) -> Locking:
        """Hold a lock while a block runs: `async with spine.lock("deploy") as lease`. Nobody else holds it meanwhile,
        as far as clocks and pauses allow; to make sure of what is written, give the lease to the write: `fence=lease`.

        `ttl`: for how many seconds it holds if its holder is not heard of (None: 30, or what cluster.yaml says); it is
        renewed by itself. `wait`: for how many seconds to wait in line (0: not at all, None: as long as it takes).
        Raises InvalidInput; on entering LockTimeout, and ConnectionFailed where no lock service answers.
        """
        session = self._live
        most = session.hello.lock_ttl_seconds_max
        seconds = session.hello.lock_ttl_seconds if ttl is None else validation.lease_seconds(ttl, most)
        return Locking(lambda: self._lock_client, validation.lock(name), seconds, validation.wait(wait))

    @property
    def _lock_client(self) -> LockClient:
        session = self._live
        known = self._locks
        if known is None or known[0] is not session:
            hello = session.hello
            known = self._locks = session, LockClient(session.transport, hello.cluster, self.agent, hello.identity)
            session.closers.add(known[1].close)
        return known[1]

    async def locks(self) -> list[LockState]:
        """The locks that are held or waited for, by name. Raises ConnectionFailed where no lock service answers."""
        return (await self._lock_client.locks()).locks

    def _fenced(self, operation: AnyWrite, fence: object) -> AnyWrite:
        """The operation, to be done only while a lease is the newest of its lock. Raises InvalidInput, LeaseLost."""
        if fence is None:
            return operation
        return msgspec.structs.replace(operation, fence=fence_of(fence, self._live.hello.identity))

    # -- threads ----------------------------------------------------------------------------------------------------

    def thread(self, id: str) -> Thread:
        """A conversation that is read in causal order: `append` comes after everything that this spine has read and
        written in it so far, `read` never shows an entry without what it may answer. Raises InvalidInput."""
        session = self._live
        name = validation.text("id", id, THREAD_BYTES_MAX)

        def prepare(
            content: object, id: object, tags: object, metadata: object, importance: object, ttl: object
        ) -> Store:  # fmt: skip
            return self._store(session, content, id, tags, metadata, name, importance, ttl, None, beside=name)

        context = self._contexts.of(self.agent, name)
        return Thread(session, name, self.agent, context, prepare, self._levels, self._chosen)

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
        other root types; was the memory deleted, leaving raises NotFound. What is at "strong", by a tag of the memory
        or the default, is not edited in this way: InvalidInput, unless `consistency` names another level. Further
        VersionConflict, QuorumFailed, ConnectionFailed, StaleToken.
        """
        session, chosen = self._live, self._chosen(consistency)
        agent = self._other_agent(session)
        return Editing(session, self._documents, validation.id(id), self._levels, chosen, agent)

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

    # -- levels -----------------------------------------------------------------------------------------------------

    def levels(self) -> AbstractContextManager[list[LevelInForce]]:
        """At which level calls were, and why: `with spine.levels() as levels:` gives a list, to which each call
        adds one entry that ends in the block, whether it was done or failed, of the task that entered it, and of tasks
        started in it."""
        return levels.noted()

    # -- tokens -----------------------------------------------------------------------------------------------------

    @property
    def token(self) -> str:
        """What this session wrote and saw, as text; a spine that is given it sees at least that."""
        session = self._live
        return session.token_text(session.vectors)

    async def wait_for(self, token: str, timeout: float = 5.0) -> None:
        """Return once this session reads at least what `token` has. Raises StaleToken after `timeout` seconds, and as
        soon as it is known that nobody will ever have what it has: it is another cluster's, or its disk is gone.
        InvalidInput where it is no token, or is not signed as those of this spine."""
        session = self._live
        seconds = validation.seconds("timeout", timeout)
        vectors = self._vectors(token)

        try:
            async with asyncio.timeout(seconds):
                await session.reach(vectors, seconds)
        except TimeoutError as error:
            raise StaleToken(f"the token was not reached by any replica within {seconds:g} s") from error
        session.see(vectors)

    # -- the cluster ------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """How the cluster fares: the document of `spine status --json`. `locks` is None where the lock service does not
        say soon who holds which."""
        session = self._live

        async def ask(node: str, zone: str | None) -> dict[str, Any]:
            try:
                result = await session.run(Status(i=session.number()), (node,), timeout=2.0)
            except SpineError as error:
                return {"id": node, "zone": zone, "state": "down", "problem": str(error)}
            report: dict[str, Any] = msgspec.json.decode(result.status)
            return report

        hello = session.hello

        async def ask_locks() -> list[dict[str, Any]] | None:
            try:
                return [msgspec.structs.asdict(one) for one in await self.locks()]
            except SpineError:
                return None

        asking = asyncio.ensure_future(ask_locks())
        try:
            nodes = await asyncio.gather(*[ask(node.id, node.zone) for node in hello.nodes])
            # A lock service that can't say it soon (it waits for a full disk, say) holds nobody up: then it is unknown.
            await asyncio.wait((asking,), timeout=LOCKS_SECONDS_MAX)
            locks = asking.result() if asking.done() else None
        finally:
            asking.cancel()
        return {**cluster_report(hello, session.layout, list(nodes)), "locks": locks}

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
        importance: object, ttl: object, created_at: object, *, beside: str | None = None,
    ) -> Store:  # fmt: skip
        """`beside`: a generated id lies in the partition of this key, else where the cluster's placement puts it."""
        milliseconds = validation.ttl_milliseconds(ttl)
        now = wall_clock.now()
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
            agent=self._other_agent(session),
        )

    async def _stored(self, operation: Store, level: Consistency | None) -> Memory:
        result = await self._levels.perform(operation, level)
        self._levels.learn(operation.id, operation.tags)
        return stored_memory(operation, result, self.agent)

    def _new_id(self, now: int, beside: str | None) -> str:
        random = int.from_bytes(os.urandom(12))
        return generated_id(random & 0xFFFF if beside is None else placement_hash(beside), now, random >> 16)

    def _other_agent(self, session: Session) -> str | None:
        return None if session.agent == self.agent else self.agent

    @property
    def _levels(self) -> Levels:
        session = self._live
        if self._leveled is None or self._leveled[0] is not session:
            self._leveled = session, Levels(session, self._consistency)
        return self._leveled[1]

    @staticmethod
    def _chosen(consistency: object) -> Consistency | None:
        """The level that a call names, if any. Raises InvalidInput."""
        return validation.consistency(consistency)

    def _vectors(self, token: str) -> Vectors:
        return self._live.token_vectors(token)


def _query_number(selection: Selection, order: str, words: str | None) -> int:
    """Which query a cursor belongs to: the same for the same conditions, in whatever order a set or a dict has them.

    Without the times: "the last two hours" begins later on every page, and a cursor goes on there all the same.
    """
    tags = [sorted(some) for some in (selection.tags, selection.any_tags, selection.not_tags)]
    same = [tags, selection.agent, selection.thread, selection.metadata, order, words]
    return zlib.crc32(msgspec.json.encode(same, order="deterministic"))
