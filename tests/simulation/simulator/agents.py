"""Agents: each issues one operation at a time, with an id, and retries it elsewhere until it knows what came of it. Its
token is what it wrote and saw; it reads no older state."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from crdt_spine.core.causality import Vector, join_into
from crdt_spine.core.messages import Delete, Edit, Store, Write
from crdt_spine.core.quorum import Waiting
from simulator.disk import ROW_MILLISECONDS_MIN

if TYPE_CHECKING:
    from simulator.cluster import Cluster
    from simulator.node import Node

TAGS = "abcd"
KEYS = "xyz"
TIMEOUT_MILLISECONDS = 1_500
READ_SHARE = 0.3
ATTEMPTS_MAX = 8  # then the agent gives its token up: what it knows may be gone with a disk


class Habit(NamedTuple):
    """What agents like to do; repeated is likelier. `acks` None is the cluster's write quorum."""

    kinds: tuple[str, ...]
    acks: tuple[int | None, ...]

    @classmethod
    def of(cls, chance: Random, nodes: int) -> Habit:
        """Some habit."""
        kinds = chance.choice(
            [
                ("store", "store", "edit", "tag", "tag", "untag", "delete", "delete"),
                ("store", "tag", "tag", "tag", "untag", "untag", "untag", "edit"),
                ("store", "store", "delete", "tag"),
            ]
        )
        return cls(kinds, chance.choice([(None, None, 1, nodes), (1, 1, 1, None), (1,)]))


class Agent:
    """One agent. `pending` is the operation that it waits for; an id alone is a read of that memory. `message` is the
    kind of its messages; where it has a generator of its own, `chance`, they are of a kind that has one as well."""

    message = "agent"

    def __init__(
        self, cluster: Cluster, name: str, ids: int, pause_max: int, habit: Habit, chance: Random | None = None
    ) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.ids = ids
        self.pause_max = pause_max
        self.habit = habit
        self.resting = False
        self.pending: tuple[int, Write | str, int] | None = None  # number, operation, attempt
        self.asked: dict[int, int] = {}  # number -> when it was asked for last, of late
        self.token: dict[int, Vector] = {}
        self.chance = chance or cluster.world.random
        self.count = 0
        self.outcomes: dict[str, int] = {}
        self._pause()

    def _pause(self) -> None:
        self.world.after(self.chance.randint(1, self.pause_max), self._begin)

    def _begin(self) -> None:
        if self.resting:
            return
        self.count += 1
        reads = self.world.random.random() < READ_SHARE
        id = f"m{self.world.random.randrange(self.ids)}"
        self.pending = (self.count, id if reads else self._operation(self.count, id), 0)
        self._attempt()

    def _attempt(self) -> None:
        assert self.pending is not None
        number, operation, attempt = self.pending
        mine = self.pending
        late = {one: when for one, when in self.asked.items() if when > self.world.now - ROW_MILLISECONDS_MIN}
        self.asked = {**late, number: self.world.now}
        id = operation if isinstance(operation, str) else operation.id
        token = dict(self.token.get(self.cluster.partition_of(id), {}))
        self.cluster.check("asked", self, id, (number, attempt))

        node = self._choose(id)

        def answer(kind: str, about: object) -> None:
            self.cluster.network.send(node, self.name, lambda: self._answered(mine, node, kind, about), "agent")

        def ask(there: Node) -> None:
            if isinstance(operation, str):
                there.read(operation, token, answer)
            else:
                # An attempt that arrives when a later one was made counts as one that is tried again: here
                # are no deadlines, which would keep it from being taken.
                retry = attempt > 0 or self.pending is not mine
                there.write(operation, self.name, f"{self.name}-{number}", token, retry, answer)

        if attempt:
            self.world.tell(self.name, f"tries {self.name}-{number} again at {node}")
        else:
            self.world.tell(self.name, f"asks {node} for {self.name}-{number}: {_words(operation)}")
        self._send(node, ask)
        self._plan_time_out(mine)

    def _send(self, node: str, ask: Callable[[Node], None]) -> None:
        there = self.cluster.nodes[node]

        def arrive() -> None:
            if there.running:
                life = there.life
                there.do(lambda: ask(there) if there.alive(life) else None)

        self.cluster.network.send(self.name, node, arrive, self.message)

    def _plan_time_out(self, mine: tuple[int, Write | str, int]) -> None:
        self.world.after(TIMEOUT_MILLISECONDS, lambda: self._time_out(mine))

    def _time_out(self, mine: tuple[int, Write | str, int]) -> None:
        if self.pending is not mine:
            return
        if mine[2] and mine[2] % ATTEMPTS_MAX == 0:
            self.token.clear()
            self.cluster.check("stale", self)
            if self._gives_up(mine[1]):
                self._end("StaleToken")
                return
        self.pending = (*mine[:2], mine[2] + 1)
        self._attempt()

    def _choose(self, id: str) -> str:
        """A node that answers for the memory, as far as the agent knows; now and then it is wrong."""
        chance = self.chance
        known = self.cluster.register.members(self.cluster.partition_of(id))
        return chance.choice(self.cluster.names if chance.random() < 0.05 else known)

    def _gives_up(self, operation: Write | str) -> bool:
        """Nobody reaches the token, so it is given up. And the operation? A write may build on anything now."""
        return isinstance(operation, str)

    def _answered(self, mine: tuple[int, Write | str, int], node: str, kind: str, about: Any) -> None:
        number, operation, _ = mine
        if kind == "done":
            assert isinstance(about, Waiting) and not isinstance(operation, str)
            self._see(operation.id, {about.actor: about.n})
            self.cluster.check(
                "acknowledged",
                self,
                operation.id,
                self.cluster.partition_of(operation.id),
                (about.actor, about.n),
                about.needed,
            )
        if self.pending is None or self.pending[0] != number:
            return
        if kind == "unknown":
            self._time_out(self.pending)
            return
        if kind == "read":
            record, vector = about
            assert isinstance(operation, str)
            self.cluster.check("read", self, operation, (number, mine[2]), record, vector, node)
            self._see(operation, vector)
            if record is not None:
                self._see(operation, record.version)  # a sync may have brought the record ahead of its vector
        self._end(str(about) if kind == "refused" else kind)

    def _end(self, outcome: str) -> None:
        assert self.pending is not None
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.world.tell(self.name, f"hears of {self.name}-{self.pending[0]}: {outcome}")
        self.pending = None
        self._pause()

    def _see(self, id: str, vector: Vector) -> None:
        join_into(self.token.setdefault(self.cluster.partition_of(id), {}), vector)

    def _operation(self, i: int, id: str) -> Write:
        chance = self.world.random
        acks = chance.choice(self.habit.acks)
        tags = tuple(chance.sample(TAGS, chance.randrange(3)))
        metadata: dict[str, Any] = {chance.choice(KEYS): i} if chance.random() < 0.5 else {}
        match chance.choice(self.habit.kinds):
            case "store":
                expires = 1 << 62 if chance.random() < 0.2 else None
                return Store(
                    i=i, id=id, content=f"{self.name}-{i}", tags=tags, metadata=metadata, acks=acks, expires=expires,
                    thread=chance.choice([None, "t"]),
                )  # fmt: skip
            case "edit":
                if chance.random() < 0.3:
                    metadata[chance.choice(KEYS)] = None
                expires = chance.choice([msgspec.UNSET, None, 1 << 61])
                content = chance.choice([None, f"{self.name}-{i}"])
                importance = chance.choice([None, i / 1000])
                return Edit(
                    i=i, id=id, content=content, importance=importance, expires=expires, metadata=metadata, acks=acks
                )
            case "tag":
                return Edit(i=i, id=id, add=(chance.choice(TAGS),), acks=acks)
            case "untag":
                return Edit(i=i, id=id, remove=(chance.choice(TAGS),), acks=acks)
            case _:
                return Delete(i=i, id=id, acks=acks)


def _words(operation: Write | str) -> str:
    if isinstance(operation, str):
        return f"read {operation}"
    fields = msgspec.to_builtins(operation)
    kind = fields.pop("do")
    del fields["i"]
    return f"{kind} {fields.pop('id')} {fields or ''}".rstrip()
