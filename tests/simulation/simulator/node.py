"""A node around a Replica: it commits turns, fills its tables, recovers after a crash, and knows who it is.

The order of things is crdt_spine/node's: nothing of a turn leaves before its journal row is on the disk; a
checkpoint may be taken in the middle of a turn; a node whose peers know more of its actor than its disk does goes on
under a new name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from crdt_spine.core.causality import Vector
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Ack, Change, Delta, SyncPage, Write, encode
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Refused, Replica, Turn, actor_name, node_of
from simulator.disk import Checkpoint, DictRecords, Disk
from simulator.repair import Repair
from simulator.world import START

if TYPE_CHECKING:
    from simulator.cluster import Cluster

HANDSHAKE_MILLISECONDS = 1_500
FLUSH_MILLISECONDS = 2_000

decode_entry = msgspec.json.Decoder(Delta | SyncPage).decode
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
        self.running = False
        self.serving = False
        self.boot()

    @property
    def now(self) -> int:
        """The wall clock as this node sees it."""
        now = START + self.world.now + self.skew
        self.latest = max(self.latest, now)
        return now

    def later(self, milliseconds: int, action: Callable[[], None]) -> None:
        """Do something, unless the node crashes before."""
        life = self.life
        self.world.after(milliseconds, lambda: self.do(lambda: action() if self.alive(life) else None))

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
        """Recover from the disk, then shake hands."""
        self.life += 1
        self.running, self.serving = True, False
        checkpoint = self.disk.checkpoint
        self.fresh = checkpoint.incarnation == 0
        self.incarnation = checkpoint.incarnation or self.cluster.new_incarnation()
        self.suspect = checkpoint.suspect
        self.store = DictRecords(checkpoint)
        self.replica = Replica(
            self.name, self.actor, self.store, HybridClock(checkpoint.clock), self.cluster.peers_of(self.name),
            self.cluster.write_quorum,
        )  # fmt: skip
        for number, partition in self.replica.partitions.items():
            partition.vector = dict(checkpoint.vectors.get(number, {}))
            records = self.store.partitions.get(number, {}).values()
            partition.memories = sum(record.alive for record in records)
            partition.tombstones = len(records) - partition.memories
            self._record_history(number)
        for sequence, row in enumerate(self.disk.journal, 1):
            entries = row.split(b"\n")
            if sequence <= checkpoint.through:
                self.replica.remember(entries, decode_entry)
            else:
                self.replica.replay(entries, decode_entry)
        self.replica.recovered()
        self.through = len(self.disk.journal)
        self._wake = self._commit_planned = self._committing = False
        self._flushing = False
        self._barriers: list[Callable[[], None]] = []
        self._answers: dict[int, Answer] = {}
        self.repair = Repair(self)
        if self.fresh:
            self._write_identity()
        vectors = {number: dict(p.vector) for number, p in self.replica.partitions.items()}
        self.tell(f"starts as {self.actor} with {vectors}")
        self.cluster.check("restarted", self, vectors)
        self.repair.announce()
        self._handshake(self.world.now + HANDSHAKE_MILLISECONDS)
        self.repair.run()
        self.later(FLUSH_MILLISECONDS, self._flush_regularly)
        self.later(250, self._expire)

    def crash(self, *, half_written: bool) -> None:
        """Lose everything in memory. A journal row under way is on the disk, or not."""
        half_written = half_written and self._committing and bool(self._row)
        if half_written:
            self.disk.append(self._row)
            self.cluster.check("persisted", self, self._turn)
        self.tell("crashes" + (", its last row just written" if half_written else ""))
        self.running = self.serving = False
        self.stopped = None

    def _handshake(self, deadline: int) -> None:
        unheard = {peer for peers in self.replica.peers.values() for peer in peers} - self.repair.answered
        if unheard and not self.repair.usurped and self.world.now < deadline:
            self.later(HANDSHAKE_MILLISECONDS // 5, lambda: self._handshake(deadline))
            self.repair.announce()
            return
        if self.repair.usurped or (unheard and not self.fresh):
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
                self.suspect = frozenset(self.replica.partitions)
            old, self.incarnation = self.actor, self.cluster.new_incarnation()
            self._write_identity()
            self.replica.actor = self.actor
            self.repair.usurped = False
            self.tell(f"goes on as {self.actor}, no longer {old}: {reason}")
            self.serve()

        self.barrier(renamed)

    @property
    def actor(self) -> str:
        return actor_name("r", self.name, str(self.incarnation))

    def tell(self, what: str) -> None:
        self.world.tell(self.name, what)

    # -- turns ------------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Something is to be committed."""
        self._wake = True
        if not self._commit_planned and not self._committing:
            self._commit_planned = True
            self.later(self.world.random.randint(0, 8), self._commit)

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
        self._committing, self._turn, self._row = True, turn, b"\n".join(turn.journal)
        if self.cluster.without == "persist-before-send":
            self._send(turn)
        self.later(self.world.random.randint(1, 25), lambda: self._committed(turn, barriers))

    def _committed(self, turn: Turn, barriers: list[Callable[[], None]]) -> None:
        if turn.journal and self.disk.full:
            self.later(500, lambda: self._committed(turn, barriers))
            return
        if turn.journal:
            self.through = self.disk.append(self._row)
        self._committing = False
        self.cluster.check("persisted", self, turn)
        self._send(turn)
        for waiting in self.replica.persisted(turn):
            self._done(waiting)
        self.cluster.check("settled", self, turn)
        if self._wake:
            self.touch()
        for then in barriers:
            then()

    def _send(self, turn: Turn) -> None:
        for number, raw in turn.deltas:
            delta = _decode_delta(raw)
            last = delta.first + len(delta.changes) - 1
            self.cluster.check("sent", self, "delta", {number: {delta.actor: last}})
            for peer in self.replica.peers[number]:
                self.send(peer, lambda node, raw=raw: node.take_delta(raw), "delta")
        for actor, reached in turn.acks.items():
            node = node_of(actor)[1]
            if node != self.name:
                self.cluster.check("sent", self, "ack", {number: {actor: n} for number, n in reached.items()})
                raw = encode(Ack(node=self.name, actor=actor, reached=reached))
                self.send(node, lambda node, raw=raw: node.take_ack(raw))

    def send(self, target: str, deliver: Callable[[Node], None], kind: str = "") -> None:
        """A message to another node. It reaches the process that had subscribed when it was sent, or nobody; and what
        a node sent before its disk was rolled back has arrived, or is gone, when it starts again."""
        epoch, life = self.disk_epoch, self.cluster.nodes[target].life

        def arrive() -> None:
            node = self.cluster.nodes[target]
            if node.running:
                node.do(lambda: deliver(node) if node.alive(life) and self.disk_epoch == epoch else None)

        self.cluster.network.send(self.name, target, arrive, kind)

    def records_ahead(self) -> bool:
        """Is there a record with a change that the vector does not have yet?"""
        return any(self.store.changed(n, p.vector, None, 1) for n, p in self.replica.partitions.items())

    # -- tables -----------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.through, self.store.encoded(),
            {number: dict(p.vector) for number, p in self.replica.partitions.items()},
            self.incarnation, self.replica.clock.highest, self.suspect,
        )  # fmt: skip

    def _write_identity(self) -> None:
        self.disk.checkpoint = self._checkpoint()
        self.cluster.check("checkpointed", self, self.disk.checkpoint)

    def _flush_regularly(self) -> None:
        checkpoint = self._checkpoint()
        before = self.disk.checkpoint

        def written() -> None:
            if self.disk.checkpoint is before and not self.disk.full:  # else a newer one was written meanwhile
                self.disk.checkpoint = checkpoint
                self.cluster.check("checkpointed", self, checkpoint)
            self.later(FLUSH_MILLISECONDS, self._flush_regularly)

        def journaled() -> None:
            self.later(self.world.random.randint(1, 100), written)

        if self.cluster.without == "journal-first":
            journaled()
        else:
            self.barrier(journaled)

    # -- messages in ------------------------------------------------------------------------------------------------

    def take_delta(self, raw: bytes) -> None:
        delta = _decode_delta(raw)
        if delta.actor == self.actor:
            return
        if not self.replica.receive(delta, raw, self.now):
            self.repair.mark_behind(delta.partition, node_of(delta.actor)[1])
        self.touch()

    def take_ack(self, raw: bytes) -> None:
        for waiting in self.replica.ack(_decode_ack(raw)):
            self._done(waiting)

    def write(self, operation: Write, agent: str, operation_id: str, retry: bool, answer: Answer) -> None:
        """An agent's write; `answer` hears what came of it."""
        if not self.serving or self.disk.full:
            return
        ticket = self.cluster.new_ticket()
        number = self.cluster.partition_of(operation.id)
        try:
            self.replica.write(number, operation, agent, operation_id, self.now, ticket, retry)
        except Refused as refused:
            answer("refused", refused.error)
            return
        self._answers[ticket] = answer
        self.touch()

    def read(self, id: str, token: Vector, answer: Answer) -> None:
        """An agent's read of one memory, no older than its token. No answer: ask another node."""
        number = self.cluster.partition_of(id)
        behind = self.replica.behind(number, token) and self.cluster.without != "token"
        if self.serving and not behind and self.replica.settled(id):
            answer("read", (self.store.get(id), dict(self.replica.durable[number])))

    def done(self, waiting: list[Waiting]) -> None:
        for one in waiting:
            self._done(one)

    def _done(self, waiting: Waiting) -> None:
        self._answers.pop(waiting.ticket)("done", waiting)

    def _expire(self) -> None:
        for waiting, _ in self.replica.expire(self.now):
            self._answers.pop(waiting.ticket)("unknown", waiting)
        self.later(250, self._expire)

    def _record_history(self, number: int) -> None:
        """Let the history hear of every change that this node gives a dot."""
        partition = self.replica.partitions[number]
        coordinate = partition.coordinate

        def recorded(actor: str, change: Change, record: Record | None) -> Record:
            after = coordinate(actor, change, record)
            self.cluster.check("coordinated", self, number, (actor, partition.vector[actor]), change)
            return after

        partition.coordinate = recorded  # type: ignore[method-assign]
