"""A node around a Replica: it commits turns, fills its tables, recovers after a crash, and knows who it is.

The order of things is crdt_spine/node's: nothing of a turn leaves before its journal row is on the disk; a
checkpoint may be taken in the middle of a turn; a node whose peers know more of its actor than its disk does goes on
under a new name. It can die between any two of its effects (boundaries.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from crdt_spine.core.actors import actor_name, node_of
from crdt_spine.core.causality import Vector, join, within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.fences import Fence
from crdt_spine.core.membership import Membership
from crdt_spine.core.messages import Ack, Change, Delta, Promised, SyncPage, Write, encode
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Refused, Replica
from crdt_spine.core.retirement import Retirement
from crdt_spine.core.thread import Entry
from crdt_spine.core.turn import Turn
from simulator.boundaries import DROPPED
from simulator.disk import Checkpoint, DictRecords, Disk
from simulator.repair import Repair
from simulator.strong import StrongSide
from simulator.world import START, Crash

if TYPE_CHECKING:
    from simulator.cluster import Cluster

HANDSHAKE_MILLISECONDS = 1_500
FLUSH_MILLISECONDS = 2_000

decode_entry = msgspec.json.Decoder(Delta | SyncPage | Fence | Promised).decode
_decode_delta = msgspec.json.Decoder(Delta).decode
_decode_ack = msgspec.json.Decoder(Ack).decode

Answer = Callable[[str, object], None]  # ("done", Waiting) or ("refused", error) or ("unknown", Waiting)


class Node:
    """One node; `running` is false while it is crashed, `serving` once it takes writes."""

    def __init__(self, cluster: Cluster, name: str, skew: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.skew = skew  # milliseconds
        self.disk = Disk()
        self.disk_epoch = 0
        self.latest = 0  # the greatest wall clock that it ever saw
        self.life = 0
        self.stopped: list[Callable[[], None]] | None = None  # what is to be done once it is no longer paused
        self.doomed: tuple[str, int] | None = None  # where it is to die, and how often it gets past that before
        self.running = False
        self.serving = False

    @property
    def now(self) -> int:
        """The wall clock as this node sees it."""
        now = START + self.world.now + self.skew
        self.latest = max(self.latest, now)
        return now

    def later(self, milliseconds: int, action: Callable[[], None]) -> None:
        """Do something, unless the node crashes before."""
        self.world.after(milliseconds, partial(self._due, self.life, action))

    def _due(self, life: int, action: Callable[[], None]) -> None:
        if self.stopped is not None:
            self.stopped.append(partial(self._due, life, action))
        elif self.running and self.life == life:
            action()

    def alive(self, life: int) -> bool:
        """Is it still the same process?"""
        return self.running and self.life == life

    def do(self, action: Callable[[], None]) -> None:
        """Do something now, or when the process is no longer paused."""
        if self.stopped is None:
            action()
        else:
            self.stopped.append(action)

    def pause(self) -> None:
        """Stop, as a process does that gets SIGSTOP: its timers and what it is sent wait."""
        self.stopped = []
        self.tell("stops")

    def go_on(self) -> None:
        """Everything that waited happens now."""
        waiting, self.stopped = self.stopped or [], None
        self.tell(f"goes on, with {len(waiting)} things to do")
        for action in waiting:
            action()

    # -- coming up and going down -----------------------------------------------------------------------------------

    def boot(self) -> None:
        """Recover from the disk, look who holds what, then shake hands. Who was given up as dead does not start."""
        if self._is_given_up():
            return
        self.life += 1
        self.running, self.serving, self.doomed = True, False, None
        checkpoint = self.disk.checkpoint
        self.fresh = checkpoint.incarnation == 0
        self.incarnation = checkpoint.incarnation or self.cluster.new_incarnation()
        self.began = checkpoint.began or self.incarnation
        self.suspect = checkpoint.suspect
        self.store = DictRecords(checkpoint)
        self.membership = self.seen = checkpoint.membership
        disk = actor_name("r", self.name, str(self.began))
        retirement = Retirement(self.name, self.cluster.names, disk, self.cluster.retirement_seconds)
        retirement.restore(checkpoint.retirement)
        self.replica = Replica(
            self.name, self.actor, self.store, HybridClock(checkpoint.clock), {}, self.cluster.write_quorum,
            retirement=retirement,
        )  # fmt: skip
        self._hold(self.membership)
        for number, partition in self.replica.partitions.items():
            partition.vector = dict(checkpoint.vectors.get(number, {}))
            partition.forgotten = dict(checkpoint.forgotten.get(number, {}))
            partition.forgotten_time = checkpoint.forgotten_times.get(number, 0)
            records = self.store.partitions.get(number, {}).values()
            partition.memories = sum(record.alive for record in records)
            partition.tombstones = len(records) - partition.memories
        self.replica.promises.restore(checkpoint.promises, self.replica.partitions)
        torn = len(self.disk.journal)
        for sequence, row in self.disk.rows():
            entries = row.split(b"\n")
            if sequence <= checkpoint.through:
                self.replica.remember(entries, decode_entry)
            else:
                self.replica.replay(entries, decode_entry)
        if torn > len(self.disk.journal):
            self.tell("finds its last row torn")
            self.cluster.counts["torn rows found"] += 1
        self.replica.recovered()
        self.through = self.disk.last
        self._wake = self._commit_planned = self._committing = False
        self._adopting = False
        self._overlooked = 0  # the newest epoch with a newcomer that it did not see when it looked
        self._barriers: list[Callable[[], None]] = []
        self._answers: dict[int, Answer] = {}
        self._asked: dict[int, tuple[int, int]] = {}  # ticket -> partition, and the epoch when it was coordinated
        self.repair = Repair(self)
        self.strong = StrongSide(self)
        vectors = {number: dict(p.vector) for number, p in self.replica.partitions.items()}
        self.tell(f"starts as {self.actor} with {vectors}")
        self.cluster.check("restarted", self, vectors)
        self.look_at_register()
        self.later(self.world.between(20, self.cluster.look_milliseconds(self.name)), self._look_regularly)
        self.repair.announce()
        self._handshake(self.world.now + HANDSHAKE_MILLISECONDS)
        self.repair.run()
        self.later(FLUSH_MILLISECONDS, self._flush_regularly)
        self.later(250, self._expire)

    def crash(self, where: str) -> None:
        """Lose everything in memory, between two effects or at any other time."""
        self.tell(f"crashes {where}")
        self.running = self.serving = False
        self.stopped = self.doomed = None
        self.cluster.crashed(self, where)

    def boundary(self, where: str, dying: Callable[[], None] | None = None) -> None:
        """Between two effects: if the node is to die here, it does, and leaves behind what `dying` does."""
        if self.doomed is None or self.doomed[0] != where:
            return
        if self.doomed[1]:
            self.doomed = (where, self.doomed[1] - 1)
            return
        if dying is not None:
            dying()
        self.crash(where)
        raise Crash

    def _handshake(self, deadline: int) -> None:
        peers = {peer for peers in self.replica.peers.values() for peer in peers} - {*self.membership.dead}
        unheard = peers - self.repair.answered
        if unheard and not self.repair.usurped and self.world.now < deadline:
            self.later(HANDSHAKE_MILLISECONDS // 5, lambda: self._handshake(deadline))
            self.repair.announce()
            return
        if self.repair.usurped or (unheard and not self.fresh):
            self.strong.void()
            self.reincarnate("rolled back" if self.repair.usurped else f"did not hear {sorted(unheard)}")
        else:
            self.serve()

    def serve(self) -> None:
        """Take writes, unless something is to be compared first."""
        self.serving = not self.suspect
        self.repair.announce()

    def compared(self, number: int) -> None:
        """A partition holds nothing any more that was forgotten elsewhere."""
        self.suspect -= {number}
        if not self.suspect:
            self.barrier(lambda: (self._write_identity(), self.serve()))

    def reincarnate(self, reason: str) -> None:
        """Make dots under a new name from now on; it is on the disk before the first of them."""

        self.serving = False

        def renamed() -> None:
            if self.repair.usurped:
                self.strong.void()
                self.suspect = frozenset(self.replica.partitions)
            self._rename(reason)
            self._write_identity()
            self.repair.compare()
            self.repair.usurped = False
            self.serve()

        self.barrier(renamed)

    def reseed(self) -> None:
        """Its disk was retired: go on with an empty one, and serve once that has what the peers have."""
        self.tell("is retired, and begins anew with an empty disk")
        self.cluster.counts["reseeded"] += 1
        self.disk = Disk()
        self.disk.checkpoint = Checkpoint(suspect=frozenset(range(self.cluster.partitions)))
        self.disk_epoch += 1
        self.cluster.check("rolled_back", self)
        self.crash("for good")

    def _rename(self, reason: str) -> None:
        old, self.incarnation = self.actor, self.cluster.new_incarnation()
        self.replica.actor = self.actor
        self.tell(f"goes on as {self.actor}, no longer {old}: {reason}")

    @property
    def actor(self) -> str:
        return actor_name("r", self.name, str(self.incarnation))

    def tell(self, what: str) -> None:
        self.world.tell(self.name, what)

    # -- who holds what ---------------------------------------------------------------------------------------------

    def stage(self, number: int) -> str | None:
        """How far this node is with a partition, by the newest that it knows: it acts on a step that takes something
        from it at once, and on one that gives it something once that is on its disk."""
        stage = self.membership.stage(number, self.name)
        return stage if stage == self.seen.stage(number, self.name) else None

    def _look_regularly(self) -> None:
        register = self.cluster.register.membership
        late = register.epoch > self._overlooked and "named" in {stage for _, stage in register.moving().values()}
        if late:
            self._overlooked = register.epoch
        else:
            self.look_at_register()
        self.later(self.world.between(20, self.cluster.look_milliseconds(self.name, late=late)), self._look_regularly)

    def look_at_register(self) -> None:
        """Adopt what is new there."""
        if self._is_given_up():
            self.crash("for good")
            return
        register = self.cluster.register
        if not self._adopting:
            register.confirm(self.name, self.membership.epoch)  # it may have died before it did
            if register.membership.epoch > self.membership.epoch:
                self._adopt(register.membership)

    def _is_given_up(self) -> bool:
        dead = self.cluster.register.membership.refuses(self.name) and self.cluster.without != "given-up"
        if dead:
            self.tell("is told that it was given up as dead, and stops")
            self.cluster.counts["told that it is dead"] += 1
        return dead

    def _adopt(self, membership: Membership) -> None:
        """Act on a step; keep it; then confirm it. What is no longer held here, or was dropped here and is given anew,
        is forgotten once all that came of it is durable."""
        self.seen, self._adopting = membership, True
        held = self.replica.partitions
        before, after = _seats(self.membership, self.name), _seats(membership, self.name)
        gone = [number for number in held if before[number] != after.get(number)]
        self.replica.close(gone)
        self.repair.leave(gone)

        def durable() -> None:
            compared = not self.suspect
            for number in gone:
                self.tell(f"drops partition {number}")
                self.store.forget(number)
                self.suspect -= {number}
                self.cluster.check("dropped", self, number)
            self._hold(self.membership, without=gone)
            given = membership.peers_of(self.name).keys() - self.replica.partitions.keys()
            self._hold(membership)
            self.repair.meet()
            self.membership = membership
            if given and self.incarnation == self.disk.checkpoint.incarnation:  # else the name is new
                self._rename(f"it is given {sorted(given)}")
            self.boundary("before a membership is written")
            self._write_identity()
            if gone:
                self.boundary(DROPPED)
            self.boundary("before a membership is confirmed")
            self._adopting = False
            self.tell(f"confirms epoch {membership.epoch}")
            self.cluster.register.confirm(self.name, membership.epoch)
            if not compared and not self.suspect:
                self.serve()  # what was left to compare is not held any more

        self.barrier(durable)

    def _hold(self, membership: Membership, without: list[int] | None = None) -> None:
        peers = {n: others for n, others in membership.peers_of(self.name).items() if n not in (without or ())}
        done, lost = self.replica.change_peers(peers, membership.muted(), membership.epoch, membership.dead)
        self.done(done)
        for waiting in lost:
            self._answers.pop(waiting.ticket)("unknown", waiting)
        for number in peers:
            self._record_history(number)

    # -- turns ------------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Something is to be committed."""
        self._wake = True
        if not self._commit_planned and not self._committing:
            self._commit_planned = True
            self.later(self.world.between(0, 8), self._commit)

    def barrier(self, then: Callable[[], None]) -> None:
        """Do it once everything that has taken effect so far is durable."""
        if self._committing or self._wake:
            self._barriers.append(then)
            self.touch()
        else:
            then()

    def _commit(self) -> None:
        self._commit_planned = self._wake = False
        turn = self.replica.end_turn()
        barriers, self._barriers = self._barriers, []
        if turn.empty:
            for then in barriers:
                then()
            return
        self._committing = True
        if self.cluster.without == "persist-before-send":
            self._send(turn)
        self.later(self.world.between(1, 25), lambda: self._committed(turn, barriers))

    def _committed(self, turn: Turn, barriers: list[Callable[[], None]]) -> None:
        if turn.journal and self.disk.full:
            self.later(500, lambda: self._committed(turn, barriers))
            return
        self._keep(turn)
        self._committing = False
        if self._wake:
            self.touch()
        for then in barriers:
            then()

    def _keep(self, turn: Turn) -> None:
        if turn.journal:
            self._write_row(turn)
        self.cluster.check("persisted", self, turn)
        self.boundary("after its row")
        self._send(turn)
        for waiting in self.replica.persisted(turn):
            self._done(waiting)
        self.strong.settled(turn)
        self.cluster.check("settled", self, turn)
        self.boundary("after a turn")

    def _write_row(self, turn: Turn) -> None:
        row = b"\n".join(turn.journal)
        self.boundary("before its row")
        self.boundary("while its row is written", lambda: self.disk.tear(row, self.world.now))
        self.through = self.disk.append(row, self.world.now)

    def _send(self, turn: Turn) -> None:
        for number, raw in turn.deltas:
            delta = _decode_delta(raw)
            last = delta.first + len(delta.changes) - 1
            self.cluster.check("sent", self, "delta", {number: {delta.actor: last}})
            for peer in self.replica.peers[number]:
                self.boundary("before a delta")
                self.send(peer, lambda node, raw=raw, delta=delta: node.take_delta(raw, delta), "delta")
        for actor, reached in turn.acks.items():
            node = node_of(actor)[1]
            if node != self.name:
                self.boundary("before an acknowledgement")
                self.cluster.check("sent", self, "ack", {number: {actor: n} for number, n in reached.items()})
                raw = encode(Ack(node=self.name, actor=actor, reached=reached, terms=self.strong.terms(reached)))
                self.send(node, lambda node, raw=raw: node.take_ack(raw))

    def send(self, target: str, deliver: Callable[[Node], None], kind: str = "") -> None:
        """A message to another node. It reaches the process that had subscribed when it was sent, or nobody; and what
        a node sent before its disk was rolled back has arrived, or is gone, when it starts again."""
        node = self.cluster.nodes[target]
        arrive = partial(self._arrive, node, node.life, self.disk_epoch, deliver)
        self.cluster.network.send(self.name, target, arrive, kind)

    def _arrive(self, node: Node, life: int, epoch: int, deliver: Callable[[Node], None]) -> None:
        if node.stopped is not None:
            node.stopped.append(partial(self._arrive, node, life, epoch, deliver))
        elif node.running and node.life == life and self.disk_epoch == epoch:
            if node.seen.refuses(self.name) and self.cluster.without != "given-up":
                self.cluster.counts["refused from the dead"] += 1
            else:
                node.strong.heard_at[self.name] = self.world.now
                deliver(node)

    def records_ahead(self) -> bool:
        """Is there a record with a change that the vector does not have yet?"""
        return any(self.store.changed(n, p.vector, None, 1) for n, p in self.replica.partitions.items())

    # -- tables -----------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.through, self.store.encoded(),
            {number: dict(p.vector) for number, p in self.replica.partitions.items()},
            self.incarnation, self.replica.clock.highest, self.suspect, self.membership, self.began,
            self.replica.retirement.saved,
            {number: dict(p.forgotten) for number, p in self.replica.partitions.items()},
            {number: p.forgotten_time for number, p in self.replica.partitions.items()},
            self.replica.promises.saved,
        )  # fmt: skip

    def _write_identity(self) -> None:
        if self._wake:  # what came since the barrier: its operation ids are in the journal alone
            self._wake = False
            self._keep(self.replica.end_turn())
        self.boundary("before a name is written")
        self.disk.checkpoint = self._checkpoint()
        self.cluster.check("checkpointed", self, self.disk.checkpoint)
        self.boundary("after a name is written")

    def _flush_regularly(self) -> None:
        checkpoint = self._checkpoint()
        before = self.disk.checkpoint

        def written() -> None:
            self.later(FLUSH_MILLISECONDS, self._flush_regularly)
            if self.disk.checkpoint is not before or self.disk.full:
                return  # a newer one was written meanwhile
            self.boundary("before a checkpoint")
            self.disk.checkpoint = checkpoint
            self.cluster.check("checkpointed", self, checkpoint)
            self.boundary("after a checkpoint")
            self.cluster.counts["rows pruned"] += self.disk.prune(self.world.now, self.cluster.operations())
            self.boundary("after pruning")

        def journaled() -> None:
            self.later(self.world.between(1, 100), written)

        if self.cluster.without == "journal-first":
            journaled()
        else:
            self.barrier(journaled)

    # -- messages in ------------------------------------------------------------------------------------------------

    def take_delta(self, raw: bytes, delta: Delta) -> None:
        if delta.actor == self.actor:
            return
        if not self.replica.receive(delta, raw, self.now):
            self.repair.mark_behind(delta.partition, node_of(delta.actor)[1])
        self.touch()

    def take_ack(self, raw: bytes) -> None:
        ack = _decode_ack(raw)
        self.done(self.replica.ack(ack))
        self.strong.acked(ack)

    def write(
        self, operation: Write, agent: str, operation_id: str, token: Vector, retry: bool, answer: Answer
    ) -> None:
        """An agent's write; `answer` hears what came of it. What the agent wrote or read before is here, or the write
        would not build on it."""
        number = self.cluster.partition_of(operation.id)
        if not self.serving or self.disk.full or self.stage(number) != "member":
            return
        if not within(token, self.replica.partitions[number].vector) and self.cluster.without != "builds-on":
            return
        if retry and self.replica.is_unsure(number, operation.id) and self.cluster.without != "unsure":
            return
        ticket = self.cluster.new_ticket()
        try:
            self.replica.write(number, operation, agent, operation_id, self.now, ticket)
        except Refused as refused:
            answer("refused", refused.error)
            return
        self._answers[ticket] = answer
        self._asked[ticket] = number, self.membership.epoch
        self.touch()

    def read(self, id: str, token: Vector, answer: Answer) -> None:
        """An agent's read of one memory, no older than its token. No answer: ask another node."""
        number = self.cluster.partition_of(id)
        if not self.serving or self.stage(number) not in ("member", "leaving"):
            return
        behind = self.replica.behind(number, token) and self.cluster.without != "token"
        if not behind and self.replica.settled(id):
            answer("read", (self.store.get(id), dict(self.replica.durable[number])))

    def read_thread(
        self, number: int, thread: str, token: Vector, answer: Callable[[list[Entry], Vector], None]
    ) -> None:
        """An agent's look at what one partition has of a thread; it leaves once all that it shows is durable."""
        if not self.serving or self.stage(number) not in ("member", "leaving") or self.replica.behind(number, token):
            return
        entries = []
        for record in self.store.partitions.get(number, {}).values():
            life, origin = record.life.value, record.life.origin
            if record.alive and life.thread == thread and life.clock:
                entries.append(
                    Entry(
                        id=record.id, agent=life.agent, clock=life.clock, created=life.created, partition=number,
                        actor=origin.actor, n=origin.n, after=life.after, changes=record.version,
                    )
                )  # fmt: skip
        vector = dict(self.replica.partitions[number].vector)
        self.barrier(lambda: answer(entries, vector))

    def done(self, waiting: list[Waiting]) -> None:
        for one in waiting:
            self._done(one)

    def _done(self, waiting: Waiting) -> None:
        self.boundary("before an answer")
        number, epoch = self._asked[waiting.ticket]
        self.cluster.check("confirmed", self, number, waiting, epoch == self.seen.epoch)
        self._answers.pop(waiting.ticket)("done", waiting)

    def _expire(self) -> None:
        for waiting, _ in self.replica.expire(self.now):
            self._answers.pop(waiting.ticket)("unknown", waiting)
        self.later(250, self._expire)

    def _record_history(self, number: int) -> None:
        """Let the history hear of every change that this node gives a dot."""
        partition = self.replica.partitions[number]
        coordinate = type(partition).coordinate

        def recorded(actor: str, change: Change, record: Record | None) -> Record:
            past = join(partition.vector, {} if record is None else record.version)
            after = coordinate(partition, actor, change, record)
            self.cluster.check("coordinated", self, number, (actor, partition.vector[actor]), change, past)
            return after

        partition.coordinate = recorded  # type: ignore[method-assign]


def _seats(membership: Membership, name: str) -> dict[int, int]:
    """The partitions that a node holds, and since when."""
    return {number: membership.seats[number][name].since for number in membership.peers_of(name)}
