"""Nonsense on every subject: it is refused and counted, nothing stops, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from crdt_spine.core.messages import Query
from crdt_spine.core.selection import Selection
from crdt_spine.core.subjects import DISCOVERY_SUBJECT, Subjects
from crdt_spine.limits import MESSAGE_BYTES_MAX

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("cluster_garbage")]

Cluster = Any
SUBJECTS = Subjects("spine")
GHOST = "local/ghost@1"

#: A good message for each subject, of somebody who is not there.
GOOD: dict[str, list[dict[str, Any]]] = {
    "delta": [
        {
            "type": "delta/1", "partition": 3, "actor": GHOST, "first": 7, "deps": {GHOST: 1},
            "changes": [
                {"id": "x", "time": 1 << 40, "agent": "a", "operation": "o-1", "alive": True, "content": "c",
                 "importance": 0.5, "metadata": {"k": 1}, "add": ["t"], "expires": 5, "thread": "t", "created": 5},
            ],
        },
        {
            "type": "bundle/1",
            "deltas": [
                {"type": "delta/1", "partition": 3, "actor": GHOST, "first": 7, "deps": {GHOST: 1},
                 "changes": [{"id": "x", "time": 1 << 40, "agent": "a", "alive": True, "content": "c"}]},
                {"type": "delta/1", "partition": 4, "actor": GHOST, "first": 7, "deps": {GHOST: 1}, "changes": []},
            ],
        },
    ],
    "vectors": [
        {"type": "announcement/1", "node": "ghost", "actor": GHOST, "state": "up", "now": 5,
         "vectors": {"3": {GHOST: 9}}},
        {"type": "announcement/1", "node": "spine-2", "actor": GHOST, "state": "up", "now": 5, "zone": "z",
         "vectors": {"3": {GHOST: 9}}},
    ],
    "gossip": [
        {"type": "gossip/1", "node": "ghost", "roster": "ghost", "asks": True,
         "beats": {"spine-1": 5, "spine-2": 5, "ghost": 7}, "table": "AAAAAAAA",
         "vitals": [["ghost", 5, 1, "up", "z", 10, 2, 3, 1, 77]]},
    ],
    "ack": [{"type": "ack/1", "node": "ghost", "actor": GHOST, "reached": {"3": 9}}],
    "sync": [{"type": "sync/1", "partition": 3, "have": {}, "upto": {}, "after": "x", "limit": 5}],
    "rpc": [
        {"type": "request/1", "session": "s", "agent": "a", "operations": [operation], "token": {"3": {GHOST: 0}}}
        for operation in (
            {"do": "get", "i": 1, "id": "x"},
            {"do": "store", "i": 1, "id": "ghost", "content": "c", "tags": ["ghost"], "metadata": {"k": 1},
             "thread": "t", "importance": 0.5, "expires": 1 << 62, "created": 1 << 50, "acks": 1, "agent": "a"},
            {"do": "update", "i": 1, "id": "ghost", "content": "c", "metadata": {"k": 1}, "add": ["t"],
             "remove": ["u"], "if_version": "v", "importance": 0.5, "expires": None},
            {"do": "delete", "i": 1, "id": "ghost"},
            {"do": "query", "i": 1, "selection": {"tags": ["t"], "metadata": {"k": 1}, "since": 5}, "order": "newest",
             "limit": 5, "text": "word (", "after": [5, "x"], "shown": ["y"], "partitions": [3]},
            {"do": "reach", "i": 1},
            {"do": "status", "i": 1},
        )
    ],
    "feed": [
        {"type": "feed-open/1", "feed": "f", "inbox": "_INBOX.ghost", "selection": {"tags": ["t"]}, "partitions": [3],
         "credit": 5, "token": {"3": {GHOST: 1}}},
        {"type": "feed-credit/1", "feed": "f", "taken": 5},
        {"type": "feed-close/1", "feed": "f"},
    ],
    "discover": [{}],
}  # fmt: skip

BAD: list[Any] = [
    None, True, -1, 0, (1 << 63) - 1, 10**30, -(10**30), 0.5, 1e308, "", "x" * 5000, "a b\r\nPUB spine 0\r\n", "\0", [],
    [[]], [None], {}, {"": None}, {"3": 5}, {"99999": {"a": 1}}, {"3": {"a": 10**30}}, {"3": {"a": -5}},
]  # fmt: skip


def mutations(message: dict[str, Any]) -> Iterator[bytes]:
    """The message with each value replaced by each bad one, at every depth; with a field too much, or one missing."""

    def replaced(value: Any) -> Iterator[Any]:
        yield from BAD
        if isinstance(value, dict):
            for key in value:
                yield {other: item for other, item in value.items() if other != key}
                for item in replaced(value[key]):
                    yield {**value, key: item}
            yield {**value, "unknown": 1}
        elif isinstance(value, list) and value:
            for item in replaced(value[0]):
                yield [item, *value[1:]]

    for mutated in replaced(message):
        yield json.dumps(mutated).encode()


def nonsense(kind: str, dice: random.Random) -> Iterator[bytes]:
    """Everything that may come on a subject and should not."""
    yield b""
    for size in (1, 2, 10, 1000, 100_000):
        yield dice.randbytes(size)
    yield b"\0" * 1000
    yield b"[" * 200_000
    yield b'{"a":' * 100_000
    largest = MESSAGE_BYTES_MAX - 4096
    yield b" " * largest
    yield b'"' + b"x" * (largest - 2) + b"\n"
    for message in GOOD[kind]:
        good = json.dumps(message).encode()
        for _ in range(20):
            yield good[: dice.randrange(len(good))]
            place = dice.randrange(len(good))
            yield good[:place] + dice.randbytes(3) + good[place + 3 :]
        yield good.replace(b"/1", b"/2")
        yield good + good
        yield good.replace(b'"x"', b'"\\ud800"').replace(b'"t"', b'"\xff\xfe"')
        yield good.replace(b'"k": 1', b'"k": 1e999')
        yield good.replace(b'"k": 1', b'"k": %d' % 10**40)
        yield good.replace(b'"k": 1', b'"k": ' + b"[" * 50_000)
        yield from mutations(message)


@pytest_asyncio.fixture(loop_scope="module")
async def stranger(cluster: Cluster) -> AsyncIterator[Client]:
    """A connection that is no node's and no agent's."""
    client = await nats.connect(cluster.url)
    yield client
    await client.close()


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex}"


async def refusals(cluster: Cluster) -> dict[str, int]:
    return {node: (await cluster.status(node))["messages_refused"] for node in cluster.ids}


def subjects_of(kind: str, cluster: Cluster) -> list[str]:
    if kind == "delta":
        return [SUBJECTS.delta(3), f"{SUBJECTS.prefix}.delta.nonsense"]
    if kind == "vectors":
        return [SUBJECTS.vectors("ghost")]
    if kind == "discover":
        return [DISCOVERY_SUBJECT]
    return [getattr(SUBJECTS, kind)(node) for node in cluster.ids]


@pytest.mark.parametrize("kind", GOOD)
async def test_nonsense_is_refused_and_nothing_stops(cluster: Cluster, stranger: Client, mark: str, kind: str) -> None:
    dice = random.Random(kind)
    pids = {node: cluster.pid(node) for node in cluster.ids}
    before = await refusals(cluster)
    async with cluster.spine() as spine:
        stored = []
        for subject in subjects_of(kind, cluster):
            for count, payload in enumerate(nonsense(kind, dice)):
                await stranger.publish(subject, payload, reply=f"_INBOX.stranger.{count}" if count % 3 else "")
                if count % 200 == 0:
                    await stranger.flush()
                    stored.append(await spine.store(f"{count}", tags=[mark]))
        await stranger.flush()
        stored.append(await spine.store("last", tags=[mark]))
        for memory in stored:
            assert await spine.get(memory.id) == memory
        assert {m.id for m in (await spine.query(tags=[mark], limit=1000)).memories} == {m.id for m in stored}
        async with spine.subscribe(tags=[mark]) as updates:
            new = await spine.store("told", tags=[mark])
            async with asyncio.timeout(30):
                assert (await anext(updates)).memory == new
    assert {node: cluster.pid(node) for node in cluster.ids} == pids, "a node ended"
    if kind != "discover":  # any question is as good as another
        sent = sum(1 for _ in nonsense(kind, dice))
        deadline = asyncio.get_running_loop().time() + 30
        while True:
            after = await refusals(cluster)
            if all(after[node] - before[node] > sent / 2 for node in cluster.ids):
                break
            assert asyncio.get_running_loop().time() < deadline, f"{before} then {after}, of {sent}"


async def test_nonsense_leaves_no_poison_in_the_journals(cluster: Cluster, stranger: Client, mark: str) -> None:
    """What got through was well-formed; after a restart it is read again, and it has to reach the tables."""
    spread = json.dumps(
        {
            "type": "delta/1", "partition": 3, "actor": GHOST, "first": 1, "deps": {},
            "changes": [{"id": f"{mark}-{n}", "time": 1 << 40, "agent": "a", "alive": True, "content": "c"}
                        for n in range(5)],
        }, indent=1,
    ).encode()  # fmt: skip
    assert b"\n" in spread, "a journal row is lines"
    await stranger.publish(SUBJECTS.delta(3), spread)
    async with cluster.spine() as spine:
        stored = await spine.store_many({"content": f"word {n}", "tags": [mark]} for n in range(50))
        await cluster.kill(*cluster.ids)
        await cluster.bring_back(*cluster.ids)
        for node in cluster.ids:
            async with asyncio.timeout(30):
                while None in (await cluster.contents_at(node, [memory.id for memory in stored])).values():
                    await asyncio.sleep(0.1)
            # A search brings everything to the tables first.
            found = await cluster.run_at(node, Query, selection=Selection(tags=(mark,)), text="word", limit=1000)
            assert len(found.hits) == 50
            status = await cluster.status(node)
            assert (status["state"], status["unflushed"]) == ("up", 0)


async def test_a_peer_that_answers_nonsense_is_asked_again(cluster: Cluster, stranger: Client, mark: str) -> None:
    """Somebody else answers the requests for a repair, and is faster."""
    dice = random.Random(5)
    answered = 0

    async def answer(message: Msg) -> None:
        nonlocal answered
        answered += 1
        page = {"type": "page/1", "partition": dice.randrange(64), "records": [["x", [["a"], [], [], [1]]]], "upto": {}}
        garbage = [b"", dice.randbytes(100), b"[" * 100_000, json.dumps(page).encode()]
        await stranger.publish(message.reply, dice.choice(garbage))

    async with cluster.spine() as spine:
        await cluster.kill("spine-3")
        stored = await spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(500))
        listening = [await stranger.subscribe(SUBJECTS.sync(node), cb=answer) for node in cluster.ids]
        await stranger.flush()
        await cluster.bring_back("spine-3")
        async with asyncio.timeout(40):
            while answered < 20:
                await asyncio.sleep(0.05)
        for subscription in listening:
            await subscription.unsubscribe()
        async with asyncio.timeout(40):
            while None in (await cluster.contents_at("spine-3", [memory.id for memory in stored])).values():
                await asyncio.sleep(0.1)
