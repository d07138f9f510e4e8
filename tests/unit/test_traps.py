"""The traps of the design that concern the core, each with its answer: the story ends well, and does not without it.

Not here, since what they are about is not in the core yet: locks without fencing, bridge loops, quorum while the ring
moves.
"""

from __future__ import annotations

import random
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pycrdt
import pytest
from records import Records

from crdt_spine import Spine, StaleToken
from crdt_spine.core import codec, document, writes
from crdt_spine.core import layout as layouts
from crdt_spine.core import record as records
from crdt_spine.core import replica as replicas
from crdt_spine.core.actors import actor_name
from crdt_spine.core.causality import Vector
from crdt_spine.core.clock import COUNTER_BITS, HybridClock, at_milliseconds, milliseconds_of
from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import (
    Announcement,
    Delete,
    Delta,
    Edit,
    EditDocument,
    Hello,
    NodeInfo,
    Store,
    SyncPage,
    Unreadable,
    deltas_of,
    encode,
)
from crdt_spine.core.partition import Partition
from crdt_spine.core.record import merge
from crdt_spine.core.registers import Origin
from crdt_spine.core.replica import Replica
from crdt_spine.core.token import token_text
from crdt_spine.core.turn import Turn
from crdt_spine.limits import BATCH_BYTES_TARGET, CONTENT_BYTES_MAX, MESSAGE_BYTES_MAX

sys.path.append(str(Path(__file__).parents[1] / "simulation"))

from simulator.rules import taken_away

NOW = 1_763_000_000_000
HOUR = 3_600_000
NAMES = ("a", "b", "c")
read_delta = msgspec.json.Decoder(Delta).decode
read_row = msgspec.json.Decoder(Delta | SyncPage).decode


class Node:
    """A replica of one partition, with a disk that is a journal."""

    def __init__(self, name: str, journal: list[bytes] | None = None, incarnation: str = "1") -> None:
        self.name = name
        self.records = Records()
        peers = {0: tuple(other for other in NAMES if other != name)}
        self.replica = Replica(name, actor_name("r", name, incarnation), self.records, HybridClock(), peers, 2)
        self.journal = list(journal or [])
        for row in self.journal:
            self.replica.replay([row], read_row)
        self.replica.recovered()

    def write(self, operation: Any, operation_id: str = "", now: int = NOW) -> list[Delta]:
        """Coordinate it; the deltas that then leave."""
        self.replica.write(0, operation, "agent", operation_id, now, operation_id)
        return self.leaves(self.turn())

    def turn(self) -> Turn:
        turn = self.replica.end_turn()
        self.journal += turn.journal
        self.replica.persisted(turn)
        return turn

    def leaves(self, turn: Turn) -> list[Delta]:
        return [read_delta(raw) for _, raw in turn.deltas]

    def takes(self, *deltas: Delta, now: int = NOW) -> None:
        for delta in deltas:
            self.replica.receive(delta, encode(delta), now)
        self.turn()

    def since(self, have: Vector, **fields: Any) -> SyncPage:
        """since(have), in one page."""
        return SyncPage(
            partition=0,
            records=[(record.id, codec.to_json(record)) for record in self.records.changed(0, have, None, 999)],
            upto=dict(self.replica.durable[0]),
            operations=self.replica.operations_since(0, have),
            clock=self.replica.clock.highest,
            **fields,
        )

    def merges(self, page: SyncPage, now: int = NOW) -> None:
        self.replica.merge_page(page, encode(page), now)
        self.turn()

    def catches_up(self, source: Node) -> None:
        self.merges(source.since(self.vector))

    def hears(self, *others: Node) -> None:
        for other in others:
            self.replica.hear(other.announces())

    def announces(self, **fields: Any) -> Announcement:
        vectors = dict(self.replica.durable)
        return Announcement(node=self.name, actor=self.replica.actor, state="up", now=NOW, vectors=vectors, **fields)

    def collects(self) -> None:
        self.replica.collect(0, list(self.records.values()), NOW)

    @property
    def vector(self) -> Vector:
        return self.replica.partitions[0].vector

    def content(self, id: str = "m") -> str | None:
        record = self.records.get(id)
        return record.content.value if record is not None and record.alive and record.content is not None else None


def store(content: str = "text", id: str = "m", **fields: Any) -> Store:
    return Store(i=0, id=id, content=content, **fields)


def edit(id: str = "m", **fields: Any) -> Edit:
    return Edit(i=0, id=id, **fields)


def delete(id: str = "m") -> Delete:
    return Delete(i=0, id=id)


def fails_without(answer: AbstractContextManager[Any], story: Callable[[], None]) -> None:
    """The story ends well; where its answer is taken away it does not."""
    story()
    with answer, pytest.raises(AssertionError):
        story()


def without(target: Any, name: str, instead: Any) -> AbstractContextManager[Any]:
    """An answer taken away: this is done in its place."""
    return patch.object(target, name, instead)


# -- disks and names --------------------------------------------------------------------------------------------------


def test_trap_actor_reuse_after_a_lost_disk() -> None:
    """Answer: a node compares its disk with what its peers know of it, and takes a new name where that is more."""

    def story() -> None:
        a, b = Node("a"), Node("b")
        b.takes(*a.write(store()))
        copy = list(a.journal)
        b.takes(*a.write(edit(importance=0.1)))
        restored = Node("a", copy)
        if restored.replica.lost(b.announces(known_of="a", known={0: {"r/a@1": 2}})):
            restored = Node("a", copy, incarnation="2")
        b.takes(*restored.write(edit(content="written after the restore"), now=NOW + 1))
        assert b.content() == "written after the restore"

    fails_without(taken_away("rolled-back"), story)


def test_trap_disk_full() -> None:
    """Answer: nothing of a turn leaves before it is on the disk. What a full disk then loses, nobody has ever seen."""

    def story(leaves_first: bool = False) -> None:
        a, b = Node("a"), Node("b")
        a.replica.write(0, store("never on the disk"), "agent", "", NOW, None)
        turn = a.replica.end_turn()  # and the disk is full
        assert not a.replica.settled("m") and a.replica.durable[0] == {}
        if leaves_first:
            b.takes(*a.leaves(turn))
        a = Node("a", a.journal)
        b.takes(*a.write(store("written when there was space again"), now=NOW + 1))
        assert b.content() == a.content()

    story()
    with pytest.raises(AssertionError):
        story(leaves_first=True)


# -- order ------------------------------------------------------------------------------------------------------------


def test_trap_a_remove_before_its_add() -> None:
    """Answer: a change waits for everything that its coordinator had seen (rule 2)."""

    def story() -> None:
        a, b, c = map(Node, NAMES)
        added = a.write(store(tags=("x",)))
        b.takes(*added)
        c.takes(*b.write(edit(remove=("x",))))
        c.takes(*added)
        assert set(c.records["m"].tags) == set()

    fails_without(taken_away("deps"), story)


def test_trap_duplicates_and_reordering() -> None:
    """Answer: an actor's changes apply in their order, each once (rule 1)."""

    def eager(self: Partition, delta: Delta, latest: int) -> list[Delta]:
        self._apply(delta)
        return [delta]

    def story() -> None:
        a = Node("a")
        deltas = a.write(store())
        for number in range(8):
            deltas += a.write(edit(add=(f"tag-{number}",)))
        for seed in range(5):
            b = Node("b")
            chance = random.Random(seed)
            some = deltas + chance.choices(deltas, k=9)
            chance.shuffle(some)
            b.takes(*some)
            assert b.records == a.records and b.vector == a.vector

    fails_without(without(Partition, "offer", eager), story)


def test_trap_a_delete_that_comes_back() -> None:
    """Answer: a tombstone stays until every replica has it (rule 9), those that are away included."""

    def story() -> None:
        a, b, c = map(Node, NAMES)
        born = a.write(store())
        b.takes(*born)
        c.takes(*born)
        b.takes(*a.write(delete(), now=NOW + 1))  # c is away
        for node in (a, b):
            node.hears(a, b)
            node.collects()
        c.catches_up(a)
        assert c.content() is None

    fails_without(taken_away("stability"), story)


def test_trap_a_sync_racing_with_tombstone_collection() -> None:
    """Answer: a late page does not bring back a record of which everything was here, and the record is not."""

    def story() -> None:
        a, b, c = map(Node, NAMES)
        born = a.write(store())
        b.takes(*born)
        page = b.since({})  # made while it lives, for c, and slow
        c.takes(*born)
        deleted = a.write(delete(), now=NOW + 1)
        b.takes(*deleted)
        c.takes(*deleted)
        for node in (a, b, c):
            node.hears(*[other for other in (a, b, c) if other is not node])
            node.collects()
        assert not c.records
        c.merges(page)
        assert c.content() is None and not c.records

    fails_without(taken_away("forgotten"), story)


def test_trap_a_paged_sync_that_breaks_off() -> None:
    """Answer: the source's vector, fixed when the sync begins, counts after the last page (rule 6)."""
    merge_page = Replica.merge_page

    def counted_at_once(self: Replica, page: SyncPage, raw: bytes, now: int) -> None:
        merge_page(self, msgspec.structs.replace(page, next=None), raw, now)

    def story() -> None:
        a, b = Node("a"), Node("b")
        for id in ("m", "n"):
            a.write(store(id=id))
        page = a.since({})
        b.merges(msgspec.structs.replace(page, records=page.records[:1], next="m"))  # and no more of it
        b.catches_up(a)
        assert set(b.records) == {"m", "n"}

    fails_without(without(Replica, "merge_page", counted_at_once), story)


def test_trap_slow_consumers() -> None:
    """Answer: what is held back for a replica that does not keep up is bounded, and what is dropped a sync brings."""

    def story() -> None:
        a, b = Node("a"), Node("b")
        lost, *rest = a.write(store()) + [delta for _ in range(60) for delta in a.write(edit(importance=0.5))]
        with patch.object(replicas, "WAITING_CHANGES_MAX", 50):
            for delta in rest:
                b.takes(delta)
                assert b.replica.partitions[0].waiting_changes <= 50
        b.catches_up(a)
        assert lost and b.records == a.records

    fails_without(taken_away("bounded"), story)


# -- time -------------------------------------------------------------------------------------------------------------


def test_trap_clocks_an_hour_off() -> None:
    """Answer, ahead: what comes from the future waits, visibly, until its time has come, and drags none (rule 10)."""

    def story() -> None:
        a, b = Node("a"), Node("b")
        early = a.write(store("from the future"), now=NOW + HOUR)
        b.takes(*early)
        assert b.replica.partitions[0].waiting_changes == 1 and b.content() is None
        b.write(store("of now", id="n"))
        assert milliseconds_of(b.records["n"].updated) == NOW
        b.replica.drain(NOW + HOUR)
        assert b.content() == "from the future" and b.replica.partitions[0].waiting_changes == 0

    fails_without(taken_away("drift"), story)


def test_trap_a_clock_that_was_set_back_by_an_hour() -> None:
    """Answer, behind: a stamp is above everything that is here (rule 11), after a restart too: it is in the journal."""

    def story() -> None:
        a = Node("a")
        a.write(store())
        a.write(edit(content="before the clock was set back"))
        a.write(edit(content="after it"), now=NOW - HOUR)
        assert a.content() == "after it"
        a = Node("a", a.journal)
        a.write(edit(content="after a restart"), now=NOW - HOUR)
        assert a.content() == "after a restart"

    fails_without(without(HybridClock, "observe", lambda self, time: None), story)


def test_trap_hlc_counter_overflow() -> None:
    """Answer: a full counter carries into the milliseconds: all stays in order, 65,536 ticks are a millisecond."""

    def wrapped(self: HybridClock, now: int) -> int:
        full = (1 << COUNTER_BITS) - 1
        self.highest = max(self.highest & ~full | (self.highest + 1) & full, now << COUNTER_BITS)
        return self.highest

    def story() -> None:
        clock = HybridClock()
        times = [clock.tick(NOW) for _ in range(2 * (1 << COUNTER_BITS) + 1)]
        assert all(before < after for before, after in pairwise(times))
        assert milliseconds_of(times[-1]) == NOW + 2
        assert clock.tick(NOW + 3) == at_milliseconds(NOW + 3), "the wall catches up"

    fails_without(without(HybridClock, "tick", wrapped), story)


def test_trap_ties_that_are_not_total() -> None:
    """Answer: of two writes of one instant the greater actor's stays, so every replica keeps the same one."""

    def story() -> None:
        a, b = Node("a"), Node("b")
        mine, theirs = a.write(store("a's")), b.write(store("b's"))
        assert mine[0].changes[0].time == theirs[0].changes[0].time
        a.takes(*theirs)
        b.takes(*mine)
        assert a.records == b.records and a.content() == "b's"
        assert merge(a.records["m"], b.records["m"]) == merge(b.records["m"], a.records["m"])

    def later_by_time_alone(origin: Origin, times: Mapping[str, int]) -> bool:
        return max(times.values()) <= origin.time

    fails_without(without(records, "_is_above", later_by_time_alone), story)


# -- agents -----------------------------------------------------------------------------------------------------------


def test_trap_a_write_that_failed_but_was_applied() -> None:
    """Answer: its operation id travels in the change, so a retry is answered with its dot and not applied again."""

    def story() -> None:
        a, b = Node("a"), Node("b")
        b.takes(*a.write(store("mine"), "session-1"))  # and a dies before it can answer
        b.write(edit(content="somebody else's, after it"), "session-2", now=NOW + 1)
        b.write(store("mine"), "session-1", now=NOW + 2)
        assert b.content() == "somebody else's, after it"

    fails_without(taken_away("operations"), story)


async def test_trap_a_token_that_never_can_be_reached() -> None:
    """Answer: what is not here is never shown as if it were, and nobody waits for it without end: StaleToken."""
    async with Spine.open(":memory:", agent="tester") as spine:
        memory = await spine.store("text")
        hello = spine._live.hello
        gone = {number: {"local/gone@0": 7} for number in range(hello.partitions)}
        token = token_text(hello.identity, hello.region, gone)
        with pytest.raises(StaleToken):
            await spine.wait_for(token, timeout=0.05)
        assert await spine.get(memory.id) is not None, "a token that was not reached is not taken on"

    def story() -> None:
        a, b = Node("a"), Node("b")
        lost = a.write(store())
        token = dict(a.vector)
        assert lost and b.replica.behind(0, token)
        a = Node("a", [], incarnation="2")  # what was only on its disk is gone for good
        b.takes(*a.write(store("another")))
        assert b.replica.behind(0, token)

    fails_without(without(Replica, "behind", lambda self, number, wanted: False), story)


# -- messages ---------------------------------------------------------------------------------------------------------


def test_trap_messages_of_a_newer_version() -> None:
    """Answer: fail closed. Another version, or a field that means nothing here, and the message is refused as a whole;
    a reader that skips what it does not know would apply half of a change."""
    (delta,) = Node("a").write(store())
    newer = encode(delta).replace(b"delta/1", b"delta/2")
    more = encode(delta).replace(b'"content":', b'"fence":7,"content":')
    for message in (newer, more):
        assert message != encode(delta)
        with pytest.raises(Unreadable):
            deltas_of(message)
    lenient = msgspec.defstruct("Delta", [("changes", list[msgspec.Raw])])
    assert len(msgspec.json.decode(more, type=lenient).changes) == 1


def test_trap_truncated_or_oversized_messages() -> None:
    """Answer: what is cut off anywhere is refused, and changes nothing; a turn leaves in messages that brokers take."""
    a, b = Node("a"), Node("b")
    (delta,) = a.write(store(tags=("x",)))
    for whole in (encode(delta), encode(a.since({}))):
        for end in range(len(whole)):
            with pytest.raises(Unreadable):
                msgspec.json.decode(whole[:end], type=Delta | SyncPage)
    state = bytes(a.since({}).records[0][1])
    for end in range(1, len(state)):
        page = msgspec.structs.replace(a.since({}), records=[("m", msgspec.Raw(state[:end]))])
        with pytest.raises(codec.Garbled):
            b.replica.merge_page(page, b"", NOW)
    assert b.replica.end_turn().empty and not b.records and not b.vector

    def story() -> None:
        a = Node("a")
        for number in range(20):
            a.replica.write(0, store("x" * CONTENT_BYTES_MAX, id=f"m{number}"), "agent", "", NOW, None)
        sizes = [len(raw) for _, raw in a.turn().deltas]
        assert max(sizes) <= max(BATCH_BYTES_TARGET, CONTENT_BYTES_MAX + 1_000) < MESSAGE_BYTES_MAX

    fails_without(without(replicas, "_encoded", lambda delta: [encode(delta)]), story)


# -- places -----------------------------------------------------------------------------------------------------------


def test_trap_two_ring_views() -> None:
    """Answer: where data lies follows from the cluster's description alone, in whatever order it lists the nodes."""
    nodes = [NodeInfo(id=f"spine-{number}", zone=f"zone-{number % 3}") for number in range(7)]

    def layout(some: list[NodeInfo]) -> dict[int, tuple[str, ...]]:
        hello = Hello(
            cluster="c", region="r", node="spine-0", state="up", nodes=some, partitions=64, factor=3, write_quorum=2
        )
        return Layout(hello).replicas

    def as_listed(partitions: int, nodes: list[str], factor: int, zones: object) -> dict[int, list[str]]:
        return dict.fromkeys(range(partitions), nodes[:factor])

    def story() -> None:
        for seed in range(5):
            shuffled = list(nodes)
            random.Random(seed).shuffle(shuffled)
            assert layout(shuffled) == layout(nodes)

    fails_without(without(layouts, "placed", as_listed), story)


# -- documents --------------------------------------------------------------------------------------------------------


class Editor:
    """An agent that edits the document at one node, under one Yjs client id; not text alone."""

    def __init__(self, node: Node, client: int) -> None:
        self.node = node
        self.client = client

    def puts(self, key: str, value: int) -> list[Delta]:
        record = self.node.records["m"]
        live = document.opened(document.updates_of(record.content, record.document), self.client)
        before = live.get_state()
        live.get("map", type=pycrdt.Map)[key] = value
        clock = document.state_vector(before).get(self.client, 0)
        update, base = live.get_update(before), document.key_of(record.content)
        return self.node.write(EditDocument(i=0, id="m", update=update, client=self.client, clock=clock, base=base))

    def reads(self) -> dict[str, Any]:
        record = self.node.records["m"]
        live = document.opened(document.updates_of(record.content, record.document))
        return dict(live.get("map", type=pycrdt.Map).to_py() or {})


def test_trap_pycrdt_updates_of_one_client_out_of_order() -> None:
    """Answer: edits are kept in causal order, also where two replicas' documents meet. A map of Yjs loses keys where
    one client's updates come in another order (y-crdt issue 632)."""
    appended = document._appended

    def backwards(one: document.Document, reached: Vector, other: document.Document) -> document.Document:
        return appended(one, reached, msgspec.structs.replace(other, tail=other.tail[::-1]))

    def story() -> None:
        a, b = Node("a"), Node("b")
        b.takes(*a.write(store()))
        one, other = Editor(a, 1), Editor(b, 2)
        other.puts("mine", 0)
        for number in range(6):
            one.puts(f"key-{number % 2}", number)
        b.catches_up(a)
        assert other.reads() == {"mine": 0, "key-0": 4, "key-1": 5}

    fails_without(without(document, "_appended", backwards), story)


def test_trap_a_pycrdt_client_id_reused_after_a_restore() -> None:
    """Answer: an edit says how far its client id had come, and one that comes from a copy of its agent is refused: Yjs
    would take it for one that it has, and replicas would differ for ever."""

    def story() -> None:
        a = Node("a")
        a.write(store())
        copy = Node("a", a.journal)
        Editor(a, 1).puts("key", 1)
        (delta,) = Editor(copy, 1).puts("key", 2)
        update = delta.changes[0]
        assert update.document is not None
        operation = EditDocument(i=1, id="m", update=update.document, client=1, clock=0, base=update.base)
        try:
            a.write(operation)
        except writes.Refused as refused:
            assert refused.error == "VersionConflict"
        else:
            raise AssertionError("it was taken")

    fails_without(without(writes, "_check_update", lambda *_: None), story)


def test_trap_pycrdt_versions_that_must_not_share_a_cluster() -> None:
    """Answer: the dependency is pinned to one side of 0.13, and to what the tests ran with."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (pinned,) = [wanted for wanted in project["dependencies"] if wanted.startswith("pycrdt")]
    assert re.fullmatch(r"pycrdt>=0\.14(\.\d+)?,<0\.15", pinned)
    assert version("pycrdt").startswith("0.14.")
