"""Sessions on virtual time: many agents, three replicas that lag, lose messages, die and return, and a judge who knows
nothing of vectors.

The replicas are `core.replica.Replica`, the tokens are `core.token`'s text; what is simple here is everything between
them. A session asks a partition's first replica, goes on to the next one when that is dead, cut off or behind, and
retries a write with the same operation id. Now and then it hands its token to another one.

The judge has every write's stamp and what its writer had written and seen before. By these four rules of Terry et al.,
"Session guarantees for weakly consistent replicated data" (1994) it looks at every answer:

- read your writes: a read shows nothing older than what the session wrote;
- monotonic reads: nor than what it, or who gave it a token, was shown;
- monotonic writes, writes follow reads: a write lies above what its session had written, or seen; and a replica that
  shows it shows whatever that was in the same partition, to anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from random import Random
from typing import Any, NamedTuple

from records import Records

from crdt_spine.core import codec
from crdt_spine.core.actors import actor_name, node_of
from crdt_spine.core.causality import Vector, join_into, within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Ack, Store, SyncPage, Vectors, deltas_of, encode
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica
from crdt_spine.core.token import token_text, token_vectors

PARTITIONS = 2
KEYS = 4  # a partition
START = 1_000_000  # milliseconds: the wall clock when the world begins
SKEW_MAX = 150
TIMEOUT = 250  # milliseconds, of an attempt
NAMES = ("a", "b", "c")

#: What can be taken away, and which guarantees are lost with it.
RULES = {
    "token on reads": {"read your writes", "monotonic reads"},
    "token on writes": {"monotonic writes", "writes follow reads"},
    "token handed over": {"monotonic reads"},
}


class Written(NamedTuple):
    """What the session of a write had written and seen before it, in the same partition: key -> stamp."""

    own: Mapping[str, tuple[int, str]]
    seen: Mapping[str, tuple[int, str]]


NOTHING = (0, "")


class World:
    """Run it once. `found` counts violations by guarantee, `counts` what happened."""

    def __init__(self, seed: int, sessions: int, operations: int, without: str = "") -> None:
        self.random = Random(seed)
        self.without = without
        self.now = 0
        self.found: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.writes: dict[str, Written] = {}  # by content
        self.stamps: dict[tuple[int, str, int], tuple[int, str]] = {}  # by partition and dot
        self.cut: set[frozenset[str]] = set()
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self.nodes = {name: Node(self, name) for name in NAMES}
        self.sessions = [Session(self, number, operations) for number in range(sessions)]
        self.after(self.random.randint(1, 300), self._strike)

    def after(self, milliseconds: int, action: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._due, (self.now + milliseconds, self._number, action))

    def run(self) -> None:
        """Until every session is done."""
        while any(session.left for session in self.sessions):
            self.now, _, action = heappop(self._due)
            action()
            assert self.now < 600_000, "the world stands still"

    def send(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Between nodes: late, lost, or cut off."""
        if frozenset((source, target)) in self.cut or self.random.random() < 0.1:
            return
        self.after(self.random.choice((1, 3, 10, 120)), deliver)

    def _strike(self) -> None:
        """A node dies for a while, or a link."""
        chance = self.random
        away = chance.randint(100, 1_500)
        if chance.random() < 0.5 and all(node.running for node in self.nodes.values()):
            node = self.nodes[chance.choice(NAMES)]
            node.running = False
            self.counts["deaths"] += 1
            self.after(away, node.return_)
        elif len(self.cut) < 2:
            link = frozenset(chance.sample(NAMES, 2))
            self.cut.add(link)
            self.after(away, lambda: self.cut.discard(link))
        self.after(chance.randint(50, 800), self._strike)


class Node:
    """One node: a replica of both partitions."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.skew = world.random.randint(-SKEW_MAX, SKEW_MAX)
        self.running = True
        self.records = _Records()
        others = tuple(other for other in NAMES if other != name)
        self.replica = Replica(
            name, actor_name("r", name, "1"), self.records, HybridClock(), dict.fromkeys(range(PARTITIONS), others), 2
        )
        world.after(world.random.randint(1, 400), self._repair)

    @property
    def now(self) -> int:
        return START + self.world.now + self.skew

    def return_(self) -> None:
        self.running = True

    def write(self, operation: Store, id: str, token: Vector, answer: Callable[[str, Any], None]) -> None:
        number = _partition(operation.id)
        if not within(token, self.replica.partitions[number].vector):
            answer("behind", None)
            return
        record = self.replica.write(number, operation, "agent", id, self.now, (operation, answer), seen=token)
        dot = (number, self.replica.actor, self.replica.partitions[number].vector.get(self.replica.actor, 0))
        self.world.stamps.setdefault(dot, _stamp(record))
        self.turn()

    def read(self, id: str, token: Vector, answer: Callable[[str, Any], None]) -> None:
        number = _partition(id)
        if self.replica.behind(number, token):
            answer("behind", None)
        else:
            picture = {key: _stamp(record) for key, record in self.records.items() if _partition(key) == number}
            answer("read", (self.records.get(id), dict(self.replica.durable[number]), picture))

    def turn(self) -> None:
        """Durable at once, and out."""
        turn = self.replica.end_turn()
        done = self.replica.persisted(turn)
        for _, raw in turn.deltas:
            for other in NAMES:
                if other != self.name:
                    self.world.send(self.name, other, lambda other=other, raw=raw: self.world.nodes[other].take(raw))  # type: ignore[misc]
        for actor, reached in turn.acks.items():
            ack, target = Ack(node=self.name, actor=actor, reached=dict(reached)), node_of(actor)[1]
            if target != self.name:
                self.world.send(self.name, target, lambda ack=ack, t=target: self.world.nodes[t].confirm(ack))  # type: ignore[misc]
        self._done(done)

    def take(self, raw: bytes) -> None:
        if self.running:
            for delta, its in deltas_of(raw):
                self.replica.receive(delta, its, self.now)
            self.turn()

    def confirm(self, ack: Ack) -> None:
        if self.running:
            self._done(self.replica.ack(ack))

    def _done(self, done: list[Any]) -> None:
        for waiting in done:
            operation, answer = waiting.ticket
            number = _partition(operation.id)
            seen = dict(self.replica.durable[number])
            join_into(seen, {waiting.actor: waiting.n})
            answer("done", (self.world.stamps[number, waiting.actor, waiting.n], seen))

    def _repair(self) -> None:
        """since(own vector), of another node."""
        world = self.world
        other = world.nodes[world.random.choice([name for name in NAMES if name != self.name])]
        if self.running and other.running:
            for number in range(PARTITIONS):
                have = self.replica.partitions[number].vector
                page = SyncPage(
                    partition=number,
                    records=[(r.id, codec.to_json(r)) for r in other.records.changed(number, have, None, 999)],
                    upto=dict(other.replica.durable[number]),
                    operations=other.replica.operations_since(number, have),
                )
                world.send(other.name, self.name, lambda page=page: self._merge(page))  # type: ignore[misc]
        world.after(world.random.randint(200, 600), self._repair)

    def _merge(self, page: SyncPage) -> None:
        if self.running:
            self.replica.merge_page(page, encode(page), self.now)
            self.turn()


class _Records(Records):
    def changed(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> list[Record]:
        return [
            record for record in super().changed(partition, have, after, limit) if _partition(record.id) == partition
        ]


class Session:
    """One agent: an operation at a time."""

    def __init__(self, world: World, number: int, operations: int) -> None:
        self.world = world
        self.name = f"s{number}"
        self.left = operations
        self.vectors: Vectors = {}
        self.own: dict[str, tuple[int, str]] = {}  # key -> the stamp of what it wrote last
        self.seen: dict[str, tuple[int, str]] = {}  # ... and of what it, or who gave it a token, was shown
        self._count = 0
        self._node = ""  # that answered last
        self._next()

    def _next(self) -> None:
        self.world.after(self.world.random.randint(1, 60), self._begin)

    def _begin(self) -> None:
        chance = self.world.random
        self._count += 1
        id = f"{chance.randrange(PARTITIONS)}-{chance.randrange(KEYS)}"
        kind = chance.random()
        if kind < 0.1:
            self._hand_over(chance.choice(self.world.sessions))
            self._end()
        elif kind < 0.5:
            content = f"{self.name}:{self._count}"
            before = [{k: s for k, s in one.items() if k[0] == id[0]} for one in (self.own, self.seen)]
            self.world.writes[content] = Written(*before)
            self._attempt(self._count, 0, Store(i=0, id=id, content=content))
        else:
            self._attempt(self._count, 0, id)

    def _attempt(self, count: int, attempt: int, operation: Store | str) -> None:
        world, id = self.world, operation if isinstance(operation, str) else operation.id
        number = _partition(id)
        name = NAMES[(number + attempt) % len(NAMES)]
        used = "token on reads" if isinstance(operation, str) else "token on writes"
        token = {} if world.without == used else dict(self.vectors.get(number, {}))
        own, seen = self.own.get(id, NOTHING), self.seen.get(id, NOTHING)
        open = [True]

        def again() -> None:
            if open[0] and self._count == count:
                open[0] = False
                self._attempt(count, attempt + 1, operation)

        def answer(kind: str, about: Any) -> None:
            world.after(world.random.choice((1, 5)), lambda: heard(kind, about))

        def heard(kind: str, about: Any) -> None:
            if self._count != count or not self.left:
                return
            if kind == "behind":
                again()
                return
            open[0] = False
            if self._node not in ("", name):
                world.counts["answers of another node"] += 1
            self._node = name
            if kind == "done":
                assert isinstance(operation, Store)
                self._wrote(operation, *about)
            else:
                self._read(id, own, seen, *about)
            self._end()

        def ask() -> None:
            node = world.nodes[name]
            if not node.running:
                return
            if isinstance(operation, str):
                node.read(operation, token, answer)
            else:
                node.write(operation, f"{self.name}-{count}", token, answer)

        world.after(world.random.choice((1, 5)), ask)
        world.after(TIMEOUT, again)

    def _end(self) -> None:
        self._count += 1
        self.left -= 1
        if self.left:
            self._next()

    def _hand_over(self, other: Session) -> None:
        """The other one reads at least what this one has read and written."""
        text = token_text("c", "r", self.vectors)
        given = token_vectors(text, "c", "r", PARTITIONS)
        for number, vector in given.items() if self.world.without != "token handed over" else ():
            join_into(other.vectors.setdefault(number, {}), vector)
        for floors in (self.own, self.seen):
            _raise(other.seen, floors)
        self.world.counts["tokens handed over"] += 1

    # -- the judge ----------------------------------------------------------------------------------------------------

    def _wrote(self, operation: Store, stamp: tuple[int, str], vector: Vector) -> None:
        join_into(self.vectors.setdefault(_partition(operation.id), {}), vector)
        world, written = self.world, self.world.writes[operation.content]
        world.counts["writes"] += 1
        if stamp < written.own.get(operation.id, NOTHING):
            world.found["monotonic writes"] += 1
        if stamp < written.seen.get(operation.id, NOTHING):
            world.found["writes follow reads"] += 1
        _raise(self.own, {operation.id: stamp})

    def _read(
        self, id: str, own: tuple[int, str], seen: tuple[int, str], record: Record | None, vector: Vector,
        picture: Mapping[str, tuple[int, str]],
    ) -> None:  # fmt: skip
        number, world = _partition(id), self.world
        join_into(self.vectors.setdefault(number, {}), vector)
        if record is not None:
            join_into(self.vectors[number], record.version)
        world.counts["reads"] += 1
        stamp = _stamp(record)
        if stamp < own:
            world.found["read your writes"] += 1
        if stamp < seen:
            world.found["monotonic reads"] += 1
        _raise(self.seen, {id: stamp})
        if record is None:
            return
        assert record.content is not None
        written = world.writes[record.content.value]
        for what, floors in (("monotonic writes", written.own), ("writes follow reads", written.seen)):
            for key, floor in floors.items():
                if picture.get(key, NOTHING) < floor:
                    world.found[what] += 1


def _partition(id: str) -> int:
    return int(id[0])


def _stamp(record: Record | None) -> tuple[int, str]:
    if record is None or record.content is None:
        return NOTHING
    return record.content.origin.time, record.content.origin.actor


def _raise(floors: dict[str, tuple[int, str]], others: Mapping[str, tuple[int, str]]) -> None:
    for key, stamp in others.items():
        floors[key] = max(floors.get(key, NOTHING), stamp)
