"""How fast the core is alone, on one processor: no disk, no network, no event loop.

    python benchmarks/core.py [--changes 200000] [--profile]

Memories as agents write them: half of the changes store a new one, the rest update one of the last thousand. Printed
are changes a second for: coordinating (an operation becomes a change, gets its dot, is applied and sealed into deltas
of 128), applying them at another replica, merging records that differ, and reading and writing records as bytes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.causality import within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Delta, Edit, Store, Write
from crdt_spine.core.record import Record, merge
from crdt_spine.core.replica import Replica

BATCH = 128
T = TypeVar("T")
NOW = 1_763_000_000_000


class Records(dict[str, Record]):
    """The cheapest store there is, so that the core is what is measured."""

    def put(self, partition: int, record: Record) -> None:
        self[record.id] = record

    def drop(self, partition: int, id: str) -> None:
        del self[id]

    def changed(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> list[Record]:
        ids = sorted(id for id in self if (after is None or id > after) and not within(self[id].version, have))
        return [self[id] for id in ids][:limit]


def replica(name: str) -> Replica:
    peers = {0: tuple(other for other in "abc" if other != name)}
    return Replica(name, f"local/spine-{name}@mg3k2j1x", Records(), HybridClock(), peers, 2)


def operations(count: int) -> list[Write]:
    chance = random.Random(1)
    made: list[Write] = []
    ids: list[str] = []
    for i in range(count):
        if i % 2 == 0 or len(ids) < 10:
            ids.append(f"a3f1-019a9d8e-7c1b-7d3a-9c55-{i:012x}")
            metadata = {"source": "chat"} if i % 4 else {}
            made.append(Store(i=i, id=ids[-1], content="x" * 120, tags=("decision", "billing"), metadata=metadata))
            continue
        id = chance.choice(ids[-1000:])
        match chance.randrange(4):
            case 0:
                made.append(Edit(i=i, id=id, content="y" * 120))
            case 1:
                made.append(Edit(i=i, id=id, add=("urgent",)))
            case 2:
                made.append(Edit(i=i, id=id, remove=("billing",)))
            case _:
                made.append(Edit(i=i, id=id, metadata={"state": "done"}, importance=0.75))
    return made


def coordinate(node: Replica, made: list[Write]) -> list[bytes]:
    raws: list[bytes] = []
    for start in range(0, len(made), BATCH):
        now = NOW + start // BATCH
        for operation in made[start : start + BATCH]:
            node.write(0, operation, "reviewer-1", f"session-{operation.i}", now, None)
        turn = node.end_turn()
        raws += [raw for _, raw in turn.deltas]
        node.persisted(turn)
    return raws


def apply(node: Replica, deltas: list[tuple[Delta, bytes]]) -> None:
    for delta, raw in deltas:
        node.receive(delta, raw, NOW + 1_000_000)
        node.persisted(node.end_turn())


def measured(name: str, changes: int, work: Callable[[], T]) -> T:
    gc.collect()
    began = time.process_time()
    result = work()
    seconds = time.process_time() - began
    print(f"{name:<34} {changes / seconds:>10,.0f} /s   {seconds / changes * 1e6:6.2f} µs")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=200_000)
    parser.add_argument("--profile", action="store_true", help="show where applying spends its time")
    arguments = parser.parse_args()
    gc.disable()  # as the node does in its hot path
    count = arguments.changes
    made = operations(count)
    one, two, three = replica("a"), replica("b"), replica("c")
    raws = measured("coordinate, seal, encode", count, lambda: coordinate(one, made))
    decode = msgspec.json.Decoder(Delta).decode
    deltas = measured("decode deltas", count, lambda: [(decode(raw), raw) for raw in raws])
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(apply, two, deltas)
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)
        return
    measured("apply deltas", count, lambda: apply(two, deltas))
    apply(three, deltas[: len(deltas) // 2])
    assert isinstance(one.records, Records) and isinstance(two.records, Records) and isinstance(three.records, Records)
    assert one.records == two.records
    older = [three.records.get(id) or record for id, record in one.records.items()]
    newer = list(one.records.values())
    measured("merge records, half of them older", len(newer), lambda: list(map(merge, older, newer)))
    states = measured("record to bytes", len(newer), lambda: list(map(codec.to_bytes, newer)))
    measured("record from bytes", len(newer), lambda: list(map(codec.from_bytes, one.records, states)))
    print(f"{sum(map(len, states)) / len(states):.0f} bytes a record, {sum(map(len, raws)) / count:.0f} a change")


if __name__ == "__main__":
    main()
