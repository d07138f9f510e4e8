"""Strong operations: linearizable reads and writes of single memories, by one replica of their partition at a time.

The *primary* of a partition is whoever has the promise of a majority for its term (core/terms.py). It does each
operation in steps; what all of them ask of one other replica in one turn is one `Round` (core/rounds.py answers it).

1. **Collect.** As many others as make a majority still promise the term, know a bound for stamps, and say what they
   have of the memory that is not here. That is waited for, with its operation ids: ordinary replication brings it.
2. **Decide** on the memory as it is here now. A write writes it whole (core/whole.py), stamped within the bound: else 1
   again. Who finds that there is nothing to write, a reader or who is refused, has read the memory. In a term before
   which there may have been others, it is sealed when it is read first.
3. **Confirm.** A majority durably has what was decided, and had not promised a higher term when it came to have it. The
   acknowledgements of deltas say so (`Ack.terms`); where they do not come, rounds ask. Then the operation is answered.

Why this is linearizable. Whoever is primary next has a majority's promise, and what it collects after that comes from a
majority as well. One replica of it confirmed what was answered before, and had it before it promised the new term: so
that is found there. What was not answered may be found, and is in what is written whole next; or it is not found, and
is dead for ever, as it is stamped below that. In both cases the memory knows which operations are in its past.

Driven like all of the core: inputs (`ask`, `heard`, `unheard`, `acked`), then `turn` with the wall clock in
milliseconds (for stamps and bounds) and a monotonic clock in seconds (for waiting) gives what is to be done, in order.
`turn` is due once a loop turn after inputs, whenever a turn of the replica became durable, and every `TICK_SECONDS`
while there is something `open`. The changes and promises that it makes are in the replica's open turn, which is to be
committed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import msgspec

from crdt_spine.core.causality import Vector, join_into, within
from crdt_spine.core.deciding import Past, decide, remembered
from crdt_spine.core.messages import Ack, Change, Get, Round, Rounded, Term
from crdt_spine.core.quorum import after
from crdt_spine.core.replica import Replica
from crdt_spine.core.rounds import majority, takes_part
from crdt_spine.core.strong_operation import Answer, Ask, Effect, Operation, Outcome, Pull, Send, fence_of
from crdt_spine.core.terms import NEVER
from crdt_spine.core.turn import Turn
from crdt_spine.core.whole import seal
from crdt_spine.limits import BATCH_OPERATIONS_MAX, STRONG_SECONDS_MAX, STRONG_WRITTEN_SECONDS_MAX

TICK_SECONDS: Final = 0.02
BOUND_MILLISECONDS: Final = 100  # how far ahead of now stamps may go after a round
HEDGE_SECONDS: Final = 0.05  # a replica that has not answered for so long is not waited for alone
AGAIN_SECONDS: Final = 0.05  # between two rounds for one operation
CLOCK_STEP_MILLISECONDS: Final = 1_000  # a clock that differs by more from before was set
CONFIRM_SECONDS: Final = 0.15  # for acknowledgements to come, before it is asked for them
PULL_SECONDS: Final = 0.03  # for a delta to come that others have already
ROUND_SECONDS_MAX: Final = 1.0  # then its answer is not expected any more


class Lead:
    """This node's term in a partition. `others` are the replicas that counted when it was taken."""

    def __init__(self, number: int, term: Term, others: tuple[str, ...], at: float) -> None:
        self.number = number
        self.term = term
        self.others = others
        self.needed = majority(len(others) + 1)
        self.began = at
        self.asked_at = float("-inf")
        self.granted: dict[str, int] = {}  # who promises the term -> the bound it was told before
        self.leading = False
        self.floor = 0  # milliseconds: no stamp of an earlier term is above it; 0: there was none
        self.bound = 0  # milliseconds: a majority knows that stamps go so far
        self.past = Past()
        self.vouched: dict[str, Vector] = {}  # what others acknowledged without a higher term
        self.operations: list[Operation] = []

    def must_seal(self, id: str) -> bool:
        """May something be left of this memory's earlier primaries that was not confirmed?"""
        return self.floor > 0 and id not in self.past.sealed


class _Sent(msgspec.Struct, eq=False):
    """A round under way."""

    node: str
    at: float
    terms: dict[int, Term]
    operations: list[tuple[Operation, int]]  # by index in `have`, with the operation's round


class Strong:
    """The strong operations of one node. `present` says whether a node is there, as far as that is known: its term is
    left to it while it is. `lively`: was it heard just now? Then it is waited for a little longer. Rounds are numbered
    from above `numbers`: no number that an earlier process of the node has used, whose answers may still be on their
    way."""

    def __init__(
        self, replica: Replica, present: Callable[[str], bool] = lambda node: True,
        lively: Callable[[str], bool] = lambda node: False, numbers: int = 0,
    ) -> None:  # fmt: skip
        self.replica = replica
        self.present = present
        self.lively = lively
        self.epoch = 0  # of the membership that the replica's peers are by
        self.abstains = False  # its clock is wrong: it is nobody's primary, as its stamps and bounds would not be taken
        self.leads: dict[int, Lead] = {}
        self.known: dict[int, Term] = {}  # the highest terms heard of, beyond what was promised
        self.open = 0  # operations that are not answered
        self.waiting: list[Operation] = []  # for this replica to be ready
        self._new: list[Operation] = []
        self._writes: dict[str, Operation] = {}  # by operation id, those that are not answered
        self._sent: dict[int, _Sent] = {}
        self._numbers = numbers
        self._stirred: set[int] = set()
        self._outbox: dict[str, tuple[dict[int, tuple[int, int]], list[Operation]]] = {}
        self._effects: list[Effect] = []
        self._ticked = float("-inf")
        self._clocks_apart = 0.0  # by how many milliseconds the wall clock is ahead of the one that is never set
        self.dirty = False  # there is something in the replica's open turn; whoever commits it says so by False

    # -- inputs -----------------------------------------------------------------------------------------------------

    def ask(self, ask: Ask, at: float) -> None:
        """Do this, from the next `turn` on. Another attempt of what is under way joins it: else the agent could be told
        by one that nothing was done, while the other one is still about to do it."""
        self.open += 1
        write = not isinstance(ask.operation, Get)
        if write and (under_way := self._writes.get(ask.operation_id)) is not None:
            under_way.join(ask, at)
            self._stirred.add(ask.number)
            return
        operation = Operation(ask, at)
        if write:
            self._writes[ask.operation_id] = operation
        self._new.append(operation)

    def heard(self, number: int, answer: Rounded) -> None:
        """The answer to a round; one that is not waited for any more is nothing."""
        sent = self._sent.pop(number, None)
        if sent is None or sent.node != answer.node:
            return
        refused, absent = answer.refused, answer.absent
        for partition, term in sent.terms.items():
            self._stirred.add(partition)
            lead = self.leads.get(partition)
            if partition in refused:
                higher = refused[partition]
                self.known[partition] = max(self.known.get(partition, NEVER), higher)
            elif lead is not None and lead.term == term and partition not in absent and partition in answer.bounds:
                lead.granted[sent.node] = answer.bounds[partition]
        news = dict(answer.news)
        lacking = frozenset(answer.lacking)
        newer = {fence.lock: fence.token for fence in answer.fences}
        for index, (operation, round) in enumerate(sent.operations):
            if operation.round != round:
                continue
            operation.open -= 1
            partition = operation.ask.number
            if partition in refused or partition in absent:
                continue
            operation.granted.add(sent.node)
            if index in news:
                operation.ask.wanted = {**operation.ask.wanted}
                join_into(operation.ask.wanted, news[index])
                operation.source = sent.node
            elif index not in lacking and operation.version in (None, operation.have):
                # Else it comes late, and is about what there was before the operation was decided.
                operation.clean.add(sent.node)
            if newer and (fence := fence_of(operation.ask)) is not None and newer.get(fence.lock, 0) > fence.token:
                operation.refused_fence = newer[fence.lock]

    def unheard(self, number: int) -> None:
        """No answer to this round will come: nobody listens there."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._lose(sent)

    def acked(self, ack: Ack) -> None:
        """A replica has changes of this node durably. Where it says which term it had promised by then, and that is not
        above this node's, it had them before it promised a higher one."""
        if ack.actor != self.replica.actor:
            return
        for partition, term in ack.terms.items():
            lead = self.leads.get(partition)
            if lead is None or ack.node not in lead.others:
                continue
            self._stirred.add(partition)
            if term > lead.term:
                self.known[partition] = max(self.known.get(partition, NEVER), term)
            elif partition in ack.reached:
                join_into(lead.vouched.setdefault(ack.node, {}), {ack.actor: ack.reached[partition]})

    def settled(self, turn: Turn) -> None:
        """This turn of the replica is durable."""
        self._stirred.update(turn.vectors)
        for entry in turn.promised:
            self._stirred.update(entry.terms)

    # -- the turn ---------------------------------------------------------------------------------------------------

    def turn(self, now: int, at: float) -> list[Effect]:
        """Go on with everything; what is to be done, in order. `now`: the wall clock, milliseconds; `at`: a clock that
        is never set, seconds."""
        if abs(now - at * 1000 - self._clocks_apart) > CLOCK_STEP_MILLISECONDS:
            self._clocks_apart = now - at * 1000
            for each in self.leads.values():
                each.past.steady = None
        if at - self._ticked >= TICK_SECONDS:
            self._ticked = at
            for number, sent in list(self._sent.items()):
                if at - sent.at > ROUND_SECONDS_MAX:
                    del self._sent[number]
                    self._lose(sent)
            self._stirred.update(number for number, lead in self.leads.items() if lead.operations or not lead.leading)
            self._new = self.waiting + self._new
            self.waiting = []
        while self._new or self._stirred:
            new, self._new = self._new, []
            for operation in new:
                self._route(operation, at)
            stirred, self._stirred = self._stirred, set()
            for number in sorted(stirred):
                lead = self.leads.get(number)
                if lead is not None:
                    self._step(lead, now, at)
        self.dirty = self.replica.keep_promises() or self.dirty
        self._flush(at)
        effects, self._effects = self._effects, []
        return effects

    def _route(self, operation: Operation, at: float) -> None:
        """Who does it: this node as the primary, or another one?"""
        number, replica = operation.ask.number, self.replica
        if number not in replica.partitions:
            self._answer(operation, Answer(operation.ask, error="NotHere", outcome="not applied"))
            return
        lead = self.leads.get(number)
        if lead is None or not self._holds(lead):
            if lead is not None:
                self._depose(lead)
            promised = self._known(number)
            there, others = promised[1], replica.counting_peers(number)
            if self.abstains and (there not in others or not self.present(there)):
                there = next((node for node in others if self.present(node)), "")
            if there not in ("", replica.node) and there in others and self.present(there):
                self._send_elsewhere(operation, there)
                return
            if self.abstains or not takes_part(replica, number):
                if at >= operation.deadline:
                    self._too_few(operation, (), others)
                else:
                    self.waiting.append(operation)
                return
            lead = self._take_over(number, promised, at)
        lead.operations.append(operation)
        self._stirred.add(number)

    def _take_over(self, number: int, promised: Term, at: float) -> Lead:
        replica = self.replica
        term = (promised[0] + 1, replica.node)
        lead = Lead(number, term, tuple(sorted(replica.counting_peers(number))), at)
        lead.granted[replica.node] = replica.promises.bound(number)
        replica.promises.promise(number, term)
        self.leads[number] = lead
        return lead

    def _step(self, lead: Lead, now: int, at: float) -> None:
        """Go on with what waits in a partition."""
        if not self._holds(lead):
            self._depose(lead)
            return
        if not lead.leading and not self._leads_now(lead, now, at):
            late = [one for one in lead.operations if at >= one.deadline]
            for operation in [one for one in late if not self._is_worth_waiting(lead, one, at)]:
                lead.operations.remove(operation)
                self._too_few(operation, lead.granted, lead.others)
            if not lead.operations and at - lead.began > STRONG_SECONDS_MAX:
                del self.leads[lead.number]
            return
        left = []
        for operation in lead.operations:
            if operation.answer is None:
                self._collect(lead, operation, now, at)
            if operation.answer is not None and self._is_confirmed(lead, operation):
                self._answer(operation, operation.answer)
            elif at >= operation.deadline and not self._is_worth_waiting(lead, operation, at):
                self._give_up(lead, operation)
            else:
                if operation.answer is not None and at >= operation.again_at:
                    assert operation.version is not None
                    operation.again_at = at + AGAIN_SECONDS
                    self._begin_round(lead, operation, operation.version, at)
                    self._ask(lead, operation, len(lead.others), at)
                left.append(operation)
        lead.operations = left

    def _is_worth_waiting(self, lead: Lead, operation: Operation, at: float) -> bool:
        """Are enough others there, and only slow?"""
        if operation.wrote or at >= operation.deadline + STRONG_WRITTEN_SECONDS_MAX - STRONG_SECONDS_MAX:
            return False
        return sum(self.lively(node) for node in lead.others) >= lead.needed - 1

    def _leads_now(self, lead: Lead, now: int, at: float) -> bool:
        """Has a majority promised the term, and has the time come that is above all earlier stamps?"""
        promises, own = self.replica.promises, self.replica.node
        durable = promises.durable.get(lead.number) == lead.term
        if len(lead.granted) < lead.needed or not durable:
            if at - lead.asked_at >= ROUND_SECONDS_MAX / 4:
                lead.asked_at = at
                for node in lead.others:
                    if node not in lead.granted:
                        terms, _ = self._outbox.setdefault(node, ({}, []))
                        terms[lead.number] = (lead.term[0], 0)
            return False
        # Where nobody else holds the partition, there is nothing that is not here.
        lead.floor = max(lead.granted.values()) if self.replica.peers[lead.number] else 0
        if lead.floor > now + BOUND_MILLISECONDS:
            return False
        assert own in lead.granted
        lead.leading = True
        return True

    # -- collect ----------------------------------------------------------------------------------------------------

    def _collect(self, lead: Lead, operation: Operation, now: int, at: float) -> None:
        """Step 1, and 2 as soon as that can be."""
        needed = lead.needed - 1
        if not operation.round:
            record = self.replica.records.get(operation.ask.operation.id)
            operation.bound = max(now, lead.floor + 1, self.replica.clock.highest >> 16) + BOUND_MILLISECONDS
            self._begin_round(lead, operation, {} if record is None else record.version, at)
            self._ask(lead, operation, needed, at)
        if len(operation.granted) < needed:
            all_asked = len(operation.asked) == len(lead.others)
            if all_asked and not operation.open and at >= operation.again_at:
                operation.asked.clear()  # too few take part: again
                all_asked = False
            if not all_asked and (not operation.open or at - operation.asked_at >= HEDGE_SECONDS):
                operation.again_at = at + AGAIN_SECONDS
                self._ask(lead, operation, len(lead.others), at)
            return
        lead.bound = max(lead.bound, operation.bound)
        self._decide(lead, operation, now, at)

    def _begin_round(self, lead: Lead, operation: Operation, have: Vector, at: float) -> None:
        self._numbers += 1
        operation.round = self._numbers
        operation.have = have
        operation.asked, operation.granted, operation.clean = set(), set(), set()
        operation.open = 0
        operation.asked_at = at
        self.replica.promises.tell(lead.number, operation.bound)

    def _ask(self, lead: Lead, operation: Operation, count: int, at: float) -> None:
        """Ask so many more of the others, those that are there first."""
        others = [node for node in lead.others if node not in operation.asked]
        if not others or not count:
            return
        operation.asked_at = at
        if len(others) > count:
            away = self.replica.away
            others = sorted(after(self.replica.node, others), key=lambda node: (not self.present(node), node in away))
        for node in others[:count]:
            operation.asked.add(node)
            operation.open += 1
            terms, operations = self._outbox.setdefault(node, ({}, []))
            terms[lead.number] = (lead.term[0], max(operation.bound, terms.get(lead.number, (0, 0))[1]))
            operations.append(operation)

    # -- decide -----------------------------------------------------------------------------------------------------

    def _decide(self, lead: Lead, operation: Operation, now: int, at: float) -> None:
        """Step 2, if all that others have is here."""
        replica, ask = self.replica, operation.ask
        id, partition = ask.operation.id, replica.partitions[lead.number]
        record = replica.records.get(id)
        ahead = record is not None and not within(record.version, partition.vector)
        if ahead or not within(ask.wanted, partition.vector):
            if not operation.news_at:
                operation.news_at = at + PULL_SECONDS
            elif at >= operation.news_at:
                operation.news_at = at + AGAIN_SECONDS * 4
                source = operation.source or next((node for node in lead.others if self.present(node)), "")
                if source:
                    self._effects.append(Pull(lead.number, source))
            return
        time = max(replica.clock.highest + 1, now << 16, (lead.floor + 1) << 16)
        done = lead.past.done_on(record, replica.actor, time)
        found = decide(replica, lead.past, lead.number, ask, record, time, done, operation.refused_fence)
        refused = remembered(found) if isinstance(found, Answer) else ""
        if isinstance(found, Answer) and lead.past.refuse(found, done) and not lead.must_seal(id):
            found.final = bool(refused)
            found.record, version = record, {} if record is None else record.version
            if version != operation.have:
                operation.clean.clear()
            operation.version, operation.answer = version, found
            waits = not operation.clean and version.keys() == {replica.actor}  # for acknowledgements under way
            operation.again_at = at + CONFIRM_SECONDS if waits else at
        elif time >> 16 > lead.bound:
            operation.round = 0  # collect again
            self._stirred.add(lead.number)
        elif isinstance(found, Answer):
            found.final = bool(refused)
            operation.answer = found
            self._write(lead, operation, seal(id, record, time, done, refused), at)
        else:
            if (fence := fence_of(ask)) is not None:
                replica.keep_fence(fence)  # of the majority that knows it for good, this is one
            self._write(lead, operation, found, at)

    def _write(self, lead: Lead, operation: Operation, change: Change, at: float) -> None:
        replica, ask = self.replica, operation.ask
        record, n = replica.write_whole(lead.number, change, ask.operation_id if change.operation else "")
        self.dirty = True
        lead.past.wrote(ask.operation.id, n)
        if operation.answer is None:
            operation.answer = Answer(ask, version=record.etag)
            operation.wrote = True
            operation.deadline = at + STRONG_WRITTEN_SECONDS_MAX
        operation.answer.record = record
        operation.version = {replica.actor: n}
        operation.clean.clear()
        operation.again_at = at + CONFIRM_SECONDS

    # -- confirm ----------------------------------------------------------------------------------------------------

    def _is_confirmed(self, lead: Lead, operation: Operation) -> bool:
        """Step 3: has a majority what was decided, each from before it promised a higher term?"""
        version, replica = operation.version, self.replica
        assert version is not None
        if not within(version, replica.durable[lead.number]):
            return False
        others = lead.needed - 1
        if not others or len(operation.clean) >= others:
            return True
        vouched = sum(
            node in operation.clean or (node in lead.vouched and within(version, lead.vouched[node]))
            for node in lead.others
        )
        return vouched >= others

    def _give_up(self, lead: Lead, operation: Operation) -> None:
        """Its time is over."""
        if operation.wrote:
            have = [node for node in lead.others if within(operation.version or {}, lead.vouched.get(node, {}))]
        else:
            have = [node for node in lead.others if node in operation.granted]
        self._too_few(operation, have, lead.others)

    # -- terms ------------------------------------------------------------------------------------------------------

    def _holds(self, lead: Lead) -> bool:
        """Is the term still this node's, by what it knows, and by the replicas that count now?"""
        replica, number = self.replica, lead.number
        return (
            not self.abstains
            and number in replica.partitions
            and replica.promises.term(number) == lead.term
            and self.known.get(number, NEVER) <= lead.term
            and takes_part(replica, number)
            and tuple(sorted(replica.counting_peers(number))) == lead.others
        )

    def _known(self, number: int) -> Term:
        """The highest term that this node knows of."""
        return max(self.replica.promises.term(number), self.known.get(number, NEVER))

    def _depose(self, lead: Lead) -> None:
        """The term is over. What was not written goes to the next primary, which may be this node; of what was written
        it is not known whether it is in the past that counts. Whoever tries again finds out."""
        del self.leads[lead.number]
        for operation in lead.operations:
            if operation.wrote:
                self._send_elsewhere(operation, max(self._known(lead.number), lead.term)[1])
                continue
            operation.round, operation.answer, operation.version = 0, None, None
            self._new.append(operation)

    # -- out --------------------------------------------------------------------------------------------------------

    def _lose(self, sent: _Sent) -> None:
        self._stirred.update(sent.terms)
        for operation, round in sent.operations:
            if operation.round == round:
                operation.open -= 1

    def _flush(self, at: float) -> None:
        """The rounds of this turn, one a replica."""
        outbox, self._outbox = self._outbox, {}
        for node, (terms, operations) in outbox.items():
            for start in range(0, max(1, len(operations)), BATCH_OPERATIONS_MAX):
                part = operations[start : start + BATCH_OPERATIONS_MAX]
                self._numbers += 1
                self._sent[self._numbers] = _Sent(
                    node, at, {number: (counter, self.replica.node) for number, (counter, _) in terms.items()},
                    [(operation, operation.round) for operation in part],
                )  # fmt: skip
                fences = [fence for operation in part if (fence := fence_of(operation.ask)) is not None]
                have = [(operation.ask.operation.id, operation.have) for operation in part]
                asked = Round(node=self.replica.node, epoch=self.epoch, terms=terms, have=have, fences=fences)
                self._effects.append(Send(node, self._numbers, asked))

    def _answer(self, operation: Operation, answer: Answer) -> None:
        self._writes.pop(operation.ask.operation_id, None)
        for ask in (operation.ask, *operation.joined):
            self.open -= 1
            self._effects.append(answer if ask is answer.ask else msgspec.structs.replace(answer, ask=ask))

    def _send_elsewhere(self, operation: Operation, primary: str) -> None:
        outcome: Outcome = "unknown" if operation.wrote else "not applied"
        where = f"node {primary} is" if primary not in ("", self.replica.node) else "another node may be"
        message = f"{where} the primary of partition {operation.ask.number}"
        self._answer(
            operation, Answer(operation.ask, error="Elsewhere", message=message, outcome=outcome, primary=primary)
        )

    def _too_few(self, operation: Operation, heard: Collection[str], others: Collection[str]) -> None:
        """Too few replicas answer."""
        ask, needed = operation.ask, majority(len(others) + 1)
        acks = 1 + sum(node in heard for node in others)
        missing = tuple(sorted(node for node in others if node not in heard))
        unknown = operation.wrote or (ask.retry and not isinstance(ask.operation, Get))
        outcome: Outcome = "unknown" if unknown else "not applied"
        seconds = STRONG_WRITTEN_SECONDS_MAX if operation.wrote else STRONG_SECONDS_MAX
        message = (
            f"{acks} of the {needed} replicas needed for a strong operation on {ask.operation.id!r} take part; "
            f"{', '.join(missing)} did not within {seconds:g} s ({outcome})"
        )
        self._answer(
            operation,
            Answer(
                ask, error="QuorumFailed", message=message, outcome=outcome, acks=acks, needed=needed, missing=missing
            ),
        )


__all__ = ["Answer", "Ask", "Effect", "Lead", "Pull", "Send", "Strong"]
