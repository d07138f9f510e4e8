"""What operators are told of a change: whom it waits for, since when, what to do; and when it is what they wanted."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from crdt_spine.cli.cluster import shape_view
from crdt_spine.cli.moving import Moving, waits
from crdt_spine.core.messages import NodeInfo
from crdt_spine.errors import InvalidInput
from crdt_spine.reshaping import Aim, Shape


def shape(not_heard: dict[str, float | None] | None = None, dead: tuple[str, ...] = (), **change: Any) -> Shape:
    """Of spine-1 to spine-4; a change is under way, where `change` says which."""
    missing = not_heard or {}
    whole = {
        "kind": "remove", "comes": None, "goes": None, "turned_away": None, "gets_back": None, "dead": False,
        "done": 12, "total": 48, "moving": {}, "waits_for": [], "what": "something is done",
    }  # fmt: skip
    names = [f"spine-{number}" for number in range(1, 5)]
    members = {name: {"host": "h", "port": 1, "partitions": 48, "coordinates": 16} for name in names}
    cluster = {"epoch": 7, "members": members, "dead": list(dead), "change": {**whole, **change} if change else None,
               "not_heard": missing}  # fmt: skip
    return Shape(cluster, frozenset(names) - missing.keys())


def drawn(one: Shape) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(shape_view(one))
    return capture.get()


def test_a_node_that_is_waited_for_and_not_heard_is_named_with_the_way_out_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = shape({"spine-3": 12.3}, kind="remove", goes="spine-3", waits_for=["spine-2", "spine-3"])
    assert waits(gone.cluster) == "waits for spine-2, spine-3 (not heard for 12 s)"
    with Moving("spine node …", quiet=False) as moving:
        for _ in range(3):
            moving.show(gone)
    said = capsys.readouterr().err
    assert said.count("spine-3 has not been heard for 12 s and has to confirm: start it, or") == 1
    assert said.count("    spine cluster cancel --dead spine-3    if it will not come back") == 1
    assert "spine-2 has not" not in said, "it is there, and will confirm"
    assert said.count("replicas moved") == 1
    assert "    spine cluster cancel --dead spine-3" in drawn(gone)


def test_a_newcomer_that_never_came_is_to_be_started_by_the_command_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Moving("spine node …", quiet=False) as moving:
        moving.show(shape({"spine-4": None}, kind="add", comes="spine-4", waits_for=["spine-4"]))
    assert "start it, with a cluster.yaml that names it: spine node …" in capsys.readouterr().err


def test_nobody_is_told_to_start_a_node_that_gets_its_partitions_back(capsys: pytest.CaptureFixture[str]) -> None:
    with Moving("spine node …", quiet=False) as moving:
        moving.show(shape({"spine-2": 9.0}, kind="cancel", turned_away="spine-4", gets_back="spine-2"))
    assert "start it" not in capsys.readouterr().err, "its word is not needed now"


def test_a_member_that_was_given_up_is_marked_and_what_is_left_to_do_is_said() -> None:
    told = drawn(shape({"spine-3": 99.0}, dead=("spine-3",)))
    assert told.count("● heard") == 3 and told.count("● dead") == 1
    assert "spine cluster remove spine-3" in told and "nothing is under way" in told
    assert told.count(" 48 ") == 4 and told.count(" 16\n") == 4


def test_a_cancel_without_a_dead_node_is_under_way_only_once_that_is_given_up() -> None:
    turned: dict[str, Any] = {"kind": "cancel", "turned_away": "spine-4", "gets_back": "spine-2"}
    alive, given_up = shape(**turned).cluster, shape(dead=("spine-2",), **turned).cluster
    assert Aim(kind="cancel").is_under_way(alive)
    assert not Aim(kind="cancel", dead=True).is_under_way(given_up), "it is the newcomer that is meant"
    assert not Aim(kind="cancel", goes="spine-2", dead=True).is_under_way(alive)
    assert Aim(kind="cancel", goes="spine-2", dead=True).is_under_way(given_up)
    assert Aim(kind="cancel", dead=True).is_under_way(shape(dead=("spine-4",), **turned).cluster)
    assert Aim(kind="cancel", goes="spine-2", dead=True).is_reached(shape(dead=("spine-2",)).cluster)


def newcomer(port: int = 9001, zone: str | None = "zone-1", role: Any = "primary") -> NodeInfo:
    return NodeInfo(id="spine-5", host="127.0.0.1", port=port, zone=zone, role=role)


@pytest.mark.parametrize("kind", ["add", "replace"])
def test_a_second_operator_with_another_address_zone_or_role_was_told_that_his_change_has_begun(kind: Any) -> None:
    goes = "" if kind == "add" else "spine-4"
    cluster = shape(kind=kind, comes="spine-5", goes=goes or None).cluster
    cluster["members"]["spine-5"] = {"host": "127.0.0.1", "port": 9001, "zone": "zone-1", "partitions": 0}
    first = Aim(kind=kind, comes=newcomer(), goes=goes)
    assert first.is_under_way(cluster) and first.contradiction(cluster) == ""
    for other, word in (
        (newcomer(port=7777), "127.0.0.1:7777 in zone zone-1 as a primary"),
        (newcomer(zone=None), "127.0.0.1:9001 in no zone as a primary"),
        (newcomer(role="replica"), "127.0.0.1:9001 in zone zone-1 as a replica"),
    ):
        second = Aim(kind=kind, comes=other, goes=goes)
        assert not second.is_under_way(cluster)
        told = second.contradiction(cluster)
        assert "at 127.0.0.1:9001 in zone zone-1 as a primary, and not at " + word in told


def test_who_gave_a_leaving_node_up_as_dead_was_told_that_it_has_begun_and_it_waited_for_that_node() -> None:
    leaving = shape(kind="remove", goes="spine-3", what="spine-3 is being removed").cluster
    aim = Aim(kind="remove", goes="spine-3", dead=True)
    assert not aim.is_under_way(leaving) and Aim(kind="remove", goes="spine-3").is_under_way(leaving)
    assert "`spine cluster cancel --dead spine-3`" in aim.contradiction(leaving)
    given_up = shape(kind="remove", goes="spine-3", dead=("spine-3",)).cluster
    given_up["change"]["dead"] = True
    assert aim.is_under_way(given_up)
    assert "as dead" in Aim(kind="remove", goes="spine-3").contradiction(given_up)
    assert Aim(kind="remove", goes="spine-2").contradiction(given_up) == "", "that is refused by the nodes"


def test_what_is_done_was_refused_when_it_was_asked_for_once_more() -> None:
    cluster = {**shape().cluster, "gone": ["spine-0"]}
    assert Aim(kind="remove", goes="spine-0").is_done_already(cluster)
    assert not Aim(kind="remove", goes="spine-4").is_done_already(cluster)
    assert not Aim(kind="remove", goes="nobody").is_done_already(cluster)
    assert not Aim(kind="cancel").is_done_already(cluster)
    there = NodeInfo(id="spine-4", host="h", port=1)
    assert Aim(kind="add", comes=there).is_done_already(cluster)
    assert Aim(kind="replace", comes=there, goes="spine-0").is_done_already(cluster)
    assert not Aim(kind="replace", comes=newcomer(), goes="spine-0").is_done_already(cluster)


def test_a_member_added_once_more_in_another_role_was_told_that_it_is_done() -> None:
    other = NodeInfo(id="spine-4", host="h", port=1, role="replica")
    with pytest.raises(InvalidInput, match="in no zone as a primary, and not at h:1 in no zone as a replica"):
        Aim(kind="add", comes=other).is_done_already(shape().cluster)
