"""Strong operations in a node: rounds out and in, once a loop turn and replica; who is there; what must be durable
first.

core/strong.py is the primary's side, core/rounds.py the other replicas'; here is only when things happen.

Whether a primary that is another node is there matters for how fast a new one is found, not for what is right: a term
is left to its node while that is heard. An agent that comes here with what is a silent node's has it probed, by a round
without a question: the broker knows at once that nobody listens, and who hangs does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core import strong
from crdt_spine.core.causality import join_into
from crdt_spine.core.messages import Ack, Round, Rounded, Unreadable, Vectors, encode
from crdt_spine.core.replica import Replica
from crdt_spine.core.rounds import Inheritance, answer, majority
from crdt_spine.core.strong import Answer, Ask, Pull, Send, Strong
from crdt_spine.core.subjects import Subjects
from crdt_spine.core.turn import Turn
from crdt_spine.limits import STRONG_SECONDS_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.replication import Replication
from crdt_spine.transport.base import Disconnected, Message, NobodyListens, Subscription, Transport

log = logging.getLogger(__name__)

PROBE_SECONDS = 0.25  # a primary that was not heard for so long is probed, when an agent asks for it here ...
PROBE_SECONDS_MAX = 0.5  # ... and is gone if it does not answer within so long
INHERIT_SECONDS = 0.25  # between two questions of a replica that is not ready yet
READY_SECONDS = 1.0  # ... or that is, where it may hold more partitions, or count in more, than before
PRESENT_SECONDS = 0.02  # for as long it is believed who is there

_decode_round = msgspec.json.Decoder(Round).decode
_decode_rounded = msgspec.json.Decoder(Rounded).decode


class StrongOperations:
    """Does strong operations, and answers those who do. `on_answer` is told what came of each (strong_requests.py)."""

    def __init__(
        self, replica: Replica, partitions: int, committer: Committer, replication: Replication, transport: Transport,
        subjects: Subjects, epoch: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self.replica = replica
        self.partition_count = partitions
        self.committer = committer
        self.replication = replication
        self.transport = transport
        self.subjects = subjects
        self.on_answer: Callable[[Answer], None] = lambda answer: None
        self.abstains: Callable[[], bool] = lambda: False  # is the own clock wrong?
        self.epoch = epoch  # of the membership that the replica's peers are by
        self.strong = Strong(replica, self._is_present, self._is_lively, time.time_ns())
        self.inheritance = Inheritance(replica)
        self.counts: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()
        self._planned = False
        self._unready = asyncio.Event()  # this node may have to hear what others have promised
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: dict[str, float] = {}  # when a node's round, or its answer to one, came last
        self._gone: dict[str, float] = {}  # who was found not to be there, and when
        self._probes: dict[str, float] = {}  # until when they are to answer
        self._present: dict[str, bool] = {}
        self._looked_at = 0.0

    async def start(self) -> list[Subscription]:
        """Listen for rounds and for answers to them."""
        node = self.replica.node
        return [
            await self.transport.subscribe(self.subjects.round(node), self._take),
            await self.transport.subscribe(f"{self.subjects.rounded(node)}.*.*", self._take_answer),
        ]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    # -- operations -------------------------------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """How many operations are under way."""
        return self.strong.open

    def ask(self, ask: Ask) -> None:
        """Do a strong operation."""
        self.counts["strong_operations"] += 1
        self.strong.ask(ask, self._loop.time())
        self._plan()

    def acked(self, ack: Ack) -> None:
        """A replica has changes of this node."""
        if ack.terms:
            self.strong.acked(ack)
            self._plan()

    def settled(self, turn: Turn) -> None:
        """A turn is durable here."""
        if self.strong.leads:
            self.strong.settled(turn)
            self._plan()

    def void(self) -> None:
        """This disk may be an old copy: what it has promised since is to be learned from others. It must not take part
        before a checkpoint says so."""
        self.inheritance.void()
        self._unready.set()

    def look_again(self) -> None:
        """This node may count in more partitions now: it has to hear what was promised there."""
        self._unready.set()

    def _plan(self) -> None:
        """Go on at the end of this loop turn."""
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._planned = False
        self.strong.epoch = self.epoch()
        self.strong.abstains = self.abstains()
        now = self._loop.time()
        for effect in self.strong.turn(wall_clock.now(), now):
            match effect:
                case Send():
                    self.counts["rounds"] += 1
                    reply = f"{self.subjects.rounded(self.replica.node)}.{effect.node}.{effect.number}"
                    self.transport.send(self.subjects.round(effect.node), encode(effect.round), reply)
                case Pull():
                    self.replication.pulling.pull(effect.number, effect.node)
                case Answer():
                    if effect.error == "Elsewhere":
                        self._probe(effect.primary, now)
                    self.on_answer(effect)
        if self.strong.dirty:
            self.strong.dirty = False
            self.committer.touch()
        if self.strong.waiting:
            self._unready.set()
        if self._timer is None and (self.strong.open or self.strong.leads):
            self._timer = self._loop.call_later(strong.TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.strong.open:
            self._turn()

    # -- rounds -----------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        """A primary's question. The answer leaves once everything in it is durable here."""
        try:
            asked = _decode_round(message.payload)
        except Unreadable:
            self.counts["rounds_refused"] += 1
            return
        self._heard[asked.node] = self._loop.time()
        if not message.reply or not self.replication.believed:
            return  # what this node has, or has promised, may be too old
        said, at_once = answer(self.replica, self.partition_count, asked, self.epoch(), wall_clock.now())
        if at_once:
            self.transport.send(message.reply, encode(said))
            return
        self.committer.touch()
        task = self._loop.create_task(self._say(message.reply, encode(said)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _say(self, reply: str, said: bytes) -> None:
        if await self.committer.durable():
            self.transport.send(reply, said)

    def _take_answer(self, message: Message) -> None:
        """What a replica says, or that it is not there; the subject ends in the replica and the round's number."""
        _, node, number = message.subject.rsplit(".", 2)
        now = self._loop.time()
        if message.nobody:
            self._probes.pop(node, None)
            self._gone[node] = now
            self._looked_at = 0.0
            self.strong.unheard(int(number))
            self._plan()
            return
        try:
            said = _decode_rounded(message.payload)
        except Unreadable:
            self.counts["rounds_refused"] += 1
            return
        self._heard[said.node] = now
        self._probes.pop(said.node, None)
        if int(number):
            self.strong.heard(int(number), said)
            self._plan()

    # -- who is there -----------------------------------------------------------------------------------------------

    def _is_present(self, node: str) -> bool:
        now = self._loop.time()
        if now - self._looked_at > PRESENT_SECONDS:
            self._looked_at = now
            peers = self.replication.peers
            said = {peer: peers[peer].announcement for peer in self.replication.peers.alive()}
            alive = [peer for peer, announced in said.items() if announced.state == "up" and not announced.abstains]
            for silent in [silent for silent, until in self._probes.items() if until < now]:
                del self._probes[silent]
                self._gone[silent] = now
            self._present = {peer: self._gone.get(peer, -1.0) < self._last_heard(peer) for peer in alive}
        return self._present.get(node, False)

    def _is_lively(self, node: str) -> bool:
        return self._loop.time() - self._last_heard(node) < STRONG_SECONDS_MAX and self._is_present(node)

    def _last_heard(self, node: str) -> float:
        peer = self.replication.peers.get(node)
        announced = 0.0 if peer is None else peer.heard
        return max(announced, self._heard.get(node, 0.0))

    def _probe(self, node: str, now: float) -> None:
        """Is it there? It will have answered, or be known to be gone, when the agent comes again."""
        if (
            not node
            or node == self.replica.node
            or node in self._probes
            or now - self._last_heard(node) < PROBE_SECONDS
        ):
            return
        self._probes[node] = now + PROBE_SECONDS_MAX
        asked = Round(node=self.replica.node, epoch=self.epoch())
        reply = f"{self.subjects.rounded(self.replica.node)}.{node}.0"
        self.transport.send(self.subjects.round(node), encode(asked), reply)

    # -- standings --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Become ready, where this node is not, until cancelled."""
        while True:
            wanted = self.inheritance.wanted
            if wanted and self.replication.believed:
                others = {node for number in wanted for node in self.replica.counting_peers(number)}
                for said in await asyncio.gather(*[self._standings(node, wanted, INHERIT_SECONDS) for node in others]):
                    if said is not None:
                        self.inheritance.hear(said)
                if self.replication.believed and self.inheritance.settle():
                    self.committer.touch()
                    self._plan()
                    self.replication.announce()  # a change of the cluster may wait for it
            if wanted:
                await asyncio.sleep(INHERIT_SECONDS)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._unready.wait(), READY_SECONDS)
            self._unready.clear()

    async def newest(self, partitions: Collection[int]) -> Vectors | tuple[int, int, tuple[str, ...]]:
        """What a majority of each of these partitions durably has now, joined; or, where one has none, how many
        answered, how many were needed, and who is missing."""
        others = {node for number in partitions for node in self.replica.counting_peers(number)}
        asked = sorted(partitions)
        answers = {node: self._loop.create_task(self._standings(node, asked, STRONG_SECONDS_MAX)) for node in others}
        found: Vectors = {number: dict(self.replica.durable[number]) for number in asked}
        heard: dict[int, set[str]] = {number: set() for number in asked}
        peers = {number: self.replica.counting_peers(number) for number in asked}
        needed = {number: majority(len(peers[number]) + 1) - 1 for number in asked}
        pending = set(answers.values())
        try:
            while any(len(heard[number]) < needed[number] for number in asked) and pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for said in [task.result() for task in done]:
                    for number, standing in said.standings.items() if said is not None else ():
                        if number in heard and said is not None and said.node in peers[number]:
                            heard[number].add(said.node)
                            join_into(found[number], standing.vector)
        finally:
            for task in pending:
                task.cancel()
        for number in asked:
            if len(heard[number]) < needed[number]:
                missing = tuple(sorted(node for node in peers[number] if node not in heard[number]))
                return 1 + len(heard[number]), 1 + needed[number], missing
        return found

    async def _standings(self, node: str, numbers: Collection[int], seconds: float) -> Rounded | None:
        asked = Round(node=self.replica.node, epoch=self.epoch(), standings=tuple(numbers))
        with contextlib.suppress(TimeoutError, NobodyListens, Disconnected):
            raw = await self.transport.request(self.subjects.round(node), encode(asked), seconds)
            try:
                return _decode_rounded(raw)
            except Unreadable:
                self.counts["rounds_refused"] += 1
        return None
