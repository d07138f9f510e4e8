"""Strong operations as short stories: who is primary, what is left of those before, and what an agent is told. The
replicas are the real core; random schedules of them are in test_strong_schedules.py."""

from __future__ import annotations

import pycrdt
import pytest
from strong_stage import Member, Stage, content_of

from crdt_spine.core.document import key_of, text_in, updates_of
from crdt_spine.core.fences import Fence, token_of
from crdt_spine.core.messages import Delete, Edit, EditDocument, Get, Store
from crdt_spine.core.strong import Ask

pytestmark = pytest.mark.timeout(60)


def store(text: str, **fields: object) -> Store:
    return Store(i=0, id="m", content=text, strong=True, **fields)  # type: ignore[arg-type]


def edit(text: str, **fields: object) -> Edit:
    return Edit(i=0, id="m", content=text, strong=True, **fields)  # type: ignore[arg-type]


GET = Get(i=0, id="m", strong=True)
DELETE = Delete(i=0, id="m", strong=True)


@pytest.mark.parametrize("names", ["a", "abc", "abcde"])
def test_what_was_written_is_read(names: str) -> None:
    stage = Stage(names)
    stored = stage.do("a", store("one"))
    assert not stored.error and stored.version
    assert content_of(stage.do("a", GET)) == "one"
    edited = stage.do("a", edit("two", if_version=stored.version, add=("x",)))
    assert content_of(edited) == "two" and edited.record is not None and set(edited.record.tags) == {"x"}
    assert stage.do("a", edit("three", if_version=stored.version)).error == "VersionConflict"
    assert content_of(stage.do("a", GET)) == "two"
    assert not stage.do("a", DELETE).error
    assert stage.do("a", DELETE).error == "NotFound"
    assert content_of(stage.do("a", GET)) is None


def test_another_node_says_who_the_primary_is() -> None:
    stage = Stage()
    stage.do("b", store("one"))
    answer = stage.do("a", GET)
    assert (answer.error, answer.primary, answer.outcome) == ("Elsewhere", "b", "not applied")


def test_of_two_that_begin_at_once_one_is_primary() -> None:
    stage = Stage()
    for name in "abc":
        stage.members[name].ask(stage_ask(name))
    stage.settle(500)
    done = [node for node, answer in stage.answers if not answer.error]
    assert len(done) == 1, stage.answers
    assert all(answer.primary == done[0] for _, answer in stage.answers if answer.error)


def stage_ask(name: str) -> Ask:
    return Ask(None, 0, store(name), "agent", f"op-{name}")


def test_the_next_primary_shows_what_was_confirmed_under_the_same_version() -> None:
    stage = Stage()
    stored = stage.do("a", store("one", tags=("t",), importance=0.9))
    stage.members["a"].crash()
    read = stage.do("b", GET)
    assert content_of(read) == "one" and read.record is not None
    assert read.record.etag == stored.version, "a seal changes nothing"
    assert read.record.shown_updated == stored.record.updated  # type: ignore[union-attr]
    assert read.record.version != stored.record.version  # type: ignore[union-attr]
    assert read.record.importance.value == 0.9 and set(read.record.tags) == {"t"}  # type: ignore[union-attr]
    assert not stage.do("b", edit("two", if_version=stored.version)).error


def test_what_a_former_primary_never_got_confirmed_is_dead_once_the_next_one_was_asked() -> None:
    """It is on its disk, and comes back with it; a reader has seen the memory without it."""
    stage = Stage()
    stored = stage.do("a", store("one"))
    stage.lossy = lambda source, target: True
    late = stage.members["a"]
    late.ask(stage_edit("leftover", stored.version, "late"))
    stage.lossy = lambda source, target: False
    stage.members["a"].ask(stage_edit("leftover", stored.version, "late2"))
    # The question is answered, the change is written to the disk, and then the node dies.
    while not any(b"leftover" in row for row in late.journal):
        stage.deliver() if stage.wire else late.commit()
    stage.wire.clear()
    late.crash()
    assert content_of(stage.do("b", GET)) == "one"
    late.start()
    late.inherit()
    stage.members["b"].pull(late)
    stage.settle(100)
    assert content_of(stage.do("b", GET)) == "one", "or two readers saw it come and go"
    again = stage.do("b", edit("leftover", if_version=stored.version), "late2", retry=True)
    assert not again.error and content_of(again) == "leftover", "what is dead was not applied, and may be"


def stage_edit(text: str, version: str, id: str) -> Ask:
    return Ask(None, 0, edit(text, if_version=version), "agent", id)


def test_a_retry_is_applied_once_also_by_the_next_primary() -> None:
    stage = Stage()
    stored = stage.do("a", store("one"))
    first = stage.do("a", edit("two", if_version=stored.version), "the-op")
    again = stage.do("a", edit("two", if_version=stored.version), "the-op", retry=True)
    assert not again.error and again.version == first.version
    stage.members["a"].crash()
    later = stage.do("b", edit("two", if_version=stored.version), "the-op", retry=True)
    assert not later.error and later.version == first.version
    assert stage.do("b", edit("x", if_version=stored.version), "other", retry=True).error == "VersionConflict"


def test_without_a_majority_nothing_is_done_nor_shown() -> None:
    stage = Stage()
    stage.do("a", store("one"))
    stage.members["b"].crash()
    stage.members["c"].crash()
    for operation in (GET, store("two"), DELETE, edit("two")):
        answer = stage.do("a", operation, milliseconds=1_500)
        assert (answer.error, answer.outcome, answer.acks, answer.needed) == ("QuorumFailed", "not applied", 1, 2)
        assert answer.missing == ("b", "c")
    stage.members["b"].start()
    stage.members["b"].inherit()
    assert content_of(stage.do("a", GET)) == "one"


def test_a_primary_that_was_paused_learns_that_it_is_none() -> None:
    stage = Stage()
    stored = stage.do("a", store("one"))
    paused = stage.members["a"]
    paused.up = False
    assert not stage.do("b", edit("two", if_version=stored.version)).error
    paused.up = True
    answer = stage.do("a", GET)
    assert (answer.error, answer.primary) == ("Elsewhere", "b")
    assert content_of(stage.do("b", GET)) == "two"


def test_a_paused_primary_writes_nothing_above_its_bound() -> None:
    """Its round was answered before the pause; its stamp would be above the next primary's seal."""
    stage = Stage()
    stored = stage.do("a", store("one"))
    paused = stage.members["a"]
    paused.ask(stage_edit("stale", stored.version, "stale"))
    stage.deliver()  # the question; the answer is on its way while the node stands still
    reply = stage.wire.pop()
    stage.wire.clear()
    paused.up = False
    stage.pass_time(3_000)
    assert content_of(stage.do("b", GET)) == "one"
    paused.up = True
    paused.pull(stage.members["b"])
    stage.wire.insert(0, reply)
    stage.deliver()
    stage.settle(500)
    assert not any(b"stale" in row for row in paused.journal)
    assert content_of(stage.do("b", GET)) == "one"


def test_a_seal_is_stamped_above_what_a_faster_clock_gave() -> None:
    stage = Stage()
    stage.members["a"].skew = 300
    stored = stage.do("a", store("one"))
    stage.members["a"].crash()
    stage.members["b"].skew = -100
    read = stage.do("b", GET, milliseconds=900)
    assert content_of(read) == "one"
    assert read.record.life.origin.time > stored.record.life.origin.time  # type: ignore[union-attr]


def test_a_replica_with_a_new_disk_counts_once_it_has_heard_the_others() -> None:
    stage = Stage()
    stage.do("a", store("one"))
    for name in "ab":
        stage.members[name].crash()
    blank = stage.members["b"]
    blank.journal = []
    blank.start()
    assert stage.do("c", GET, milliseconds=1_500).error == "QuorumFailed", "b has forgotten what it promised"
    blank.inherit()
    assert not blank.replica.promises.ready, "it has heard one of two"
    stage.members["a"].start()
    blank.inherit()
    blank.pull(stage.members["a"])
    blank.inherit()
    assert blank.replica.promises.ready
    stage.members["a"].crash()
    assert content_of(stage.do("c", GET)) == "one"


def test_a_write_of_a_weaker_level_that_a_majority_has_is_seen() -> None:
    stage = Stage()
    stage.do("a", store("one"))
    stage.lossy = lambda source, target: "a" in (source, target)
    other = stage.members["b"]
    other.replica.write(0, Edit(i=0, id="m", content="weaker"), "agent", "w", other.now, None)
    stage.settle()
    stage.lossy = lambda source, target: False
    assert content_of(stage.do("a", GET, milliseconds=600)) == "weaker"


def test_a_later_lease_refuses_the_write_of_an_earlier_one() -> None:
    stage = Stage()
    stage.do("a", store("one"))
    for name in "bc":
        stage.members[name].replica.keep_fence(Fence("lock", token_of(0, 9)))
    answer = stage.do("a", edit("two", fence=Fence("lock", token_of(0, 8))))
    assert (answer.error, answer.outcome) == ("FenceRejected", "not applied")
    assert content_of(stage.do("a", GET)) == "one"
    assert not stage.do("a", edit("two", fence=Fence("lock", token_of(0, 9)))).error


@pytest.mark.parametrize("names", ["a", "abc"])
def test_a_primary_knows_the_lease_of_what_it_wrote_after_a_crash(names: str) -> None:
    """Also where nobody is left of the others that were asked whether they know a later one."""
    stage = Stage(names)
    assert not stage.do("a", store("one", fence=Fence("lock", token_of(0, 9)))).error
    primary = stage.members["a"]
    primary.crash()
    if "b" in names:
        stage.members["b"].crash()
    primary.start(renamed=False)
    primary.inherit()
    stage.settle(500)
    for _ in range(2):
        answer = stage.do("a", edit("two", fence=Fence("lock", token_of(0, 8))), milliseconds=3_000)
        assert (answer.error, answer.outcome) == ("FenceRejected", "not applied")
    assert content_of(stage.do("a", GET, milliseconds=3_000)) == "one"


def test_a_document_is_written_whole_with_all_that_is_in_it() -> None:
    stage = Stage()
    stored = stage.do("a", store("hello"))
    node = stage.members["a"]
    assert stored.record is not None
    live: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=7)
    for update in updates_of(stored.record.content, None):
        live.apply_update(update)
    before = live.get_state()
    live.get("content", type=pycrdt.Text).insert(5, " world")
    live.get("more", type=pycrdt.Map)["kept"] = "yes"
    operation = EditDocument(
        i=0, id="m", update=live.get_update(before), client=7, clock=0, base=key_of(stored.record.content)
    )
    node.replica.write(0, operation, "agent", "d", node.now, None)
    stage.settle()
    edited = stage.do("a", Edit(i=0, id="m", add=("x",), strong=True))
    record = edited.record
    assert record is not None and record.text == "hello world"
    assert record.document is not None and record.content is not None
    again: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc()
    for update in updates_of(record.content, record.document):
        again.apply_update(update)
    assert text_in(again) == "hello world" and again.get("more", type=pycrdt.Map)["kept"] == "yes"


def test_what_a_faster_clock_has_left_behind_is_dead_too() -> None:
    """The next primary's clock is behind: its own time alone would be below the leftover."""
    stage = Stage()
    late = stage.members["a"]
    late.skew, stage.members["b"].skew = 300, -100
    stored = stage.do("a", store("one"))
    stage.pass_time(200)
    late.ask(stage_edit("leftover", stored.version, "late"))
    while not any(b"leftover" in row for row in late.journal):
        stage.deliver() if stage.wire else late.commit()
    stage.wire.clear()
    late.crash()
    assert content_of(stage.do("b", GET, milliseconds=900)) == "one"
    late.start()
    late.inherit()
    stage.members["b"].pull(late)
    assert content_of(stage.do("b", GET, milliseconds=900)) == "one"


def test_promises_outlive_a_restart_and_bounds_do_at_least() -> None:
    stage = Stage()
    stage.do("a", store("one"))
    stage.members["a"].crash()
    stage.do("b", GET)
    other = stage.members["c"]
    term, bound = other.replica.promises.term(0), other.replica.promises.bound(0)
    assert term == (2, "b") and bound > 0
    other.crash()
    other.start()
    assert other.replica.promises.term(0) == term
    assert other.replica.promises.bound(0) >= bound
    assert other.replica.promises.ready == {0}


# -- several attempts of one operation ---------------------------------------------------------------------------------


def test_of_two_attempts_at_one_primary_none_is_told_that_nothing_was_done_while_the_other_may_do_it() -> None:
    """An agent that was cut off from the broker asks its primary again, while that has no majority. The first attempt
    was given up as "not applied"; the majority came back, and the second one wrote."""
    stage = Stage()
    stored = stage.do("a", store("one"))
    primary = stage.members["a"]
    stage.lossy = lambda source, target: True
    primary.ask(stage_edit("two", stored.version, "the-op"))
    stage.settle(600)
    again = Ask(None, 0, edit("two", if_version=stored.version), "agent", "the-op", retry=True)
    before = len(stage.answers)
    primary.ask(again)
    stage.settle(400)
    assert stage.answers[before:] == [], "the second one has still time"
    stage.lossy = lambda source, target: False
    stage.settle(400)
    told = [answer for _, answer in stage.answers[before:]]
    assert len(told) == 2 and not any(answer.error for answer in told), told
    assert {id(answer.ask) for answer in told} >= {id(again)} and primary.strong.open == 0
    assert content_of(stage.do("a", GET)) == "two"


def test_what_was_tried_twice_without_a_majority_is_unknown() -> None:
    stage = Stage()
    stored = stage.do("a", store("one"))
    stage.lossy = lambda source, target: True
    before = len(stage.answers)
    for retry in (False, True):
        stage.members["a"].ask(
            Ask(None, 0, edit("two", if_version=stored.version), "agent", "the-op", retry=retry)
        )  # fmt: skip
    stage.settle(1_500)
    told = [(answer.error, answer.outcome) for _, answer in stage.answers[before:]]
    assert told == [("QuorumFailed", "unknown")] * 2
    assert stage.members["a"].strong.open == 0


def test_a_refusal_is_the_same_one_in_each_later_term() -> None:
    """It was remembered without its reason, and the next primary said that there was no such memory."""
    stage = Stage()
    stored = stage.do("a", store("one"))
    stage.do("a", store("two"))
    stale = edit("three", if_version=stored.version)
    refused = stage.do("a", stale, "the-op", retry=True)
    assert (refused.error, refused.final) == ("VersionConflict", True)
    stage.members["a"].up = False
    again = stage.do("b", stale, "the-op", retry=True)
    assert (again.error, again.final) == ("VersionConflict", True)
    assert not stage.do("b", DELETE).error
    assert stage.do("b", stale, "the-op", retry=True).error == "VersionConflict"
    absent = stage.do("b", edit("four"), "other-op", retry=True)
    assert (absent.error, absent.final) == ("NotFound", True)
    assert not stage.do("b", store("five")).error
    stage.members["a"].up = True
    stage.members["b"].up = False
    assert stage.do("a", edit("four"), "other-op").error == "NotFound", "nor is its late first attempt done"
    assert content_of(stage.do("a", GET)) == "five"


def test_a_first_attempt_that_is_refused_says_so_of_itself_only() -> None:
    stage = Stage()
    stored = stage.do("a", store("one"))
    stage.do("a", store("two"))
    refused = stage.do("a", edit("three", if_version=stored.version), "the-op")
    assert (refused.error, refused.final) == ("VersionConflict", False)


def test_a_refusal_that_was_decided_before_it_was_tried_again_is_remembered_all_the_same() -> None:
    stage = Stage()
    stored = stage.do("a", store("one"))
    stage.do("a", store("two"))
    stale = edit("three", if_version=stored.version)
    stage.members["a"].up = False
    primary, before = stage.members["b"], len(stage.answers)
    primary.ask(Ask(None, 0, stale, "agent", "the-op"))
    while primary.records["m"].life.value.strong.sealed is None:
        stage.deliver() if stage.wire else stage.members["c"].commit() or primary.commit() or stage.pass_time(25)
    primary.ask(Ask(None, 0, stale, "agent", "the-op", retry=True))
    stage.settle(400)
    told = [answer for _, answer in stage.answers[before:]]
    assert [(answer.error, answer.final) for answer in told] == [("VersionConflict", True)] * 2
    assert any("the-op" in one for one in primary.replica.records["m"].life.value.strong.operations)


def test_a_tombstone_stays_while_it_knows_of_operations() -> None:
    """A node that is told to forget tombstones at once had forgotten that a deletion was done, and said NotFound to the
    agent that tried it again."""
    stage = Stage("a")
    alone = stage.members["a"]
    stage.do("a", store("one"))
    assert not stage.do("a", DELETE, "the-op").error
    dead = [alone.records["m"]]
    assert alone.replica.collect(0, dead, 1000.0) == 0
    assert not stage.do("a", DELETE, "the-op", retry=True).error
    assert alone.replica.collect(0, [alone.records["m"]], 1059.0) == 0
    assert alone.replica.collect(0, [alone.records["m"]], 1061.0) == 1


def test_what_was_done_by_a_primary_whose_clock_is_an_hour_behind_is_not_long_ago() -> None:
    """The next primary forgot it at once, by the stamp: a deletion that was tried again was told to have found nothing,
    and a store was done twice."""
    stage = Stage()
    stage.members["a"].skew = -3_600_000
    stored = stage.do("a", store("one"), "the-store")
    assert not stored.error
    for member in stage.members.values():
        assert member.replica.collect(0, member.records.values(), stage.at) == 0
    stage.members["a"].crash()
    again = stage.do("b", store("one"), "the-store", retry=True)
    assert not again.error and again.version == stored.version
    assert not stage.do("b", store("two")).error
    assert not stage.do("b", store("one"), "the-store", retry=True).error
    assert content_of(stage.do("b", GET)) == "two"


def test_a_clock_that_is_set_an_hour_ahead_makes_nothing_old() -> None:
    stage = Stage()
    late = stage.members["a"]
    late.skew = -3_600_000
    stage.do("a", store("one"), "the-store")
    late.skew = 0
    stage.do("a", store("two"))
    late.crash()
    assert not stage.do("b", store("one"), "the-store", retry=True).error
    assert content_of(stage.do("b", GET)) == "two"


def test_operations_are_forgotten_a_minute_after_by_who_stamped_them() -> None:
    stage = Stage()
    primary = stage.members["a"]
    for name in ("one", "two"):
        stage.do("a", store(name), name)
    stage.pass_time(61_000)
    stage.do("a", store("three"), "three")
    assert primary.records["m"].life.value.strong.operations == ("three",)  # type: ignore[union-attr]


def test_a_primary_whose_clock_is_wrong_leaves_its_place_to_another_node() -> None:
    stage = Stage()
    stored = stage.do("a", store("one"))
    wrong = stage.members["a"].strong
    wrong.abstains = True
    answer = stage.do("a", GET)
    assert (answer.error, answer.outcome) == ("Elsewhere", "not applied") and answer.primary in "bc"
    assert content_of(stage.do(answer.primary, GET)) == "one", "they do not send anybody back to it"
    assert not stage.do(answer.primary, edit("two", if_version=stored.version)).error
    again = stage.do("a", store("three"))
    assert (again.error, again.primary) == ("Elsewhere", answer.primary)
    wrong.abstains = False
    assert stage.do("a", GET).primary == answer.primary, "and it does not take it back"


def test_one_whose_clock_is_wrong_and_who_hears_nobody_says_who_is_missing() -> None:
    stage = Stage()
    stage.do("a", store("one"))
    stage.members["a"].strong.abstains = True
    stage.members["b"].crash()
    stage.members["c"].crash()
    answer = stage.do("a", GET, milliseconds=1_500)
    assert (answer.error, answer.missing) == ("QuorumFailed", ("b", "c"))


def test_who_takes_no_part_for_a_moment_is_asked_again() -> None:
    """All had answered that they take no part, as they were at another membership, and nobody was asked any more."""
    stage = Stage()
    stored = stage.do("a", store("one"))
    for name in "bc":
        stage.members[name].strong.epoch = 7
    before = len(stage.answers)
    stage.members["a"].ask(stage_edit("two", stored.version, "the-op"))
    stage.settle(300)
    assert len(stage.answers) == before
    for name in "bc":
        stage.members[name].strong.epoch = 0
    stage.settle(300)
    assert [answer.error for _, answer in stage.answers[before:]] == [""]


def test_an_answer_from_before_a_write_does_not_confirm_it() -> None:
    """Two were asked what they have, the second answers once the primary has written: it said nothing of that write."""
    stage = Stage()
    stage.do("a", store("one"))
    before, a = len(stage.answers), stage.members["a"]
    a.ask(Ask(None, 0, store("two"), "agent", "the-op"))
    stage.pass_time(75)  # it asks the other one as well
    assert [target for _, target, _ in stage.wire] in (["b", "c"], ["c", "b"])
    while stage.wire:
        stage.deliver()
        stage.members["c"].commit()
    stage.lossy = lambda source, target: True  # what it has written reaches nobody
    a.commit()
    stage.settle(100)
    assert content_of_member(a) == "two"
    assert stage.answers[before:] == []
    stage.lossy = lambda source, target: False
    stage.members["c"].pull(a)
    stage.settle(500)
    assert [answer.error for _, answer in stage.answers[before:]] == [""]


def content_of_member(member: Member) -> str:
    record = member.records.get("m")
    assert record is not None and record.content is not None
    return str(record.content.value)
