"""The SQLite engine: what goes in comes out, in a folder, a file and in memory alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crdt_spine.core.selection import Selection
from crdt_spine.storage.engine import Checkpoint, PartitionSummary, Row
from crdt_spine.storage.sqlite import SqliteEngine

EVERYTHING = Selection()


@pytest.fixture(params=["folder", "file.db", ":memory:"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteEngine]:
    path = request.param if request.param == ":memory:" else tmp_path / request.param
    engine = SqliteEngine.open(path)
    yield engine
    engine.close()


def memory(id: str, **more: Any) -> Row:
    given: dict[str, Any] = {
        "id": id, "partition": 0, "alive": True, "agent": "ann", "thread": None, "created": 1, "expires": None,
        "tags": (), "metadata": {}, "content": "", "version": {"a": 1}, "state": id.encode(), **more,
    }  # fmt: skip
    return Row(**given)


def flush(engine: SqliteEngine, *rows: Row, forget: tuple[str, ...] = ()) -> None:
    engine.flush(rows, forget, engine.checkpoint)


def selected(engine: SqliteEngine, selection: Selection = EVERYTHING, order: Any = "newest", **more: Any) -> list[str]:
    given = {"limit": 100, "after": None, "partitions": None, "now": 0, **more}
    return [found.id for found in engine.select(selection, order, **given)]


def searched(engine: SqliteEngine, words: str, order: Any = "newest", **more: Any) -> list[str]:
    given = {"selection": EVERYTHING, "limit": 100, "after": None, "partitions": None, "now": 0, **more}
    return [found.id for _, found in engine.search(words, order=order, **given)]


# -- the journal -----------------------------------------------------------------------------------------------------


def test_journal_rows_are_numbered_from_one_and_given_back_in_order(engine: SqliteEngine) -> None:
    assert [engine.append(b"row %d" % n) for n in range(40)] == list(range(1, 41))
    assert list(engine.journal_rows(0)) == [(n + 1, b"row %d" % n) for n in range(40)]
    assert list(engine.journal_rows(38)) == [(39, b"row 38"), (40, b"row 39")]


def test_pruning_drops_rows_up_to_a_sequence(engine: SqliteEngine) -> None:
    for _ in range(300):
        engine.append(b"x")
    engine.prune(298)
    assert [sequence for sequence, _ in engine.journal_rows(0)] == [299, 300]
    engine.prune(10)
    assert engine.append(b"y") == 301


@pytest.mark.parametrize("pruned", [3, 99])
def test_a_sequence_is_never_given_again_after_everything_was_pruned(tmp_path: Path, pruned: int) -> None:
    engine = SqliteEngine.open(tmp_path)
    for _ in range(3):
        engine.append(b"x")
    engine.prune(pruned)
    engine.close()
    engine = SqliteEngine.open(tmp_path)
    assert list(engine.journal_rows(0)) == []
    assert engine.append(b"x") == 4
    engine.close()


def test_a_lost_journal_does_not_give_sequences_that_the_tables_have(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path)
    engine.flush([], [], Checkpoint(through=7))
    engine.close()
    for file in tmp_path.glob("journal.db*"):
        file.unlink()
    engine = SqliteEngine.open(tmp_path)
    assert engine.append(b"x") == 8
    engine.close()


# -- records ---------------------------------------------------------------------------------------------------------


def test_a_flushed_record_is_found_by_its_id_alive_or_dead(engine: SqliteEngine) -> None:
    generated = "a3f1-019a0000-0000-7000-8000-0123456789ab"
    flush(engine, memory("own"), memory(generated), memory("gone", alive=False), memory("a3f1-" + "z" * 36))
    assert engine.get("own") == b"own"
    assert engine.get(generated) == generated.encode()
    assert engine.get("gone") == b"gone"
    assert engine.get("a3f1-" + "z" * 36) is not None
    assert engine.get("nobody") is None
    assert engine.get(generated[:-1] + "c") is None


def test_ids_that_share_a_place_in_the_index_are_told_apart(engine: SqliteEngine) -> None:
    # A generated id's place is its time and its last sixteen bits.
    one, other = (f"a3f1-019a0000-0000-7000-{n:04x}-0123456789ab" for n in (0x8000, 0x8001))
    flush(engine, memory(one, version={"a": 1}), memory(other, version={"a": 2}))
    flush(engine, memory(one, state=b"new", version={"a": 3}))
    assert (engine.get(one), engine.get(other)) == (b"new", other.encode())
    flush(engine, forget=(other,))
    assert (engine.get(one), engine.get(other)) == (b"new", None)


def test_the_last_row_of_an_id_replaces_the_others_everywhere(engine: SqliteEngine) -> None:
    flush(
        engine,
        memory("m", tags=("old",), content="apple", state=b"1"),
        memory("m", tags=("new",), content="pear", state=b"2", agent="bob", created=5, version={"a": 2}),
    )
    flush(engine, memory("m", tags=("newer",), content="plum", state=b"3", thread="t", created=9, version={"b": 1}))
    engine.index_text(10)
    assert engine.get("m") == b"3"
    assert selected(engine) == ["m"]
    assert selected(engine, Selection(tags=("newer",), agent="ann", thread="t")) == ["m"]
    assert selected(engine, Selection(tags=("old",))) == selected(engine, Selection(agent="bob")) == []
    assert (searched(engine, "plum"), searched(engine, "pear"), searched(engine, "apple")) == (["m"], [], [])
    assert [id for id, _ in engine.changed(0, {"a": 9}, None, 9)] == ["m"]
    assert engine.changed(0, {"b": 1}, None, 9) == []


def test_a_forgotten_record_leaves_nothing_behind(engine: SqliteEngine) -> None:
    flush(engine, memory("m", tags=("t",), content="apple", expires=5), memory("dead", alive=False, version={"a": 2}))
    engine.index_text(10)
    flush(engine, forget=("m", "m", "dead", "never there"))
    assert engine.index_text(0) == 1, "its words are to be taken out of the text index"
    flush(engine, memory("other", version={"a": 3}))
    assert engine.get("m") is None
    assert selected(engine) == ["other"]
    assert engine.expired(9, 9) == engine.tombstones(0, 9) == []
    assert [id for id, _ in engine.changed(0, {}, None, 9)] == ["other"]
    assert searched(engine, "apple") == []
    assert engine.index_text(10) == 0


def test_an_id_that_is_flushed_and_forgotten_at_once_stays(engine: SqliteEngine) -> None:
    flush(engine, memory("m", state=b"1"))
    flush(engine, memory("m", state=b"2"), forget=("m",))
    assert engine.get("m") == b"2"


def test_the_checkpoint_comes_back_as_it_was_flushed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(
        through=12, partitions={3: PartitionSummary({"a": 4}, memories=5, tombstones=6)}, extra={"clock": 1 << 60}
    )
    engine = SqliteEngine.open(tmp_path)
    assert engine.checkpoint == Checkpoint()
    engine.flush([], [], checkpoint)
    checkpoint.partitions[3].vector["a"] = 99  # its giver goes on using it
    assert engine.checkpoint.partitions[3].vector == {"a": 4}
    engine.close()
    engine = SqliteEngine.open(tmp_path)
    assert engine.checkpoint == Checkpoint(12, {3: PartitionSummary({"a": 4}, 5, 6)}, {"clock": 1 << 60})
    engine.close()


def test_everything_is_still_there_after_reopening(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path / "some" / "memories.db")
    flush(engine, memory("m", tags=("t",), content="apple pie"), memory("n", content="pear", version={"b": 1}))
    engine.index_text(1)
    engine.close()
    engine = SqliteEngine.open(tmp_path / "some" / "memories.db")
    assert engine.index_text(0) == 1
    assert engine.index_text(10) == 0
    assert (searched(engine, "apple"), searched(engine, "pear")) == (["m"], ["n"])
    flush(engine, memory("new", version={"c": 1}))
    assert len(engine.changed(0, {}, None, 9)) == 3
    assert selected(engine, Selection(tags=("t",))) == ["m"]
    engine.close()


def test_overwriting_does_not_make_the_files_grow_without_end(tmp_path: Path) -> None:
    engine = SqliteEngine.open(tmp_path)

    def write(rounds: range) -> int:
        for n in rounds:
            flush(
                engine,
                *(memory(f"m{i}", state=b"s" * 500, content=f"words {n} {i}", version={"a": n * 200 + i + 1})
                  for i in range(200)),
            )  # fmt: skip
            engine.index_text(1_000)
            engine.prune(engine.append(b"x" * 10_000) - 3)
        return sum(file.stat().st_size for file in tmp_path.glob("*.db"))

    write(range(50))
    engine.close()
    engine = SqliteEngine.open(tmp_path)
    before = write(range(50, 100))
    assert write(range(100, 200)) < 2 * before
    engine.close()


# -- dead and expired ------------------------------------------------------------------------------------------------


def test_tombstones_are_given_by_partition_the_longest_untouched_first(engine: SqliteEngine) -> None:
    for n, id in enumerate(("first", "second", "third")):
        flush(engine, memory(id, alive=False, partition=1, version={"a": n + 1}))
    flush(engine, memory("alive", partition=1, version={"a": 9}), memory("other", alive=False, partition=2))
    assert [id for id, _ in engine.tombstones(1, 9)] == ["first", "second", "third"]
    flush(engine, memory("first", alive=False, partition=1, version={"a": 10}, state=b"again"))
    assert engine.tombstones(1, 2) == [("second", b"second"), ("third", b"third")]
    flush(engine, memory("second", alive=True, partition=1, version={"a": 11}))
    assert [id for id, _ in engine.tombstones(1, 9)] == ["third", "first"]


def test_a_memory_whose_time_is_over_is_expired_and_not_selected(engine: SqliteEngine) -> None:
    flush(
        engine,
        memory("now", expires=10), memory("before", expires=3, version={"a": 2}),
        memory("later", expires=11, version={"a": 3}), memory("never", version={"a": 4}),
        memory("dead", alive=False, expires=1, version={"a": 5}),
    )  # fmt: skip
    assert engine.expired(10, 9) == ["before", "now"]
    assert engine.expired(10, 1) == ["before"]
    assert sorted(selected(engine, now=10)) == ["later", "never"]
    flush(engine, memory("before", expires=None, version={"a": 6}))
    assert engine.expired(10, 9) == ["now"]


# -- words -----------------------------------------------------------------------------------------------------------


def test_text_is_found_once_it_is_indexed_by_stem_case_and_accent(engine: SqliteEngine) -> None:
    flush(engine, memory("m", content="The Crème was RUNNING over"))
    assert searched(engine, "run") == []
    assert engine.index_text(10) == 0
    for words in ("run", "creme", "CRÈME runs", "over"):
        assert searched(engine, words) == ["m"], words


def test_by_time_all_words_must_be_there_and_by_relevance_any(engine: SqliteEngine) -> None:
    flush(
        engine,
        memory("both", content="red apple", created=1),
        memory("one", content="red pear with a long tail of other words", created=2, version={"a": 2}),
        memory("none", content="green plum", created=3, version={"a": 3}),
    )
    engine.index_text(10)
    assert searched(engine, "apple red") == ["both"]
    assert searched(engine, "red") == ["one", "both"]
    assert searched(engine, "red", "oldest") == ["both", "one"]
    assert searched(engine, "red", "oldest", after=(1, "both")) == ["one"]
    assert searched(engine, "apple red", "relevance") == ["both", "one"]
    scores = [score for score, _ in engine.search("apple red", EVERYTHING, "relevance", 9, None, None, 0)]
    assert scores == sorted(scores)
    assert searched(engine, "what is the apple", "relevance") == ["both"]
    assert searched(engine, "red", "relevance", limit=1, selection=Selection(agent="ann")) == ["both"]


@pytest.mark.parametrize(
    "text",
    ["", "   ", '"', "'", "* ^ : - ( )", "...", "--", '"""', "\\", "%", "\n\t", "\x00", "{}[]", "/*"],
)
def test_a_text_without_words_finds_nothing(engine: SqliteEngine, text: str) -> None:
    flush(engine, memory("m", content="words " + text))
    engine.index_text(10)
    assert searched(engine, text) == searched(engine, text, "relevance") == []


@pytest.mark.parametrize(
    "text",
    ['foo" OR "bar', "content:foo", "foo*", "^foo", "NEAR(foo bar)", "foo AND", "NOT foo", "foo + bar", "it's", "-foo",
     "日本語", "🙂", "a_b", "col : foo", "(foo", "foo)", "{foo bar} : x", "x\x00y",
     " ".join(f"w{n}" for n in range(900))],
)  # fmt: skip
def test_what_looks_like_syntax_is_only_words(engine: SqliteEngine, text: str) -> None:
    flush(engine, memory("m", content=text), memory("n", content="something else", version={"a": 2}))
    engine.index_text(10)
    assert searched(engine, text) == ["m"]
    assert "m" in searched(engine, text, "relevance")


def test_overwritten_text_that_still_waits_is_indexed_once(engine: SqliteEngine) -> None:
    for n in range(5):
        flush(engine, memory("m", content=f"version{n}", version={"a": n + 1}))
    assert engine.index_text(0) == 1
    assert engine.index_text(1) == 0
    assert (searched(engine, "version4"), searched(engine, "version3")) == (["m"], [])


def test_a_change_that_leaves_the_content_alone_does_not_index_it_again(engine: SqliteEngine) -> None:
    flush(engine, memory("m", content="apple"))
    engine.index_text(10)
    flush(engine, memory("m", content="apple", tags=("t",), version={"a": 2}))
    assert engine.index_text(0) == 0
    assert searched(engine, "apple", selection=Selection(tags=("t",))) == ["m"]


def test_text_of_the_dead_is_taken_out_and_comes_back_with_a_new_life(engine: SqliteEngine) -> None:
    flush(engine, memory("m", content="apple"))
    engine.index_text(10)
    flush(engine, memory("m", alive=False, version={"a": 2}))
    assert searched(engine, "apple") == []
    assert engine.index_text(0) == 1
    assert engine.index_text(10) == 0
    flush(engine, memory("m", content="apple", version={"a": 3}))
    assert engine.index_text(10) == 0
    assert searched(engine, "apple") == ["m"]


def test_every_waiting_record_gets_its_turn_however_often_some_are_overwritten(engine: SqliteEngine) -> None:
    flush(engine, *(memory(f"m{n}", content=f"word{n}", version={"a": n + 1}) for n in range(10)))
    for n in range(10):
        flush(engine, memory("m0", content=f"again{n}", version={"a": 11 + n}))
        engine.index_text(1)
    assert searched(engine, "word9") == ["m9"]


def test_frequent_words_are_found_in_the_order_of_time_too(engine: SqliteEngine) -> None:
    # More hits than are sorted: they are walked in the order of time, which here is not the order of writing.
    count = 5_000
    rows = [
        memory(f"m{n:05}", content="always" + " seldom" * (n % 1_000 == 0), created=n * 7 % count, version={"a": n + 1})
        for n in range(count)
    ]
    flush(engine, *rows)
    engine.index_text(count)
    newest = [row.id for row in sorted(rows, key=lambda row: row.created, reverse=True)]
    assert searched(engine, "always", limit=300) == newest[:300]
    assert searched(engine, "always", limit=5, after=(count - 10, "")) == newest[10:15]
    assert len(searched(engine, "always seldom")) == 5
    assert len(searched(engine, "always", "relevance", limit=5)) == 5


def test_a_selection_that_few_records_meet_is_ranked_among_those(engine: SqliteEngine) -> None:
    flush(
        engine,
        *(memory(f"m{n}", content="apple" + " apple" * (n % 3), agent=f"agent-{n % 50}", version={"a": n + 1})
          for n in range(500)),
    )  # fmt: skip
    engine.index_text(1_000)
    found = searched(engine, "apple", "relevance", selection=Selection(agent="agent-7"))
    assert sorted(found) == sorted(f"m{n}" for n in range(7, 500, 50))
    assert int(found[0][1:]) % 3 == 2
