"""The register of who holds which partition moves in steps, and a replica acts on each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations, pairwise
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from crdt_spine.core.causality import Vector
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.membership import (
    Kind,
    Member,
    Membership,
    Settings,
    described,
    founded,
    from_json,
    to_json,
)
from crdt_spine.core.membership_changes import proposed
from crdt_spine.core.membership_steps import Goals, advance, goals
from crdt_spine.core.messages import Ack, Announcement, Change, Delta, Store, encode
from crdt_spine.core.partition import Partition
from crdt_spine.core.placement import placed
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica
from crdt_spine.errors import InvalidInput

NOW = 1_700_000_000_000
LEVEL: dict[int, Vector] = {number: {"x": 3} for number in range(1_024)}


def cluster(count: int, partitions: int = 8, factor: int = 3) -> Membership:
    """Nodes a, b, c …"""
    names = "abcdefgh"[:count]
    replicas = placed(partitions, names, factor, {})
    return founded(replicas, {name: Member() for name in names}, Settings(partitions=partitions, factor=factor))


def everybody(membership: Membership, but: str = "") -> dict[str, int]:
    return {node: membership.epoch for node in membership.nodes if node != but}


def said(membership: Membership, **others: dict[int, Vector]) -> dict[str, dict[int, Vector]]:
    """What the nodes announce: all are level, but for `others`."""
    return dict.fromkeys(membership.nodes, LEVEL) | others


def said_unevenly(membership: Membership, level: set[int]) -> dict[str, dict[int, Vector]]:
    """In all other partitions each node has something that no other has."""
    return {
        node: {number: LEVEL[number] if number in level else {node: 1} for number in membership.seats}
        for node in membership.nodes
    }


def holders(membership: Membership) -> dict[int, dict[str, int]]:
    """Who has a seat in each partition, and since which epoch."""
    return {number: {node: seat.since for node, seat in seats.items()} for number, seats in membership.seats.items()}


def stepped(membership: Membership) -> Membership:
    """The next step, with everybody confirming and level."""
    after = Goals().step(membership, everybody(membership), said(membership), 2)
    assert after is not None and after.epoch == membership.epoch + 1
    return after


def steps(membership: Membership) -> list[Membership]:
    """The change, step by step, to its end."""
    way = [membership]
    while way[-1].change is not None:
        way.append(stepped(way[-1]))
        assert len(way) < 20, f"it does not end: {way[-1]}"
    return way


def sets(membership: Membership) -> dict[int, set[str]]:
    return {number: set(nodes) for number, nodes in membership.replicas().items()}


def stages(membership: Membership, node: str) -> set[str | None]:
    """How far the node is with the partitions that the change is to give it, or to take from it."""
    assert membership.change is not None
    return {membership.stage(number, node) for number in membership.change.moves}


THREE = cluster(3)


def test_partitions_join_all_at_once_named_then_pulling_then_counting_and_only_then_does_anybody_leave() -> None:
    asked = proposed(THREE, "add", "d", Member(host="h", port=1))
    assert asked.seats == THREE.seats, "a proposal gives nobody a seat: not all may have confirmed what was before it"
    assert asked.change is not None and asked.change.total == len(asked.change.moves) == 6
    named, pulling, member, leaving, over = steps(asked)[1:]
    assert stages(named, "d") == {"named"} and named.peers_of("d") == {}
    assert all("d" in peers for number, peers in named.peers_of("a").items() if number in named.moving())
    assert stages(pulling, "d") == {"pulling"} and pulling.peers_of("d").keys() == pulling.moving().keys()
    assert all(muted == {"d"} for number, muted in pulling.muted().items() if number in pulling.moving())
    assert stages(member, "d") == {"member"} and member.moving() == {}
    assert {stage for _, stage in leaving.moving().values()} == {"leaving"}
    assert over.change is None and over.members.keys() == {*"abcd"} and over.moving() == {}
    assert {len(nodes) for nodes in over.replicas().values()} == {3}


def test_nothing_follows_before_everybody_has_confirmed() -> None:
    for membership in steps(proposed(cluster(4), "replace", "e", goes="b"))[:-1]:
        for node in membership.nodes:
            goals_of_all = goals(membership, said(membership))
            late = everybody(membership, but=node)
            assert membership.unconfirmed(late) == [node]
            assert advance(membership, late, goals_of_all, said(membership), 2) is None
            assert Goals().step(membership, late, said(membership), 2) is None


def test_a_newcomer_counts_partition_by_partition_once_it_has_what_the_others_had() -> None:
    pulling = steps(proposed(THREE, "add", "d"))[2]
    assert pulling.change is not None
    first, *rest = pulling.change.moves
    durable = said(pulling, a={**LEVEL, first: {"x": 3, "y": 1}})
    assert goals(pulling, durable)[first] == {"x": 3, "y": 1}
    after = advance(pulling, everybody(pulling), goals(pulling, durable), durable, 2)
    assert after is not None
    assert after.stage(first, "d") == "pulling"
    assert {after.stage(number, "d") for number in rest} == {"member"}


def test_what_is_not_known_of_all_is_no_goal() -> None:
    pulling = steps(proposed(THREE, "add", "d"))[2]
    known = said(pulling)
    del known["b"]
    assert goals(pulling, known) == {}
    assert advance(pulling, everybody(pulling), {}, said(pulling), 2) is None


def test_a_goal_is_kept_while_more_is_written_and_set_anew_when_it_is_forgotten() -> None:
    pulling = steps(proposed(THREE, "add", "d"))[2]
    ahead: dict[int, Vector] = {number: {"x": 4} for number in LEVEL}
    same = Goals()
    assert same.step(pulling, everybody(pulling), said(pulling, d={number: {} for number in LEVEL}), 2) is None
    now = said(pulling, a=ahead)
    assert same.step(pulling, everybody(pulling), now, 2) is not None
    assert Goals().step(pulling, everybody(pulling), now, 2) is None


def test_nobody_leaves_before_who_came_has_what_a_majority_without_it_may_have_had() -> None:
    member = steps(proposed(THREE, "add", "d"))[3]
    assert member.change is not None and stages(member, "d") == {"member"}
    number, *rest = member.change.moves
    durable = said(member, a={**LEVEL, number: {"x": 4}}, b={**LEVEL, number: {"x": 4}})
    after = advance(member, everybody(member), goals(member, durable), durable, 2)
    assert after is not None and number not in after.moving() and after.moving().keys() == {*rest}


def test_who_leaves_is_dropped_once_enough_others_and_a_majority_have_what_it_had() -> None:
    leaving = steps(proposed(THREE, "add", "d"))[4]
    assert leaving.change is not None
    number, move = next(iter(leaving.change.moves.items()))
    goer = str(move.frm)
    others = sorted({*"abcd"} - {goer})
    ahead: dict[int, Vector] = {other: {"x": 4} for other in LEVEL}
    wanted = {number: {"x": 4}}

    def dropped(*having: str, enough: int = 2) -> bool:
        known = said(leaving, **dict.fromkeys(having, ahead))
        after = advance(leaving, everybody(leaving), wanted, known, enough)
        return after is not None and after.stage(number, goer) is None

    assert goals(leaving, said(leaving, **{goer: ahead}))[number] == {"x": 4}
    assert not dropped(goer) and not dropped(goer, others[0])
    assert not dropped(others[0], enough=1), "a later majority need not have it"
    assert dropped(others[0], others[1])


def test_what_was_written_by_who_had_not_heard_of_the_leaving_is_handed_over_too() -> None:
    leaving = steps(proposed(THREE, "add", "d"))[4]
    assert leaving.change is not None
    number, move = next(iter(leaving.change.moves.items()))
    writer, *others = sorted({*"abcd"} - {str(move.frm)})
    known = said(leaving, **{writer: {**LEVEL, number: {"x": 3, "y": 1}}})  # the leaver said its word before that
    assert goals(leaving, known)[number] == {"x": 3, "y": 1}
    after = advance(leaving, everybody(leaving), goals(leaving, known), known, 2)
    assert after is not None and after.stage(number, str(move.frm)) == "leaving"
    known[others[0]] = known[writer]
    done = advance(leaving, everybody(leaving), goals(leaving, known), known, 2)
    assert done is not None and done.stage(number, str(move.frm)) is None


def test_a_newcomer_is_not_settled_before_it_takes_part_in_strong_operations() -> None:
    """Once a change was over before its newcomer had heard what was promised. The next node died, and there was nobody
    left to tell it: strong operations had no majority until the dead one was back."""
    joined = next(one for one in steps(proposed(THREE, "add", "d")) if "member" in (one.stage(n, "d") for n in LEVEL))
    assert joined.change is not None
    member = [number for number in joined.change.moves if joined.stage(number, "d") == "member"]
    assert member
    same = Goals()
    assert same.step(joined, everybody(joined), said(joined), 2, member) is None
    some = same.step(joined, everybody(joined), said(joined), 2, member[:1])
    assert some is not None
    leavers = {number: str(joined.change.moves[number].frm) for number in member}
    assert {number for number, frm in leavers.items() if some.stage(number, frm) == "member"} == {member[0]}
    assert same.step(joined, everybody(joined), said(joined), 2) is not None
    leaving = steps(proposed(THREE, "add", "d"))[4]
    assert "leaving" in {leaving.stage(number, frm) for number, frm in leavers.items()}
    for dead in (False, True):  # a newcomer that is turned back has nothing to hear any more
        back = proposed(leaving, "cancel", goes="d" if dead else "", dead=dead, by="x", now=1)
        for _ in range(12):
            if back.change is None:
                break
            after = Goals().step(back, everybody(back), said(back), 2, member)
            assert after is not None
            back = after
        assert back.change is None


def test_a_goal_that_nobody_can_reach_any_more_is_set_anew() -> None:
    pulling = steps(proposed(THREE, "add", "d"))[2]
    lost = said(pulling, a={number: {"x": 4} for number in LEVEL})
    same = Goals()
    assert same.step(pulling, everybody(pulling), lost, 2) is None
    assert same.step(pulling, everybody(pulling), said(pulling), 2) is not None, "the disk of a is an older one now"


def test_who_goes_has_dropped_everything_before_it_is_no_member_any_more() -> None:
    way = steps(proposed(cluster(4), "remove", goes="b"))
    last, over = way[-2], way[-1]
    assert "b" in last.members and last.peers_of("b") == {} and last.unconfirmed(everybody(last, but="b")) == ["b"]
    assert "b" not in over.members and over.gone == {"b": over.epoch} and not over.refuses("b")
    again = proposed(over, "add", "b")
    assert again.gone == {} and "b" in again.members, "it may come back"


def test_the_progress_is_told() -> None:
    way = steps(proposed(THREE, "add", "d", by="nonce", now=NOW))
    assert [one.progress() for one in way] == [(0, 6)] * 5 + [(0, 0)]
    report = way[2].report(everybody(way[2], but="c"))
    assert report["change"]["moving"] == {str(number): "d pulling" for number in way[2].moving()}
    assert (report["change"]["done"], report["change"]["total"], report["change"]["waits_for"]) == (0, 6, ["c"])
    assert described(way[2]) == "d is being added (0 of 6 partitions have moved; begun by nonce)"
    assert way[-1].report({})["change"] is None
    msgspec.json.encode(report)


def test_what_is_refused_says_why_and_changes_nothing() -> None:
    four = cluster(4)
    moving = steps(proposed(four, "remove", goes="b", by="nonce"))[3]
    buried = steps(proposed(four, "remove", goes="b", dead=True))[-1]
    turned = proposed(moving, "cancel", goes="c", dead=True)
    there = replace(four, members={**four.members, "a": Member(host="h", port=8788)})
    refused: list[tuple[str, Membership, dict[str, Any]]] = [
        (
            "b is being removed (0 of 6 partitions have moved; begun by nonce): wait",
            moving,
            {"kind": "add", "node": "e"},
        ),
        ("is in the cluster already", four, {"kind": "add", "node": "d"}),
        ("is in the cluster already", four, {"kind": "replace", "node": "d", "goes": "a"}),
        ("no id for a node", four, {"kind": "add", "node": "-x"}),
        ("no id for a node", four, {"kind": "add", "node": ""}),
        ("no id for a node", four, {"kind": "add", "node": "x" * 64}),
        ("not in the cluster: name one of a, b, c, d", four, {"kind": "remove", "goes": "e"}),
        ("every partition is kept on 3: add a node first", THREE, {"kind": "remove", "goes": "a"}),
        ("every partition is kept on 3: add a node first", THREE, {"kind": "remove", "goes": "a", "dead": True}),
        ("belongs to remove, replace, cancel", four, {"kind": "add", "node": "e", "dead": True}),
        ("given up as dead", buried, {"kind": "add", "node": "b"}),
        ("address of a already", there, {"kind": "add", "node": "e", "member": Member(host="h", port=8788)}),
        ("address of a already", there, {"kind": "add", "node": "e", "member": Member(host="H.", port=8788)}),
        ("nothing to cancel", four, {"kind": "cancel"}),
        ("turned back already", proposed(moving, "cancel"), {"kind": "cancel"}),
        ("for a node that died meanwhile", moving, {"kind": "cancel", "goes": "b"}),
        ("not in the cluster", moving, {"kind": "cancel", "dead": True}),
        ("c is given up already", turned, {"kind": "cancel", "goes": "c", "dead": True}),
        ("is no change of the cluster", four, {"kind": "rename", "node": "e"}),
    ]
    for reason, membership, asked in refused:
        before = to_json(membership)
        with pytest.raises(InvalidInput) as error:
            proposed(membership, **asked)
        assert reason in str(error.value), asked
        assert to_json(membership) == before


CHANGES: list[tuple[int, dict[str, Any]]] = [
    (3, {"kind": "add", "node": "h"}),
    (5, {"kind": "add", "node": "h"}),
    (4, {"kind": "remove", "goes": "b"}),
    (6, {"kind": "remove", "goes": "b"}),
    (3, {"kind": "replace", "node": "h", "goes": "b"}),
    (5, {"kind": "replace", "node": "h", "goes": "b"}),
]


def check_step(before: Membership, after: Membership, factor: int = 3) -> None:
    """What holds at every step of every change."""
    for number, seats in after.seats.items():
        moving = [node for node, seat in seats.items() if seat.stage != "member"]
        assert len(moving) <= 1, f"{moving} in {number} at once"
        living = [node for node, seat in seats.items() if seat.stage == "member" and node not in after.dead]
        dead = seats.keys() & {*after.dead}  # an operator left it there, when something else was more urgent
        lost = set(before.replicas()[number]) - set(living) - dead
        assert len(living) + len(dead) >= factor or not lost, f"partition {number} is on {living}, without {lost}"
    assert from_json(to_json(after)) == after


@pytest.mark.parametrize(("count", "change"), CHANGES)
def test_every_change_keeps_as_many_replicas_and_ends_even(count: int, change: dict[str, Any]) -> None:
    way = steps(proposed(cluster(count, 24), **change))
    for before, after in pairwise(way):
        check_step(before, after)
    shares = Counter(node for nodes in way[-1].replicas().values() for node in nodes)
    assert {len(nodes) for nodes in way[-1].replicas().values()} == {3}
    assert shares.keys() == way[-1].members.keys() and max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.parametrize(("count", "change"), CHANGES)
def test_a_change_is_turned_back_from_any_point_and_everything_is_where_it_was(
    count: int, change: dict[str, Any]
) -> None:
    whole = cluster(count, 24)
    for step in steps(proposed(whole, **change))[:-1]:
        assert step.change is not None
        for done in (set(), set(sorted(step.change.moves)[::2])):
            halfway = ahead_by(step, done)
            back = proposed(halfway, "cancel")
            assert holders(back) == holders(halfway)
            way = [halfway, *steps(back)]
            for before, after in pairwise(way):
                check_step(before, after)
            assert sets(way[-1]) == sets(whole) and way[-1].members == whole.members
            turned_away = {change.get("node")} - {None}
            assert way[-1].gone.keys() == turned_away


def ahead_by(membership: Membership, some: set[int]) -> Membership:
    """The same change when some of its partitions are level, and go on, while others are not."""
    for _ in range(4):
        after = Goals().step(membership, everybody(membership), said_unevenly(membership, some), 2)
        if after is None or after.change is None:
            break
        membership = after
    return membership


def test_partitions_that_are_level_go_on_while_others_are_not_and_are_turned_back_all_the_same() -> None:
    named = steps(proposed(THREE, "add", "d"))[1]
    some = set(list(named.moving())[:3])
    halfway = ahead_by(named, some)
    assert halfway.progress() == (3, 6) and halfway.change is not None and halfway.change.done.keys() == some
    assert stages(halfway, "d") == {"pulling"}
    assert all("d" in halfway.replicas()[number] for number in some)


def test_nobody_waits_for_the_dead_and_it_counts_for_nothing() -> None:
    four = cluster(4)
    asked = proposed(four, "remove", goes="b", dead=True)
    assert asked.refuses("b") and asked.gone == {"b": asked.epoch}
    assert asked.unconfirmed(everybody(asked, but="b")) == []
    assert all("b" not in nodes for nodes in asked.replicas().values())
    assert all("b" in asked.muted()[number] for number in four.peers_of("b"))
    assert asked.counted("b", 99, LEVEL) == {}
    way = [asked]
    while way[-1].change is not None:
        now = way[-1]
        known = {node: vectors for node, vectors in said(now).items() if node != "b"}
        after = Goals().step(now, everybody(now, but="b"), known, 2)
        assert after is not None
        check_step(now, after)
        assert now.change is not None
        kept = {n for n in now.peers_of("b") if now.stage(n, str(now.change.moves[n].to)) != "member"}
        assert kept <= after.peers_of("b").keys(), "its seats go once another node has the partition"
        way.append(after)
    assert "b" not in way[-1].nodes and way[-1].refuses("b")
    assert {len(nodes) for nodes in way[-1].replicas().values()} == {3}


def test_when_the_newcomer_dies_as_well_it_is_turned_away_without_its_word() -> None:
    for step in steps(proposed(THREE, "add", "d"))[:-1]:
        back = proposed(step, "cancel", dead=True)
        way = [step, back]
        while way[-1].change is not None:
            now = way[-1]
            known = {node: vectors for node, vectors in said(now).items() if node != "d"}
            after = Goals().step(now, everybody(now, but="d"), known, 2)
            assert after is not None
            way.append(after)
        assert sets(way[-1]) == sets(THREE) and way[-1].refuses("d") and way[-1].members == THREE.members


def test_what_came_from_a_dead_node_stays_where_it_is_when_the_change_is_turned_back() -> None:
    named = steps(proposed(THREE, "replace", "d", goes="b", dead=True))[1]
    some = set(list(named.moving())[:3])
    halfway = ahead_by(named, some)
    assert halfway.change is not None and halfway.change.done.keys() == some
    stopped = steps(proposed(halfway, "cancel"))[-1]
    assert stopped.peers_of("d").keys() == some and stopped.peers_of("b").keys() == stopped.seats.keys() - some
    assert stopped.members.keys() == {*"abcd"} and all("b" not in nodes for nodes in stopped.replicas().values())
    whole = steps(proposed(stopped, "replace", "e", goes="b"))[-1]
    assert whole.members.keys() == {*"acde"} and {len(nodes) for nodes in whole.replicas().values()} == {3}


def test_a_node_that_dies_while_another_goes_is_given_up_and_then_replaced() -> None:
    four = cluster(4)
    for step in steps(proposed(four, "remove", goes="b"))[:-2]:
        stopped = steps(proposed(step, "cancel", goes="c", dead=True))[-1]
        assert stopped.members.keys() == {*"abcd"} and stopped.refuses("c")
        assert stopped.peers_of("c") or all("c" not in nodes for nodes in sets(stopped).values())
        whole = steps(proposed(stopped, "replace", "e", goes="c"))[-1]
        assert whole.members.keys() == {*"abde"} and whole.moving() == {}
        assert {len(nodes) for nodes in whole.replicas().values()} == {3}


@pytest.mark.parametrize(("count", "change"), CHANGES)
@pytest.mark.parametrize("victim", ["a", "b", "h"])
def test_a_node_that_dies_while_a_change_is_turned_back_is_given_up_and_the_way_goes_on(
    count: int, change: dict[str, Any], victim: str
) -> None:
    whole = cluster(count, 24)
    for step in steps(proposed(whole, **change))[:-1]:
        for back in steps(proposed(step, "cancel"))[:-1]:
            if victim not in back.members:
                continue
            assert back.change is not None
            given_up = proposed(back, "cancel", goes=victim, dead=True)
            assert given_up.refuses(victim) and holders(given_up) == holders(back)
            assert given_up.change is not None and given_up.change.kind == "cancel"
            way = [back, given_up]
            while way[-1].change is not None:
                now = way[-1]
                known = {node: vectors for node, vectors in said(now).items() if node != victim}
                after = Goals().step(now, everybody(now, but=victim), known, 2)
                assert after is not None and len(way) < 20
                check_step(now, after)
                way.append(after)
            end = way[-1]
            assert end.moving() == {} and end.nodes == end.members.keys()
            assert whole.members.keys() <= end.members.keys() | {victim}
            assert all(len(seats) == 3 for seats in end.seats.values())
            if victim == "h":
                assert sets(end) == sets(whole) and victim not in end.members
            elif victim in end.members:  # its seats wait for somebody to take them
                fresh = steps(proposed(end, "replace", "g", goes=victim))[-1]
                assert all(len(seats) == 3 and victim not in seats for seats in fresh.seats.values())


def test_the_one_that_leaves_dies_and_the_change_is_stopped_without_it() -> None:
    four = cluster(4)
    for step in steps(proposed(four, "remove", goes="b"))[:-2]:
        turned = proposed(step, "cancel", goes="b", dead=True)
        assert described(turned).startswith("a change is turned back (")
        stopped = steps(turned)[-1]
        assert stopped.refuses("b") and stopped.moving() == {}
        if "b" in stopped.members:
            stopped = steps(proposed(stopped, "remove", goes="b", dead=True))[-1]
        assert stopped.members.keys() == {*"acd"}
        assert {len(nodes) for nodes in stopped.replicas().values()} == {3}


def test_the_report_names_who_is_turned_away_and_who_gets_its_partitions_back() -> None:
    halfway = steps(proposed(cluster(3, 24), "replace", "h", goes="b"))[3]
    back = proposed(halfway, "cancel")
    assert described(back).startswith("h is turned away and b gets its partitions back (")
    change = back.report({})["change"]
    assert (change["turned_away"], change["gets_back"]) == ("h", "b")
    assert (change["comes"], change["goes"]) == (None, None)
    forth = halfway.report({})["change"]
    assert (forth["comes"], forth["goes"], forth["turned_away"]) == ("h", "b", None)


def test_the_report_counts_what_each_member_holds() -> None:
    named = steps(proposed(THREE, "add", "d"))[1]
    held = {node: member["partitions"] for node, member in named.report({})["members"].items()}
    assert held == {"a": 8, "b": 8, "c": 8, "d": 0}
    over = steps(named)[-1]
    assert {member["partitions"] for member in over.report({})["members"].values()} == {6}


def majorities(nodes: Iterable[str]) -> list[set[str]]:
    return [set(some) for some in combinations(sorted(nodes), len({*nodes}) // 2 + 1)]


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["add", "remove", "replace"])
@pytest.mark.parametrize("victim", ["a", "b", "h"])
def test_who_dies_while_a_change_is_not_settled_leaves_no_majority_without_what_one_had(
    factor: int, kind: Kind, victim: str
) -> None:
    """Of {a, b, c}, a and b have a write; h, which came for b, has it not. Then b is given up: c and h must be no
    majority of those who count."""
    comes, goes = ("" if kind == "remove" else "h"), ("" if kind == "add" else "b")
    forth = steps(proposed(cluster(factor + 1, 24, factor), kind, comes, goes=goes))[:-1]
    ways = [forth, *([step, *steps(proposed(step, "cancel"))[:-1]] for step in forth)]
    for before, now in [pair for way in ways for pair in pairwise(way)]:
        if victim not in now.nodes:
            continue
        after = proposed(now, "cancel", goes=victim, dead=True)
        for number, left in after.replicas().items():
            if victim in left:
                continue  # nobody else ever counted
            for had in majorities(before.replicas()[number]) + majorities(now.replicas()[number]):
                for asked in majorities(left):
                    assert asked & (had - {victim}), f"{asked} in {number} have nothing of what {had} had"


@pytest.mark.parametrize("factor", [3, 4, 5])
@pytest.mark.parametrize("gone", ["", "b"])
@pytest.mark.parametrize("victim", ["a", "c", "h"])
def test_who_dies_while_who_came_in_nobodys_place_is_not_settled_leaves_no_majority_without_what_one_had(
    factor: int, gone: str, victim: str
) -> None:
    """Of {a, b, c}, a and b have a write, and h, which makes them four, has it not. Then a dies: h and c must be no
    majority. The same where h comes for a node that is dead."""
    count = factor if gone else factor - 1
    asked = proposed(cluster(count, 4, factor), "replace" if gone else "add", "h", goes=gone, dead=bool(gone))
    way = steps(asked)
    if victim not in asked.members:
        return
    for before, now in pairwise(way[:-1]):
        after = proposed(now, "cancel", goes=victim, dead=True)
        for number, left in after.replicas().items():
            for had in majorities(before.replicas()[number]) + majorities(now.replicas()[number]):
                for some in majorities(left):
                    assert some & (had - {victim}), f"{some} in {number} have nothing of what {had} had"
    last = way[-2]
    assert {last.stage(number, "h") for number in last.seats} == {"member"}
    behind = said(last, h={number: {} for number in LEVEL})
    assert Goals().step(last, everybody(last), behind, 2) is None, "h has not what a majority without it may have had"


def test_who_came_in_nobodys_place_hands_over_what_it_has_before_it_counts_no_more() -> None:
    four = steps(proposed(cluster(3, 4, 4), "add", "d"))
    whole = four[-1]
    assert {len(nodes) for nodes in whole.replicas().values()} == {4}
    halfway = ahead_by(four[1], {0, 1})
    back = proposed(halfway, "cancel")
    assert stages(back, "d") == {"member", "pulling"}, "two are settled, two not"
    alone = said(back, **{node: {number: {} for number in LEVEL} for node in "bc"})
    after = Goals().step(back, everybody(back), alone, 2)
    assert after is not None and after.stage(2, "d") is None, "it has counted for nothing"
    assert after.stage(0, "d") == "member", "only a has what d has"
    end = steps(after)[-1]
    assert sets(end) == sets(cluster(3, 4, 4)) and end.gone.keys() == {"d"}


def test_the_seat_of_who_died_is_dropped_once_nothing_stands_on_one_disk_only_because_of_that() -> None:
    counting = steps(proposed(cluster(3, 4, 4), "add", "d"))[3]
    assert stages(counting, "d") == {"member"}
    turned = proposed(counting, "cancel", dead=True)
    alone = said(turned, **{node: {number: {} for number in LEVEL} for node in "bc"})
    assert Goals().step(turned, everybody(turned, but="d"), alone, 2) is None, "d and a had it"
    alone["b"] = LEVEL
    assert Goals().step(turned, everybody(turned, but="d"), alone, 2) is not None


def test_who_came_and_is_not_level_yet_when_a_node_dies_counts_again_once_it_is() -> None:
    came = steps(proposed(THREE, "replace", "d", goes="b"))[3]
    assert stages(came, "d") == {"member"} and stages(came, "b") == {"member"}
    given_up = proposed(came, "cancel", goes="b", dead=True)
    assert stages(given_up, "d") == {"leaving"} and {*given_up.replicas()[0]} == {*"ac"}
    pulling = stepped(given_up)
    assert stages(pulling, "d") == {"pulling"} and {*pulling.replicas()[0]} == {*"ac"}
    known = {node: vectors for node, vectors in said(pulling).items() if node != "b"}
    empty = {**known, "d": {number: {} for number in LEVEL}}
    assert Goals().step(pulling, everybody(pulling, but="b"), empty, 2) is None
    level = Goals().step(pulling, everybody(pulling, but="b"), known, 2)
    assert level is not None and {*level.replicas()[0]} == {*"acd"}
    assert steps(level)[-1].members.keys() == {*"acd"}


def test_who_came_and_is_not_level_yet_when_another_node_dies_hands_over_and_goes() -> None:
    came = steps(proposed(THREE, "replace", "d", goes="b"))[3]
    given_up = proposed(came, "cancel", goes="a", dead=True)
    assert stages(given_up, "d") == {"leaving"} and {*given_up.replicas()[0]} == {*"bc"}
    alone = said(given_up, d={number: {"d": 1} for number in LEVEL})
    assert Goals().step(given_up, everybody(given_up, but="a"), alone, 2) is None, "d alone has something"
    end = steps(given_up)[-1]
    assert {*end.replicas()[0]} == {*"bc"} and "a" in end.seats[0], "its seat waits for somebody to take it"


def test_goals_are_of_one_change_though_another_makes_the_same_step() -> None:
    one, two = (steps(proposed(THREE, "add", "d", by=nonce))[2] for nonce in ("one", "two"))
    driver = Goals()
    early = {node: {number: {"x": 1} if node != "d" else {} for number in LEVEL} for node in "abcd"}
    assert driver.step(one, everybody(one), early, 2) is None
    behind = said(two, d={number: {"x": 2} for number in LEVEL})  # another driver brought the first one to its end
    assert driver.step(two, everybody(two), behind, 2) is None, "d has what there was then, not what there is now"


def test_the_replacement_of_a_dead_node_can_be_stopped_and_given_to_another() -> None:
    for step in steps(proposed(THREE, "replace", "d", goes="b", dead=True))[:-1]:
        stopped = steps(proposed(step, "cancel", dead=True))[-1]
        assert {*stopped.dead} == {"b", "d"} and {"a", "c"} <= stopped.members.keys()
        for gone, fresh in zip(sorted(stopped.members.keys() & {*stopped.dead}), "ef", strict=False):
            stopped = steps(proposed(stopped, "replace", fresh, goes=gone))[-1]
        assert {len(nodes) for nodes in stopped.replicas().values()} == {3}
        assert not stopped.members.keys() & {"b", "d"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(3, 6), st.integers(1, 8))
def test_whatever_operators_do_nothing_is_lost_and_all_ends_well(seed: int, count: int, partitions: int) -> None:
    chance, now = Random(seed), cluster(count, partitions)
    for _ in range(40):
        before = now
        if now.change is not None and chance.random() < 0.9:
            level = {number for number in now.seats if chance.random() < 0.7}
            now = Goals().step(now, everybody(now), said_unevenly(now, level), 2) or now
        else:
            kinds: list[Kind] = ["add", "remove", "replace"]
            kind: Kind = chance.choice(kinds) if now.change is None else "cancel"
            node = chance.choice("abcdefgh") if kind in ("add", "replace") else ""
            dead = kind != "add" and len(now.dead) < 2 and chance.random() < 0.2
            names_it = kind in ("remove", "replace") or (kind == "cancel" and dead and chance.random() < 0.7)
            goes = chance.choice("abcdefgh") if names_it else ""
            try:
                now = proposed(now, kind, node, goes=goes, dead=dead)
            except InvalidInput:
                continue
        check_step(before, now)
    end = steps(now)[-1]
    assert end.moving() == {} and end.nodes == end.members.keys()
    assert all(len(end.seats[number]) >= 3 for number in end.seats)


def test_what_a_node_said_before_it_was_dropped_does_not_count_once_it_is_named_again() -> None:
    added = steps(proposed(THREE, "add", "d"))[-1]
    gone = steps(proposed(added, "remove", goes="d"))[-1]
    again = steps(proposed(gone, "add", "d"))[1]
    number = next(iter(again.moving()))
    assert again.counted("d", gone.epoch, {number: {"x": 3}}) == {}
    assert again.counted("d", again.epoch, {number: {"x": 3}}) == {number: {"x": 3}}
    assert again.counted("a", 1, {number: {"x": 3}, 77: {}}) == {number: {"x": 3}}


def test_the_largest_register_is_read_as_it_was_written_and_fits_into_a_message() -> None:
    names = [f"{number:02d}".ljust(63, "n") for number in range(12)]
    replicas = placed(1_024, names, 3, {})
    members = {name: Member(host="h" * 253, port=65_535, zone="z" * 63) for name in names}
    whole = founded(replicas, members, Settings(partitions=1_024, factor=3))
    asked = proposed(whole, "replace", "x" * 63, Member(), goes=names[0])
    for step in steps(asked):
        raw = to_json(step)
        assert from_json(raw) == step
        assert len(raw) < 512 * 1024
    assert list(msgspec.json.decode(to_json(whole))["seats"])[:3] == ["0", "1", "2"]


class Shelf:
    """Records in a dictionary."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def get(self, id: str) -> Record | None:
        return self.records.get(id)

    def put(self, partition: int, record: Record) -> None:
        self.records[record.id] = record

    def drop(self, partition: int, id: str) -> None:
        del self.records[id]

    def changed(self, partition: int, have: object, after: str | None, limit: int) -> list[Record]:
        return []


def replica(node: str = "a", peers: tuple[str, ...] = ("b", "c")) -> Replica:
    return Replica(node, f"r/{node}@1", Shelf(), HybridClock(), {0: peers}, 2)


def store(one: Replica, acks: int | None = None) -> list[object]:
    """Write; the tickets that are done once it is durable here."""
    one.write(0, Store(i=1, id="m", content="text", acks=acks), "agent", "s-1", NOW, "ticket")
    return [waiting.ticket for waiting in one.persisted(one.end_turn())]


def acknowledged(one: Replica, node: str, n: int = 1) -> list[object]:
    return [waiting.ticket for waiting in one.ack(Ack(node=node, actor=one.actor, reached={0: n}))]


def test_who_joins_counts_for_no_quorum_until_it_is_a_member() -> None:
    one = replica()
    one.change_peers({0: ("b", "c", "d")}, {0: frozenset("d")})
    assert store(one) == []
    assert acknowledged(one, "d") == []
    done, lost = one.change_peers({0: ("b", "c", "d")}, {0: frozenset()})
    assert [waiting.ticket for waiting in done] == ["ticket"]
    assert lost == []


def test_all_of_the_replicas_are_those_that_count() -> None:
    one = replica()
    one.change_peers({0: ("b", "c", "d")}, {0: frozenset("d")})
    assert store(one, acks=9) == []
    assert acknowledged(one, "b") == []
    assert acknowledged(one, "c") == ["ticket"]


def test_a_tombstone_waits_for_who_joins_and_not_for_who_left() -> None:
    one = replica()
    store(one)
    said = {"b": {one.actor: 1}, "c": {one.actor: 1}}
    for node, vector in said.items():
        one.hear(Announcement(node=node, actor=f"r/{node}@1", state="up", now=NOW, vectors={0: vector}))
    partition = one.partitions[0]
    assert partition.stable(one.peers[0]) == {one.actor: 1}
    one.change_peers({0: ("b", "c", "d")}, {0: frozenset("d")})
    assert partition.stable(one.peers[0]) == {}
    one.change_peers({0: ("b",)}, {})
    assert partition.stable(one.peers[0]) == {one.actor: 1}
    one.change_peers({0: ("b", "c")}, {})  # back again: what it said before is forgotten
    assert partition.stable(one.peers[0]) == {}


def test_who_has_no_seat_any_more_is_given_no_page() -> None:
    one = replica()
    assert one.may_pull(0, "r/b@1") and one.may_pull(0, "r/b@7")
    one.change_peers({0: ("c",)}, {})
    assert not one.may_pull(0, "r/b@1"), "tombstones are dropped without waiting for it"
    assert one.may_pull(0, "elsewhere/b@1") and one.may_pull(0, ""), "a bridge, or who says nothing"


def test_what_is_held_back_of_a_dead_node_does_not_wait_for_what_is_lost_with_it() -> None:
    one = replica()
    change = Change(id="m", time=1, agent="agent", operation="s-1", alive=True, content="text")
    second = Delta(partition=0, actor="r/b@1", first=2, deps={}, changes=[change])
    for others, muted in ((("b", "c"), frozenset("b")), (("c",), frozenset[str]())):
        one.change_peers({0: ("b", "c")}, {})
        one.receive(second, encode(second), NOW)
        one.change_peers({0: ("b", "c")}, {})
        assert one.partitions[0].waiting_changes == 1, "it may come yet"
        one.change_peers({0: others}, {0: muted})
        assert not one.partitions[0].waiting and one.partitions[0].waiting_changes == 0


def test_a_partition_that_is_dropped_takes_nothing_any_more_and_begins_empty_when_it_comes_back() -> None:
    one, other = replica(), replica("b", ("a", "c"))
    store(one)
    other.write(0, Store(i=1, id="n", content="text"), "agent", "s-2", NOW, "ticket")
    ((number, raw),) = other.end_turn().deltas
    one.close([0])
    delta = Delta(partition=number, actor="r/b@1", first=1, deps={}, changes=[])
    assert one.receive(delta, raw, NOW)
    assert one.end_turn().empty
    done, lost = one.change_peers({}, {})
    assert (done, [waiting.ticket for waiting in lost]) == ([], ["ticket"])
    assert not one.partitions and not one.durable and not one.operations
    one.change_peers({0: ("b", "c")}, {0: frozenset("a")})
    assert one.partitions[0].vector == {} and isinstance(one.partitions[0], Partition)


def test_a_partition_is_not_dropped_while_something_of_it_is_not_durable() -> None:
    one = replica()
    one.write(0, Store(i=1, id="m", content="text"), "agent", "s-1", NOW, "ticket")
    one.close([0])
    with pytest.raises(AssertionError, match="not durable"):
        one.change_peers({}, {})
    turn = one.end_turn()
    with pytest.raises(AssertionError, match="not durable"):
        one.change_peers({}, {})
    one.persisted(turn)
    one.change_peers({}, {})


def test_messages_say_which_epoch_a_node_has_adopted() -> None:
    announcement = Announcement(node="a", actor="r/a@1", state="up", now=NOW, vectors={}, epoch=7)
    assert b'"epoch":7' in encode(announcement)
