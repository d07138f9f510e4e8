"""What goes wrong, and when: crashes between any two effects, pauses, links cut in one direction, broken syncs, clocks
that jump, full disks, an old disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.boundaries import DROPPED, MEMBERSHIP_BOUNDARIES
from simulator.network import FAIR

if TYPE_CHECKING:
    from simulator.cluster import Cluster
    from simulator.node import Node

CALM_MILLISECONDS = 15_000  # things break less and less often, or agents would never get anything done
CUT_MILLISECONDS_MAX = 8_000
DOOM_MILLISECONDS_MAX = 6_000  # a node that did not come to the boundary where it was to die dies then
CHANGE_MILLISECONDS_MAX = 20_000  # or then, where a change of the membership is awaited


class Faults:
    """Until `over`, something now and then. `counts` says what it was."""

    def __init__(
        self, cluster: Cluster, kinds: Sequence[str], pause_max: int, boundaries: Sequence[str], *, rollback: bool
    ) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.pause_max = pause_max
        self.boundaries = boundaries
        self.over = False
        self.resting = False
        self.counts: Counter[str] = Counter()
        self.kinds = [*kinds]
        if rollback:
            self.victim = self.world.random.choice(cluster.names)
            self.kinds += ["copy", "roll back", "roll back", "roll back"]
        cluster.on_crash = self._start_again
        self._pause()

    def _pause(self) -> None:
        calmer = 1 + self.world.now // CALM_MILLISECONDS
        self.world.after(self.world.between(1, self.pause_max * calmer), self._strike)

    def _strike(self) -> None:
        if self.over:
            return
        if self.resting:
            self._pause()
            return
        chance = self.world.random
        node = self.cluster.nodes[chance.choice(self.cluster.names)]
        kind = chance.choice(self.kinds)
        match kind:
            case "crash" if node.running and node.doomed is None:
                self._doom(node)
            case "part":
                self._part()
            case "mend":
                self.cluster.network.cut.clear()
                self.world.tell("network", "all links work")
            case "break off" if node.running:
                node.repair.break_off()
                node.tell("every pull breaks off")
            case "clock":
                node.skew = chance.choice([-3_600_000, -400, -100, 0, 0, 100, 400, 3_000])
                node.tell(f"its clock is now {node.skew} ms off")
            case "pause" if node.running and node.stopped is None:
                self._pause_node(node)
            case "desert" if not self.cluster.network.cut:
                self._desert(node)
            case "full disk" if not node.disk.full:
                node.disk.full = True
                node.tell("its disk is full")
                self.world.after(chance.randint(100, 3_000), lambda: self._make_room(node))
            case "copy":
                self.cluster.nodes[self.victim].disk.copy()
                self.world.tell(self.victim, "its disk is copied")
            case "roll back" if self._may_roll_back():
                self._roll_back(self.cluster.nodes[self.victim])
            case _:
                kind = "nothing"
        self.counts[kind] += 1
        self._pause()

    def _doom(self, node: Node) -> None:
        """It is to die at some boundary; at once, or once it has passed there a few times."""
        chance = self.world.random
        doom = (chance.choice(self.boundaries), chance.choice([0, 0, 1, 3]))
        moving = self.cluster.register.membership.moving().values()
        leaver = next((self.cluster.nodes[name] for name, stage in moving if stage == "leaving"), None)
        if doom[0] == DROPPED and leaver is not None and leaver.running:
            node, doom = leaver, (DROPPED, 0)  # nobody else will be dropped so soon
        node.doomed, life = doom, node.life

        def die() -> None:
            if node.alive(life) and node.doomed is not None:  # else it is healed
                node.crash("at some time")

        patience = CHANGE_MILLISECONDS_MAX if doom[0] in MEMBERSHIP_BOUNDARIES else DOOM_MILLISECONDS_MAX
        self.world.after(1 if chance.random() < 0.15 else patience, die)

    def _start_again(self, node: Node, where: str) -> None:
        self.world.after(self.world.between(10, 3_000), lambda: None if node.running else node.boot())

    def _pause_node(self, node: Node) -> None:
        life = node.life
        node.pause()
        self.world.after(self.world.between(10, 4_000), lambda: node.go_on() if node.alive(life) else None)

    def _make_room(self, node: Node) -> None:
        node.disk.full = False
        node.tell("its disk has room again")

    def _may_roll_back(self) -> bool:
        """An old disk is put in while the rest of the cluster is well and knows what the node had.

        Nor has any other node just got a record from it in a sync that is not over. A change that is in such a record,
        in nobody's vector, and then gone from its coordinator's disk, stays with the node that got it.
        """
        victim = self.cluster.nodes[self.victim]
        seated = self.cluster.register.membership.nodes
        others = [node for node in self.cluster.nodes.values() if node is not victim and node.name in seated]
        return (
            victim.serving
            and self.victim in seated
            and all(node.stopped is None and not node.disk.full for node in self.cluster.nodes.values())
            and victim.disk.backup is not None
            and all(node.serving and self.victim in node.repair.heard and not node.records_ahead() for node in others)
        )

    def _roll_back(self, node: Node) -> None:
        node.crash("for good")
        node.tell("its disk becomes what it was when it was copied")
        node.disk.roll_back()
        node.skew = 0  # else it refuses for an hour what it is to compare with
        node.disk_epoch += 1
        self.cluster.check("rolled_back", node)
        network = self.cluster.network
        network.cut.clear()
        self.resting, self.weather, network.weather = True, network.weather, FAIR
        self.world.after(100, lambda: self._rest_until_serving(node))

    def _rest_until_serving(self, node: Node) -> None:
        if node.serving:
            self.resting = False
            self.cluster.network.weather = FAIR if self.over else self.weather
        else:
            self.world.after(100, lambda: self._rest_until_serving(node))

    def _desert(self, node: Node) -> None:
        """Nobody reaches the node any more, but for agents, maybe for longer than a retirement takes."""
        names, network = self.cluster.names, self.cluster.network
        links = {(node.name, other) for other in names} | {(other, node.name) for other in names}
        network.cut |= links
        self.world.after(self.world.between(2_000, 9_000), lambda: network.cut.difference_update(links))
        node.tell("reaches no other node, nor is it reached")

    def _part(self) -> None:
        chance = self.world.random
        names = self.cluster.names
        if chance.random() < 0.5:
            links = {(chance.choice(names), chance.choice(names)) for _ in range(3)}
        else:
            alone = chance.choice(names)
            links = {(alone, other) for other in names} | {(other, alone) for other in names}
        network = self.cluster.network
        network.cut |= links
        self.world.after(chance.randint(100, CUT_MILLISECONDS_MAX), lambda: network.cut.difference_update(links))
        self.world.tell("network", f"cut: {', '.join(f'{a}→{b}' for a, b in sorted(links) if a != b)}")
