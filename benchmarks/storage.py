"""How fast the storage engine is, and what it needs: `python -m benchmarks.storage --memories 1000000`.

Memories of 350 bytes with two tags (one of them on every second memory), an agent, some with a thread or metadata; ids
and states shaped as a node makes them. CPU is that of this process, all threads, kernel included. Flush figures are
means over whole flushes, per memory; the others are medians of single calls. Opening and resident memory are those of a
new process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from crdt_spine.core.selection import Selection
from crdt_spine.storage.engine import Checkpoint, PartitionSummary, Row
from crdt_spine.storage.sqlite import SqliteEngine

PARTITIONS = 64
BATCH = 10_000  # memories in a flush
INDEXED = 1_000  # memories in a transaction of the text index
ACTORS = [f"region-1/node-{n}@1" for n in range(3)]
START = 1_760_000_000_000  # milliseconds

Result = dict[str, Any]


class Fleet:
    """Makes memories, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        letters = "bcdfghklmnprstvz", "aeiou"
        vocabulary = ["".join(self.random.choice(letters[i % 2]) for i in range(4 + n % 6)) for n in range(20_000)]
        weights = [1 / (n + 5) for n in range(len(vocabulary))]  # as words of a language are distributed
        self.vocabulary = vocabulary
        self.texts = [" ".join(self.random.choices(vocabulary, weights, k=70))[:330] for _ in range(5_000)]
        self.counters = [0] * PARTITIONS
        self.ids: list[str] = []

    def new(self, number: int) -> Row:
        """The memory with this number, for the first time."""
        hashed = self.random.getrandbits(16)
        milliseconds = START + number
        unique = f"{milliseconds:012x}7{self.random.getrandbits(76):019x}"
        id = f"{hashed:04x}-{unique[:8]}-{unique[8:12]}-{unique[12:16]}-{unique[16:20]}-{unique[20:32]}"
        self.ids.append(id)
        return self.row(number, id)

    def row(self, number: int, id: str) -> Row:
        """The memory with this number in a new version: content, dot and state differ, nothing else."""
        partition = int(id[:4], 16) * PARTITIONS >> 16
        self.counters[partition] += 1
        n = self.counters[partition]
        actor = ACTORS[n % 3]
        tags = ("even" if number % 2 else "odd", f"topic-{number * 7919 % 500}")
        if number % 50_000 == 7:
            tags = ("rare", tags[1])
        metadata = {"source": f"source-{number % 20}", "ticket": number} if number % 10 == 0 else {}
        thread = f"thread-{number // 100}" if number % 3 == 0 else None
        agent = f"agent-{number * 31 % 50}"
        content = f"{self.random.choice(self.texts)} number{number}"
        state = msgspec.msgpack.encode(
            [[actor], [agent], [[START + number << 16, 0, n, 0]], [n], [0, True, 0, None, thread, {}], [0, content],
             [0, 0.5], [0, None], {tag: [0] for tag in tags}, {key: [0, value] for key, value in metadata.items()}]
        )  # fmt: skip
        return Row(
            id=id, partition=partition, alive=True, agent=agent, thread=thread, created=START + number << 16,
            expires=None, tags=tags, metadata=metadata, content=content, version={actor: n}, state=state,
        )  # fmt: skip


def measured(calls: Iterator[Callable[[], Any]]) -> tuple[float, float, float]:
    """Run each; median and worst wall time, mean CPU, in microseconds."""
    walls = []
    cpu = time.process_time()
    for call in calls:
        began = time.perf_counter()
        call()
        walls.append((time.perf_counter() - began) * 1e6)
    return statistics.median(walls), max(walls), (time.process_time() - cpu) / len(walls) * 1e6


def append(engine: SqliteEngine, results: list[Result]) -> None:
    row = os.urandom(20_000)
    median, worst, cpu = measured((lambda: engine.append(row)) for _ in range(1_000))
    results.append({"what": "append, a row of 20 kB", "µs": median, "worst µs": worst, "CPU µs": cpu})
    sequence = engine.append(row)
    cpu, wall = time.process_time(), time.perf_counter()
    engine.prune(sequence)
    results.append(
        {
            "what": "prune, per row of 20 kB", "µs": (time.perf_counter() - wall) / 1_001 * 1e6,
            "CPU µs": (time.process_time() - cpu) / 1_001 * 1e6,
        }
    )  # fmt: skip


def flush(engine: SqliteEngine, what: str, batches: Iterator[list[Row]], results: list[Result]) -> None:
    cpu = wall = 0.0
    worst, count = 0.0, 0
    for rows in batches:
        summaries = {p: PartitionSummary(dict.fromkeys(ACTORS, 10**6), 10**4) for p in range(PARTITIONS)}
        began, spent = time.perf_counter(), time.process_time()
        engine.flush(rows, [], Checkpoint(partitions=summaries))
        took = time.perf_counter() - began
        cpu, wall, worst, count = cpu + time.process_time() - spent, wall + took, max(worst, took), count + len(rows)
    results.append(
        {"what": what, "µs": wall / count * 1e6, "worst µs": worst / BATCH * 1e6, "CPU µs": cpu / count * 1e6}
    )


def flush_beside_a_busy_thread(engine: SqliteEngine, rows: list[Row], results: list[Result]) -> None:
    """As an event loop under load is: it has the interpreter's lock and gives it away between callbacks."""
    stop = threading.Event()
    lags: list[float] = []
    here = Path()

    def busy() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            sum(range(2_000))
            here.stat()  # a call that lets go of the lock
            lags.append(time.perf_counter() - began)

    thread = threading.Thread(target=busy)
    thread.start()
    began = time.perf_counter()
    engine.flush(rows, [], Checkpoint())
    took = time.perf_counter() - began
    stop.set()
    thread.join()
    lags.sort()
    results.append(
        {
            "what": "flush of recent memories beside a busy thread", "µs": took / len(rows) * 1e6,
            "note": f"loop: median {_rank(lags, 0.5):.0f}, 99 % {_rank(lags, 0.99):.0f}, worst {_rank(lags, 1):.0f} µs",
        }
    )  # fmt: skip


def _rank(sorted_seconds: list[float], share: float) -> float:
    """The value below which a share of them is, in microseconds."""
    return sorted_seconds[min(int(len(sorted_seconds) * share), len(sorted_seconds) - 1)] * 1e6


def queries(engine: SqliteEngine, memories: int, results: list[Result]) -> None:
    def one(what: str, selection: Selection, order: Any = "newest", times: int = 20, **more: Any) -> None:
        args = {"limit": 50, "after": None, "partitions": None, "now": 0, **more}
        hits = len(list(engine.select(selection, order, **args)))
        median, worst, cpu = measured(
            (lambda: list(engine.select(selection, order, **args))) for _ in range(times)
        )  # fmt: skip
        results.append({"what": what, "µs": median, "worst µs": worst, "CPU µs": cpu, "note": f"{hits} hits"})

    middle = (START + memories // 2 << 16, "")
    one("select, the newest 50", Selection())
    one("select, tag on half of all", Selection(tags=("even",)))
    one("select, tag on half of all, from the middle", Selection(tags=("even",)), after=middle)
    one("select, tag on one of 500", Selection(tags=("topic-7",)))
    one("select, tag on one of 50 000", Selection(tags=("rare",)))
    one("select, agent (of 50)", Selection(agent="agent-7"))
    one("select, thread", Selection(thread="thread-30"))
    one("select, agent and common tag", Selection(agent="agent-7", tags=("even",)))
    one("select, agent and rare tag", Selection(agent="agent-7", tags=("rare",)))
    one("select, two tags, never together", Selection(tags=("even", "rare", "odd")))
    one("select, two common tags, never together", Selection(tags=("even", "odd")), times=1)
    one("select, any of three tags", Selection(any_tags=("topic-1", "topic-2", "rare")))
    one("select, not the common tag", Selection(not_tags=("even",)))
    one("select, metadata (1 of 20 of a tenth)", Selection(metadata={"source": "source-10"}))
    one("select, metadata (one)", Selection(metadata={"ticket": memories // 2 // 10 * 10}))
    one("select, oldest, half of the partitions", Selection(agent="agent-7"), "oldest", partitions=range(32))
    one("select, the newest 1000", Selection(), limit=1000)


def changes(engine: SqliteEngine, fleet: Fleet, results: list[Result]) -> None:
    have = dict.fromkeys(ACTORS, fleet.counters[5] - 100)
    median, worst, cpu = measured((lambda: engine.changed(5, have, None, 512)) for _ in range(20))
    results.append({"what": "changed, 100 of a partition", "µs": median, "worst µs": worst, "CPU µs": cpu})
    began, place, count, pages = time.perf_counter(), None, 0, 0
    while page := engine.changed(6, {}, place, 512):
        place, count, pages = page[-1][0], count + len(page), pages + 1
    took = (time.perf_counter() - began) / count * 1e6
    results.append({"what": "changed, a whole partition, per record", "µs": took, "note": f"{count} in {pages} pages"})


def index(engine: SqliteEngine, results: list[Result]) -> None:
    waiting = engine.index_text(0)
    cpu, wall, worst = time.process_time(), time.perf_counter(), 0.0
    while True:
        began = time.perf_counter()
        left = engine.index_text(INDEXED)
        worst = max(worst, time.perf_counter() - began)
        if not left:
            break
    results.append(
        {
            "what": f"index_text, {INDEXED} at a time, per memory", "µs": (time.perf_counter() - wall) / waiting * 1e6,
            "CPU µs": (time.process_time() - cpu) / waiting * 1e6, "note": f"the longest call: {worst * 1e3:.0f} ms",
        }
    )  # fmt: skip


def search(engine: SqliteEngine, fleet: Fleet, results: list[Result]) -> None:
    while engine.index_text(INDEXED):
        pass
    words = fleet.vocabulary

    def one(what: str, words: str, order: Any, times: int = 5, selection: Selection | None = None) -> None:
        asked = selection or Selection()
        hits = len(engine.search(words, asked, order, 50, None, None, 0))
        median, worst, cpu = measured(
            (lambda: engine.search(words, asked, order, 50, None, None, 0)) for _ in range(times)
        )
        results.append({"what": what, "µs": median, "worst µs": worst, "CPU µs": cpu, "note": f"{hits} hits"})

    for order in ("newest", "relevance"):
        one(f"search by {order}, a unique word", "number77", order)
        one(f"search by {order}, two rare words", f"{words[9000]} {words[9001]}", order)
        one(f"search by {order}, a frequent and a rare word", f"{words[5]} {words[9001]}", order)
        one(f"search by {order}, the two most frequent words", f"{words[0]} {words[1]}", order)
        both = f"{words[8]} {words[9]}"
        one(f"search by {order}, frequent words of one agent", both, order, 5, Selection(agent="agent-7"))


CHILD = """
import resource, sys, time
began = time.perf_counter()
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.core.selection import Selection
imported = time.perf_counter()
engine = SqliteEngine.open(sys.argv[1])
opened = time.perf_counter()
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024
first = resident()
ids = sys.stdin.read().split()
for id in ids:
    engine.get(id)
for tag in ("even", "odd", "rare"):
    for _ in range(20):
        list(engine.select(Selection(tags=(tag,)), "newest", 1000, None, None, 0))
place = None
while page := engine.changed(7, {}, place, 512):
    place = page[-1][0]
engine.search("number77", Selection(), "relevance", 50, None, None, 0)
engine.flush([], ids[:2000], engine.checkpoint)
print((imported - began) * 1e3, (opened - imported) * 1e3, first, resident())
engine.close()
"""


def opening(path: str, ids: list[str], results: list[Result]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], input="\n".join(ids), capture_output=True, text=True, check=True
    )
    _, opened, first, last = map(float, done.stdout.split())
    results.append({"what": "open", "µs": opened * 1e3})
    results.append({"what": "resident memory after opening", "MB": first})
    results.append({"what": "resident memory after reads and a flush", "MB": last})


def run(path: str, memories: int, seed: int, with_text: bool) -> list[Result]:
    results: list[Result] = []
    fleet = Fleet(seed)
    engine = SqliteEngine.open(path)
    append(engine, results)
    last = max(BATCH, memories - 10 * BATCH)

    def new(first: int, end: int) -> Iterator[list[Row]]:
        for start in range(first, end, BATCH):
            yield [fleet.new(number) for number in range(start, min(start + BATCH, end))]

    def again(numbers: list[int]) -> list[Row]:
        return [fleet.row(number, fleet.ids[number]) for number in numbers]

    flush(engine, f"flush, new memories, 0 to {last}", new(0, last), results)
    flush(engine, f"flush, new memories, {last} to {memories}", new(last, memories), results)
    if with_text:
        index(engine, results)
    everywhere = range(memories)
    recent = list(range(max(0, memories - BATCH), memories))
    flush(engine, "flush, overwriting the most recent ones", (again(recent) for _ in range(5)), results)
    flush(
        engine, "flush, overwriting any of all", (again(fleet.random.sample(everywhere, BATCH)) for _ in range(5)),
        results,
    )  # fmt: skip
    flush_beside_a_busy_thread(engine, again(recent), results)
    ids = fleet.random.choices(fleet.ids, k=5_000)
    for _ in range(2):
        median, worst, cpu = measured((lambda id=id: engine.get(id)) for id in ids)  # type: ignore[misc]
    results.append({"what": "get", "µs": median, "worst µs": worst, "CPU µs": cpu})
    queries(engine, memories, results)
    changes(engine, fleet, results)
    if with_text:
        search(engine, fleet, results)
    engine.close()
    opening(path, ids, results)
    files = sorted(Path(path).iterdir())
    results += [{"what": f"size of {file.name}", "MB": file.stat().st_size / 1e6} for file in files]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.append({"what": "largest this process became, with all ids and rows", "MB": grown})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], prog="python -m benchmarks.storage")
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--data", help="folder for the files; default: a temporary one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-text", action="store_true", help="leave the text index empty")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="spine-storage-", dir=args.data)
    try:
        results = run(folder, args.memories, args.seed, not args.no_text)
    finally:
        shutil.rmtree(folder)
    if args.json:
        print(json.dumps({"memories": args.memories, "results": results}, indent=2))
        return
    columns = ("µs", "worst µs", "CPU µs", "MB")
    print(f"{'':56}" + "".join(f"{name:>10}" for name in columns))
    for result in results:
        cells = "".join(f"{result[name]:10.1f}" if name in result else f"{'':10}" for name in columns)
        print(f"{result['what']:56}{cells}  {result.get('note', '')}".rstrip())


if __name__ == "__main__":
    main()
