"""Operators who let nodes join the cluster, leave it, and take the place of others, while everything else goes on; and
who drives these changes.

Several do it at once, none knows of the others: each looks at the register and at what the nodes announced, and tries
to make the next step a moment later; by compare-and-set one of them wins. They have no state but goals, which they
forget when they are interrupted: whoever goes on finds the step to be done. Now and then one changes its mind and
turns back what is under way, or gives a node up as dead, also while a change is turned back; which is so, or the node
is only out of sight. The next one may die once others have taken over what the last one had.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from crdt_spine.core.causality import Vector
from crdt_spine.core.membership import Kind, Membership
from crdt_spine.core.membership_changes import proposed
from crdt_spine.core.membership_steps import Goals, advance, goals
from crdt_spine.errors import InvalidInput

if TYPE_CHECKING:
    from simulator.cluster import Cluster

MEMBERS_MAX = 6
INTERRUPTION = 0.1  # the chance that an operator stops looking before the step is done
REGRET_MILLISECONDS = 60_000  # after so long an operator turns back what is under way, on average
DEATH_MILLISECONDS = 3_000  # after so long of turning back it gives a node up
MISSED = 0.3  # the chance that a node's announcement is not heard since the last look
WRITING_MILLISECONDS_MAX = 150  # from looking at the register to writing it


class Operator:
    """Until `over`, a change now and then; at most `deaths` nodes are given up. `counts` says what it was."""

    def __init__(self, cluster: Cluster, pause_max: int, deaths: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.pause_max = pause_max  # milliseconds; 0: it does nothing
        self.deaths = deaths
        self.over = False
        self.counts: Counter[str] = Counter()
        self._goals = Goals()
        self._heard: dict[str, tuple[int, dict[int, Vector]]] = {}  # node -> its epoch and vectors, as announced
        if pause_max:
            self._pause()

    def _pause(self) -> None:
        self.world.after(self.world.between(1, self.pause_max), self._look)

    def _look(self) -> None:
        self._hear()
        register = self.cluster.register
        if register.membership.change is not None:
            self._go_on(register.membership)
        elif register.settled and not self.over:
            self._begin(register.membership)
        if self.over:
            self.world.after(100, self._look)
        else:
            self._pause()

    # -- changes ----------------------------------------------------------------------------------------------------

    def _begin(self, now: Membership) -> None:
        chance = self.world.random
        living = [name for name in now.members if name not in now.dead]
        away = [name for name in self.cluster.names if name not in now.members and name not in now.dead]
        buried = [name for name in now.members if name in now.dead]
        goes = chance.choice(buried or living)
        dead = bool(buried) or (self._may_give_up(now) and chance.random() < 0.3)
        kinds: list[Kind] = []
        if away and len(living) < MEMBERS_MAX and not dead:
            kinds.append("add")
        if len(set(living) - {goes}) >= now.settings.factor:
            kinds.append("remove")
        if away:
            kinds.append("replace")
        if not kinds:
            return
        kind = chance.choice(kinds)
        comes = chance.choice(away) if kind != "remove" else ""
        goes = goes if kind != "add" else ""
        self._propose(now, kind, comes, goes, dead)

    def _go_on(self, now: Membership) -> None:
        chance, change = self.world.random, now.change
        assert change is not None
        if chance.random() < INTERRUPTION:
            self.counts["interrupted"] += 1
            self._goals = Goals()
        elif change.kind != "cancel" and chance.random() < self.pause_max / 2 / REGRET_MILLISECONDS and not self.over:
            fallen = chance.choice([*now.members]) if self._may_give_up(now) and chance.random() < 0.3 else ""
            self._propose(now, "cancel", "", fallen, bool(fallen))
        elif change.kind == "cancel" and self._may_give_up(now) and self.world.second.random() < self._death_chance:
            self._propose(now, "cancel", "", self.world.second.choice([*now.members]), True)
        else:
            step = self._step(now)
            if step is not None:
                self._write(now, step, "step")

    @property
    def _death_chance(self) -> float:
        return self.pause_max / 2 / DEATH_MILLISECONDS

    def _may_give_up(self, now: Membership) -> bool:
        """A second one at a time could be one too many: the writes of two disks are gone then."""
        return len(now.dead) < self.deaths and not {*now.dead} & now.nodes and not self.over

    def _propose(self, now: Membership, kind: Kind, comes: str, goes: str, dead: bool) -> None:
        try:
            step = proposed(now, kind, comes, None, goes, dead, by=f"op{self.world.events}", now=self.world.now)
        except InvalidInput as refused:
            self.world.tell("operator", f"is refused: {refused}")
            self.counts["refused"] += 1
            return
        if dead and self.world.random.random() < 0.5:
            node = self.cluster.nodes[goes]
            if node.running:
                node.crash("for good")  # it comes back, though, and must not
        again = now.change is not None and now.change.kind == "cancel"
        self._write(now, step, f"{kind} dead again" if again else f"{kind} dead" if dead else kind)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _step(self, now: Membership) -> Membership | None:
        confirmed = dict(self.cluster.register.confirmed)
        known = {name: vectors for name, (epoch, vectors) in self._heard.items() if epoch >= now.epoch}
        stages = {stage for _, stage in now.moving().values()}
        without, enough = self.cluster.without, self.cluster.write_quorum
        if without == "joined-first" and "named" in stages:
            confirmed = dict.fromkeys(now.nodes, now.epoch)
        hasty = {"handed-over": "leaving", "level": "pulling"}.get(without or "")
        if hasty in stages:
            wanted = {number: {} for number in goals(now, known)}
            return advance(now, confirmed, wanted, known, enough)
        return self._goals.step(now, confirmed, known, enough)

    def _write(self, now: Membership, step: Membership, kind: str) -> None:
        """Somebody else may have written meanwhile."""
        self.world.after(self.world.between(1, WRITING_MILLISECONDS_MAX), lambda: self._written(now, step, kind))

    def _written(self, before: Membership, step: Membership, kind: str) -> None:
        if not self.cluster.register.move(step):
            self.counts["too late"] += 1
            return
        self.counts[kind] += 1
        self._count(before, step)
        self.cluster.check("moved", before, step)
        for name in set(step.dead) - set(before.dead):
            self.cluster.check("given_up", self.cluster.nodes[name])
        change = step.change
        if change is None:
            self.world.tell("operator", f"all is done with epoch {step.epoch}: {sorted(step.members)}")
            return
        concerned = {name for name, _ in step.moving().values()} | {change.comes, change.goes} - {None}
        for name in sorted(str(name) for name in concerned):
            node = self.cluster.nodes[name]
            if not node.life:
                node.boot()
            elif node.running:
                node.later(1, node.look_at_register)  # who is concerned knows first

    def _count(self, before: Membership, after: Membership) -> None:
        told = [f"{after.change.kind} {after.change.comes} for {after.change.goes}" if after.change else "the end"]
        for number, seats in after.seats.items():
            for name in sorted(seats.keys() | before.seats[number].keys()):
                stage = after.stage(number, name)
                if stage != before.stage(number, name):
                    self.counts[stage or "dropped"] += 1
                    told.append(f"{name} is {stage or 'dropped'} in {number}")
        self.world.tell("operator", f"epoch {after.epoch}: {', '.join(told)}")

    def _hear(self) -> None:
        """What the nodes announce reaches an operator late, or not at all."""
        for name, node in self.cluster.nodes.items():
            if node.running and node.stopped is None and self.world.random.random() >= MISSED:
                vectors = {number: dict(vector) for number, vector in node.replica.durable.items()}
                self._heard[name] = node.membership.epoch, vectors
