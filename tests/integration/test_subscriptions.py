"""Subscriptions: every matching change once, in spite of slow readers, absences and the death of who serves them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from crdt_spine import ConnectionFailed, InvalidInput, Spine, Update
from crdt_spine.core.placement import partition_of
from crdt_spine.limits import DIRTY_BYTES_MAX, FEED_UPDATES_BUFFERED_MAX
from crdt_spine.subscription import Updates

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("subscriptions")]

Cluster = Any
BATCH = 10  # memories


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex}"


async def take(updates: Updates, count: int, seconds: float = 30.0) -> list[Update]:
    """The next updates."""
    taken: list[Update] = []
    try:
        async with asyncio.timeout(seconds):
            while len(taken) < count:
                taken.append(await anext(updates))
    except TimeoutError:
        pytest.fail(f"only {len(taken)} of {count} updates came within {seconds} s")
    return taken


async def silent(updates: Updates, spine: Spine, mark: str) -> bool:
    """Does nothing come but what is stored now?"""
    last = await spine.store("the last one", tags=[mark])
    (update,) = await take(updates, 1)
    return update.memory.id == last.id


def told(updates: list[Update]) -> list[tuple[str, str]]:
    return [(update.kind, update.memory.content) for update in updates]


async def serving(cluster: Cluster, but: str = "") -> str:
    """The node that serves the only feed, once there is one; another one than `but`."""
    try:
        async with asyncio.timeout(60):
            while True:
                for node in cluster.ids:
                    if node != but and (await cluster.status(node)).get("feeds"):
                        return str(node)
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail("no node serves it")


class Writing:
    """Stores memories, some at a time, until it is told to stop; the result of `task` are the contents of all that were
    acknowledged."""

    def __init__(self, spine: Spine, mark: str) -> None:
        self.written: list[str] = []
        self.task = asyncio.create_task(self._run(spine, mark))
        self._stop = False

    async def _run(self, spine: Spine, mark: str) -> list[str]:
        while not self._stop:
            contents = [f"{mark} {len(self.written) + n}" for n in range(BATCH)]
            await spine.store_many({"content": content, "tags": [mark]} for content in contents)
            self.written += contents
            await asyncio.sleep(0.005)
        return self.written

    async def more(self) -> None:
        """Wait until something is acknowledged that was begun after this call."""
        target = len(self.written) + 2 * BATCH  # a batch may be under way
        async with asyncio.timeout(60):
            while len(self.written) < target and not self.task.done():
                await asyncio.sleep(0.01)
        if self.task.done():
            pytest.fail(f"it writes no more: {self.task.exception()!r}")

    def stop(self) -> None:
        self._stop = True


async def read_all(updates: Updates, wanted: asyncio.Future[list[str]], spine: Spine, mark: str) -> Counter[str]:
    """How often each content came as stored, until all that are wanted came, and then nothing but what is new."""
    seen: Counter[str] = Counter()
    now = asyncio.get_running_loop().time
    deadline = now() + 40
    while not wanted.done() or not seen.keys() >= set(wanted.result()):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                update = await anext(updates)
                seen[update.memory.content] += update.kind == "stored"
        if not wanted.done():
            deadline = now() + 40
        missing = set(wanted.result() if wanted.done() else ()) - seen.keys()
        assert now() < deadline, f"never told: {len(missing)}, as {sorted(missing)[:3]}"
    assert await silent(updates, spine, mark)
    return seen


# -- what is told ----------------------------------------------------------------------------------------------------


async def test_what_the_same_spine_does_after_subscribing_is_seen_in_order(cluster: Cluster, mark: str) -> None:
    async with cluster.spine() as spine:
        updates = spine.subscribe(tags=[mark])
        stored = await spine.store("one", id=mark, tags=[mark])
        changed = await spine.update(mark, content="two")
        await spine.update(mark, add_tags=["more"])
        await spine.delete(mark)
        again = await spine.store("three", id=mark, tags=[mark])
        replaced = await spine.store("four", id=mark, tags=[mark])
        seen = await take(updates, 6)
        assert told(seen) == [
            ("stored", "one"), ("updated", "two"), ("updated", "two"), ("deleted", ""), ("stored", "three"),
            ("stored", "four"),
        ]  # fmt: skip
        assert (seen[0].memory, seen[1].memory, seen[4].memory, seen[5].memory) == (stored, changed, again, replaced)
        assert seen[3].memory.id == mark
        assert seen[3].memory.tags == {mark, "more"}
        assert await silent(updates, spine, mark)
        await updates.close()


async def test_only_what_fulfils_every_condition_is_told(cluster: Cluster, mark: str) -> None:
    async with cluster.spine("ada") as ada:
        bert = ada.for_agent("bert")
        thread = f"thread-{mark}"
        conditions: dict[str, dict[str, Any]] = {
            "tag": {"tags": [mark]}, "both": {"tags": [mark, "b"]}, "any": {"any_tags": [f"x-{mark}", mark]},
            "agent": {"tags": [mark], "agent": "bert"}, "thread": {"thread": thread},
            "all": {"thread": thread, "agent": "ada", "tags": ["b"], "any_tags": [mark]},
        }  # fmt: skip
        feeds = {name: ada.subscribe(**condition) for name, condition in conditions.items()}
        await ada.store("1", tags=[mark])
        await bert.store("2", tags=[mark, "b"])
        await ada.store("3", thread=thread)
        await ada.store("4", thread=thread, tags=["b", mark])
        await bert.store("5", tags=[f"x-{mark}"])
        await ada.store("6", tags=["unrelated"])
        expected = {"tag": "124", "both": "24", "any": "1245", "agent": "2", "thread": "34", "all": "4"}
        for name, updates in feeds.items():
            contents = [update.memory.content for update in await take(updates, len(expected[name]))]
            last = await (bert if name == "agent" else ada).store(name, tags=[mark, "b"], thread=thread)
            while contents[-1] != last.content:
                contents.append((await take(updates, 1))[0].memory.content)
            assert "".join(sorted(content for content in contents if len(content) == 1)) == expected[name], name
            await updates.close()


async def test_a_memory_whose_tag_is_taken_away_is_told_no_more(cluster: Cluster, mark: str) -> None:
    async with cluster.spine() as spine, spine.subscribe(tags=[mark]) as updates:
        await spine.store("in", id=mark, tags=[mark])
        await spine.update(mark, remove_tags=[mark])
        await spine.update(mark, content="out")
        await spine.update(mark, content="back", add_tags=[mark])
        assert told(await take(updates, 2)) == [("stored", "in"), ("updated", "back")]
        assert await silent(updates, spine, mark)


async def test_what_one_agent_writes_others_hear(cluster: Cluster, mark: str) -> None:
    async with (
        cluster.spine("reader") as reader,
        cluster.spine("writer") as writer,
        reader.subscribe(tags=[mark]) as updates,
    ):
        written = await writer.store_many({"content": f"{n}", "tags": [mark]} for n in range(500))
        seen = await take(updates, 500)
        assert Counter(u.memory.content for u in seen) == Counter(m.content for m in written)
        assert await silent(updates, writer, mark)


async def test_a_closed_subscription_frees_its_feed_and_ends(tmp_path: Path) -> None:
    async with Spine.open(tmp_path / "memories.db", agent="ada") as spine:
        feeds: list[int] = []

        async def count() -> None:
            feeds.append((await spine.status())["nodes"][0]["feeds"])

        async with spine.subscribe(tags=["a"]):
            await count()
        updates = spine.subscribe(tags=["a"])
        await spine.store("x", tags=["a"])
        await take(updates, 1)
        await updates.close()
        await updates.close()
        with pytest.raises(StopAsyncIteration):
            await anext(updates)
        await count()
        assert feeds == [1, 0]


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_who_was_away_goes_on_after_the_token_without_loss_or_repetition(cluster: Cluster, mark: str) -> None:
    async with cluster.spine() as spine:
        kept = await spine.store("kept", tags=[mark])
        async with spine.subscribe(tags=[mark]) as updates:
            await spine.store_many({"content": f"before {n}", "tags": [mark]} for n in range(50))
            seen = await take(updates, 50)
        for resume in (0, 24, 49):
            async with spine.subscribe(tags=[mark], token=seen[resume].token) as again:
                rest = await take(again, 49 - resume) if resume < 49 else []
                assert {u.memory.id for u in rest} == {u.memory.id for u in seen[resume + 1 :]}
        away = await spine.store_many({"content": f"away {n}", "tags": [mark]} for n in range(300))
        await spine.update(kept.id, content="changed")
        await spine.delete(seen[3].memory.id)
        await spine.delete(away[0].id)  # was born and died in between: told as deleted, or not at all
        token = seen[-1].token
    async with cluster.spine("another") as other, other.subscribe(tags=[mark], token=token) as updates:
        marker = await other.store("marker", tags=[mark])
        heard: list[Update] = []
        while not heard or heard[-1].memory.id != marker.id:
            heard += await take(updates, 1)
        heard = [update for update in heard[:-1] if update.memory.id != away[0].id]
        assert Counter(told(heard)) == Counter(
            [("stored", f"away {n}") for n in range(1, 300)] + [("updated", "changed"), ("deleted", "")]
        )
        assert await silent(updates, other, mark)


async def test_a_token_of_nothing_begins_at_the_beginning(cluster: Cluster, mark: str) -> None:
    async with cluster.spine() as fresh:
        beginning = fresh.token
    async with cluster.spine() as spine:
        await spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(100))
        async with spine.subscribe(tags=[mark], token=beginning) as updates:
            assert len({u.memory.id for u in await take(updates, 100)}) == 100
            assert await silent(updates, spine, mark)
        with pytest.raises(InvalidInput):
            spine.subscribe(token="st1nonsense")


# -- slow subscribers ------------------------------------------------------------------------------------------------


async def test_a_slow_subscriber_gets_everything_once_and_nobody_buffers_it(cluster: Cluster, mark: str) -> None:
    count = 12 * FEED_UPDATES_BUFFERED_MAX
    content = "x" * 2000
    async with (
        cluster.spine("slow") as slow,
        cluster.spine("writer") as writer,
        slow.subscribe(tags=[mark]) as updates,
    ):
        first = await writer.store("first", tags=[mark])
        assert (await take(updates, 1))[0].memory.id == first.id
        node = await serving(cluster)
        ids = []
        for start in range(0, count, 200):  # few at once: what takes a node a second is repeated at another one
            stored = await writer.store_many({"content": content, "tags": [mark]} for _ in range(200))
            ids += [memory.id for memory in stored]
            if start == 3000:
                before = psutil.Process(cluster.pid(node)).memory_info().rss
        assert updates._queue.qsize() <= FEED_UPDATES_BUFFERED_MAX + 1
        # What the tables do not have yet fills its own bound meanwhile; a feed adds nothing to it.
        assert psutil.Process(cluster.pid(node)).memory_info().rss - before < DIRTY_BYTES_MAX + 32 * 1024 * 1024
        seen = await take(updates, count, 60)
        assert Counter(update.memory.id for update in seen) == Counter(ids)
        assert await silent(updates, writer, mark)


async def test_a_slow_subscriber_does_not_hold_up_a_fast_one(cluster: Cluster, mark: str) -> None:
    count = 3 * FEED_UPDATES_BUFFERED_MAX
    async with cluster.spine() as spine, spine.subscribe(tags=[mark]) as slow, spine.subscribe(tags=[mark]) as fast:
        writing = asyncio.create_task(
            spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(count))  # type: ignore[arg-type]
        )
        assert len({update.memory.id for update in await take(fast, count)}) == count
        await writing
        assert len({update.memory.id for update in await take(slow, count)}) == count


# -- the death of who serves -----------------------------------------------------------------------------------------


async def test_a_subscription_survives_the_deaths_of_its_nodes(cluster: Cluster, mark: str) -> None:
    """Each in turn, while others write: no loss, no repetition."""
    async with (
        cluster.spine("reader") as reader,
        cluster.spine("writer", timeout=30.0) as writer,
        reader.subscribe(tags=[mark]) as updates,
    ):
        writing = Writing(writer, mark)
        reading = asyncio.create_task(read_all(updates, writing.task, writer, mark))
        for _ in range(2):
            await writing.more()
            node = await serving(cluster)
            await cluster.kill(node)
            await serving(cluster, but=node)
            await writing.more()  # without it
            await cluster.bring_back(node)
        await writing.more()
        writing.stop()
        seen = await reading
        assert seen.keys() >= set(await writing.task)
        assert {content: times for content, times in seen.items() if times > 1} == {}


async def test_a_subscription_survives_the_death_of_the_broker(cluster: Cluster, mark: str) -> None:
    async with (
        cluster.spine("reader") as reader,
        cluster.spine("writer", timeout=30.0) as writer,
        reader.subscribe(tags=[mark]) as updates,
    ):
        writing = Writing(writer, mark)
        reading = asyncio.create_task(read_all(updates, writing.task, writer, mark))
        for n in range(2):
            await writing.more()
            cluster.kill_broker()
            through = await writer.store(f"{mark} through {n}", tags=[mark])  # waits for the broker
            writing.written.append(through.content)
            await writing.more()
        writing.stop()
        seen = await reading
        assert seen.keys() >= set(await writing.task)
        assert {content: times for content, times in seen.items() if times > 1} == {}


async def test_a_subscription_opened_at_a_node_in_repair_loses_nothing(start_cluster: Any, mark: str) -> None:
    """What a sync has brought so far is ahead of the node's vector: no later event tells of it."""
    cluster = await start_cluster()
    async with cluster.spine("writer") as writer, cluster.spine("reader") as reader:
        reader._live.routing.names.sort(key=lambda node: node != "spine-3")
        await writer.store("first", id=mark)
        await writer.wait_for(writer.token)
        token = writer.token
        await cluster.kill("spine-3")
        ids = (f"{mark}-{n}" for n in itertools.count())
        one_partition = itertools.islice((id for id in ids if partition_of(id) == partition_of(mark)), 400)
        writer._live.timeout = 60.0
        stored = await writer.store_many(
            {"id": id, "content": "x" * 50_000, "tags": [mark]} for id in one_partition
        )  # some eighty pages
        await cluster.bring_back("spine-3")
        taken = 0
        while not taken:
            taken = (await cluster.status("spine-3"))["counts"].get("sync_records_taken", 0)
        assert taken < len(stored), "the repair was over before the subscription began"
        async with reader.subscribe(tags=[mark], token=token) as updates:
            assert [source.node for source in updates._sources.values()] == ["spine-3"]
            seen = await take(updates, len(stored))
            assert Counter(update.memory.id for update in seen) == Counter(memory.id for memory in stored)
            assert await silent(updates, writer, mark)


async def test_a_subscription_that_no_node_opens_says_so(start_cluster: Any, mark: str) -> None:
    cluster = await start_cluster(nodes=1)
    async with cluster.spine(timeout=1.0) as spine:
        await cluster.kill("spine-1")
        updates = spine.subscribe(tags=[mark])
        with pytest.raises(ConnectionFailed, match="feed"):
            async with asyncio.timeout(30):
                await anext(updates)
