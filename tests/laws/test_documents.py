"""Documents under the laws: whatever the order, and whenever a replica folds, they read as Yjs itself says they must.

A history has three replicas of one memory. Each types into it under a client id of its own, stores, updates and
deletes; they exchange states and changes, and fold their documents when they like. What a document must be is told by
plain Yjs: the seed and all updates that were made to that content, in the order of their making.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pycrdt
import pytest
from executions import ACTORS, Histories, deletes, edits, merged, replicas, stores, walls
from hypothesis import given
from hypothesis import strategies as st
from records import Records

from crdt_spine.core import codec, writes
from crdt_spine.core.causality import within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.document import (
    Document,
    canonical,
    folded,
    key_of,
    opened,
    part,
    seed,
    state_vector,
    text_in,
    updates_of,
)
from crdt_spine.core.messages import Delta, EditDocument
from crdt_spine.core.open_documents import OpenDocuments
from crdt_spine.core.record import Record, completes, merge
from crdt_spine.core.replica import Replica

typing = st.tuples(st.integers(0, 8), st.integers(0, 2), st.text(st.sampled_from("ab🦊é"), max_size=3))
exchanges = st.tuples(st.sampled_from(["merge", "deltas", "sync", "sync"]), replicas, replicas, st.none())
presses = st.tuples(st.just("type"), replicas, walls, typing)
rewrites = st.tuples(st.just("write"), replicas, walls, st.one_of(edits, edits, edits, stores, deletes))
folds = st.tuples(st.just("fold"), replicas, st.integers(0, 4), st.none())
beginnings = st.one_of(st.tuples(st.just("write"), st.just(0), walls, stores), presses).map(
    lambda first: [first, ("merge", 0, 1, None), ("merge", 1, 0, None), ("merge", 0, 2, None), ("merge", 2, 0, None)]
)
document_steps = st.builds(
    lambda first, rest: [*first, *rest],
    beginnings,
    st.lists(st.one_of(presses, presses, presses, exchanges, exchanges, folds, rewrites), min_size=15, max_size=40),
)


class Documents(Histories):
    """A history in which replicas also type and fold. `syncs` counts those that sent only a part of a document."""

    def __init__(self, history: list[Any]) -> None:
        self.syncs = 0
        self.keys: dict[tuple[str, int], tuple[int, str]] = {}  # dot of an edit -> the content it belongs to
        super().__init__(history)

    def type(self, here: int, wall: int, what: tuple[int, int, str]) -> None:
        state, clock = self.replicas[here], self.clocks[here]
        record = state.record if state.record is not None and state.record.alive else None
        live = opened([] if record is None else updates_of(record.content, record.document), here + 1)
        before = live.get_state()
        at, deleted, new = what
        text = text_in(live)
        at = min(at, len(text))
        start, end = len(text[:at].encode()), len(text[: at + deleted].encode())
        content = live.get("content", type=pycrdt.Text)
        del content[start:end]
        content.insert(start, new)
        if live.get_state() == before and start == end:
            return
        operation = EditDocument(
            i=0, id="m", update=live.get_update(before), client=here + 1, base=record and key_of(record.content),
            clock=state_vector(before).get(here + 1, 0),
        )  # fmt: skip
        stamp = max(clock.highest + 1, wall << 16)
        change = writes.edit_document(operation, state.record, stamp, f"agent-{here}", "", OpenDocuments())
        clock.observe(change.time)
        dot = (ACTORS[here], 1 + sum(actor == ACTORS[here] for actor, _ in self.changes))
        self.changes[dot], self.deps[dot] = change, state.seen
        self.keys[dot] = change.base or (change.time, ACTORS[here])
        self._set(here, self.applied(state.record, dot), state.seen | {dot})

    def sync(self, here: int, there: int, _: None) -> None:
        """As a repair does it: what is within the vector of who asks does not travel."""
        mine, theirs = self.replicas[here], self.replicas[there]
        have = {actor: max((n for a, n in mine.seen if a == actor), default=0) for actor in ACTORS}
        if theirs.record is None:
            return
        sent = codec.from_json("m", codec.to_json(theirs.record, have))
        self.syncs += sent.document is not None and sent.document.base is None
        assert completes(mine.record, sent, have)
        self._observe(here, theirs)
        self._set(here, merged(mine.record, sent), mine.seen | theirs.seen)

    def fold(self, here: int, count: int, _: None) -> None:
        state = self.replicas[here]
        if state.record is not None and state.record.document is not None:
            document = state.record.document
            less = folded(state.record.content, document, min(count, len(document.tail)))
            self._set(here, msgspec.structs.replace(state.record, document=less), state.seen)

    def _set(self, here: int, record: Record | None, seen: frozenset[tuple[str, int]]) -> None:
        self.replicas[here] = type(self.replicas[here])(record, seen)

    def expected(self, record: Record) -> tuple[str, dict[int, int]]:
        """What plain Yjs makes of all edits of this content that the record has."""
        mine = key_of(record.content)
        updates = [
            change.document
            for (actor, n), change in self.changes.items()
            if change.document is not None and self.keys[actor, n] == mine and n <= record.version.get(actor, 0)
        ]
        live = pycrdt.Doc(client_id=99)
        for update in (seed(record.content), *updates):
            live.apply_update(update)
        return str(live.get("content", type=pycrdt.Text)), state_vector(live.get_state())


document_histories = document_steps.map(Documents)


def meaning(record: Record | None) -> Any:
    """A record, and what its document is to Yjs."""
    return record, None if record is None else canonical(record.content, record.document)


@given(document_histories)
def test_every_replica_reads_as_plain_yjs_says(history: Documents) -> None:
    for state in history.states:
        if state.record is not None and state.record.alive:
            assert canonical(state.record.content, state.record.document) == history.expected(state.record)


@given(document_histories)
def test_merging_documents_is_commutative_associative_and_idempotent(history: Documents) -> None:
    states = [state.record for state in history.states[-5:]]
    for one in states:
        assert meaning(merged(one, one)) == meaning(one)
        for two in states:
            both = merged(one, two)
            assert meaning(both) == meaning(merged(two, one))
            assert meaning(merged(both, one)) == meaning(both) == meaning(merged(both, two))
            for three in states:
                assert meaning(merged(both, three)) == meaning(merged(one, merged(two, three)))


@given(document_histories)
def test_all_replicas_agree_in_the_end(history: Documents) -> None:
    for here, there in ((0, 1), (1, 2), (2, 0), (0, 1), (0, 2), (1, 0)):
        history.merge(here, there, None)
    ends = [meaning(state.record) for state in history.replicas]
    assert ends[0] == ends[1] == ends[2]


@given(document_histories)
def test_a_record_with_a_document_comes_back_from_bytes_and_from_json(history: Documents) -> None:
    for state in history.states[-4:]:
        if (record := state.record) is not None:
            assert meaning(codec.from_bytes("m", codec.to_bytes(record))) == meaning(record)
            assert meaning(codec.from_json("m", codec.to_json(record))) == meaning(record)


@given(document_histories, st.data())
def test_a_part_of_a_document_says_as_much_as_the_whole_to_who_has_the_rest(
    history: Documents, data: st.DataObject
) -> None:
    states = [state for state in history.states if state.record is not None]
    if not states:
        return
    one, other = data.draw(st.sampled_from(states)), data.draw(st.sampled_from(states))
    assert one.record is not None and other.record is not None
    if other.record.document is None:
        return
    have = {actor: max((n for a, n in one.seen if a == actor), default=0) for actor in ACTORS}
    sent = msgspec.structs.replace(other.record, document=part(other.record.document, have))
    assert completes(one.record, sent, have)
    assert meaning(merge(one.record, sent)) == meaning(merge(one.record, other.record))


# -- many edits -------------------------------------------------------------------------------------------------------


class Typist:
    """An agent and the node that it writes to: `press` is one single-character edit of what it sees now."""

    def __init__(self, name: str, client: int, chance: random.Random) -> None:
        peers = {0: tuple(other for other in "abc" if other != name)}
        self.records = Records()
        self.node = Replica(name, f"region/{name}@1", self.records, HybridClock(), peers, 1)
        self.client = client
        self.chance = chance
        self.live = opened((), client)
        self.text = self.live.get("content", type=pycrdt.Text)
        self.made: list[bytes] = []
        self.live.observe(lambda event: self.made.append(event.update))
        self.reached: dict[str, int] = {}
        self.inbox: list[tuple[Delta, bytes]] = []

    def look(self) -> Record | None:
        """Bring what this agent sees up to what its node has."""
        record = self.records.get("m")
        if record is None:
            return None
        document = record.document or Document({}, b"", ())
        if not within(document.seen, self.reached):
            self.live.apply_update(document.base or b"\0\0")
        for actor, n, update in document.tail:
            if n > self.reached.get(actor, 0):
                self.live.apply_update(update)
        self.reached = document.reached
        self.made.clear()
        return record

    def press(self, number: int, now: int) -> list[tuple[Delta, bytes]]:
        """The deltas of one edit."""
        record = self.look()
        clock = state_vector(self.live.get_state()).get(self.client, 0)
        length = len(self.text)
        if length and self.chance.random() < 0.3:
            at = self.chance.randrange(length)
            del self.text[at : at + 1]
        else:
            self.text.insert(self.chance.randrange(length + 1), self.chance.choice("abcdefgh \n"))
        (update,) = self.made
        base = None if record is None else key_of(record.content)
        operation = EditDocument(i=number, id="m", update=update, client=self.client, clock=clock, base=base)
        self.node.write(0, operation, self.node.node, f"{self.node.node}-{number}", now, None)
        turn = self.node.end_turn()
        self.node.persisted(turn)
        return [(decode(raw), raw) for _, raw in turn.deltas]

    def take(self, now: int) -> None:
        """One of the deltas on their way, whichever; now and then twice."""
        index = self.chance.randrange(len(self.inbox))
        delta, raw = self.inbox[index] if self.chance.random() < 0.05 else self.inbox.pop(index)
        self.node.receive(delta, raw, now)
        self.node.persisted(self.node.end_turn())


decode = msgspec.json.Decoder(Delta).decode


@pytest.mark.timeout(400)  # it takes twenty seconds of a processor that has nothing else to do
def test_twenty_thousand_single_character_edits_by_three_agents_in_any_order_read_as_yjs_says() -> None:
    """Three agents at three nodes type and delete single characters wherever they like, each on what it sees; deltas
    arrive late, in any order and twice."""
    chance = random.Random(20_000)
    typists = [Typist(name, client, chance) for client, name in enumerate("abc", 1)]
    updates: list[bytes] = []
    for number in range(20_000):
        now = 1_763_000_000_000 + number
        typist = typists[0] if number == 0 else chance.choice(typists)
        for delta, raw in typist.press(number, now):
            updates.append(delta.changes[0].document or b"")
            for other in typists:
                if other is not typist:
                    other.inbox.append((delta, raw))
        if number == 0:
            for other in typists[1:]:  # there is a memory to edit
                while not other.records:
                    other.take(now)
        for other in typists:
            while other.inbox and (len(other.inbox) > 50 or chance.random() < 0.6):
                other.take(now)
    for typist in typists:
        while typist.inbox:
            typist.take(now)
        typist.look()
    assert len(updates) == 20_000
    plain = pycrdt.Doc(client_id=99)
    for update in updates:
        plain.apply_update(update)
    text, state = str(plain.get("content", type=pycrdt.Text)), state_vector(plain.get_state())
    assert len(text) > 5_000 and set(state) == {1, 2, 3}
    for typist in typists:
        record = typist.records["m"]
        assert record.document is not None and record.document.base
        assert canonical(record.content, record.document) == (text, state)
        assert str(typist.text) == text, "what the agent sees, edit by edit"
        assert record == typists[0].records["m"]
