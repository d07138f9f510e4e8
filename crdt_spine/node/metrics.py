"""What a node's report says of its partitions: how far each is behind, how large it is, what agents ask of it."""

from __future__ import annotations

from typing import Any

from crdt_spine.core.replica import Replica
from crdt_spine.node.load import Load
from crdt_spine.node.replication import Replication
from crdt_spine.storage.engine import Engine


class Metrics:
    """Reads what the other parts count; nothing here looks at memories."""

    def __init__(self, replica: Replica, replication: Replication, engine: Engine, load: Load) -> None:
        self.replica = replica
        self.replication = replication
        self.engine = engine
        self.load = load

    def report(self) -> dict[str, Any]:
        """Totals, what repairs have taken since the node began, those under way, and each partition: memories, bytes
        (of records in the tables), operations of agents a second, and what it misses of what peers announced, in
        changes and since how many seconds."""
        replication, sizes, rates = self.replication, self.engine.sizes(), self.load.rates
        seconds = replication.lag.seconds()
        changes = replication.lag.changes(
            {node: replication.peers[node].announcement.vectors for node in replication.peers.alive()}
        )
        partitions = {
            str(number): {
                "memories": partition.memories,
                "bytes": sizes.get(number, 0),
                "operations_per_second": round(rates[number], 1),
                "lag_seconds": seconds.get(number, 0.0),
                "lag_changes": changes.get(number, 0),
            }
            for number, partition in sorted(self.replica.partitions.items())
        }
        return {
            "bytes": sum(partition["bytes"] for partition in partitions.values()),
            "operations_per_second": round(sum(rates[number] for number in self.replica.partitions), 1),
            "taken": {name: replication.counts[f"sync_{name}_taken"] for name in ("records", "bytes")},
            "repairs": replication.pulling.repairs.report(),
            "repairs_waiting": replication.pulling.waiting,
            "by_partition": partitions,
        }
