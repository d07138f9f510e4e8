"""How fast the core is alone, on one processor: no disk, no network, no event loop. `python -m benchmarks.core`.

Memories as agents write them: half of the changes store a new one, the rest update one of the last thousand. Measured
are changes a second for

- coordinating: an operation becomes a change, gets its dot, is applied and sealed into deltas of 128;
- taking them at another replica: decoded, applied, made ready for the journal and the acknowledgement;
- merging two replicas' records, decoded a moment ago: where each has a change that the other has not, and where one has
  all that the other has (a catch-up); and the same as sync pages: decoded, merged, and looked at for conflicts;
- reading and writing records as bytes.

Each work is cut into slices; the figure is the median slice's, for a machine is seldom quiet for long, and the fastest
slice is beside it.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from crdt_spine.core import codec
from crdt_spine.core.causality import within
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Delta, Edit, Store, SyncPage, Write, encode
from crdt_spine.core.record import Record, merge
from crdt_spine.core.replica import Replica

BATCH = 128  # changes in a delta
PAGE = 512  # records in a sync page
SLICES = 25
RECENT = 1_000  # memories that are updated
NOW = 1_763_000_000_000
T = TypeVar("T")
decode = msgspec.json.Decoder(Delta).decode
decode_page = msgspec.json.Decoder(SyncPage).decode


class Records(dict[str, Record]):
    """The cheapest store there is, so that the core is what is measured."""

    def put(self, partition: int, record: Record) -> None:
        self[record.id] = record

    def drop(self, partition: int, id: str) -> None:
        del self[id]

    def changed(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> list[Record]:
        ids = sorted(id for id in self if (after is None or id > after) and not within(self[id].version, have))
        return [self[id] for id in ids][:limit]


class Results:
    """What was measured, printed as it comes unless it is to be JSON."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.rates: dict[str, dict[str, float]] = {}

    def measured(
        self, name: str, items: Sequence[T], work: Callable[[Sequence[T]], None], each: float = 1, at_once: int = 0
    ) -> None:
        """Do the work on slices of the items, of which each stands for so many changes."""
        gc.collect()
        rates = []
        for part in slices(items, at_once or len(items) // SLICES):
            began = time.process_time()
            work(part)
            rates.append(len(part) * each / (time.process_time() - began))
        median, best = statistics.median(rates), max(rates)
        self.rates[name] = {"changes per second": round(median), "at best": round(best)}
        if not self.quiet:
            print(f"{name:<46} {median:>9,.0f} /s   {1e6 / median:6.2f} µs   at best {best:>9,.0f} /s", flush=True)


def slices(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items) - size + 1, size):
        yield items[start : start + size]


class Decoded(Sequence[tuple[Record, Record]]):
    """Pairs of records, decoded when they are asked for, as those of a page have been right before they are merged."""

    def __init__(self, ones: Sequence[Record], others: Sequence[Record]) -> None:
        self.states = [
            (one.id, codec.to_bytes(one), codec.to_bytes(two)) for one, two in zip(ones, others, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, part: Any) -> Any:
        return [(codec.from_bytes(id, one), codec.from_bytes(id, two)) for id, one, two in self.states[part]]


def replica(name: str) -> tuple[Replica, Records]:
    """One that looks for lost values as a node's does, and forgets them."""
    peers = {0: tuple(other for other in "abc" if other != name)}
    records = Records()
    made = Replica(name, f"local/spine-{name}@mg3k2j1x", records, HybridClock(), peers, 2)
    made.report_to(lambda findings: None)
    return made, records


def operations(count: int) -> list[Write]:
    chance = random.Random(1)
    made: list[Write] = []
    ids: list[str] = []
    for i in range(count):
        if i % 2 == 0 or len(ids) < 10:
            ids.append(f"a3f1-019a9d8e-7c1b-7d3a-9c55-{i:012x}")
            metadata = {"source": "chat"} if i % 4 else {}
            made.append(Store(i=i, id=ids[-1], content="x" * 120, tags=("decision", "billing"), metadata=metadata))
        else:
            made.append(edit(i, chance.choice(ids[-RECENT:]), chance))
    return made


def edit(i: int, id: str, chance: random.Random) -> Edit:
    match chance.randrange(4):
        case 0:
            return Edit(i=i, id=id, content="y" * 120)
        case 1:
            return Edit(i=i, id=id, add=("urgent",))
        case 2:
            return Edit(i=i, id=id, remove=("billing",))
        case _:
            return Edit(i=i, id=id, metadata={"state": "done"}, importance=0.75)


def coordinate(node: Replica, made: Sequence[Write]) -> list[bytes]:
    raws: list[bytes] = []
    for start in range(0, len(made), BATCH):
        now = NOW + made[start].i
        for operation in made[start : start + BATCH]:
            node.write(0, operation, "reviewer-1", f"{node.node}-{operation.i}", now, None)
        turn = node.end_turn()
        raws += [raw for _, raw in turn.deltas]
        node.persisted(turn)
    return raws


def take(node: Replica, raws: Sequence[bytes]) -> None:
    for raw in raws:
        node.receive(decode(raw), raw, NOW + 1_000_000_000)
        node.persisted(node.end_turn())


def merge_pairs(pairs: Sequence[tuple[Record, Record]]) -> None:
    for one, other in pairs:
        merge(one, other)


def take_pages(node: Replica, raws: Sequence[bytes]) -> None:
    for raw in raws:
        node.merge_page(decode_page(raw), raw, NOW + 1_000_000_000)
        node.persisted(node.end_turn())


def pages(node: Replica, records: Sequence[Record]) -> list[bytes]:
    """The records as sync pages of one partition, none of which is the last."""
    return [
        encode(
            SyncPage(
                partition=0, records=[(record.id, codec.to_json(record)) for record in part], upto=node.durable[0],
                next=part[-1].id,
            )
        )
        for start in range(0, len(records) - PAGE + 1, PAGE)
        for part in [records[start : start + PAGE]]
    ]  # fmt: skip


def measure(count: int, results: Results) -> None:
    made = operations(count)
    (one, ones), (two, twos), (late, _) = replica("a"), replica("b"), replica("c")
    deltas: list[bytes] = []
    results.measured("coordinate, seal, encode", made, lambda part: deltas.extend(coordinate(one, part)))
    results.measured("decode and apply deltas", deltas, lambda part: take(two, part), count / len(deltas))
    take(late, deltas)
    assert ones == twos
    # From here on they do not hear of each other: every memory is changed at both.
    before = list(ones.values())
    chance = random.Random(2)
    for number, node in enumerate((one, two)):
        first = count + number * len(before)
        coordinate(node, [edit(first + i, record.id, chance) for i, record in enumerate(before)])
    after, theirs = list(ones.values()), list(twos.values())
    found = pages(one, after)
    results.measured("merge records, changed at both", Decoded(after, theirs), merge_pairs, at_once=PAGE)
    results.measured("merge records, changed at one", Decoded(before, after), merge_pairs, at_once=PAGE)
    results.measured("take sync pages, changed at both", found, lambda part: take_pages(two, part), PAGE)
    results.measured("take sync pages, changed at one", found, lambda part: take_pages(late, part), PAGE)
    states: list[bytes] = []
    merged = list(map(merge, after, theirs))
    results.measured("record to bytes", merged, lambda part: states.extend(map(codec.to_bytes, part)))
    results.measured("record from bytes", states, read)


def read(states: Sequence[bytes]) -> None:
    for state in states:
        codec.from_bytes("m", state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=200_000)
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    gc.disable()  # as the node does in its hot path
    results = Results(arguments.json)
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(measure, arguments.changes, results)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    measure(arguments.changes, results)
    if arguments.json:
        print(json.dumps({"changes": arguments.changes, "results": results.rates}, indent=2))


if __name__ == "__main__":
    main()
