"""An agent's side of feeds: updates in order, each once, whichever nodes serve them.

A subscription opens one feed a node, at as few nodes as cover the partitions. When a feed's node dies, falls silent or
loses a message, the partitions it served are opened elsewhere with the positions reached so far. What comes again is
known by its version: a record whose version is within the position, or that was delivered at this very version before
the position caught up, is no news. Nor is one that looks as it did when another node told of it: a coordinator that
dies may have told of a write that its agent then repeats elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from types import TracebackType

import msgspec

from crdt_spine.core.causality import Vector, join, within
from crdt_spine.core.messages import FeedBatch, FeedClose, FeedCredit, FeedOpen, FeedUpdate, Unreadable, Vectors, encode
from crdt_spine.core.selection import Selection
from crdt_spine.core.strays import is_stray
from crdt_spine.errors import ConnectionFailed, StaleToken
from crdt_spine.limits import FEED_UPDATES_BUFFERED_MAX, FEED_UPDATES_REMEMBERED_MAX
from crdt_spine.memory import Memory, Update
from crdt_spine.session import Session
from crdt_spine.transport.base import Message, Subscription

ALIVE_SECONDS = 1.0  # how often the node is told that the subscriber lives
SILENT_SECONDS_MAX = 3.5  # of a node, before the feed is opened elsewhere
SUSPECT_SILENT_SECONDS_MAX = 1.5  # of one that is in trouble as the session sees it
OPEN_SECONDS_MAX = 1.5  # for a node's first word on a feed

_decode = msgspec.json.Decoder(FeedBatch).decode
_decode_memory = msgspec.json.Decoder(Memory).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class _Source:
    """One feed at one node."""

    def __init__(self, id: str, node: str, partitions: tuple[int, ...], now: float) -> None:
        self.id = id
        self.node = node
        self.partitions = partitions
        self.expected = 0
        self.heard = now
        self.taken = 0  # updates that the subscriber has taken
        self.told = 0  # of these, what the node was told of
        self.told_at = now
        self.open = False


class Updates(AsyncIterator[Update]):
    """What `spine.subscribe` returns: iterate it, or use it as `async with` and iterate inside."""

    def __init__(
        self, session: Session, selection: Selection, positions: Vectors | None,
        heard: Callable[[Memory, int, Vector], None] = lambda memory, partition, version: None,
    ) -> None:  # fmt: skip
        """`heard` is told of every living memory that the subscriber takes, with its partition and version."""
        self._session = session
        self._heard = heard
        self._selection = selection
        self._fresh = positions is None
        self._positions: Vectors = dict(positions or {})
        self._ahead: dict[str, tuple[int, Vector]] = {}  # id -> (partition, version) delivered beyond the position
        self._told: OrderedDict[str, tuple[str, int]] = OrderedDict()  # id -> (the feed that told last, what it told)
        self._queue: asyncio.Queue[tuple[_Source, Update, FeedUpdate]] = asyncio.Queue()
        self._sources: dict[str, _Source] = {}
        self._orphans: set[int] = set()  # partitions that no feed serves at the moment
        self._inbox = f"_INBOX.spine.feed.{session.id}.{id(self):x}"
        self._subscription: Subscription | None = None
        self._closed = False
        self._error: Exception | None = None
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._opened: asyncio.Future[None] = loop.create_future()
        self._opened.add_done_callback(lambda future: future.exception() if not future.cancelled() else None)
        if positions is None:  # later operations of this session come after it; else they are after the token anyway
            session.openings.add(self._opened)
        session.closers.add(self.close)
        self._deadline = loop.time() + session.timeout
        self._task = loop.create_task(self._run())

    # -- the subscriber's side --------------------------------------------------------------------------------------

    async def __aenter__(self) -> Updates:
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Updates:
        return self

    async def __anext__(self) -> Update:
        if self._queue.empty():
            if self._closed:
                raise StopAsyncIteration
            getting = self._loop.create_task(self._queue.get())
            try:
                await asyncio.wait((getting, self._task), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                if getting.done() and not getting.cancelled():
                    self._queue.put_nowait(getting.result())
                getting.cancel()
                raise
            if not getting.done():
                getting.cancel()
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            source, update, told = getting.result()
        else:
            source, update, told = self._queue.get_nowait()
        source.taken += 1
        if source.taken - source.told >= FEED_UPDATES_BUFFERED_MAX // 4:
            self._tell(source)
        if update.kind != "deleted":
            self._heard(update.memory, told.partition, told.version)
        return update

    async def close(self) -> None:
        """End the subscription."""
        if self._closed:
            return
        self._closed = True
        self._session.closers.discard(self.close)
        for source in self._sources.values():
            self._session.transport.send(self._session.subjects.feed(source.node), encode(FeedClose(feed=source.id)))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.cancel()
        self._begin(None)

    @property
    def token(self) -> str:
        """Resume from what has arrived so far."""
        return self._token(self._positions)

    # -- feeds ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            self._subscription = await self._session.transport.subscribe(f"{self._inbox}.>", self._take)
            await self._reach_token()
            self._orphans = set(self._session.layout.replicas)
            while True:
                self._adopt()
                await asyncio.sleep(0.05 if self._orphans or not self._opened.done() else 0.2)
                now = self._session.pings.active_at = self._loop.time()  # else no node would be found well again
                for source in list(self._sources.values()):
                    if not self._session.transport.connected:
                        source.heard = max(source.heard, now - SILENT_SECONDS_MAX / 2)
                    elif now - source.heard > self._patience(source):
                        self._session.health.fail(source.node, "silent", now)
                        self._abandon(source)
                    elif self._has_lost(source):
                        self._abandon(source)
                    elif source.open and (source.taken > source.told or now - source.told_at > ALIVE_SECONDS):
                        self._tell(source)
                if not self._opened.done() and now > self._deadline:
                    raise ConnectionFailed(f"no node opened the feed within {self._session.timeout:g} s")
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._error = error
            self._begin(error)

    async def _reach_token(self) -> None:
        """Wait, as a read does, until replicas have what the token has. Raises StaleToken: what is known to be lost for
        good is then not in `token` any more. ConnectionFailed."""
        session = self._session
        wanted = {number: vector for number, vector in self._positions.items() if vector}
        if not wanted:
            return
        try:
            await session.reach(wanted, session.timeout)
        except StaleToken as stale:
            for number, vector in (await session.lost(wanted, stale.gone)).items():
                self._positions[number] = {**self._positions[number], **vector}
            raise
        self._deadline = self._loop.time() + session.timeout

    def _patience(self, source: _Source) -> float:
        """How long a node may say nothing, seconds: less if the session has other reasons to think that it hangs."""
        if not source.open:
            return OPEN_SECONDS_MAX
        return SILENT_SECONDS_MAX if self._session.health.well(source.node) else SUSPECT_SILENT_SECONDS_MAX

    def _has_lost(self, source: _Source) -> bool:
        """Does its node not answer any more for what it serves here? Then the feed moves before it is refused."""
        held = self._session.routing.held
        return source.node not in held or not held[source.node].issuperset(source.partitions)

    def _adopt(self) -> None:
        """Open feeds for the partitions that have none."""
        if not self._orphans or not self._session.transport.connected:
            return
        for candidates, part in self._session.routing.cover(self._orphans):
            source = _Source(
                f"{self._session.id}-{self._session.number()}",
                self._session.routing.choose(candidates),
                part,
                self._loop.time(),
            )
            self._sources[source.id] = source
            self._orphans.difference_update(part)
            # A partition whose position is not known yet begins now; else it goes on from there.
            known = {number: self._positions[number] for number in part if number in self._positions}
            from_now = self._fresh and not known
            if self._fresh and known and len(known) < len(part):
                self._orphans.update(number for number in part if number not in known)
                source.partitions = tuple(known)
            floor: Vectors = {}
            if from_now:
                vectors = self._session.vectors
                floor = {number: vectors[number] for number in source.partitions if number in vectors}
            opening = FeedOpen(
                feed=source.id,
                inbox=f"{self._inbox}.{source.id}",
                selection=self._selection,
                partitions=source.partitions,
                credit=FEED_UPDATES_BUFFERED_MAX,
                token=None if from_now else known,
                floor=floor,
            )
            self._send(source, encode(opening))

    def _tell(self, source: _Source) -> None:
        source.told, source.told_at = source.taken, self._loop.time()
        self._send(source, encode(FeedCredit(feed=source.id, taken=source.taken)))

    def _send(self, source: _Source, payload: bytes) -> None:
        self._session.transport.send(self._session.subjects.feed(source.node), payload, f"{self._inbox}.{source.id}")

    def _abandon(self, source: _Source) -> None:
        """This feed is of no use any more: what it served is to be opened elsewhere."""
        if self._sources.pop(source.id, None) is not None:
            self._orphans.update(source.partitions)
            self._session.transport.send(self._session.subjects.feed(source.node), encode(FeedClose(feed=source.id)))

    def _take(self, message: Message) -> None:
        source = self._sources.get(message.subject.rsplit(".", 1)[1])
        if source is None:
            return
        if message.nobody:
            news = self._session.health.well(source.node)
            self._session.health.fail(source.node, "gone", self._loop.time())
            self._abandon(source)
            if news:  # else all are in trouble, and are asked one after the other, at leisure
                self._adopt()
            return
        try:
            batch = _decode(message.payload)
        except Unreadable:
            self._session.counts["refused"] += 1
            return
        source.heard = self._loop.time()
        if batch.error is not None or batch.number != source.expected:
            if batch.error is not None:
                self._session.health.fail(source.node, "gone", source.heard)
                self._session.ask_who_holds_what()  # it may be refused since its partitions have moved
            self._abandon(source)
            return
        source.expected += 1
        source.open = True
        for update in batch.updates:
            self._deliver(source, update)
        for number, vector in batch.positions.items():
            if number in source.partitions:
                self._reach(number, vector)
        if not self._opened.done() and not self._orphans and all(s.open for s in self._sources.values()):
            self._begin(None)

    def _deliver(self, source: _Source, update: FeedUpdate) -> None:
        number = update.partition
        position = self._positions.get(number, {})
        before = self._ahead.get(update.id)
        news = not within(update.version, position) and not (before and within(update.version, before[1]))
        if within(position, update.position):
            self._positions[number] = update.position
        else:
            self._positions[number] = join(position, update.position)
        if not news:
            source.taken += 1
            return
        # What this session does next builds on what it was told.
        memory = _decode_memory(update.memory)
        placement, count = self._session.hello.placement, self._session.layout.partitions
        stray = is_stray(placement, count, number, memory.agent, memory.tags)
        self._session.see({number: update.version}, {number: update.version} if stray else {})
        if not within(update.version, self._positions[number]):
            self._ahead[update.id] = (number, update.version)
        looks = _looks(update.kind, memory)
        # Another feed tells again what lies beyond the position. So does one that is behind, which tells what there is
        # now: a write that a second coordinator repeated is a newer version of the same.
        behind = not within(update.version, update.position)
        told = self._told.get(update.id)
        if told is not None and told[1] == looks and (behind or told[0] != source.id):
            source.taken += 1
            return
        self._told[update.id] = (source.id, looks)
        self._told.move_to_end(update.id)
        if len(self._told) > FEED_UPDATES_REMEMBERED_MAX:
            self._told.popitem(last=False)
        # The positions are replaced, never changed, so a shallow copy is a snapshot.
        snapshot = dict(self._positions)
        self._queue.put_nowait((source, Update(update.kind, memory, snapshot, self._token), update))

    def _reach(self, number: int, vector: Vector) -> None:
        """Everything up to this vector has arrived."""
        self._positions[number] = join(self._positions.get(number, {}), vector)
        if self._ahead:
            position = self._positions[number]
            covered = [id for id, (n, version) in self._ahead.items() if n == number and within(version, position)]
            for id in covered:
                del self._ahead[id]

    def _begin(self, error: Exception | None) -> None:
        self._session.openings.discard(self._opened)
        if not self._opened.done():
            if error is None:
                self._opened.set_result(None)
            else:
                self._opened.set_exception(error)

    def _token(self, positions: Vectors) -> str:
        return self._session.token_text(positions)


def _looks(kind: str, memory: Memory) -> int:
    """What a reader sees of a memory, but for version and times, as a number."""
    if kind == "deleted":
        return 0
    metadata = _encode(memory.metadata) if memory.metadata else b""
    return hash(
        (memory.content, memory.tags, metadata, memory.agent, memory.thread, memory.importance, memory.expires_at)
    )
