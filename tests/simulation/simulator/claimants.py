"""Agents of strong operations: each reads, writes, deletes and compares-and-sets memories that nobody writes to
otherwise, and retries with the same operation id until it knows what came of it, or gives it up as unknown."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from crdt_spine.core.messages import Delete, Edit, Get, Store
from crdt_spine.core.strong import Answer
from simulator.agents import Agent, Habit

if TYPE_CHECKING:
    from simulator.cluster import Cluster
    from simulator.node import Node

CLAIM_IDS = 500  # claimed memories have ids from here on
TIMEOUT_MILLISECONDS = 1_200
GIVE_UP_ATTEMPTS = 6
READ, WRITE, CAS, UPDATE, DELETE = "read", "write", "cas", "update", "delete"
KINDS = (READ, READ, READ, WRITE, WRITE, CAS, CAS, CAS, UPDATE, DELETE)


class Claim(NamedTuple):
    """An operation under way: what it is, for the history, and whether an earlier attempt may have done it."""

    kind: str
    operation: Get | Store | Edit | Delete
    value: str
    invoke: int


class Claimant(Agent):
    """Its `pending` is (number, its claim, attempt)."""

    message = "claim"

    def __init__(self, cluster: Cluster, name: str, ids: int, pause_max: int) -> None:
        super().__init__(cluster, name, ids, pause_max, Habit((), ()), cluster.world.second)
        self.primary: dict[int, str] = {}
        self.versions: dict[str, deque[str]] = {}
        self.process = 1

    def _begin(self) -> None:
        if self.resting:
            return
        self.count += 1
        self.pending = (self.count, self._claim(self.count), 0)  # type: ignore[assignment]
        self._attempt()

    def _claim(self, i: int) -> Claim:
        chance = self.chance
        id, value = f"m{CLAIM_IDS + chance.randrange(self.ids)}", f"{self.name}-{i}"
        kind = chance.choice(KINDS)
        known = self.versions.get(id)
        operation: Get | Store | Edit | Delete
        if kind == CAS and known:
            version = known[-1] if chance.random() < 0.75 else chance.choice(known)
            operation = Edit(i=i, id=id, content=value, if_version=version, strong=True)
        elif kind == WRITE:
            operation = Store(i=i, id=id, content=value, strong=True)
        elif kind == UPDATE:
            operation = Edit(i=i, id=id, content=value, strong=True)
        elif kind == DELETE:
            operation = Delete(i=i, id=id, strong=True)
        else:
            kind, operation = READ, Get(i=i, id=id, strong=True)
        return Claim(kind, operation, value, self.world.events)

    def _attempt(self) -> None:
        assert self.pending is not None
        mine: Any = self.pending
        number, claim, attempt = mine
        operation = claim.operation
        partition = self.cluster.partition_of(operation.id)
        self.asked = {number: self.world.now}
        node = self.primary.get(partition) or self._choose(operation.id)
        token = dict(self.token.get(partition, {}))

        def told(answer: Answer) -> None:
            self.cluster.network.send(node, self.name, lambda: self._told(mine, answer), self.message)

        def ask(there: Node) -> None:
            there.strong.take(operation, self.name, f"{self.name}-{number}", token, attempt > 0, told)

        self.world.tell(self.name, f"asks {node} for {self.name}-{number}: {claim.kind} {operation.id} ({attempt})")
        self._send(node, ask)
        self.world.after(TIMEOUT_MILLISECONDS, lambda: self._time_out(mine))

    def _time_out(self, mine: Any) -> None:
        if self.pending is not mine:
            return
        self.primary.pop(self.cluster.partition_of(mine[1].operation.id), None)
        self._again(mine)

    def _again(self, mine: Any) -> None:
        number, claim, attempt = mine
        if attempt + 1 >= GIVE_UP_ATTEMPTS:
            self.token.clear()
            self.cluster.check("stale", self)
            self._ends(claim, "unknown", {})
        else:
            self.pending = (number, claim, attempt + 1)
            self._attempt()

    def _told(self, mine: Any, answer: Answer) -> None:
        """An answer to a late attempt is one as well: the operation is the same."""
        pending: Any = self.pending
        if pending is None or pending[0] != mine[0]:
            return
        claim: Claim = pending[1]
        if answer.outcome == "not applied" and not answer.final and pending is not mine:
            return  # it says so of an earlier attempt: the one that is under way may do it
        number = self.cluster.partition_of(claim.operation.id)
        match answer.error:
            case "":
                self._ends(claim, "ok", self._output(claim, answer))
            case "NotFound":
                self._ends(claim, "ok", {"found": False} if claim.kind == DELETE else {"refused": "absent"})
            case "VersionConflict":
                self._ends(claim, "ok", {"refused": "version"})
            case "Elsewhere":
                if answer.primary:
                    self.primary[number] = answer.primary
                else:
                    self.primary.pop(number, None)
                if pending is mine:
                    self.world.after(20, lambda: self._again(mine) if self.pending is mine else None)
            case _:
                self.primary.pop(number, None)
                if pending is mine:
                    self.world.after(100, lambda: self._again(mine) if self.pending is mine else None)

    def _output(self, claim: Claim, answer: Answer) -> dict[str, Any]:
        record = answer.record
        alive = record is not None and record.alive
        if record is not None:
            self._see(record.id, record.version)
        match claim.kind:
            case "read":
                if not alive:
                    return {"value": None, "version": None}
                assert record is not None and record.content is not None
                output = {"value": record.content.value, "version": record.etag}
            case "delete":
                return {"found": True}
            case _:
                output = {"value": claim.value, "version": answer.version or None}
        if output["version"]:
            self.versions.setdefault(claim.operation.id, deque(maxlen=3)).append(str(output["version"]))
        return output

    def _ends(self, claim: Claim, outcome: str, output: dict[str, Any]) -> None:
        self.cluster.check("claimed", self, claim, outcome, output)
        if outcome == "unknown":
            self.process += 1
        what = output.get("refused") or ("" if outcome == "ok" else outcome)
        self._end(f"strong {claim.kind}{' ' if what else ''}{what}")
