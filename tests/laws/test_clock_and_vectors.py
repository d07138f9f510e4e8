"""The hybrid clock never goes back, through a full counter, a restart and wall clocks that are hours off; it takes no
time that is too far ahead. Vectors are sets of dots, written short; vector clocks say what happened before what."""

from __future__ import annotations

import msgspec
from executions import ACTORS
from hypothesis import given
from hypothesis import strategies as st
from kinds import VECTOR_CLOCK, Run
from records import Records

from crdt_spine.core.causality import join, meet, missing, within
from crdt_spine.core.clock import COUNTER_BITS, HybridClock, at_milliseconds, milliseconds_of, moment
from crdt_spine.core.messages import Change, Delta, SyncPage, encode
from crdt_spine.core.replica import Replica
from crdt_spine.core.thread import relation
from crdt_spine.core.version import vector_text

vectors = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 4))
Dots = set[tuple[str, int]]


def dots(vector: dict[str, int]) -> Dots:
    """The naive vector: every dot it stands for."""
    return {(actor, n) for actor, last in vector.items() for n in range(1, last + 1)}


@given(vectors, vectors)
def test_a_vector_is_the_set_of_its_dots(one: dict[str, int], other: dict[str, int]) -> None:
    assert dots(join(one, other)) == dots(one) | dots(other)
    assert dots(meet([one, other])) == dots(one) & dots(other)
    assert within(one, other) == (dots(one) <= dots(other))
    assert missing(one, other) == len(dots(other) - dots(one))
    assert (vector_text(one) == vector_text(other)) == (one == other)


def test_the_meet_of_nothing_is_nothing() -> None:
    assert meet([]) == {}


@given(st.lists(st.tuples(st.sampled_from(["tick", "observe", "restart"]), st.integers(0, 1 << 40)), max_size=40))
def test_the_clock_only_rises(history: list[tuple[str, int]]) -> None:
    clock = HybridClock()
    last = 0
    for kind, milliseconds in history:
        if kind == "tick":
            time = clock.tick(milliseconds)
            assert time > last
            assert time >= at_milliseconds(milliseconds)
        elif kind == "observe":
            clock.observe(at_milliseconds(milliseconds))
        else:
            clock = HybridClock(clock.highest)
        assert clock.highest >= last
        last = clock.highest


@given(st.integers(1, 1 << 40), st.integers(0, 3))
def test_a_full_counter_carries_into_the_milliseconds(milliseconds: int, more: int) -> None:
    clock = HybridClock(at_milliseconds(milliseconds) + 0xFFFF)
    times = [clock.tick(milliseconds - more) for _ in range(3)]
    assert times == sorted(set(times))
    assert milliseconds_of(times[0]) == milliseconds + 1


@given(st.integers(0, (1 << 47) - 1), st.integers(0, 0xFFFF))
def test_every_time_that_fits_the_tables_has_a_moment(milliseconds: int, counter: int) -> None:
    assert moment(at_milliseconds(milliseconds) + counter).tzinfo is not None


# -- the clock of a replica -------------------------------------------------------------------------------------------

DRIFT = 500
HOUR = 3_600_000
NOW = 1_763_000_000_000
read_row = msgspec.json.Decoder(Delta | SyncPage).decode
walls = st.sampled_from([NOW, NOW, NOW + 1, NOW + HOUR, NOW - HOUR])
#: Beside the hearer's wall clock, in milliseconds: what a peer's clock says.
ahead = st.sampled_from([-HOUR, -1, 0, DRIFT - 1, DRIFT, DRIFT + 1, HOUR])
life_of_a_replica = st.lists(
    st.one_of(
        st.tuples(st.just("stamp"), walls, st.just(0)),
        st.tuples(st.just("hear"), walls, ahead),
        st.tuples(st.just("restart"), walls, st.just(0)),
    ),
    max_size=30,
)


def started(journal: list[bytes]) -> Replica:
    """A node's core after a restart with this journal."""
    replica = Replica("a", "r/a@1", Records(), HybridClock(), {0: ("b",)}, 1, drift=DRIFT)
    for row in journal:
        replica.replay([row], read_row)
    replica.recovered()
    return replica


def commit(replica: Replica, journal: list[bytes]) -> None:
    turn = replica.end_turn()
    journal += turn.journal
    replica.persisted(turn)


@given(life_of_a_replica)
def test_no_stamp_is_below_an_earlier_one_whatever_clocks_say_and_none_follows_one_that_is_too_far_ahead(
    life: list[tuple[str, int, int]],
) -> None:
    journal: list[bytes] = []
    replica, stamped, heard = started(journal), 0, 0
    permitted = 0  # up to where its clock may be, by its own wall clock and by what it may take from others
    for kind, wall, off in life:
        permitted = max(permitted, wall + DRIFT)
        match kind:
            case "stamp":
                time = replica.clock.tick(wall)
                change = Change(id="m", time=time, agent="ann", alive=True, content="text")
                replica.partitions[0].coordinate("r/a@1", change, replica.records.get("m"))
                replica._coordinated.add(0)
                assert time > stamped and time >= at_milliseconds(wall)
                stamped = time
            case "hear":
                heard += 1
                change = Change(id="n", time=at_milliseconds(wall + off), agent="bo", alive=True, content="text")
                delta = Delta(partition=0, actor=f"r/b@{heard}", first=1, deps={}, changes=[change])
                taken = replica.receive(delta, encode(delta), wall)
                assert taken == (off <= DRIFT), "a change from further ahead waits, and says so"
                assert taken or replica.partitions[0].waiting_changes
            case "restart":
                commit(replica, journal)
                replica = started(journal)
        commit(replica, journal)
        assert milliseconds_of(replica.clock.highest) <= permitted


def test_65_536_ticks_in_a_millisecond_carry_over_and_count_as_drift() -> None:
    """A node that gave more stamps than fit its millisecond is ahead by as many milliseconds, and is held to that."""
    clock = HybridClock()
    ticks = DRIFT * (1 << COUNTER_BITS)
    clock.highest = at_milliseconds(NOW) + ticks - 1  # as after so many ticks at NOW
    last = clock.tick(NOW)
    assert last == at_milliseconds(NOW + DRIFT)
    for time, due in ((last, True), (clock.tick(NOW), False)):
        change = Change(id="m", time=time, agent="bo", alive=True, content="text")
        delta = Delta(partition=0, actor="r/b@1", first=1, deps={}, changes=[change])
        hearer = started([])
        assert hearer.receive(delta, encode(delta), NOW) is due


# -- vector clocks ----------------------------------------------------------------------------------------------------


@given(VECTOR_CLOCK.runs)
def test_a_vector_clock_says_before_after_or_concurrent_as_it_was(run: Run) -> None:
    for one, clock in run.changes.items():
        for other, other_clock in run.changes.items():
            expected = "before" if one in run.deps[other] else "after" if other in run.deps[one] else "concurrent"
            assert relation(one[0], clock, other[0], other_clock) == expected
    assert all(set(clock) <= set(ACTORS) for clock in run.changes.values())
