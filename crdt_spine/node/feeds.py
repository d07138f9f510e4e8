"""Feeds: a subscription is since(its token), then the tail.

A feed has a position in every partition: everything up to it has been sent. While its position is this replica's
vector it is live, and each settled turn's matching changes go out in one message. A feed that opens with an old token,
or whose subscriber is slower than the changes, is behind: it reads since(position) page by page until it is level
again. Nothing is queued for a slow subscriber, so a feed costs no more than its positions.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Literal

import msgspec

from crdt_spine.core.causality import Vector, join, join_into, within
from crdt_spine.core.messages import (
    FeedBatch,
    FeedClose,
    FeedCommand,
    FeedCredit,
    FeedOpen,
    FeedUpdate,
    Unreadable,
    Vectors,
    encode,
)
from crdt_spine.core.record import Record, same_memory
from crdt_spine.core.replica import Replica
from crdt_spine.core.selection import Selection
from crdt_spine.core.turn import Event
from crdt_spine.limits import BATCH_BYTES_TARGET, FEEDS_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.view import encoded
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Message, Transport

log = logging.getLogger(__name__)

Kind = Literal["stored", "updated", "deleted"]

HEARTBEAT_SECONDS = 1.0  # a subscriber that hears nothing for three of them goes elsewhere
SILENT_SECONDS_MAX = 15.0  # a feed whose subscriber says nothing for that long is closed
PAGE_RECORDS = 128

_decode: Callable[[bytes], FeedCommand] = msgspec.json.Decoder(FeedOpen | FeedCredit | FeedClose).decode

_FULL = "the disk of this node is full"


class Feed:
    """One subscription as the node sees it."""

    def __init__(self, opened: FeedOpen, positions: Vectors, now: float) -> None:
        self.id = opened.feed
        self.inbox = opened.inbox
        self.selection = opened.selection
        self.positions = positions
        self.behind: set[int] = set()
        self.unread: set[int] = set()  # of these, the ones to be read even where the position is level
        self.credit = opened.credit
        self.sent = 0
        self.taken = 0
        self.number = 0
        self.heard = now
        self.catching_up: asyncio.Task[None] | None = None
        self.may_send = asyncio.Event()
        self.may_send.set()

    def take(self, taken: int, now: float) -> None:
        """The subscriber has taken that many updates in all."""
        self.heard = now
        self.taken = max(self.taken, taken)
        self._weigh()

    def count(self, updates: int) -> None:
        self.sent += updates
        self._weigh()

    def _weigh(self) -> None:
        if self.sent - self.taken < self.credit:
            self.may_send.set()
        else:
            self.may_send.clear()


class Feeds:
    """All feeds of a node."""

    def __init__(
        self, replica: Replica, store: RecordStore, committer: Committer, transport: Transport, now: Callable[[], float]
    ) -> None:
        self.replica = replica
        self.store = store
        self.committer = committer
        self.transport = transport
        self.now = now
        self.readable: frozenset[int] | None = None  # what agents may read here; None: all that is held
        self.refused = 0  # commands that could not be read
        self.feeds: dict[str, Feed] = {}
        self._index: defaultdict[tuple[str, str], dict[str, Feed]] = defaultdict(dict)

    # -- the subscriber's commands ----------------------------------------------------------------------------------

    def take(self, message: Message, closed: str = "") -> None:
        """A command. Garbage is counted and otherwise ignored; nothing is opened while the node is `closed`."""
        try:
            command = _decode(message.payload)
        except Unreadable:
            self.refused += 1
            return
        if closed and isinstance(command, FeedOpen):
            self.refuse(command.inbox, command.feed, closed)
        else:
            self.command(command, message.reply)

    def command(self, command: FeedCommand, reply: str = "") -> None:
        """Open, feed or close a feed. Who feeds one that is not here any more is told so at `reply`."""
        match command:
            case FeedOpen():
                self._open(command)
            case FeedCredit():
                feed = self.feeds.get(command.feed)
                if feed is not None:
                    feed.take(command.taken, self.now())
                elif reply:
                    self.refuse(reply, command.feed, "this node does not have the feed")
            case FeedClose():
                self._close(command.feed)

    def _open(self, command: FeedOpen) -> None:
        held = self.replica.durable
        readable = held.keys() if self.readable is None else self.readable
        missing = [number for number in command.partitions if number not in readable]
        problem = f"partitions {missing} are not held here" if missing else ""
        if len(self.feeds) >= FEEDS_MAX:
            problem = f"this node serves {FEEDS_MAX} feeds already"
        if problem or self._stuck:
            self.refuse(command.inbox, command.feed, problem or _FULL)
            return
        self._close(command.feed)
        token = command.token
        positions = {
            # This replica may not have yet what the subscriber wrote or saw before: no news to it when it comes.
            number: join(held[number], command.floor.get(number, {})) if token is None else dict(token.get(number, {}))
            for number in command.partitions
        }
        feed = Feed(command, positions, self.now())
        self.feeds[feed.id] = feed
        self._index[_key(feed.selection)][feed.id] = feed
        self.replica.watch(True)
        # What is in memory but not settled yet would be neither in the start vectors nor watched: read it as since.
        feed.behind = {
            number
            for number, position in positions.items()
            if not within(self.replica.partitions[number].vector, position)
        }
        if token is not None:
            # A repair under way may have brought records that are ahead of the vector: no event will tell of them.
            feed.unread = set(positions)
            feed.behind |= feed.unread
        self._send(feed, [], positions if token is None else {})
        if feed.behind:
            self._catch_up(feed)

    @property
    def _stuck(self) -> bool:
        """A full disk takes no changes of others, so there is nothing to tell; others have a disk of their own."""
        return self.committer.full and any(self.replica.peers.values())

    def dismiss(self, problem: str) -> None:
        """Every subscriber is to go elsewhere."""
        for feed in list(self.feeds.values()):
            self.refuse(feed.inbox, feed.id, problem)
            self._close(feed.id)

    def dismiss_from(self, numbers: Collection[int], problem: str) -> None:
        """The subscribers of these partitions are to go elsewhere."""
        for feed in list(self.feeds.values()):
            if not feed.positions.keys().isdisjoint(numbers):
                self.refuse(feed.inbox, feed.id, problem)
                self._close(feed.id)

    def refuse(self, inbox: str, feed: str, problem: str) -> None:
        """The subscriber is to go elsewhere."""
        self.transport.send(inbox, encode(FeedBatch(feed=feed, number=0, error=problem)))

    def _close(self, id: str) -> None:
        feed = self.feeds.pop(id, None)
        if feed is None:
            return
        key = _key(feed.selection)
        self._index[key].pop(id, None)
        if not self._index[key]:
            del self._index[key]
        if feed.catching_up is not None:
            feed.catching_up.cancel()
        if not self.feeds:
            self.replica.watch(False)

    # -- the tail ---------------------------------------------------------------------------------------------------

    def settled(self, events: list[Event], repeats: Collection[tuple[int, str, int]] = ()) -> None:
        """A turn is durable: send its changes to the live feeds that want them, except those that were told under
        another dot (`repeats`)."""
        batches: dict[str, tuple[Feed, list[FeedUpdate]]] = {}
        for event in events:
            if repeats and (event.partition, event.actor, event.n) in repeats:
                continue
            view: msgspec.Raw | None = None
            for feed in self._candidates(event):
                position = feed.positions.get(event.partition)
                if position is None or event.partition in feed.behind:
                    continue
                known = (
                    event.n <= position.get(event.actor, 0) if event.actor else within(event.after.version, position)
                )
                if known:
                    continue  # the subscriber had it from another node
                kind = _kind(event, feed.selection)
                if kind is None:
                    continue
                if not feed.may_send.is_set():
                    feed.behind.add(event.partition)
                    self._catch_up(feed)
                    continue
                if event.actor:
                    position[event.actor] = event.n
                view = view or msgspec.Raw(encoded(event.after, self.replica.documents))
                batches.setdefault(feed.id, (feed, []))[1].append(
                    FeedUpdate(
                        partition=event.partition, kind=kind, memory=view, id=event.after.id,
                        version=event.after.version, position=dict(position),
                    )
                )  # fmt: skip
                feed.count(1)
        for feed, updates in batches.values():
            self._send(feed, updates, {})

    def _candidates(self, event: Event) -> Iterable[Feed]:
        """The feeds that may want this event: by their most selective condition."""
        life = event.after.life.value
        keys = [("", ""), ("agent", life.agent), ("thread", life.thread or "")]
        keys += [("tag", tag) for tag in event.after.tags]
        if not event.after.alive:
            keys += [("tag", tag) for tag in {*life.tags, *(event.before.tags if event.before is not None else ())}]
        for key in keys:
            if key in self._index:
                yield from list(self._index[key].values())

    async def run(self) -> None:
        """Heartbeats, with positions for what did not match; and silent subscribers' feeds are closed."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for feed in list(self.feeds.values()):
                if self._stuck:
                    self.refuse(feed.inbox, feed.id, _FULL)
                if self._stuck or self.now() - feed.heard > SILENT_SECONDS_MAX:
                    self._close(feed.id)
                    continue
                grown: Vectors = {}
                for number, position in feed.positions.items():
                    if number not in feed.behind and not within(self.replica.durable[number], position):
                        join_into(position, self.replica.durable[number])
                        grown[number] = dict(position)
                self._send(feed, [], grown)
                if feed.behind:
                    self._catch_up(feed)  # it is, unless it failed

    # -- since ------------------------------------------------------------------------------------------------------

    def _catch_up(self, feed: Feed) -> None:
        if feed.catching_up is None or feed.catching_up.done():
            feed.catching_up = asyncio.get_running_loop().create_task(self._catching_up(feed))
            feed.catching_up.add_done_callback(_report)

    async def _catching_up(self, feed: Feed) -> None:
        while feed.behind:
            for number in sorted(feed.behind):
                # Changes older than the first feed were not watched: settle them, so that since() has them. Whatever
                # is not settled after that is watched and comes as an event.
                await self.committer.barrier()
                upto = dict(self.replica.durable[number])
                if within(upto, feed.positions[number]) and number not in feed.unread:
                    feed.behind.discard(number)
                    continue
                feed.unread.discard(number)
                await self._pages(feed, number)
                feed.positions[number] = join(feed.positions[number], upto)
                self._send(feed, [], {number: dict(feed.positions[number])})

    async def _pages(self, feed: Feed, number: int) -> None:
        """Everything since the feed's position, as records; the position grows only behind the last page (rule 6)."""
        position = dict(feed.positions[number])
        after: str | None = None
        while True:
            records = self.store.changed(number, position, after, PAGE_RECORDS)
            await self.committer.barrier()
            updates: list[FeedUpdate] = []
            for record in records:
                kind = _kind_since(record, position, feed.selection)
                if kind is not None:
                    view = msgspec.Raw(encoded(record, self.replica.documents))
                    updates.append(
                        FeedUpdate(
                            partition=number, kind=kind, memory=view, id=record.id,
                            version=record.version, position=position,
                        )
                    )  # fmt: skip
            while updates:
                await feed.may_send.wait()
                room = max(1, feed.credit - (feed.sent - feed.taken))
                part, updates = updates[:room], updates[room:]
                feed.count(len(part))
                self._send(feed, part, {})
            if len(records) < PAGE_RECORDS:
                return
            after = records[-1].id

    def _send(self, feed: Feed, updates: list[FeedUpdate], positions: Vectors) -> None:
        """One message, or several where it would be too large."""
        start = size = 0
        for index, update in enumerate(updates):
            if size and size + len(bytes(update.memory)) > BATCH_BYTES_TARGET:
                self._send_one(feed, updates[start:index], {})
                start, size = index, 0
            size += len(bytes(update.memory))
        self._send_one(feed, updates[start:], positions)

    def _send_one(self, feed: Feed, updates: list[FeedUpdate], positions: Vectors) -> None:
        batch = FeedBatch(feed=feed.id, number=feed.number, updates=updates, positions=positions)
        feed.number += 1
        self.transport.send(feed.inbox, encode(batch))

    def close(self) -> None:
        for id in list(self.feeds):
            self._close(id)


def _key(selection: Selection) -> tuple[str, str]:
    """Under which key a feed is looked up: a condition that every memory it wants fulfils."""
    if selection.tags:
        return "tag", selection.tags[0]
    if selection.thread is not None:
        return "thread", selection.thread
    if selection.agent is not None:
        return "agent", selection.agent
    return "", ""


def _matches(selection: Selection, record: Record) -> bool:
    life = record.life.value
    tags = record.tags if life.alive else life.tags
    return selection.matches(tags, life.agent, life.thread, life.created, {})


def _kind(event: Event, selection: Selection) -> Kind | None:
    """What a change is to a subscriber; None: nothing."""
    before, after = event.before, event.after
    was_alive = before is not None and before.alive
    if after.alive:
        if not _matches(selection, after):
            return None
        if before is not None and was_alive and before.etag == after.etag:
            return None  # it was sealed (core/whole.py)
        if before is None or not was_alive or before.life.origin != after.life.origin:
            strong = after.life.value.strong
            return "updated" if was_alive and strong is not None and strong.edit else "stored"
        # A change that lost to a later one (a retry's first attempt, say) is in the version, but nobody can see it.
        return None if same_memory(before, after) else "updated"
    if after.life.value.strong is not None and after.life.value.strong.sealed is not None and not was_alive:
        return None  # nor was there anything before
    if before is None:  # a sync brought it to a node that had missed it; its subscriber may have heard of it elsewhere
        return "deleted" if _matches(selection, after) else None
    return "deleted" if was_alive and _matches(selection, before) else None


def _kind_since(record: Record, position: Vector, selection: Selection) -> Kind | None:
    """What a record is to a subscriber who has everything up to `position`."""
    if not _matches(selection, record):
        return None
    origin = record.life.origin
    news = origin.n > position.get(origin.actor, 0)
    if record.alive:
        return "stored" if news else "updated"
    return "deleted" if news else None


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a feed failed to catch up", exc_info=task.exception())
