"""Threads without a node: what happened before what, what may be shown, in which order, and what an agent remembers."""

from __future__ import annotations

import gc
import itertools
import random
import time
import weakref
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from crdt_spine import limits
from crdt_spine.core import codec, writes
from crdt_spine.core.messages import Change, Hello, Hit, Query, Request, Result, Store, Vectors, encode
from crdt_spine.core.record import Record, apply
from crdt_spine.core.registers import Origin
from crdt_spine.core.thread import Entry, before, causal_order, relation, visible
from crdt_spine.errors import InvalidInput
from crdt_spine.levels import Levels
from crdt_spine.memory import Memory
from crdt_spine.thread import Context, Contexts, Thread

NODE = "local/spine-1@1"


def entry(id: str, agent: str = "ada", created: int = 0, *, n: int = 1, **more: Any) -> Entry:
    """Of partition 0, made by NODE's n-th change, unless something else is said; `clock` by default one of its own."""
    known: dict[str, Any] = {"clock": {agent: n}, "partition": 0, "actor": NODE, "changes": {NODE: n}} | more
    return Entry(id=id, agent=agent, created=created, n=n, **known)


def ids(entries: list[Entry]) -> str:
    return " ".join(one.id for one in entries)


# -- what happened before what ---------------------------------------------------------------------------------------


def test_an_answer_is_after_its_question_and_beside_what_its_writer_had_not_read() -> None:
    assert relation("ada", {"ada": 1}, "ben", {"ada": 1, "ben": 1}) == "before"
    assert relation("ben", {"ada": 1, "ben": 1}, "ada", {"ada": 1}) == "after"
    assert relation("ada", {"ada": 2}, "ben", {"ada": 1, "ben": 1}) == "concurrent"
    assert relation("ada", {"ada": 1}, "ada", {"ada": 3}) == "before"


def test_an_event_is_not_before_itself_nor_before_one_of_its_number() -> None:
    assert relation("ada", {"ada": 1}, "ada", {"ada": 1}) == "concurrent"
    assert relation("ada", {"ada": 2}, "ada", {"ada": 2, "ben": 1}) == "concurrent"


def test_without_a_clock_nothing_is_before_or_after() -> None:
    for clock in ({}, {"ben": 3}):  # the second one does not say which of ada's events it is of
        assert relation("ada", clock, "ben", {"ada": 5, "ben": 4}) != "before"
    assert relation("ada", {}, "ben", {}) == "concurrent"


def test_a_number_that_was_given_again_makes_no_cycle() -> None:
    """An own entry was deleted, ben had read it, and ada has forgotten all of it."""
    again, reply = {"ada": 1, "ben": 1}, {"ada": 1, "ben": 1}
    assert not before("ada", again, "ben", reply)
    assert not before("ben", reply, "ada", again)
    order = causal_order([entry("again", created=5, clock=again), entry("reply", "ben", 3, clock=reply)])
    assert ids(order) == "reply again"


# -- the order -------------------------------------------------------------------------------------------------------


def test_the_order_follows_causes_where_the_nodes_clocks_are_wrong() -> None:
    question = entry("question", created=90)
    answer = entry("answer", "ben", 10, clock={"ada": 1, "ben": 1})
    aside = entry("aside", "cy", 50, clock={"cy": 1})
    assert ids(causal_order([answer, question, aside])) == "aside question answer"


def test_what_is_concurrent_follows_creation_time_and_then_the_id() -> None:
    entries = [entry("d", "d", 2), entry("c", "c", 1), entry("b", "b", 2), entry("a", "a", 3)]
    assert ids(causal_order(entries)) == "c b d a"


def test_deleted_entries_hold_nothing_up() -> None:
    """ada's first two and all of ben's are deleted."""
    later = entry("later", "cy", 1, clock={"ada": 4, "ben": 7, "cy": 1})
    assert ids(causal_order([later, entry("third", created=5, n=3), entry("fourth", created=4, n=4)])) == (
        "third fourth later"
    )


def test_two_processes_of_one_agent_are_beside_each_other_and_both_before_what_follows() -> None:
    one, other = entry("one", created=3, n=2), entry("other", created=2, clock={"ada": 2, "ben": 1})
    last = entry("last", "cy", 1, clock={"ada": 2, "ben": 1, "cy": 1})
    assert ids(causal_order([one, last, other, entry("first", created=9)])) == "first other one last"


def test_what_was_stored_without_a_clock_stands_before_an_answer_in_another_partition() -> None:
    note = entry("note", "ada", 90, clock={}, partition=7, n=4)
    answer = entry("answer", "ben", 10, clock={"ben": 1}, after={7: {NODE: 4}})
    other = entry("other", "ben", 11, clock={"ben": 2}, after={7: {NODE: 4}})
    earlier = entry("earlier", "ben", 9, clock={"ben": 1}, after={7: {NODE: 3}})
    assert ids(causal_order([other, answer, note])) == "note answer other"
    assert ids(causal_order([note, earlier])) == "earlier note"


def test_nothing_is_an_order_too() -> None:
    assert causal_order([]) == []


def test_ten_thousand_entries_of_fifty_agents_are_ordered_at_once() -> None:
    dice = random.Random(5)
    agents = [f"agent-{number}" for number in range(50)]
    contexts = {agent: Context() for agent in agents}
    entries: list[Entry] = []
    for number in range(10_000):
        agent = dice.choice(agents)
        contexts[agent].take(entries[-dice.randint(1, 3) :])
        clock = dict(contexts[agent].next(Store(i=0, id="e", content="e"), agent, 0).clock)
        entries.append(entry(f"{number:05}", agent, number * 10 + dice.randint(-300, 300), n=number + 1, clock=clock))
        contexts[agent].take(entries[-1:])
    shuffled = dice.sample(entries, len(entries))
    began = time.process_time()
    order = causal_order(shuffled)
    assert time.process_time() - began < 3  # 0.2 s, where comparing every pair takes minutes
    assert sum(len(one.clock) for one in order) > 49 * len(order)
    for one, other in itertools.pairwise(order):
        assert not before(other.agent, other.clock, one.agent, one.clock)


# -- what may be shown -----------------------------------------------------------------------------------------------


def test_what_a_paged_sync_brought_ahead_of_the_vector_waits() -> None:
    """Its causes may be on the next page."""
    here, ahead = entry("here", n=1), entry("ahead", "ben", n=5)
    assert visible([here, ahead], {0: {NODE: 3}}) == ([here], {})


def test_an_answer_without_its_question_is_hidden_with_all_that_follows_and_what_it_lacks_is_named() -> None:
    answer = entry("answer", "ben", clock={"ada": 1, "ben": 1}, after={3: {NODE: 7, "local/spine-2@1": 1}})
    thanks = entry("thanks", "cy", clock={"ada": 1, "ben": 1, "cy": 1})
    aside = entry("aside", "cy", clock={"cy": 2})
    entries = [answer, thanks, aside]
    cut = {0: {NODE: 1}, 3: {NODE: 6, "local/spine-2@1": 1}}
    assert visible(entries, cut) == ([aside], {3: {NODE: 7}})
    assert visible(entries, {**cut, 3: {NODE: 7, "local/spine-2@1": 1}}) == (entries, {})
    # It never comes any more. What came before it from the same node still may.
    assert visible(entries, cut, {3: {NODE: (6, 8)}}) == (entries, {})
    assert visible(entries, {**cut, 3: {"local/spine-2@1": 1}}, {3: {NODE: (6, 8)}}) == ([aside], {3: {NODE: 6}})
    for other in ((7, 8), (5, 6)):
        assert visible(entries, cut, {3: {NODE: other}}) == ([aside], {3: {NODE: 7}})


def test_an_agents_next_entry_waits_for_the_one_before_it() -> None:
    """Both were under way at once, so the second one does not know the first one's dot."""
    first, second = entry("first", partition=1, n=1), entry("second", n=2)
    assert visible([first, second], {0: {NODE: 2}, 1: {}}) == ([], {})
    assert visible([first, second], {0: {NODE: 2}, 1: {NODE: 1}}) == ([first, second], {})


def test_another_process_entry_of_the_same_number_does_not_wait() -> None:
    mine, other = entry("mine", n=1), entry("other", clock={"ada": 1}, partition=1, n=1)
    assert visible([mine, other], {0: {NODE: 1}, 1: {}}) == ([mine], {})


def test_what_was_stored_anew_without_a_clock_stays_in_sight() -> None:
    """A question that is replaced while the thread is read must not vanish under its answers."""
    replaced = entry("replaced", clock={}, n=9, replaced=True)
    assert visible([replaced], {0: {NODE: 1}}) == ([replaced], {})
    again = entry("appended again", clock={"ada": 4}, n=9, replaced=True)
    assert visible([again], {0: {NODE: 1}}) == ([], {})


# -- what an agent remembers -----------------------------------------------------------------------------------------


def appended(context: Context, agent: str = "ada", partition: int = 0) -> Store:
    return context.next(Store(i=0, id="e", content="e"), agent, partition)


def test_an_append_comes_after_all_that_was_read_and_written() -> None:
    context = Context()
    context.take([entry("a", "ben", n=3, clock={"ben": 3, "cy": 1}), entry("b", "cy", n=2, clock={"cy": 2})])
    assert appended(context).clock == {"ada": 1, "ben": 3, "cy": 2}
    assert appended(context).clock == {"ada": 2, "ben": 3, "cy": 2}


def test_what_lies_in_other_partitions_is_named_and_what_lies_in_its_own_is_not() -> None:
    context = Context()
    assert appended(context).after == {}
    context.take([entry("a", n=3), entry("b", n=5, partition=2), entry("c", n=4, partition=2)])
    assert appended(context, partition=0).after == {2: {NODE: 5}}
    assert appended(context, partition=1).after == {0: {NODE: 3}, 2: {NODE: 5}}


def test_an_append_that_is_under_way_does_not_grow() -> None:
    context = Context()
    context.reach({2: {NODE: 1}})
    under_way = appended(context)
    before = encode(under_way)
    context.take([entry("a", "ben", n=3, partition=2)])
    assert encode(under_way) == before


def test_too_many_agents_are_refused_and_no_number_is_given() -> None:
    context = Context()
    context.clock = dict.fromkeys((f"agent-{number}" for number in range(limits.THREAD_AGENTS_MAX)), 1)
    for _ in range(2):
        with pytest.raises(InvalidInput, match="1,025 agents"):
            appended(context)
    assert appended(context, "agent-7").clock["agent-7"] == 2


def test_contexts_in_use_are_kept_and_of_the_others_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt_spine.thread.THREADS_REMEMBERED_MAX", 3)
    contexts = Contexts()
    in_use = contexts.of("ada", "a")
    others = {name: weakref.ref(contexts.of("ada", name)) for name in "bcdef"}
    assert contexts.of("ada", "d") is others["d"]()  # used again, so e is now the one used longest ago
    assert contexts.of("ben", "a") is not in_use
    gc.collect()
    assert [name for name, context in others.items() if context() is not None] == ["d", "f"]
    assert contexts.of("ada", "a") is in_use


# -- a look at all pages ---------------------------------------------------------------------------------------------


class Pages:
    """A session that answers queries with these results, one after the other."""

    def __init__(self, *results: Result) -> None:
        self.results = list(results)
        self.layout = self
        self.vectors: Vectors = {}

    def partition_of(self, id: str) -> int:
        return 0

    async def query(self, query: Query, **options: object) -> list[Result]:
        return [self.results.pop(0)]


def hit(id: str, created: int, n: int) -> Hit:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    memory = Memory(id=id, content=id, agent=id, created_at=moment, updated_at=moment, version="", clock={id: 1})
    return Hit(created=created, id=id, memory=msgspec.Raw(encode(memory)), born=(NODE, n))


async def test_what_came_in_while_the_pages_were_read_waits_for_the_next_read() -> None:
    """The third change belongs on the first page, which was made before it: its answer, the fourth, must not be
    shown, though it is on the second page."""
    first = Result(i=0, hits=[hit("a", 10, 1)], more=True, cut={0: {NODE: 2}})
    second = Result(i=0, hits=[hit("b", 11, 2), hit("answer", 12, 4)], cut={0: {NODE: 4}})
    session: Any = Pages(first, second)
    session.hello = Hello(
        cluster="c", region="r", node="a", state="up", nodes=[], partitions=1, factor=1, write_quorum=1
    )
    unused: Any = None
    thread = Thread(session, "t", "ada", Context(), unused, Levels(session, None), lambda level: None)
    assert [memory.id for memory in await thread.read()] == ["a", "b"]
    assert session.results == []


# -- in records and messages -----------------------------------------------------------------------------------------


def stored(operation: Store) -> Record:
    change = writes.store(operation, None, 5 << 16, "ada", "session-1")
    change = msgspec.json.decode(encode(change), type=Change)  # as the other replicas get it
    return apply(None, change, Origin(change.time, NODE, 1, "ada"))


def test_a_record_keeps_what_its_entry_comes_after() -> None:
    operation = Store(i=0, id="e", content="e", thread="t", clock={"ada": 2, "ben": 1}, after={3: {NODE: 7}})
    record = stored(operation)
    assert record.life.value.clock == {"ada": 2, "ben": 1}
    assert record.life.value.after == {3: {NODE: 7}}
    assert codec.from_bytes("e", codec.to_bytes(record)) == record
    assert codec.from_json("e", codec.to_json(record)) == record


def test_what_is_not_in_a_thread_costs_nothing() -> None:
    plain, empty = Store(i=0, id="e", content="e"), Store(i=0, id="e", content="e", clock={}, after={})
    assert encode(plain) == encode(empty)
    for key in (b"clock", b"after", b"born", b"cut"):
        assert key not in encode(plain)
        assert key not in encode(writes.store(plain, None, 1, "ada", ""))
    assert {} not in msgspec.msgpack.decode(codec.to_bytes(stored(plain)))[4]


@pytest.mark.parametrize(
    "bad",
    [
        {"clock": {"a" * 129: 1}},
        {"clock": {"": 1}},
        {"clock": {"ada": -1}},
        {"clock": {"ada": "1"}},
        {"clock": {f"{n}": 1 for n in range(limits.THREAD_AGENTS_MAX + 1)}},
        {"after": {"x": {}}},
        {"after": {"1": {"x": -1}}},
        {"after": {str(n): {} for n in range(limits.PARTITIONS_MAX + 1)}},
        {"after": {"1": {f"{n}": 1 for n in range(limits.THREAD_ACTORS_MAX + 1)}}},
    ],
)
def test_a_clock_that_is_none_is_refused_as_a_message(bad: dict[str, Any]) -> None:
    operation = {"do": "store", "i": 1, "id": "e", "content": "e", **bad}
    message = {"type": "request/1", "session": "s", "agent": "ada", "operations": [operation]}
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(message), type=Request)
    for key in bad:
        del operation[key]
    msgspec.json.decode(msgspec.json.encode(message), type=Request)


def test_a_plain_hit_says_nothing_of_threads() -> None:
    assert b"born" not in encode(Hit(created=1, id="e", memory=msgspec.Raw(b"{}")))
