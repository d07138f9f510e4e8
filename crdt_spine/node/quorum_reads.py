"""Reads that several replicas answer: the asked node's record, merged with what others have more of it.

A replica is asked for since(version) of single records: the usual answer is "nothing", in a few bytes, as all have the
same. Whose answers overlap with a write's acknowledgements (R + W > N) can't miss it, with a token or without (Gifford,
"Weighted voting for replicated data" (1979)). What all questions of one loop turn ask of one replica is one message.

As many replicas are asked as are needed. One that is not there is replaced at once, one that is slow is not waited
for: after `HEDGE_SECONDS` the others are asked as well. What was learnt is not written here: announcements and
since() do that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.causality import within
from crdt_spine.core.messages import RecordsAnswer, RecordsRequest, Unreadable, encode
from crdt_spine.core.placement import partition_of
from crdt_spine.core.record import Record, merge
from crdt_spine.core.replica import Replica
from crdt_spine.core.subjects import Subjects
from crdt_spine.limits import BATCH_BYTES_TARGET, BATCH_OPERATIONS_MAX, READ_WAIT_SECONDS_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.storage.records import RecordStore
from crdt_spine.transport.base import Disconnected, Message, NobodyListens, Transport

log = logging.getLogger(__name__)

HEDGE_SECONDS = 0.05

_decode_request = msgspec.json.Decoder(RecordsRequest).decode
_decode_answer = msgspec.json.Decoder(RecordsAnswer).decode


class Question(msgspec.Struct, eq=False):
    """What several replicas know of one memory. `record` is the merge of what was heard; `ticket` is the asker's."""

    number: int
    id: str
    record: Record | None
    needed: int
    done: Callable[[Question], None]
    ticket: Any
    answered: list[str]  # this node first
    unasked: list[str]
    open: int = 0  # questions under way
    over: bool = False

    @property
    def enough(self) -> bool:
        """Did as many replicas answer as were needed?"""
        return len(self.answered) >= self.needed


class QuorumReads:
    """Asks other replicas for records, and answers those who ask. `alive` are the peers heard of lately, `believed`
    says whether what is here may be told."""

    def __init__(
        self,
        replica: Replica,
        store: RecordStore,
        committer: Committer,
        transport: Transport,
        subjects: Subjects,
        partitions: int,
        alive: Callable[[], set[str]],
        believed: Callable[[], bool],
    ) -> None:
        self.replica = replica
        self.store = store
        self.committer = committer
        self.transport = transport
        self.subjects = subjects
        self.partition_count = partitions
        self.alive = alive
        self.believed = believed
        self.counts: Counter[str] = Counter()
        self.open = 0  # questions that are not over
        self._outbox: dict[str, list[Question]] = {}
        self._present: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- asking -----------------------------------------------------------------------------------------------------

    def ask(
        self, number: int, id: str, record: Record | None, needed: int, done: Callable[[Question], None],
        ticket: Any = None,
    ) -> None:  # fmt: skip
        """Merge what `needed` replicas of a partition have of a memory, this one's `record` among them. `done` is
        called once, later: when as many have answered, or none is left who might (`missing` says who did not)."""
        replica = self.replica
        others = replica.counting_peers(number)
        if others:
            first = number % len(others)
            others = others[first:] + others[:first]
        if not self._outbox:  # once for all of this loop turn
            self._present = self.alive()
        if not self._present.issuperset(others):
            others.sort(key=lambda node: node not in self._present)
        question = Question(number, id, record, needed, done, ticket, [replica.node], others)
        self.open += 1
        self.counts["quorum_reads"] += 1
        self._ask_more(question, needed - 1)

    def missing(self, question: Question) -> tuple[str, ...]:
        """The replicas that did not answer."""
        others = self.replica.counting_peers(question.number) if question.number in self.replica.peers else []
        return tuple(sorted(node for node in others if node not in question.answered))

    def _ask_more(self, question: Question, count: int) -> None:
        for node in question.unasked[:count]:
            question.open += 1
            if not self._outbox:
                asyncio.get_running_loop().call_soon(self._flush)
            self._outbox.setdefault(node, []).append(question)
        del question.unasked[:count]
        if not question.open:
            self._over(question)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for node, questions in outbox.items():
            for first in range(0, len(questions), BATCH_OPERATIONS_MAX):
                part = questions[first : first + BATCH_OPERATIONS_MAX]
                task = asyncio.get_running_loop().create_task(self._put(node, part))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _put(self, node: str, questions: list[Question]) -> None:
        """These questions to one replica; as its answers come, until all are answered or it does not answer."""
        loop = asyncio.get_running_loop()
        hedge = loop.call_later(HEDGE_SECONDS, self._hedge, questions)
        deadline = loop.time() + READ_WAIT_SECONDS_MAX
        left = questions
        try:
            while left:
                left = [question for question in left if not question.over]
                seconds = deadline - loop.time()
                if not left or seconds <= 0:
                    break
                self.counts["record_requests"] += 1
                have = [(one.id, {} if one.record is None else one.record.version) for one in left]
                request = encode(RecordsRequest(have=have))
                raw = await self.transport.request(self.subjects.record(node), request, seconds)
                left = self._take(node, left, _decode_answer(raw))
        except (TimeoutError, NobodyListens, Disconnected):
            pass
        except (*Unreadable, codec.Garbled) as error:
            self.counts["records_refused"] += 1
            log.warning("%s sent an answer about records that is of no use: %s", node, error)
        finally:
            hedge.cancel()
        for question in left:
            self._without(question)

    def _hedge(self, questions: Iterable[Question]) -> None:
        """A replica is slow."""
        for question in questions:
            if not question.over and question.unasked:
                self.counts["quorum_reads_hedged"] += 1
                self._ask_more(question, len(question.unasked))

    def _take(self, node: str, asked: list[Question], answer: RecordsAnswer) -> list[Question]:
        """What a replica says about some of what it was asked; the rest. Raises ValidationError, codec.Garbled."""
        indexes = [index for index, _ in answer.states] + list(answer.absent)
        if not 0 < answer.through <= len(asked) or any(index >= answer.through for index in indexes):
            raise msgspec.ValidationError("the answer is about something else")
        news = {index: codec.from_json(asked[index].id, state) for index, state in answer.states}
        absent = frozenset(answer.absent)
        for index, question in enumerate(asked[: answer.through]):
            if index in absent:
                self._without(question)
                continue
            question.open -= 1
            if question.over:
                continue
            question.answered.append(node)
            theirs = news.get(index)
            if theirs is not None:
                question.record = theirs if question.record is None else merge(question.record, theirs)
            if question.enough:
                self._over(question)
            elif not question.open:  # who did not answer said so first
                self._ask_more(question, 1)
        return asked[answer.through :]

    def _without(self, question: Question) -> None:
        """A replica does not answer this question."""
        question.open -= 1
        if not question.over:
            self._ask_more(question, 1)

    def _over(self, question: Question) -> None:
        question.over = True
        self.open -= 1
        question.done(question)

    # -- answering --------------------------------------------------------------------------------------------------

    async def take(self, message: Message) -> None:
        """Another replica's question. The answer leaves once everything in it is durable here."""
        try:
            request = _decode_request(message.payload)
        except Unreadable:
            self.counts["records_refused"] += 1
            return
        if not message.reply or not self.believed():
            return  # what this node has may be deleted and forgotten everywhere else
        states: list[tuple[int, msgspec.Raw]] = []
        absent: list[int] = []
        size = through = 0
        for index, (id, have) in enumerate(request.have):
            if size >= BATCH_BYTES_TARGET:
                break
            through = index + 1
            if partition_of(id, self.partition_count) not in self.replica.partitions:
                absent.append(index)
                continue
            record = self.store.get(id)
            if record is not None and not within(record.version, have):
                state = codec.to_json(record)
                size += len(bytes(state))
                states.append((index, state))
        unsettled = any(not self.replica.settled(id) for id, _ in request.have[:through])
        if unsettled and not await self.committer.durable():
            return  # the disk is full
        answer = RecordsAnswer(through=through, states=states, absent=tuple(absent))
        self.transport.send(message.reply, encode(answer))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
