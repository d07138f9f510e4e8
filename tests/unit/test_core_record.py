"""A memory as a CRDT, story by story: what wins over what, what stays clean, what stays small."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from crdt_spine.core import codec, writes
from crdt_spine.core.messages import Change, Delete, Edit, Store
from crdt_spine.core.record import Record, apply, merge
from crdt_spine.core.registers import Origin
from crdt_spine.core.version import conflict, vector_text, version_text, version_vector

ID = "a3f1-019a9d8e-7c1b-7d3a-9c55-0c1f2e3d4b5a"


class Author:
    """One actor and its dots; `at` is the time of its next change."""

    def __init__(self, actor: str, agent: str = "agent") -> None:
        self.actor = actor
        self.agent = agent
        self.n = 0

    def __call__(self, operation: Store | Edit | Delete, record: Record | None, at: int) -> Effect:
        """What the operation does, decided looking at this record."""
        decide: Any = {Store: writes.store, Edit: writes.edit, Delete: writes.delete}[type(operation)]
        self.n += 1
        return Effect(decide(operation, record, at, self.agent, ""), Origin(at, self.actor, self.n, self.agent))


class Effect:
    """A change and its origin: called with a record it gives the next one."""

    def __init__(self, change: Change, origin: Origin) -> None:
        self.change = change
        self.origin = origin

    def __call__(self, record: Record | None) -> Record:
        return apply(record, self.change, self.origin)


def store(content: str = "text", **fields: Any) -> Store:
    return Store(i=0, id=ID, content=content, **fields)


def edit(**fields: Any) -> Edit:
    return Edit(i=0, id=ID, **fields)


DELETE = Delete(i=0, id=ID)


@pytest.fixture
def a() -> Author:
    return Author("r/a@1")


@pytest.fixture
def b() -> Author:
    return Author("r/b@1")


def both_ways(record: Record, one: Effect, other: Effect) -> Record:
    """The record after two concurrent effects: in both orders, and merged, it must be the same."""
    first, second = other(one(record)), one(other(record))
    assert first == second == merge(one(record), other(record)) == merge(other(record), one(record))
    return first


def test_a_delete_wins_over_a_concurrent_update(a: Author, b: Author) -> None:
    born = a(store(), None, 10)(None)
    for update_at in (20, 40):  # stamped before and after the delete
        gone = both_ways(born, a(DELETE, born, 30), b(edit(content="late", add=("tag",)), born, update_at))
        assert not gone.alive


def test_an_update_never_resurrects(a: Author, b: Author) -> None:
    born = a(store(), None, 10)(None)
    update = b(edit(content="late"), born, 99)
    gone = a(DELETE, born, 30)(born)
    assert not update(gone).alive
    assert not update(None).alive  # the tombstone was forgotten already
    with pytest.raises(writes.Refused):
        b(edit(content="later still"), gone, 100)


def test_a_store_after_a_delete_begins_clean(a: Author, b: Author) -> None:
    born = a(store(tags=("old",), metadata={"old": 1}, expires=1 << 60, importance=0.9), None, 10)(None)
    gone = a(DELETE, born, 30)(born)
    late = b(edit(add=("stale",), metadata={"stale": 1}), born, 20)
    for road in ([late, a(store("new"), gone, 40)], [a(store("new"), gone, 40), late]):
        record: Record = gone
        for effect in road:
            record = effect(record)
        assert record.content is not None and record.content.value == "new"
        assert record.importance is not None and record.importance.value == 0.5
        assert (record.tags, record.metadata, record.expires) == ({}, {}, None)
        assert record.life.value.created == 40


def test_a_memory_that_is_replaced_keeps_its_creation_time(a: Author) -> None:
    born = a(store("one"), None, 10)(None)
    assert a(store("two"), born, 20)(born).life.value.created == 10


def test_a_remove_never_takes_away_a_concurrent_add(a: Author, b: Author) -> None:
    born = a(store(tags=("x",)), None, 10)(None)
    for add_at in (20, 40):
        record = both_ways(born, a(edit(remove=("x",)), born, 30), b(edit(add=("x",)), born, add_at))
        assert set(record.tags) == {"x"}


def test_a_remove_takes_every_add_that_it_saw(a: Author, b: Author) -> None:
    born = a(store(tags=("x",)), None, 10)(None)
    twice = both_ways(born, a(edit(add=("x",)), born, 20), b(edit(add=("x",)), born, 20))
    assert len(twice.tags["x"]) == 2
    assert not a(edit(remove=("x",)), twice, 30)(twice).tags


def test_removing_one_tag_leaves_those_that_were_added_by_the_same_change(a: Author) -> None:
    born = a(store(tags=("x", "y", "z")), None, 10)(None)
    assert set(a(edit(remove=("x",)), born, 20)(born).tags) == {"y", "z"}
    again = a(edit(add=("y",)), born, 30)(born)
    assert set(again.tags) == {"x", "y", "z"}
    assert len(again.tags["y"]) == 1


def test_the_later_of_two_writes_stays_and_ties_are_total(a: Author, b: Author) -> None:
    born = a(store(), None, 10)(None)
    later = both_ways(born, a(edit(content="early"), born, 20), b(edit(content="late"), born, 21))
    assert later.content is not None and later.content.value == "late"
    tie = both_ways(born, a(edit(content="from a"), born, 20), b(edit(content="from b"), born, 20))
    assert tie.content is not None and tie.content.value == "from b"


def test_a_store_and_a_delete_of_the_same_instant_have_one_winner(a: Author, b: Author) -> None:
    born = a(store("one", tags=("x",)), None, 10)(None)
    assert both_ways(born, a(DELETE, born, 20), b(store("two"), born, 20)).alive
    assert not both_ways(born, a(store("two"), born, 30), b(DELETE, born, 30)).alive


def test_three_concurrent_changes_end_the_same_in_every_order(a: Author, b: Author) -> None:
    c = Author("r/c@1")
    born = a(store("one", tags=("x",)), None, 10)(None)
    effects = [
        a(store("two", tags=("y",), metadata={"k": 2}), born, 20), b(edit(add=("z",), metadata={"k": 3}), born, 25),
        c(edit(remove=("x",), content="three"), born, 15),
    ]  # fmt: skip
    ends = []
    for order in permutations(effects):
        record = born
        for effect in order:
            record = effect(record)
        ends.append(record)
    assert all(end == ends[0] for end in ends)
    assert set(ends[0].tags) == {"y", "z"}
    assert ends[0].content is not None and ends[0].content.value == "two"


def test_replicas_agree_on_the_version_whether_or_not_they_had_forgotten_the_tombstone(a: Author, b: Author) -> None:
    born = a(store(), None, 10)(None)
    gone = b(DELETE, born, 20)(born)
    again = a(store("again"), None, 30)
    assert again(gone) == again(None)
    assert vector_text(again(gone).version) == "r/a@1:2"


def test_taking_a_tag_away_counts_as_an_update(a: Author) -> None:
    born = a(store(tags=("x",)), None, 10)(None)
    less = a(edit(remove=("x",)), born, 20)(born)
    assert less.updated == 20
    assert less.etag != born.etag
    assert codec.from_bytes(ID, codec.to_bytes(less)).updated == 20


def test_a_removed_key_is_gone_and_may_come_back(a: Author) -> None:
    born = a(store(metadata={"k": 1, "l": [1]}), None, 10)(None)
    less = a(edit(metadata={"k": None}), born, 20)(born)
    assert less.metadata_values() == {"l": [1]}
    assert a(edit(metadata={"k": {"deep": True}}), less, 30)(less).metadata_values() == {"k": {"deep": True}, "l": [1]}


def test_a_memory_written_once_costs_few_bytes_above_what_is_in_it() -> None:
    author = Author("eu-west/spine-1@mg3k2j1x", agent="reviewer-1")
    time = 1_763_000_000_000 << 16
    for tags in (("decision", "billing"), ()):
        record = author(store("the customer wants a refund" * 8, tags=tags), None, time)(None)
        assert record.content is not None
        inside = len(record.content.value) + sum(map(len, tags)) + len(ID) + len(author.agent)
        assert len(codec.to_bytes(record)) + len(ID) <= inside + 120


def test_flipping_tags_for_years_leaves_a_small_record() -> None:
    authors = [Author(f"eu-west/spine-{i}@mg3k2j1x", agent=f"agent-{i}") for i in range(3)]
    time = 1_763_000_000_000 << 16
    record = authors[0](store("x"), None, time)(None)
    for step in range(10_000):
        author = authors[step % 3]
        change = edit(remove=("flag",)) if "flag" in record.tags else edit(add=("flag",), importance=0.25)
        record = author(change, record, time + step + 1)(record)
    assert len(record.version) == 3
    assert sum(map(len, record.tags.values())) <= 1
    assert len(codec.to_bytes(record)) <= 400


def test_removed_keys_do_not_grow_a_memory_without_end(a: Author) -> None:
    record = a(store(), None, 1)(None)
    assert a(edit(metadata={"never": None}), record, 2)(record).metadata == {}
    with pytest.raises(writes.Refused, match="store it anew"):
        for step in range(2_000):
            change = edit(metadata={f"k{step}": 1}) if step % 2 == 0 else edit(metadata={f"k{step - 1}": None})
            record = a(change, record, 3 + step)(record)
    assert len(record.metadata) == 512
    assert a(store(), record, 9_999)(record).metadata == {}


@pytest.mark.parametrize("limited", [{"add": tuple(f"t{i}" for i in range(64))}, {"metadata": dict.fromkeys("k", 1)}])
def test_an_update_that_would_make_a_memory_too_large_is_refused(a: Author, limited: dict[str, Any]) -> None:
    full = a(store(tags=("one",), metadata={f"m{i}": 1 for i in range(64)}), None, 10)(None)
    with pytest.raises(writes.Refused, match="at most"):
        a(edit(**limited), full, 20)


def test_an_update_is_refused_where_the_version_is_another_one(a: Author, b: Author) -> None:
    born = a(store(), None, 10)(None)
    version = born.etag
    assert a(edit(content="two", if_version=version), born, 20)(born).alive
    changed = b(edit(add=("x",)), born, 15)(born)
    with pytest.raises(writes.Refused) as refused:
        a(edit(content="two", if_version=version), changed, 20)
    assert refused.value.error == "VersionConflict" and "decide anew" in str(refused.value)


def test_the_version_of_another_memory_or_garbage_is_refused_and_said_to_be_that(a: Author) -> None:
    """Both are the first of their partitions: but for the memory, their versions are the same."""
    born = a(store(), None, 10)(None)
    other = version_text("another", vector_text(born.version))
    assert other.partition("~")[2] == born.etag.partition("~")[2]
    asked = {other: "another memory", "garbage": "no version", "": "no version", born.etag + ",": "no version"}
    for version, said in asked.items():
        with pytest.raises(writes.Refused, match=said) as refused:
            a(edit(content="two", if_version=version), born, 20)
        assert refused.value.error == "VersionConflict" and ID in str(refused.value)


def test_a_version_says_the_vector_that_it_was_made_of() -> None:
    for vector in ({"r/a@1": 7}, {"r/a@1": 7, "r:2/b@2": 12}):
        assert version_vector(version_text("m", vector_text(vector))) == vector
    assert version_vector("nothing") == {}


def test_a_conflict_does_not_repeat_a_megabyte_that_was_given_for_a_version() -> None:
    version = version_text("m", "r/a@1:3")
    for given in ("A" * 1_000_000, version + ",x:1" * 100_000, "1" * 8 + "~" + "x" * 1_000_000 + ":1"):
        said = conflict("m", version, given)
        assert len(said) < 1_000 and "…" in said
