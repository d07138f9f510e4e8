"""What a placement strategy costs and saves: `python -m benchmarks.placement`; `--memories 2000` to see that it works.

A cluster for each strategy, two replicas of 64 partitions on four nodes. Agents and topics are as unequal as they are
in practice: the n-th busiest agent, and the n-th commonest topic, has a share of about 1/n (Zipf). A memory's first tag
is its topic; half of them have one of 20 labels as a second tag, 2 % a second topic.

- **hottest**: the largest share of the memories that one partition, or one node, has, and of the writes that one node
  coordinated, beside what it would be if all had the same: 1.0 is ideal.
- **queries**: what a newly connected agent asks, by agent, by topic, by label and by nothing (newest 50): how many
  requests leave for each, and the median time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from crdt_spine import Spine
from crdt_spine.config import ClusterConfig, NodeConfig, ReplicationConfig
from crdt_spine.core.messages import Query, Request
from crdt_spine.core.placement import partition_of
from crdt_spine.supervisor import Supervisor
from crdt_spine.transport.base import Message
from crdt_spine.transport.nats import NatsTransport

NODES = 4
FACTOR = 2
PARTITIONS = 64
AGENTS = 100
TOPICS = 300
LABELS = 20
LABEL_SHARE = 0.5
SECOND_TOPIC_SHARE = 0.02
AT_ONCE = 200
ASKED = 40  # queries of each kind
SETTLE_SECONDS = 4.0  # so that every node has heard of what lies elsewhere
WORDS = ("review", "build", "deploy", "failing", "retry", "timeout", "owner", "merged", "branch", "flaky", "quota")
KINDS = ("by_agent", "by_topic", "by_label", "everything")


class Zipf:
    """The n-th of `count` names is drawn with a probability of about 1/n."""

    def __init__(self, kind: str, count: int) -> None:
        self.names = [f"{kind}-{n}" for n in range(1, count + 1)]
        self._weights = list(accumulate(1 / n for n in range(1, count + 1)))

    def draw(self, dice: random.Random) -> str:
        return dice.choices(self.names, cum_weights=self._weights)[0]


def memory(dice: random.Random, topics: Zipf) -> dict[str, Any]:
    chosen = [topics.draw(dice)]
    if dice.random() < LABEL_SHARE:
        chosen.append(f"label-{dice.randrange(LABELS)}")
    if dice.random() < SECOND_TOPIC_SHARE:
        chosen.append(topics.draw(dice))
    return {"content": " ".join(dice.choices(WORDS, k=40)), "tags": chosen}


async def load(spine: Spine, count: int) -> Counter[int]:
    """Store so many; how many lie in each partition."""
    dice = random.Random(11)
    agents, topics = Zipf("agent", AGENTS), Zipf("topic", TOPICS)
    placed: Counter[int] = Counter()
    for first in range(0, count, AT_ONCE):
        by_agent: dict[str, list[dict[str, Any]]] = {}
        for _ in range(first, min(first + AT_ONCE, count)):
            by_agent.setdefault(agents.draw(dice), []).append(memory(dice, topics))
        stored = await asyncio.gather(*[spine.for_agent(agent).store_many(some) for agent, some in by_agent.items()])
        placed.update(partition_of(one.id, PARTITIONS) for some in stored for one in some)
    return placed


async def ask(url: str, requests: list[str], conditions: list[dict[str, Any]]) -> dict[str, float]:
    """A new agent's queries, one after the other: requests for each, and milliseconds."""
    async with Spine.connect(url, agent="reader") as spine:
        await spine.query(limit=1)
        times: list[float] = []
        await asyncio.sleep(0.1)
        requests.clear()
        for condition in conditions:
            started = time.perf_counter()
            await spine.query(limit=50, **condition)
            times.append(1000 * (time.perf_counter() - started))
        await asyncio.sleep(0.2)  # for the watcher
    return {"requests": len(requests) / len(conditions), "ms": statistics.median(times)}


async def measure(folder: Path, placement: Any, count: int, port: int) -> dict[str, Any]:
    """One strategy."""
    ids = [f"spine-{n}" for n in range(1, NODES + 1)]
    config = ClusterConfig(
        name="bench", nodes=tuple(NodeConfig(id=id, host="127.0.0.1", port=port + n) for n, id in enumerate(ids)),
        partitions=PARTITIONS, placement=placement, replication=ReplicationConfig(factor=FACTOR, write_quorum=2),
    )  # fmt: skip
    config.save(folder / "cluster.yaml")
    supervisor = Supervisor(folder, nodes=NODES, nats_port=0, http_port=0)
    await supervisor.start()
    requests: list[str] = []

    def take(message: Message) -> None:
        operations = msgspec.json.decode(message.payload, type=Request).operations
        requests.extend(message.subject for operation in operations if isinstance(operation, Query))

    watcher = await NatsTransport.connect(supervisor.url, "watcher")
    try:
        await watcher.subscribe("spine.bench.node.*.rpc", take)
        async with Spine.connect(supervisor.url, agent="loader", timeout=60.0) as spine:
            started = time.perf_counter()
            placed = await load(spine, count)
            seconds = time.perf_counter() - started
            await asyncio.sleep(SETTLE_SECONDS)
            nodes = (await spine.status())["nodes"]
        asked: dict[str, list[dict[str, Any]]] = {
            "by_agent": [{"agent": f"agent-{1 + n * AGENTS // ASKED}"} for n in range(ASKED)],
            "by_topic": [{"tags": [f"topic-{1 + n * TOPICS // ASKED}"]} for n in range(ASKED)],
            "by_label": [{"tags": [f"label-{n % LABELS}"]} for n in range(ASKED)],
            "everything": [{}] * ASKED,
        }
        held = [node["memories"] for node in nodes]
        written = [node["counts"]["writes"] for node in nodes]
        return {
            "hottest_partition": max(placed.values()) * PARTITIONS / count,
            "hottest_node_memories": max(held) * NODES / sum(held),
            "hottest_node_writes": max(written) * NODES / sum(written),
            "stores_per_second": count / seconds,
            **{kind: await ask(supervisor.url, requests, conditions) for kind, conditions in asked.items()},
        }
    finally:
        await watcher.close()
        await supervisor.stop()


def shown(placement: str, found: dict[str, Any]) -> str:
    asked = [f"{found[kind]['requests']:.2f} / {found[kind]['ms']:.1f}" for kind in KINDS]
    hot = [f"{found[key]:.1f}" for key in ("hottest_partition", "hottest_node_memories", "hottest_node_writes")]
    rate = f"{found['stores_per_second']:,.0f}"
    return f"| {' | '.join((placement, *hot, rate, *asked))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=20_000)
    parser.add_argument("--port", type=int, default=18_790, help="of the first node's HTTP listener, where it is free")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for placement in ("hash", "agent", "tag"):
            (Path(folder) / placement).mkdir()
            measured = measure(Path(folder) / placement, placement, options.memories, options.port)
            results[placement] = asyncio.run(measured)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(
        "| placement | hottest partition | hottest node, memories | hottest node, writes | stores/s "
        "| by agent: requests / ms | by topic | by label | everything |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for placement, found in results.items():
        print(shown(placement, found))


if __name__ == "__main__":
    main()
