"""The whole promise at once: twenty agents share six thousand turns of talk over three nodes, and a node is killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from crdt_spine import Memory, Spine
from crdt_spine.core.messages import Query
from crdt_spine.core.selection import Selection

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance")]

Cluster = Any
Turn = dict[str, Any]

AGENTS = 20
TURNS = 6_000
FOLLOWED = "speaker:mira"

SPEAKERS = ("mira", "jonas", "aiko", "tomás", "zeynep", "olu")
OPENINGS = ("I think", "Honestly,", "You know,", "Last week", "By the way,", "", "", "Hm —", "Sure!", "Guess what:")
SUBJECTS = ("the migration", "my sister", "our garden", "the 6 a.m. run", "that café on the corner", "the review")
VERBS = ("went better than planned", "took forever", "made me laugh 😂", "is still not done", "cost 1,299 €", "is 好き")
ENDINGS = (".", "!", "?", "…", ", and nobody noticed.", " — can you believe it?", ".\nMore tomorrow.", ' ("again").')


def talk(count: int, seed: int) -> Iterator[Turn]:
    """Turns of conversations as agents would store them: short, uneven, in several scripts, with times and threads."""
    dice = random.Random(seed)
    at = datetime(2025, 3, 1, 8, tzinfo=UTC)
    for n in range(count):
        at += timedelta(seconds=dice.expovariate(1 / 40))
        speaker = dice.choice(SPEAKERS)
        sentences = [
            f"{dice.choice(OPENINGS)} {dice.choice(SUBJECTS)} {dice.choice(VERBS)}{dice.choice(ENDINGS)}".strip()
            for _ in range(min(12, 1 + int(dice.expovariate(0.7))))
        ]
        yield {
            "content": " ".join(sentences),
            "id": f"talk-{seed}:{n}",
            "tags": [f"speaker:{speaker}", *(["question"] if sentences[-1].endswith("?") else [])],
            "metadata": {"turn": n, "session": n // 150, "mood": dice.choice(["fine", "tired", None]) or "unknown"},
            "thread": f"talk-{seed}-{n // 600}",
            "importance": round(dice.random(), 2),
            "created_at": at,
        }


async def speak(spine: Spine, turns: list[Turn], said: dict[str, Memory]) -> None:
    """One agent stores its turns, three at a time."""
    for start in range(0, len(turns), 3):
        for memory in await asyncio.gather(*[spine.store(**turn) for turn in turns[start : start + 3]]):
            said[memory.id] = memory


async def follow(spine: Spine, tag: str, count: int, seen: Counter[str]) -> None:
    """A subscriber that counts what it hears, until it has heard of so many memories."""
    async with spine.subscribe(tags=[tag]) as updates:
        async for update in updates:
            assert tag in update.memory.tags
            seen[update.memory.id] += 1
            if len(seen) == count:
                break
        with contextlib.suppress(TimeoutError):  # what came twice may come late
            async with asyncio.timeout(1.5):
                async for update in updates:
                    seen[update.memory.id] += 1


async def all_of(cluster: Cluster, node: str) -> dict[str, Memory]:
    """Everything that one node has, asked alone, page by page."""
    memories: dict[str, Memory] = {}
    after: tuple[int, str] | None = None
    while True:
        page = await cluster.run_at(
            node, Query, selection=Selection(), order="oldest", limit=1000, after=after, timeout=10.0
        )
        for hit in page.hits:
            memories[hit.id] = msgspec.json.decode(hit.memory, type=Memory)
        if not page.more:
            return memories
        after = (page.hits[-1].created, page.hits[-1].id)


async def test_twenty_agents_share_what_was_said_though_a_node_dies(start_cluster: Any) -> None:
    cluster = await start_cluster()
    await share(cluster, list(talk(TURNS, seed=7)), FOLLOWED)


async def share(cluster: Cluster, turns: list[Turn], tag: str) -> None:
    followed = {turn["id"] for turn in turns if tag in turn["tags"]}
    said: dict[str, Memory] = {}
    seen: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as spines:
        subscriber = await spines.enter_async_context(cluster.spine("subscriber"))
        agents = [await spines.enter_async_context(cluster.spine(f"agent-{n}")) for n in range(AGENTS)]
        following = asyncio.create_task(follow(subscriber, tag, len(followed), seen))
        await subscriber.get("x")  # the subscription has begun: what is asked after it is answered after it
        speaking = asyncio.gather(*[speak(agent, turns[n::AGENTS], said) for n, agent in enumerate(agents)])

        async def until_said(count: int) -> None:
            while len(said) < count and not speaking.done():
                await asyncio.sleep(0.005)

        async with asyncio.timeout(90):
            await until_said(len(turns) // 4)
            await cluster.kill("spine-2")
            await until_said(len(turns) // 2)
            assert not speaking.done(), "the node died while they spoke"
            await cluster.bring_back("spine-2")
            await speaking
        assert len(said) == len(turns)
        async with asyncio.timeout(30):
            await following

        # Each node, asked alone, has every turn as it was said.
        for node in cluster.ids:
            async with asyncio.timeout(30):
                while (memories := await all_of(cluster, node)).keys() != said.keys():
                    await asyncio.sleep(0.2)
            for turn in turns:
                memory = memories[turn["id"]]
                assert memory == said[memory.id] or memory.version != said[memory.id].version
                assert (memory.content, memory.tags) == (turn["content"], frozenset(turn["tags"]))
                assert (memory.metadata, memory.thread) == (turn["metadata"], turn["thread"])
                assert memory.created_at == said[memory.id].created_at
        async with asyncio.timeout(30):
            while True:
                versions = [{id: m.version for id, m in (await all_of(cluster, node)).items()} for node in cluster.ids]
                if versions[0] == versions[1] == versions[2]:
                    break

    # The subscriber heard of each turn that it followed, once.
    assert seen.keys() == followed
    assert {id: times for id, times in seen.items() if times > 1} == {}
