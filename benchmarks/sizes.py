"""How large a memory's metadata is, and what the tables need for one: `python -m benchmarks.sizes`.

Three replicas exchange deltas, now and then late, so that writes are concurrent. One memory with two tags is written
once; then it gets 10,000 updates, a third of them at each, and a tag is put on or taken off 1,000 times. Metadata is
all that its record has besides content, tags, id and agent, in both encodings: MessagePack, as the tables keep it (the
id is beside it), and JSON, as sync pages carry it, `["id",…],` included.

What a memory needs in a node's tables with all their indexes is measured on a file with `--memories` of them.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import deque

import msgspec

from benchmarks.core import Records
from benchmarks.million import memories
from crdt_spine.core import codec
from crdt_spine.core.actors import actor_name
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Delta, Edit, Store, Write
from crdt_spine.core.record import Record
from crdt_spine.core.replica import Replica
from crdt_spine.storage.engine import Checkpoint
from crdt_spine.storage.records import RecordStore
from crdt_spine.storage.sqlite import SqliteEngine

ONCE_BYTES_MAX = 120
OFTEN_BYTES_MAX = 400
NAMES = ("spine-1", "spine-2", "spine-3")
INCARNATIONS = ("m3x9k2ab", "m3x9k2ac", "m3xa81qz")
AGENTS = ("reviewer-1", "planner-2", "coder-3")
ID = "a3f1-019a9d8e-7c1b-7d3a-9c55-0123456789ab"
NOW = 1_763_000_000_000
LATE = 0.3  # how often a delta waits for the next one

decode = msgspec.json.Decoder(Delta).decode


class Cluster:
    """Three replicas of one partition; everybody's deltas reach the others in their order, some of them late."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.records = [Records() for _ in NAMES]
        self.replicas = [
            Replica(
                name, actor_name("local", name, incarnation), records, HybridClock(),
                {0: tuple(other for other in NAMES if other != name)}, 2,
            )
            for name, incarnation, records in zip(NAMES, INCARNATIONS, self.records, strict=True)
        ]  # fmt: skip
        self.inboxes: list[deque[bytes]] = [deque() for _ in NAMES]
        self.now = NOW

    def write(self, at: int, operation: Write) -> None:
        """Coordinate an operation at one of them."""
        self.now += self.chance.randrange(1, 5_000)
        replica = self.replicas[at]
        replica.write(0, operation, AGENTS[at], f"{at}-{operation.i}", self.now, None)
        turn = replica.end_turn()
        replica.persisted(turn)
        for _, raw in turn.deltas:
            for other in range(len(NAMES)):
                if other != at:
                    self.inboxes[other].append(raw)
        for other in range(len(NAMES)):
            if self.chance.random() > LATE:
                self.deliver(other)

    def deliver(self, at: int) -> None:
        """Let one of them take all that is on its way."""
        replica, inbox = self.replicas[at], self.inboxes[at]
        while inbox:
            raw = inbox.popleft()
            replica.receive(decode(raw), raw, self.now)
            replica.persisted(replica.end_turn())

    def level(self) -> Record:
        """Deliver everything; the memory, the same at all three."""
        for at in range(len(NAMES)):
            self.deliver(at)
        found = [records.get(ID) for records in self.records]
        assert found[0] == found[1] == found[2]
        assert found[0] is not None
        return found[0]


def metadata_bytes(record: Record) -> dict[str, int]:
    """What its encodings have above content, tags, id and agent."""
    assert record.content is not None
    own = len(record.content.value) + len(record.life.value.agent) + sum(map(len, record.tags))
    return {
        "tables": len(codec.to_bytes(record)) - own,
        "sync page": len(b'["",],') + len(bytes(codec.to_json(record))) - own,
    }


def once(chance: random.Random) -> Cluster:
    """A memory with two tags, written once."""
    cluster = Cluster(chance)
    cluster.write(0, Store(i=0, id=ID, content="x" * 200, tags=("decision", "billing")))
    return cluster


def often(updates: int = 10_000, flips: int = 1_000, seed: int = 1) -> Record:
    """The same after that many updates by three coordinators, and tags flipped by all of them."""
    chance = random.Random(seed)
    cluster = once(chance)
    cluster.level()
    todo = [True] * updates + [False] * flips
    chance.shuffle(todo)
    for number, update in enumerate(todo, 1):
        at = number % len(NAMES)
        if update:
            content = f"{number:0200d}" if chance.random() < 0.5 else None
            change = Edit(i=number, id=ID, content=content, importance=round(number / len(todo), 2))
        else:
            tag = chance.choice(("decision", "billing"))
            there = tag in cluster.records[at][ID].tags
            change = Edit(i=number, id=ID, remove=(tag,)) if there else Edit(i=number, id=ID, add=(tag,))
        cluster.write(at, change)
    return cluster.level()


def in_tables(count: int) -> dict[str, float]:
    """Bytes a memory, each written once, text index included: of its own, and in a node's tables."""
    chance = random.Random(3)
    own = 0
    with tempfile.TemporaryDirectory(prefix="spine-sizes-") as folder:
        engine = SqliteEngine.open(folder)
        try:
            store = RecordStore(engine)
            replica = Replica(
                NAMES[0], actor_name("local", NAMES[0], INCARNATIONS[0]), store, HybridClock(), {0: ()}, 1
            )
            made = (memory for batch in memories(count) for memory in batch)
            for number, memory in enumerate(made):
                content, tags = memory["content"], tuple(memory["tags"])
                own += len(content) + sum(map(len, tags))
                id = f"{chance.getrandbits(16):04x}-019a9d8e-7c1b-7d3a-9c55-{number:012x}"
                replica.write(0, Store(i=number, id=id, content=content, tags=tags), AGENTS[0], "", NOW + number, None)
            replica.persisted(replica.end_turn())
            store.write_flush(store.begin_flush(Checkpoint()))
            while engine.index_text(1_000):
                pass
            pages, _ = engine.pages()
        finally:
            engine.close()
    return {"content and tags": own / count, "tables": pages * 4096 / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=20_000, help="in the file that is measured")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {
        "written once": {**metadata_bytes(once(random.Random(1)).level()), "at most": ONCE_BYTES_MAX},
        "10,000 updates, 1,000 tag flips": {**metadata_bytes(often()), "at most": OFTEN_BYTES_MAX},
    }
    tables = in_tables(arguments.memories)
    if arguments.json:
        print(json.dumps({"metadata bytes": found, "bytes a memory": tables}, indent=2))
        return
    print(f"{'metadata, bytes':<34}{'tables':>10}{'sync page':>12}{'at most':>10}")
    for name, sizes in found.items():
        print(f"{name:<34}{sizes['tables']:>10}{sizes['sync page']:>12}{sizes['at most']:>10}")
    print(f"\na memory of {tables['content and tags']:.0f} bytes needs {tables['tables']:,.0f} in a node's tables")


if __name__ == "__main__":
    main()
