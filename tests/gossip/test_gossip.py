"""Gossip of many nodes on virtual time; `make gossip` runs a thousand."""

from __future__ import annotations

import pytest
from gossip_world import World

KNOWN_SECONDS_MAX = 10.0
MESSAGES_MAX = 10.0  # a node and second, sent and taken
BYTES_MAX = 16 * 1024


def grown(nodes: int, seed: int, loss: float = 0.0, seconds: float = 15.0) -> World:
    """A world in which everybody has heard of everybody."""
    world = World(nodes, seed, loss=loss, wire=nodes < 20)
    world.run(seconds)
    return world


@pytest.mark.parametrize(("nodes", "seed", "loss"), [(3, 1, 0.0), (60, 2, 0.0), (100, 3, 0.1)])
def test_everybody_knows_of_a_death_within_ten_seconds(nodes: int, seed: int, loss: float) -> None:
    world = grown(nodes, seed, loss)
    gone = world.members[nodes // 2]
    world.kill(gone)
    assert world.run_until(lambda: not world.unaware(gone), KNOWN_SECONDS_MAX) is not None
    world.run(6)
    assert {gossip.state_of(gone) for gossip in world.nodes.values()} == {"down"}
    for name in world.nodes:
        assert (world.sent[name] + world.received[name]) / world.now <= MESSAGES_MAX
    assert world.largest < BYTES_MAX
    assert not world.false["down"]
    if not loss:
        assert not world.false["suspect"]


def test_who_has_other_members_hears_and_is_heard_nevertheless() -> None:
    world = World(156, 9, length=63)
    added, old, new = world.members[100], world.members[::2], world.members[1::2]
    for name in old:
        world.nodes[name].change_members(set(world.members) - {added})
    world.run(8)
    gone = world.members[7]
    world.kill(gone)
    assert world.run_until(lambda: not world.unaware(gone), KNOWN_SECONDS_MAX) is not None
    assert all(world.nodes[name].counts["other_rosters"] for name in (old[0], new[0]))
    assert world.largest < BYTES_MAX and not world.false["down"]
    for name in old:
        world.nodes[name].change_members(world.members)
    world.run(2)
    before = [gossip.counts["other_rosters"] for gossip in world.nodes.values()]
    world.run(2)
    assert before == [gossip.counts["other_rosters"] for gossip in world.nodes.values()]
    assert all(gossip.beats[added] for gossip in world.nodes.values()) and not world.believers(added)


def test_many_deaths_at_once_are_known_as_fast() -> None:
    world = grown(60, 4)
    crowd = world.dice.sample(world.members, 20)
    world.kill(*crowd)
    assert world.run_until(lambda: not any(world.unaware(name) for name in crowd), KNOWN_SECONDS_MAX) is not None
    assert not world.false["down"]


def test_a_cut_network_heals() -> None:
    world = grown(30, 5)
    world.cut(0.4)
    world.run(20)
    one = next(name for name in world.nodes if world.side.get(name))
    assert world.believers(one) == 18, "the other side takes it for dead"
    world.heal()
    assert world.run_until(lambda: not any(world.believers(name) for name in world.nodes), 10) is not None


def test_a_paused_node_suspects_nobody_and_is_up_again_everywhere_soon() -> None:
    world = grown(30, 6)
    name = world.members[7]
    world.pause(name)
    assert world.run_until(lambda: world.believers(name) == 29, 10) is not None
    world.run(30)
    world.resume(name)
    assert world.run_until(lambda: not world.believers(name), 5) is not None
    assert not world.nodes[name].away and not world.false


def test_a_new_process_of_a_dead_node_is_up_everywhere_soon() -> None:
    world = grown(30, 7)
    name = world.members[7]
    world.kill(name)
    world.run(20)
    world.start(name)
    assert world.run_until(lambda: not world.believers(name), 5) is not None
    assert world.run_until(lambda: world.nodes[name].away == (), 5) is not None


def test_a_node_that_stops_is_away_everywhere_soon_and_nobody_is_alarmed() -> None:
    world = grown(30, 8)
    name = world.members[7]
    world.stop(name)
    assert world.run_until(lambda: not world.unaware(name), 3) is not None
    world.run(15)
    assert not world.false["suspect"]
    world.remove(name)
    world.run(5)
    assert not any(name in gossip.view(world.now) for gossip in world.nodes.values())


def test_a_seed_is_one_run() -> None:
    def told(seed: int) -> tuple[object, ...]:
        world = World(10, seed, loss=0.1)
        world.run(10)
        return world.sent, world.bytes_sent, world.largest, [gossip.beat for gossip in world.nodes.values()]

    assert told(1) == told(1) != told(2)
