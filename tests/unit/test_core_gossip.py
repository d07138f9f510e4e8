"""Heartbeats, suspicion and what fits into a message: the table of one node, and of a few."""

from __future__ import annotations

import math
import random
from base64 import b64encode
from typing import Any

import msgspec
import pytest

from crdt_spine.core.gossip import DOWN_SECONDS, TICK_SECONDS_MAX, Gossip, read
from crdt_spine.core.messages import Rumours, Unreadable, Vitals, encode
from crdt_spine.core.phi import DEVIATION_SECONDS_MIN, PHI_MAX, averaged, phi
from crdt_spine.core.roster import digest_of, packed, unpacked
from crdt_spine.limits import BEAT_MAX, GOSSIP_BYTES_MAX, GOSSIP_SECONDS

BEGAN = 1_790_000_000_000


class Few:
    """A few nodes that hear all of each other at once, unless they are `deaf` or `stopped`."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.now = 0.0
        self.dice = random.Random(1)
        self.nodes: dict[str, Gossip] = {}
        self.deaf: set[str] = set()  # cut off: nothing comes or goes
        self.stopped: set[str] = set()
        for name in names:
            self.begin(name)

    def begin(self, name: str, generation: int | None = None) -> Gossip:
        generation = BEGAN + int(self.now * 1000) if generation is None else generation
        self.nodes[name] = gossip = Gossip(name, "z", generation, self.now)
        gossip.change_members(self.names)
        gossip.tell("up")
        return gossip

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / GOSSIP_SECONDS)):
            self.now += GOSSIP_SECONDS
            for name in sorted(self.nodes.keys() - self.stopped):
                self.carry(name, self.nodes[name].tick(self.now, self.dice))

    def carry(self, name: str, messages: list[tuple[str, Rumours]]) -> None:
        for to, message in messages:
            if to in self.nodes and not {name, to} & self.deaf and to not in self.stopped:
                answer = self.nodes[to].receive(read(encode(message)), self.now)
                if answer is not None:
                    self.carry(to, [(name, answer)])

    def state(self, of: str) -> set[str]:
        """What the others that run say of it."""
        return {gossip.state_of(of) for name, gossip in self.nodes.items() if name not in {of, *self.stopped}}


# -- suspicion ------------------------------------------------------------------------------------------------------


def test_phi_is_how_unlikely_a_longer_silence_is() -> None:
    assert phi(1.0, 1.0, 1.0) == pytest.approx(-math.log10(0.5))
    assert phi(1.0 + 1.2816, 1.0, 1.0) == pytest.approx(1.0, abs=0.001)
    assert phi(1.0 + 5.612, 1.0, 1.0) == pytest.approx(8.0, abs=0.001)
    assert phi(1_000.0, 1.0, 1.0) == PHI_MAX and phi(0.0, 1.0, 0.0) < 0.02
    values = [phi(silent / 10, 0.5, 0.01) for silent in range(100)]
    assert values == sorted(values)
    assert phi(3.0, 0.5, 0.0) == phi(3.0, 0.5, DEVIATION_SECONDS_MIN**2), "however regular it was"


def test_the_window_forgets() -> None:
    mean, variance = 10.0, 100.0
    for _ in range(300):
        mean, variance = averaged(1.0, mean, variance)
    assert mean == pytest.approx(1.0, abs=0.01) and variance < 0.05
    for number in range(600):
        mean, variance = averaged(0.5 + number % 2, mean, variance)
    assert mean == pytest.approx(1.0, abs=0.05) and variance == pytest.approx(0.25, abs=0.05)


def test_a_node_that_dies_is_a_suspect_within_seconds_and_down_after_some_more() -> None:
    few = Few("a", "b", "c")
    few.run(30)
    assert few.state("c") == {"up"} and few.nodes["a"].away == ()
    few.stopped.add("c")
    few.run(2)
    assert few.state("c") == {"up"}
    few.run(3)
    assert few.state("c") == {"suspect"} and few.nodes["a"].away == ("c",)
    assert few.nodes["a"].tick(few.now, few.dice)[0][1].beats["c"] % 2, "and others are told"
    few.run(DOWN_SECONDS)
    assert few.state("c") == {"down"} and few.nodes["b"].away == ("c",)
    health = few.nodes["a"].view(few.now)
    assert health["c"].phi > 8 and health["b"].phi < 1 and health["c"].silent > 8
    turns = [(node, after) for node, _, after in few.nodes["a"].turns]
    assert turns[-2:] == [("c", "suspect"), ("c", "down")]


def test_a_node_that_was_stopped_takes_nobody_for_dead_and_is_up_again_at_once() -> None:
    few = Few("a", "b", "c")
    few.run(30)
    few.stopped.add("c")
    few.run(600)
    assert few.state("c") == {"down"}
    few.stopped.clear()
    few.run(4 * GOSSIP_SECONDS)
    assert few.state("c") == {"up"}
    assert few.nodes["c"].away == () and not [turn for turn in few.nodes["c"].turns if turn[2] in ("suspect", "down")]


def test_a_long_tick_counts_as_a_short_one() -> None:
    gossip = Gossip("a", None, BEGAN, 100.0)
    gossip.change_members(["a", "b"])
    gossip.receive(Rumours(node="b", beats={"b": BEGAN}), 100.0)
    gossip.tick(5_000.0, random.Random(1))
    assert gossip.view(5_000.0)["b"].silent == TICK_SECONDS_MAX
    gossip.tick(4_000.0, random.Random(1))
    assert gossip.view(4_000.0)["b"].silent == TICK_SECONDS_MAX, "nor does time run back"


def test_who_is_told_of_a_silence_that_began_as_late_as_the_own_news_believes_it() -> None:
    gossip = Gossip("a", None, BEGAN, 0.0)
    gossip.change_members(["a", "b", "c"])
    gossip.receive(Rumours(node="c", beats={"c": 90, "b": 50}, vitals=(Vitals("b", 40, 1, "up"),)), 0.0)
    gossip.receive(Rumours(node="c", beats={"b": 49}), 0.1)
    assert gossip.state_of("b") == "up", "there is newer news of it here"
    gossip.receive(Rumours(node="c", beats={"b": 51}), 0.2)
    assert gossip.state_of("b") == "suspect"
    assert gossip.tick(0.3, random.Random(1))[0][1].beats["b"] == 51, "and is told on"
    gossip.receive(Rumours(node="c", beats={"b": 52}), 0.4)
    assert gossip.state_of("b") == "up" and gossip.away == ()
    answer = gossip.receive(Rumours(node="c", asks=True, beats={"b": 51}), 0.5)
    assert answer is not None and answer.beats["b"] == 52, "who believes it is told better"


def test_who_hears_that_it_is_taken_for_dead_says_more_and_is_no_new_process() -> None:
    gossip = Gossip("a", None, 40, 0.0)
    gossip.change_members(["a", "b"])
    gossip.receive(Rumours(node="b", beats={"a": 41}), 0.1)
    assert gossip.beat == 40 and not gossip.counts
    assert gossip.tick(0.2, random.Random(1))[0][1].beats["a"] == 42
    gossip.receive(Rumours(node="b", beats={"a": 45}), 0.3)
    assert gossip.beat == 46 and gossip.counts["outdone"] == 1


def test_two_halves_that_were_cut_off_from_each_other_meet_again() -> None:
    few = Few("a", "b")
    few.run(10)
    few.deaf = {"a"}
    few.run(60)
    assert few.state("a") == few.state("b") == {"down"}
    few.deaf = set()
    few.run(5)
    assert few.state("a") == few.state("b") == {"up"}


# -- who is a member, and which process it is ------------------------------------------------------------------------


def test_a_node_that_stops_is_away_at_once_and_no_suspect() -> None:
    few = Few("a", "b", "c")
    few.run(10)
    few.carry("c", few.nodes["c"].farewell(few.dice))
    few.stopped.add("c")
    assert few.state("c") == {"leaving"} and few.nodes["a"].away == ("c",)
    few.run(20)
    assert few.state("c") == {"down"}
    assert not [turn for turn in few.nodes["a"].turns if turn[2] == "suspect"]


def test_a_new_process_is_up_at_once_and_one_whose_clock_was_set_back_soon() -> None:
    few = Few("a", "b", "c")
    few.run(10)
    for generation in (None, BEGAN - 3_600_000):
        few.stopped.add("c")
        few.run(20)
        assert few.state("c") == {"down"}
        few.begin("c", generation)
        few.stopped.clear()
        few.run(2)
        assert few.state("c") == {"up"}, generation
    assert few.nodes["c"].counts["outdone"] >= 1
    heard = few.nodes["a"].view(few.now)["c"].vitals
    assert heard is not None and heard.generation == few.nodes["c"].vitals.generation > BEGAN


def test_a_removed_node_is_forgotten_and_does_not_come_back() -> None:
    few = Few("a", "b", "c")
    few.run(10)
    few.nodes["a"].change_members(["a", "b"])
    assert "c" not in few.nodes["a"].view(few.now)
    few.run(10)  # b and c go on telling of c
    assert "c" not in few.nodes["a"].view(few.now) and few.nodes["a"].counts["strangers"] > 0
    assert "c" not in few.nodes["a"].tick(few.now, few.dice)[0][1].beats
    few.nodes["a"].change_members(["a", "b", "c"])
    assert few.nodes["a"].state_of("c") == "joining"
    few.run(3)
    assert few.nodes["a"].state_of("c") == "up"


def test_a_node_alone_speaks_to_nobody() -> None:
    gossip = Gossip("a", None, BEGAN, 0.0)
    gossip.change_members(["a"])
    assert gossip.tick(1.0, random.Random(1)) == [] and gossip.away == ()
    assert gossip.farewell(random.Random(1)) == []


# -- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agreed", [True, False])
@pytest.mark.parametrize(
    ("nodes", "length", "zone"),
    [
        (300, 20, "z"),
        (1_000, 20, "eu-west-1a"),
        (1_000, 63, "\U0001f600" * 63),
        (1_536, 63, "z" * 63),
        (1_700, 63, "z" * 63),
    ],
)
def test_a_message_is_below_its_bound_whatever_is_in_it(nodes: int, length: int, zone: str, agreed: bool) -> None:
    names = [f"n{number:0>{length - 1}}" for number in range(nodes)]
    gossip = Gossip(names[0], zone, BEAT_MAX - 10, 0.0)
    gossip.change_members(names)
    most = (1 << 32) - 1
    for index in range(1, nodes, 20):
        some = names[index : index + 20]
        vitals = tuple(Vitals(n, BEAT_MAX, most, "joining", zone, most, most, most, most, most) for n in some)
        gossip.receive(Rumours(node=some[0], beats=dict.fromkeys(some, BEAT_MAX), vitals=vitals), 0.1)
    asked = dict.fromkeys(names, 1)
    roster = digest_of(names) if agreed else "another"
    sizes = []
    for number in range(50):
        answer = gossip.receive(Rumours(node=names[1], roster=roster, asks=True, beats=asked), 0.2 + number / 1_000)
        (_, question), *_ = gossip.tick(0.2 + number / 1_000, random.Random(1))
        assert answer is not None
        for message in (question, answer):
            sizes.append(len(encode(message)))
            assert read(encode(message)) == message
    assert max(sizes) < GOSSIP_BYTES_MAX
    assert min(sizes) > GOSSIP_BYTES_MAX // 2, "and what room there is is used"


def large(nodes: int = 1_000) -> tuple[list[str], Gossip]:
    """A node that has heard of all others, one after the other."""
    names = [f"node-{number:0>15}" for number in range(nodes)]
    gossip = Gossip(names[0], None, BEGAN, 0.0)
    gossip.change_members(reversed(names))
    for number, name in enumerate(names[1:], 1):
        gossip.receive(Rumours(node=name, roster=digest_of(names), beats={name: BEGAN + 2 * number}), number / 1_000)
    return names, gossip


def test_a_thousand_heartbeats_fit_into_one_message_for_who_has_the_same_members() -> None:
    names, gossip = large()
    question = gossip.tick(1.1, random.Random(1))[0][1]
    assert question.beats == {names[0]: BEGAN + 2}, "the own one can be read by anybody"
    assert unpacked(question.table) == (BEGAN + 2, *(BEGAN + 2 * number for number in range(1, 1_000)))
    other = Gossip(names[1], None, BEGAN, 0.0)
    other.change_members(names)
    answer = other.receive(read(encode(question)), 1.1)
    assert other.beats[names[999]] == BEGAN + 2 * 999 and not other.counts["other_rosters"]
    assert answer is not None and gossip.receive(read(encode(answer)), 1.2) is None
    assert len(encode(question)) < 8 * 1_000 + 500


def test_who_has_other_members_answers_by_name_and_is_asked_by_name() -> None:
    names, gossip = large()
    question = gossip.tick(1.1, random.Random(1))[0][1]
    other = Gossip(names[1], None, BEGAN, 0.0)
    other.change_members(names[:900])
    answer = other.receive(question, 1.1)
    assert answer is not None and not answer.table and names[1] in answer.beats
    assert other.counts["other_rosters"] == 1 and not other.counts["absurd"]
    assert other.beats[names[0]] == gossip.beat and other.beats[names[2]] == 0, "nothing was taken for another's"
    gossip.receive(answer, 1.2)
    question = gossip.tick(1.3, random.Random(1))[0][1]
    assert not question.table and len(question.beats) > 300
    other.receive(question, 1.35)
    other.change_members(names)
    assert other.tick(1.35, random.Random(1))[0][1].table, "who has heard of a change expects that of the others"
    other.change_members(names[:900])
    other.receive(question, 1.4)
    assert other.beats[names[2]] == BEGAN + 4 and other.tick(1.5, random.Random(1))[0][1].table == b""
    other.change_members(names)
    assert gossip.receive(other.tick(1.6, random.Random(1))[0][1], 1.6).table, "as soon as they agree"  # type: ignore[union-attr]
    assert gossip.tick(1.7, random.Random(1))[0][1].table


def test_a_table_that_is_wrong_changes_nothing() -> None:
    names, gossip = large()
    before, roster = dict(gossip.beats), digest_of(names)
    lowest = [1] * len(names)
    tables = [
        lowest[:-1],
        [*lowest, 1],
        [*lowest[:-1], BEGAN * 10],
        [*lowest[:-1], BEAT_MAX + 1],
        [(1 << 48) - 1] * 1_000,
    ]
    for table in tables:
        assert gossip.receive(Rumours(node=names[5], roster=roster, asks=True, table=packed(table)), 2.0) is None
    assert gossip.counts["absurd"] == len(tables) and gossip.beats == before
    gossip.receive(Rumours(node=names[5], table=packed([BEGAN + 10**6] * 1_000)), 2.0)
    assert gossip.counts["other_rosters"] == 1 and gossip.beats == before
    last = Gossip("a", None, BEAT_MAX - 9, 0.0)
    last.change_members(["a", "b"])
    last.receive(Rumours(node="b", roster=digest_of("ab"), table=packed([0, BEAT_MAX + 1])), 2.0)
    assert last.counts["absurd"] == 1


def test_a_table_is_its_numbers_in_six_bytes_each() -> None:
    numbers = [0, 1, 255, 256, BEGAN, BEAT_MAX]
    assert unpacked(packed(numbers)) == tuple(numbers)
    assert packed([1, BEAT_MAX]) == b"\1\0\0\0\0\0" + BEAT_MAX.to_bytes(6, "little")
    assert unpacked(b"") == ()
    with pytest.raises(ValueError, match="a table of 7 bytes"):
        unpacked(bytes(7))
    assert digest_of(["a", "b"]) != digest_of(["ab"]) and len(digest_of([])) == 16


def test_what_does_not_fit_by_name_is_what_is_asked_about_least() -> None:
    names, gossip = large()
    gossip.receive(Rumours(node=names[500], roster="another"), 1.1)
    beats = gossip.tick(1.1, random.Random(1))[0][1].beats
    assert names[1] in beats, "heard of the longest ago"
    assert names[-1] in beats, "heard of last"
    assert names[500] not in beats


def base64(what: bytes) -> str:
    return b64encode(what).decode()


def garbage() -> list[bytes]:
    good: dict[str, Any] = msgspec.to_builtins(
        Rumours(node="b", asks=True, beats={"b": 5}, vitals=(Vitals("b", 5, 1, "up", "z"),))
    )
    wrong: list[dict[str, Any]] = [
        {**good, "type": "gossip/2"}, {**good, "unknown": 1}, {**good, "node": ""}, {**good, "node": "x" * 64},
        {**good, "beats": {"b": 10**14}}, {**good, "beats": {"b": 0.5}}, {**good, "beats": {"": 5}},
        {**good, "beats": {"b": -5}}, {**good, "roster": "x" * 17}, {**good, "roster": 5}, {**good, "table": "AAAA"},
        {**good, "table": "no base64"}, {**good, "table": [5, 7]}, {**good, "table": base64(bytes(16 * 1024 + 2))},
        {**good, "vitals": [["b", 5, 1, "dancing"]]}, {**good, "vitals": [["b", 5, -1, "up"]]},
        {**good, "vitals": [[*good["vitals"][0], 1, 1, 1, 1, 1, 1, 1]]}, {**good, "vitals": 5},
    ]  # fmt: skip
    big = encode({**good, "beats": {f"n{number}": number for number in range(3_000)}})
    return [b"", b"{", b"\xff", b"[" * 10_000, big, *(encode(one) for one in wrong)]


@pytest.mark.parametrize("payload", garbage())
def test_garbage_is_refused(payload: bytes) -> None:
    with pytest.raises(Unreadable):
        read(payload)


def test_what_strangers_say_counts_for_nothing() -> None:
    gossip = Gossip("a", None, BEGAN, 0.0)
    gossip.change_members(["a", "b"])
    assert gossip.receive(Rumours(node="x", asks=True, beats={"b": -9}), 0.1) is None
    gossip.receive(Rumours(node="b", beats={"x": 5}, vitals=(Vitals("x", 5, 1, "up"),)), 0.2)
    assert gossip.view(0.2).keys() == {"a", "b"} and gossip.state_of("b") == "joining"
    assert gossip.counts["strangers"] == 2


def test_no_heartbeat_is_taken_that_its_node_could_not_rise_above() -> None:
    few = Few("a", "b", "c")
    few.begin("c", 5)  # a machine without a clock
    few.run(10)
    assert few.state("c") == {"up"} and few.nodes["c"].away == ()
    few.nodes["a"].receive(Rumours(node="b", beats={"b": BEAT_MAX}), few.now)
    few.nodes["a"].receive(Rumours(node="b", beats={"c": BEAT_MAX - 1}), few.now)
    assert few.nodes["a"].counts["absurd"] == 2 and few.nodes["a"].away == ()
    few.nodes["a"].receive(Rumours(node="b", beats={"b": BEGAN + 10**11}), few.now)
    few.run(5)
    assert few.state("b") == {"up"} and few.nodes["b"].vitals.generation > BEGAN + 10**11
    for generation in (BEAT_MAX, few.nodes["b"].vitals.generation, few.nodes["b"].vitals.generation + 10**9):
        lie = Vitals("b", generation, 9, "leaving")
        few.nodes["a"].receive(Rumours(node="c", vitals=(lie,)), few.now)
        few.run(5)
        assert few.state("b") == {"up"}, generation


def test_figures_are_told_now_and_then_and_states_at_once() -> None:
    gossip = Gossip("a", None, BEGAN, 0.0)
    gossip.change_members([f"n{number}" for number in range(500)])
    gossip.tell("up", load=1)
    told = []
    for tick in range(1, int(12 / GOSSIP_SECONDS)):
        gossip.tick(tick * GOSSIP_SECONDS, random.Random(1))
        gossip.tell("up", load=tick + 1)
        told.append(gossip.vitals.load)
    assert len(set(told)) == 3, "every five seconds with five hundred nodes"
    gossip.tell("leaving", load=0)
    assert gossip.vitals.state == "leaving"
