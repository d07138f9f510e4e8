"""Once everything works again, nothing waits any longer: no write, no change, no sync; and syncs came to an end."""

from __future__ import annotations

from simulator.checkers import Checker


class Liveness(Checker):
    """Looks once, in the end."""

    def __init__(self, agents) -> None:  # type: ignore[no-untyped-def]
        self.agents = agents

    def healed(self) -> None:
        for agent in self.agents:
            if agent.pending is not None:
                self.fail(f"{agent.name} still waits for an answer to {agent.pending}")
        if not self.cluster.register.settled:
            self.fail(f"a change of the membership never ends: {self.cluster.register.membership}")
        for node in self.cluster.nodes.values():
            now = self.cluster.register.membership
            if node.running and now.refuses(node.name):
                self.fail(f"{node.name} was given up as dead, and runs")
            if not node.running and (node.name not in now.nodes or now.refuses(node.name)):
                continue
            if not node.serving:
                self.fail(f"{node.name} does not serve")
            for number, partition in node.replica.partitions.items():
                if partition.waiting or partition.waiting_changes:
                    self.fail(f"{node.name} holds back {partition.waiting_changes} changes of partition {number}")
                if node.replica.quorums[number].waiting:
                    self.fail(f"writes wait for their quorum on {node.name}: {node.replica.quorums[number].waiting}")
            if node.replica.unsettled:
                self.fail(f"{node.name} never settled {sorted(node.replica.unsettled)}")
