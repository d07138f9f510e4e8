"""Who may say that nothing of an agent or tag lies in a partition: only who knows as much as the asker was shown."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.causality import join_into, within
from crdt_spine.core.messages import Change
from crdt_spine.core.placement import placement_hash
from crdt_spine.core.record import Record, apply
from crdt_spine.core.registers import Origin
from crdt_spine.core.selection import Selection
from crdt_spine.core.strays import Keys, OwnStrays, StrayMap, home, is_stray, query_keys
from crdt_spine.homing import placement_key

PARTITIONS = 8
ELSEWHERE = {number: [f"k{n}" for n in range(200) if home(f"k{n}", PARTITIONS) != number] for number in range(2)}


def stored(id: str, actor: str, n: int, agent: str = "x", tags: tuple[str, ...] = ()) -> Record:
    change = Change(id=id, time=n << 16, agent=agent, alive=True, content="text", add=tags)
    return apply(None, change, Origin(change.time, actor, n, agent))


# -- which key ---------------------------------------------------------------------------------------------------------


def test_the_primary_tag_is_the_first_as_given_and_of_a_set_the_smallest() -> None:
    assert placement_key("tag", "me", ("b", "a"), ["b", "a"]) == "b"
    assert placement_key("tag", "me", ("b", "a"), ("b", "a")) == "b"
    assert placement_key("tag", "me", ("b", "a"), {"a", "b"}) == "a"
    assert placement_key("tag", "me", ("b", "a"), frozenset(("a", "b"))) == "a"
    assert placement_key("tag", "me", (), ()) is None
    assert placement_key("tag", "me", (), set()) is None
    assert placement_key("agent", "me", ("a",), ("a",)) == "me"
    assert placement_key("hash", "me", ("a",), ("a",)) is None


def test_a_query_has_keys_where_all_that_it_means_has_one_of_them() -> None:
    both = Selection(agent="me", tags=("a", "b"), any_tags=("c", "d"), not_tags=("e",))
    assert query_keys("hash", both) == ()
    assert query_keys("agent", both) == ("me",)
    assert query_keys("tag", both) == ("a",)
    assert query_keys("tag", Selection(any_tags=("c", "d"))) == ("c", "d")
    assert query_keys("tag", Selection(agent="me", not_tags=("e",))) == ()
    assert query_keys("agent", Selection(tags=("a",), thread="t")) == ()


# -- sets of keys ------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 0xFFFF), max_size=50), st.sets(st.integers(0, 0xFFFF), max_size=50))
def test_sets_of_keys_unite_and_travel(one: set[int], other: set[int]) -> None:
    keys, others = Keys(), Keys()
    for key in one:
        keys.add(key)
    for key in other:
        others.add(key)
    keys.unite(others.packed())
    assert all(key in keys for key in one | other)
    assert not any(key ^ 1 in keys for key in one | other if key ^ 1 not in one | other)
    assert bool(keys) == bool(one | other)
    again = Keys()
    again.unite(keys.packed())
    assert again.packed() == keys.packed()


def test_a_set_of_keys_is_small_in_a_message_whatever_is_in_it() -> None:
    keys = Keys()
    draw = random.Random(1)
    for _ in range(40_000):
        keys.add(draw.randrange(0x10000))
    assert len(keys.packed()) < 8_300
    keys.fill()
    assert len(keys.packed()) < 100
    assert all(key in keys for key in range(0x10000))


@pytest.mark.parametrize("packed", [b"nonsense", zlib.compress(b"short"), zlib.compress(bytes(1 << 20))])
def test_what_is_no_set_of_keys_is_refused(packed: bytes) -> None:
    keys = Keys()
    with pytest.raises(ValueError, match="no set of keys"):
        keys.unite(packed)
    assert not keys


# -- strays ------------------------------------------------------------------------------------------------------------


def test_only_what_lies_away_from_home_is_a_stray() -> None:
    own = OwnStrays("agent", PARTITIONS)
    at_home = next(f"k{n}" for n in range(200) if home(f"k{n}", PARTITIONS) == 0)
    away = ELSEWHERE[0][0]
    own.note_record(0, stored("a", "n@1", 1, at_home))
    assert own.established(0) == {}
    own.note_record(0, stored("b", "n@1", 2, away))
    assert own.established(0) == {"n@1": 2}
    own.note_record(0, stored("c", "n@1", 3, away))
    assert own.established(0) == {"n@1": 2}, "no key that was not there"
    assert not is_stray("agent", PARTITIONS, 0, at_home, ())
    assert is_stray("agent", PARTITIONS, 0, away, ())
    assert is_stray("tag", PARTITIONS, 0, "x", (at_home, away))
    assert not is_stray("hash", PARTITIONS, 0, away, (away,))


def stray_map(own: OwnStrays | None = None) -> StrayMap:
    answering = {0: ("me", "a"), 1: ("a", "b"), 2: ("a", "b")}
    return StrayMap("me", own or OwnStrays("tag", PARTITIONS), lambda: answering)


def test_a_partition_of_which_nobody_has_told_is_asked() -> None:
    known = stray_map()
    assert known.elsewhere([5], {0}, {}, {0: {}}) == (1, 2)
    assert known.hear("a", {0: {}, 1: {}}, {}) == []
    assert known.elsewhere([5], {0}, {}, {0: {}}) == (2,)
    assert known.hear("c", {2: {}}, {}) == [], "that one does not answer for it"
    assert known.elsewhere([5], {0}, {}, {0: {}}) == (2,)
    assert known.hear("b", {2: {}}, {}) == []
    assert known.elsewhere([5], {0}, {}, {0: {}}) == ()


def test_a_partition_with_a_stray_is_asked_for_its_key_alone() -> None:
    known = stray_map()
    assert known.hear("a", {1: {"n": 8}, 2: {}}, {1: {"n": 4}}) == [1]
    assert known.elsewhere([5], {0}, {}, {0: {}}) == (1,), "not known yet"
    keys = Keys()
    keys.add(5)
    known.learn(1, keys.packed(), {"n": 9})
    assert known.elsewhere([5], {0}, {}, {0: {}}) == (1,)
    assert known.elsewhere([6], {0}, {}, {0: {}}) == ()
    assert known.elsewhere([6, 5], {0}, {}, {0: {}}) == (1,)
    assert known.hear("b", {1: {"n": 12}, 2: {}}, {1: {"n": 3}}) == []
    assert known.elsewhere([6], {0}, {1: {"n": 12}}, {0: {}}) == (), "nothing new came to it since"
    assert known.elsewhere([6], {0}, {1: {"n": 13}}, {0: {}}) == (1,)
    assert known.hear("b", {1: {"n": 20}, 2: {}}, {1: {"n": 13}}) == [1]


def test_who_was_shown_more_than_is_known_here_asks_the_partition_itself() -> None:
    own = OwnStrays("tag", PARTITIONS)
    known = stray_map(own)
    known.hear("a", {0: {}, 1: {}, 2: {}}, {})
    assert known.elsewhere([6], {2}, {1: {"n": 1}, 0: {"n": 1}}, {0: {"n": 1}}) == (1,)
    assert known.elsewhere([6], {2}, {1: {"n": 1}, 0: {"n": 2}}, {0: {"n": 1}}) == (0, 1)
    known.learn(1, b"", {"n": 1})
    assert known.elsewhere([6], {2}, {1: {"n": 1}}, {0: {}}) == ()


def test_own_partitions_are_known_as_they_are() -> None:
    own = OwnStrays("tag", PARTITIONS)
    known = stray_map(own)
    known.hear("a", {1: {}, 2: {}}, {})
    tag = ELSEWHERE[0][0]
    own.note_record(0, stored("a", "n@1", 1, tags=(tag,)))
    assert known.elsewhere([placement_hash(tag)], {1}, {}, {0: {}}) == (0,)
    assert known.elsewhere([placement_hash(tag) ^ 1], {1}, {}, {0: {}}) == ()


@given(st.lists(st.tuples(st.sampled_from(("p", "q")), st.integers(0, 5), st.integers(0, 9)), max_size=25), st.data())
def test_who_vouches_for_a_partition_has_every_key_that_the_asker_was_shown(
    changes: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    """Two replicas of partition 0 have each applied some of two actors' changes, in the actors' orders. A reader was
    shown all that one has; the map was told by the other."""
    logs: dict[str, list[tuple[int, int]]] = {"p": [], "q": []}
    for actor, id, tag in changes:
        logs[actor].append((id, tag))

    def replica(source: tuple[OwnStrays, dict[str, int]] | None = None) -> tuple[OwnStrays, dict[str, int]]:
        own, vector = OwnStrays("tag", PARTITIONS), {}
        if source is not None and data.draw(st.booleans()):  # it has pulled what that one had
            packed = source[0].packed(0)
            if packed is not None:
                own.unite(0, *packed)
            vector = dict(source[1])
        upto = {actor: data.draw(st.integers(vector.get(actor, 0), len(log))) for actor, log in logs.items()}
        while left := [actor for actor in logs if vector.get(actor, 0) < upto[actor]]:
            actor = data.draw(st.sampled_from(left))
            n = vector[actor] = vector.get(actor, 0) + 1
            id, tag = logs[actor][n - 1]
            time = n * 2 + (actor == "q") << 16
            change = Change(id=str(id), time=time, agent="x", alive=True, content="c", add=(ELSEWHERE[0][tag],))
            own.note_change(0, actor, n, change)
        return own, vector

    first = replica()
    (shown, seen), (told, upto) = replica(first), replica(first)
    known = stray_map()
    known.learn(0, told.of(0).keys.packed(), upto)
    known.hear("a", {1: {}, 2: {}}, {})
    assert within(shown.established(0), seen)
    both = dict(seen)
    join_into(both, upto)
    for tag in ELSEWHERE[0][:10]:
        key = placement_hash(tag)
        asked = known.elsewhere([key], {1, 2}, {0: shown.established(0)}, {})
        # What the reader saw with this tag is there still, unless the other replica has seen it replaced.
        current = {
            id: tag_of
            for id, tag_of in _newest(logs, seen).items()
            if _newest(logs, both).get(id) == tag_of and tag_of == tag
        }
        assert asked == (0,) or not current


def _newest(logs: dict[str, list[tuple[int, int]]], vector: dict[str, int]) -> dict[int, str]:
    """By id, the tag of the change with the greatest stamp."""
    found: dict[int, tuple[int, str]] = {}
    for actor, log in logs.items():
        for n, (id, tag) in enumerate(log[: vector.get(actor, 0)], 1):
            found[id] = max(found.get(id, (0, "")), (n * 2 + (actor == "q"), ELSEWHERE[0][tag]))
    return {id: tag for id, (_, tag) in found.items()}
