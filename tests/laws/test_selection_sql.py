"""The tables answer as a dictionary and `Selection.matches` do: for any rows, replacements, forgets and queries.

The engine's steps are made tiny (windows of two entries, fetches of two records, …), so that a few dozen records go
through every turn that a million would; and all of it holds with real hashes and with hashes that nearly all collide.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt_spine.core.selection import Selection
from crdt_spine.storage import changes, facets, search, select, tables
from crdt_spine.storage.engine import Row
from crdt_spine.storage.sqlite import SqliteEngine

TAGS = ("red", "green", "blue", "rare")
AGENTS = ("ann", "bob")
THREADS = (None, "t1", "t2")
VALUES: tuple[Any, ...] = (
    True, False, None, 0, 0.0, -0.0, 1, 1.0, 1.5, "", "1", "true", "None", 2**53, 2**53 + 1, 1e300, -7, [], [1, 2],
    [1.0, 2], [True, 2], {}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": {"b": [None]}},
)  # fmt: skip
WORDS = ("apple", "apples", "pear", "plum", "the")
#: Of each kind some: generated ones, one pair of them in the same place of the index, and own ones.
IDS = [f"a3f1-019a0000-{n:04x}-7000-8000-0123456789ab" for n in range(6)]
IDS += [f"a3f1-019a0000-0000-7000-8{n:03x}-0123456789ab" for n in range(1, 3)]
IDS += [f"own {n}" for n in range(10)] + ["ünïcode", "\x00", '"quoted"', "🙂"]
ACTORS = ("x", "y", "z")


@pytest.fixture(autouse=True, scope="module", params=["hashed", "colliding"])
def tiny_steps(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_WIDTH_MIN", 2)
        patch.setattr(select, "_WIDTH_MAX", 4)
        patch.setattr(select, "_FETCH_MIN", 2)
        patch.setattr(select, "_FETCH_MAX", 3)
        patch.setattr(search, "_FETCH", 2)
        patch.setattr(search, "_FEW", 3)
        patch.setattr(search, "_NARROW", 4)
        patch.setattr(changes, "CHANGED_IDS_REMEMBERED_MAX", 3)
        patch.setattr(changes, "_CHAINS_AT_ONCE", 2)
        patch.setattr(tables, "_AT_ONCE", 3)
        if request.param == "colliding":
            patch.setattr(facets, "_hashed", lambda kind, words: -1 - len(kind + words) % 3)
        yield


# -- what is drawn ---------------------------------------------------------------------------------------------------

tags = st.lists(st.sampled_from(TAGS), unique=True, max_size=3).map(tuple)
metadata = st.dictionaries(st.sampled_from(["k", "l", "k l"]), st.sampled_from(VALUES), max_size=2)
times = st.integers(0, 12)
drawn_rows = st.fixed_dictionaries(
    {
        "id": st.sampled_from(IDS),
        "alive": st.sampled_from([True, True, True, False]),
        "agent": st.sampled_from(AGENTS),
        "thread": st.sampled_from(THREADS),
        "created": times,
        "expires": st.none() | times,
        "tags": tags,
        "metadata": metadata,
        "content": st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join),
        "actor": st.sampled_from(ACTORS),
    }
)
batches = st.tuples(st.lists(drawn_rows, max_size=20), st.lists(st.sampled_from(IDS), max_size=3))
selections = st.builds(
    Selection, tags=st.just(()) | tags, any_tags=st.just(()) | tags, not_tags=st.just(()) | tags,
    agent=st.none() | st.sampled_from(AGENTS), thread=st.sampled_from(THREADS), since=st.none() | times,
    until=st.none() | times, metadata=st.just({}) | metadata,
)  # fmt: skip
orders = st.sampled_from(["newest", "oldest"])
places = st.none() | st.tuples(times, st.sampled_from(IDS))
vectors = st.dictionaries(st.sampled_from(ACTORS), st.integers(0, 12))
some_partitions = st.none() | st.lists(st.integers(0, 2), max_size=3)
queries = st.tuples(selections, orders, st.integers(1, 30), places, some_partitions, times)
searches = st.tuples(st.lists(st.sampled_from(WORDS), max_size=3), selections, orders, places)


class Model:
    """What the tables should hold, as a dictionary, written in step with an engine."""

    def __init__(self) -> None:
        self.engine = SqliteEngine.open(":memory:")
        self.rows: dict[str, Row] = {}
        self.counters: dict[tuple[int, str], int] = {}

    def write(self, batch: tuple[list[dict[str, Any]], list[str]]) -> None:
        drawn, forget = batch
        rows = []
        for values in drawn:
            id, actor = values["id"], values["actor"]
            partition = IDS.index(id) % 3
            n = self.counters[partition, actor] = self.counters.get((partition, actor), 0) + 1
            old = self.rows.get(id)
            version = {**(old.version if old is not None else {}), actor: n}
            more = {key: value for key, value in values.items() if key != "actor"}
            row = Row(partition=partition, version=version, state=f"{id} {actor}{n}".encode(), **more)
            self.rows[id] = row
            rows.append(row)
        for id in forget:
            if id not in {row.id for row in rows}:
                self.rows.pop(id, None)
        self.engine.flush(rows, forget, self.engine.checkpoint)

    def selected(
        self, selection: Selection, order: str, after: tuple[int, str] | None, partitions: list[int] | None, now: int
    ) -> list[Row]:
        hits = [
            row
            for row in self.rows.values()
            if row.alive
            and (row.expires is None or row.expires > now)
            and (partitions is None or row.partition in partitions)
            and selection.matches(row.tags, row.agent, row.thread, row.created, row.metadata)
        ]
        hits.sort(key=lambda row: (row.created, row.id), reverse=order == "newest")
        if after is not None:
            hits = [
                row
                for row in hits
                if ((row.created, row.id) < after if order == "newest" else (row.created, row.id) > after)
            ]
        return hits

    def changed(self, partition: int, have: dict[str, int]) -> set[str]:
        return {
            row.id
            for row in self.rows.values()
            if row.partition == partition and any(n > have.get(actor, 0) for actor, n in row.version.items())
        }

    def close(self) -> None:
        self.engine.close()


def written(some: list[tuple[list[dict[str, Any]], list[str]]]) -> Model:
    model = Model()
    for batch in some:
        model.write(batch)
    return model


# -- the laws --------------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.lists(batches, max_size=4), st.lists(queries, max_size=8))
def test_select_answers_as_a_filter_over_all_records(some: Any, asked: Any) -> None:
    model = written(some)
    for selection, order, limit, after, partitions, now in asked:
        expected = model.selected(selection, order, after, partitions, now)[:limit]
        found = list(model.engine.select(selection, order, limit, after, partitions, now))
        assert [(hit.created, hit.id, hit.state) for hit in found] == [(r.created, r.id, r.state) for r in expected]
    model.close()


@settings(max_examples=12, deadline=None)
@given(st.randoms(use_true_random=False))
def test_common_conditions_intersect_over_many_windows(dice: random.Random) -> None:
    """Every tag is on many records, and they seldom meet: the walk goes through dozens of windows."""
    model = Model()
    rows = [
        Row(
            id=f"m{n:03}", partition=0, alive=True, agent=dice.choice(AGENTS), thread=dice.choice(THREADS),
            created=dice.randrange(60), expires=None, tags=tuple(dice.sample(TAGS, 2)),
            metadata={"k": dice.choice(VALUES[:8])}, content="", version={"x": n + 1}, state=b"%d" % n,
        )
        for n in range(200)
    ]  # fmt: skip
    model.rows = {row.id: row for row in rows}
    model.engine.flush(rows, [], model.engine.checkpoint)
    for _ in range(15):
        selection = Selection(
            tags=tuple(dice.sample(TAGS, dice.choice([1, 2]))), any_tags=tuple(dice.sample(TAGS, dice.choice([0, 2]))),
            agent=dice.choice([None, *AGENTS]), thread=dice.choice(THREADS),
            metadata=dice.choice([{}, {}, {"k": 1}]), until=dice.choice([None, 50]),
        )  # fmt: skip
        order, after, limit = dice.choice(["newest", "oldest"]), (30, "m100"), dice.choice([3, 500])
        expected = [row.id for row in model.selected(selection, order, after, None, 0)][:limit]
        found = model.engine.select(selection, order, limit, after, None, 0)  # type: ignore[arg-type]
        assert [hit.id for hit in found] == expected
    model.close()


@settings(max_examples=70, deadline=None)
@given(st.lists(batches, max_size=4), st.lists(searches, max_size=5), st.integers(1, 20))
def test_search_answers_as_a_filter_over_words(some: Any, asked: Any, at_once: int) -> None:
    model = written(some)
    while model.engine.index_text(at_once):
        pass
    for words, selection, order, after in asked:
        stems = {word.rstrip("s") for word in words}
        meant = model.selected(selection, order, after, None, 5)
        texts = {row.id: {word.rstrip("s") for word in row.content.split()} for row in meant}
        found = model.engine.search(" ".join(words), selection, order, 100, after, None, 5)
        assert [hit.id for _, hit in found] == [row.id for row in meant if stems and stems <= texts[row.id]]
        if after is None:
            telling = stems - {"the"} or stems
            ranked = model.engine.search(" ".join(words), selection, "relevance", 100, None, None, 5)
            assert {hit.id for _, hit in ranked} == {row.id for row in meant if telling & texts[row.id]}
            assert [score for score, _ in ranked] == sorted(score for score, _ in ranked)
    model.close()


@settings(max_examples=70, deadline=None)
@given(st.lists(batches, max_size=4), st.integers(0, 2), vectors, st.integers(1, 30))
def test_changed_gives_the_records_with_a_dot_beyond_the_vector(
    some: Any, partition: int, have: dict[str, int], limit: int
) -> None:
    model = written(some)
    expected = sorted(model.changed(partition, have))
    assert [id for id, _ in model.engine.changed(partition, have, None, limit)] == expected[:limit]
    for after in expected:
        found = model.engine.changed(partition, have, after, limit)
        assert found == [(id, model.rows[id].state) for id in expected if id > after][:limit]
    model.close()


@settings(max_examples=70, deadline=None)
@given(st.lists(batches, min_size=2, max_size=6), st.integers(0, 2), vectors, st.integers(1, 3))
def test_every_page_of_changes_is_as_the_records_are_then(
    some: Any, partition: int, have: dict[str, int], limit: int
) -> None:
    """So nothing that was there throughout is missed, whatever is written between two pages."""
    model = written(some[:1])
    rest = iter(some[1:])
    after = None
    while True:
        behind = sorted(id for id in model.changed(partition, have) if after is None or id > after)
        page = model.engine.changed(partition, have, after, limit)
        assert page == [(id, model.rows[id].state) for id in behind[:limit]]
        if not page:
            break
        after = page[-1][0]
        if (batch := next(rest, None)) is not None:
            model.write(batch)
    model.close()


@settings(max_examples=70, deadline=None)
@given(st.lists(batches, min_size=2, max_size=6), selections, orders, st.integers(1, 3))
def test_pages_of_a_query_miss_nothing_that_was_there_throughout(
    some: Any, selection: Selection, order: str, limit: int
) -> None:
    model = written(some[:1])

    def now() -> set[tuple[int, str]]:
        return {(row.created, row.id) for row in model.selected(selection, order, None, None, 5)}

    throughout, ever = now(), now()
    rest = iter(some[1:])
    pages: list[tuple[int, str]] = []
    while page := list(
        model.engine.select(selection, order, limit, pages[-1] if pages else None, None, 5)  # type: ignore[arg-type]
    ):
        pages += [(hit.created, hit.id) for hit in page]
        if (batch := next(rest, None)) is not None:
            model.write(batch)
            throughout &= now()
            ever |= now()
    assert pages == sorted(set(pages), reverse=order == "newest")
    assert throughout <= set(pages) <= ever
    model.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(batches, max_size=5), st.integers(0, 2), times)
def test_tombstones_and_expired_are_those_of_the_records(some: Any, partition: int, now: int) -> None:
    model = written(some)
    dead = {(row.id, row.state) for row in model.rows.values() if not row.alive and row.partition == partition}
    assert set(model.engine.tombstones(partition, 100)) == dead
    over = {row.id for row in model.rows.values() if row.alive and row.expires is not None and row.expires <= now}
    assert set(model.engine.expired(now, 100)) == over
    assert {id: model.engine.get(id) for id in IDS} == {
        id: model.rows[id].state if id in model.rows else None for id in IDS
    }
    model.close()
