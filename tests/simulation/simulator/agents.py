"""Agents: each issues one write at a time, with an operation id, and retries it elsewhere until it knows what came of
it."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from crdt_spine.core.messages import Delete, Edit, Store, Write
from crdt_spine.core.quorum import Waiting

if TYPE_CHECKING:
    from simulator.cluster import Cluster

TAGS = "abcd"
KEYS = "xyz"
TIMEOUT_MILLISECONDS = 1_500


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
    """One agent. `pending` is the operation that it waits for."""

    def __init__(self, cluster: Cluster, name: str, ids: int, pause_max: int, habit: Habit) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.ids = ids
        self.pause_max = pause_max
        self.habit = habit
        self.resting = False
        self.pending: tuple[int, Write, int] | None = None  # number, operation, attempt
        self.count = 0
        self.outcomes: dict[str, int] = {}
        self._pause()

    def _pause(self) -> None:
        self.world.after(self.world.random.randint(1, self.pause_max), self._begin)

    def _begin(self) -> None:
        if self.resting:
            return
        self.count += 1
        self.pending = (self.count, self._operation(self.count), 0)
        self._attempt()

    def _attempt(self) -> None:
        assert self.pending is not None
        number, operation, attempt = self.pending
        node = self.world.random.choice(self.cluster.names)
        mine = self.pending

        def answer(kind: str, about: object) -> None:
            self.cluster.network.send(node, self.name, lambda: self._answered(mine, kind, about), "agent")

        def arrive() -> None:
            there = self.cluster.nodes[node]
            if there.running:
                there.write(operation, self.name, f"{self.name}-{number}", attempt > 0, answer)

        if attempt:
            self.world.tell(self.name, f"tries {self.name}-{number} again at {node}")
        else:
            self.world.tell(self.name, f"asks {node} for {self.name}-{number}: {_words(operation)}")
        self.cluster.network.send(self.name, node, arrive, "agent")
        self.world.after(TIMEOUT_MILLISECONDS, lambda: self._time_out(mine))

    def _time_out(self, mine: tuple[int, Write, int]) -> None:
        if self.pending is mine:
            self.pending = (*mine[:2], mine[2] + 1)
            self._attempt()

    def _answered(self, mine: tuple[int, Write, int], kind: str, about: object) -> None:
        number, operation, _ = mine
        if kind == "done":
            assert isinstance(about, Waiting)
            self.cluster.check(
                "acknowledged",
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
        outcome = kind if kind == "done" else str(about)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.world.tell(self.name, f"hears of {self.name}-{number}: {outcome}")
        self.pending = None
        self._pause()

    def _operation(self, i: int) -> Write:
        chance = self.world.random
        id = f"m{chance.randrange(self.ids)}"
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


def _words(operation: Write) -> str:
    fields = msgspec.to_builtins(operation)
    kind = fields.pop("do")
    del fields["i"]
    return f"{kind} {fields.pop('id')} {fields or ''}".rstrip()
