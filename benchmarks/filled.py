"""A cluster's data folders, filled: what agents would have stored, put into the tables without asking a node.

A million memories take agents and three nodes some ten minutes, and a benchmark that begins with them does not measure
that. So a cluster is started once and stopped again, which makes its folders, and while nobody has them their tables
get the records: stored one after the other, each by the coordinator that its partition prefers, as by a cluster that
has had the time to bring all of them to every node. The tables are filled once, and copied: the nodes have the same.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from benchmarks.million import memories
from crdt_spine.config import load
from crdt_spine.core import writes
from crdt_spine.core.actors import actor_name
from crdt_spine.core.causality import Vector
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Store
from crdt_spine.core.placement import generated_id
from crdt_spine.core.record import apply
from crdt_spine.core.registers import Origin
from crdt_spine.node.process import hello_of
from crdt_spine.storage.engine import Checkpoint, PartitionSummary
from crdt_spine.storage.records import RecordStore
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.supervisor import Supervisor

FLUSHED_AT_ONCE = 20_000
INDEXED_AT_ONCE = 5_000
AGENT = "loader"


async def filled(
    folder: Path, nodes: int, count: int, wanted: Collection[int], say: Callable[[str], None]
) -> dict[int, str]:
    """Make the folders of a cluster of so many nodes, each of which has all of so many memories; the ids of those that
    are `wanted`, by their number. The folder is a Supervisor's."""
    began = time.perf_counter()
    async with Supervisor(folder, nodes=nodes, nats_port=0, http_port=0) as supervisor:
        ids = [node.id for node in supervisor.nodes]
    chosen = await asyncio.to_thread(_fill, folder, ids, count, wanted)
    say(f"{count:,} memories are in the tables after {time.perf_counter() - began:.0f} s")
    return chosen


def _fill(folder: Path, nodes: list[str], count: int, wanted: Collection[int]) -> dict[int, str]:
    extras: dict[str, dict[str, Any]] = {}
    for node in nodes:
        engine = SqliteEngine.open(folder / node)
        extras[node] = engine.checkpoint.extra
        engine.close()
    config = load(folder / "cluster.yaml")
    layout = Layout(hello_of(config, nodes[0]))
    actors = {node: actor_name(config.region, node, extras[node]["incarnation"]) for node in nodes}
    engine = SqliteEngine.open(folder / nodes[0])
    try:
        chosen, partitions, clock = _put(engine, layout, actors, count, wanted)
        while engine.index_text(INDEXED_AT_ONCE):
            pass
        through = engine.checkpoint.through
    finally:
        engine.close()
    for node in nodes:
        if node != nodes[0]:
            shutil.copyfile(folder / nodes[0] / "tables.db", folder / node / "tables.db")
        engine = SqliteEngine.open(folder / node)
        try:
            engine.flush((), (), Checkpoint(through, partitions, {**extras[node], "clock": clock}))
        finally:
            engine.close()
    return chosen


def _put(
    engine: SqliteEngine, layout: Layout, actors: dict[str, str], count: int, wanted: Collection[int]
) -> tuple[dict[int, str], dict[int, PartitionSummary], int]:
    """The records into one node's tables: the ids of the wanted ones, what the partitions have then, and the highest
    stamp."""
    dice, store = Random(13), RecordStore(engine)
    vectors: defaultdict[int, Vector] = defaultdict(dict)
    held: Counter[int] = Counter()
    chosen: dict[int, str] = {}
    milliseconds = time.time_ns() // 1_000_000 - 3_600_000
    stamp = milliseconds << 16

    def summaries() -> dict[int, PartitionSummary]:
        return {number: PartitionSummary(dict(vectors[number]), held[number]) for number in layout.replicas}

    def flush() -> None:
        known = engine.checkpoint
        flush = store.begin_flush(msgspec.structs.replace(known, partitions=summaries()))
        store.write_flush(flush)
        store.end_flush(flush, True)

    for number, memory in enumerate(memory for batch in memories(count) for memory in batch):
        stamp += 1 << 12  # sixteen a millisecond
        id = generated_id(dice.getrandbits(16), stamp >> 16, dice.getrandbits(74))
        partition = layout.partition_of(id)
        actor = actors[layout.replicas[partition][0]]
        n = vectors[partition][actor] = vectors[partition].get(actor, 0) + 1
        held[partition] += 1
        change = writes.store(Store(i=0, id=id, **memory), None, stamp, AGENT, "")
        store.put(partition, apply(None, change, Origin(stamp, actor, n, AGENT)))
        if number in wanted:
            chosen[number] = id
        if len(store.dirty) >= FLUSHED_AT_ONCE:
            flush()
    flush()
    return chosen, summaries(), stamp
