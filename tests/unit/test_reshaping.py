"""What operators are told of a change: whom it waits for, since when, what to do; and when it is what they wanted."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from crdt_spine.cli.cluster import shape_view
from crdt_spine.cli.moving import Moving, waits
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
