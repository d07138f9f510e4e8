"""What a `Spine` promises its agent, the same for a node in this process and for a cluster of three."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from crdt_spine import Consistency, InvalidInput, Memory, NotFound, Spine, StaleToken, VersionConflict
from crdt_spine.core.token import token_text
from crdt_spine.limits import CONTENT_BYTES_MAX, QUERY_LIMIT_MAX

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("cluster_and_embedded")]


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """Where the cluster is; empty for a node in this process."""
    return str(request.getfixturevalue("cluster").url) if request.param == "cluster" else ""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spine(url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Spine]:
    """One spine for all tests of the module: each keeps to a tag of its own."""
    path = tmp_path_factory.mktemp("embedded") / "memories.db"
    async with Spine.connect(url, agent="ada") if url else Spine.open(path, agent="ada") as opened:
        yield opened


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex}"


async def collect(spine: Spine, **query: Any) -> list[Memory]:
    """All pages of a query."""
    page = await spine.query(**query)
    memories = list(page.memories)
    while page.cursor is not None:
        page = await spine.query(**query, cursor=page.cursor)
        memories += page.memories
    return memories


def contents(memories: list[Memory]) -> list[str]:
    return [memory.content for memory in memories]


def ids(memories: list[Memory]) -> list[str]:
    return sorted(memory.id for memory in memories)


# -- one memory ------------------------------------------------------------------------------------------------------


async def test_a_stored_memory_is_read_back_as_store_returned_it(spine: Spine, mark: str) -> None:
    before = datetime.now(UTC)
    stored = await spine.store(
        "naïve 🦊 text\n", tags=[mark, "b", mark], thread="talk", importance=1, ttl=3600,
        metadata={"list": [1, "two", None, {"deep": 1.5}], "flag": True, "zero": 0, "text": ""},
    )  # fmt: skip
    assert await spine.get(stored.id) == stored
    assert (await spine.query(tags=[mark])).memories == [stored]
    assert stored.content == "naïve 🦊 text\n"
    assert stored.tags == {mark, "b"}
    assert stored.metadata == {"list": [1, "two", None, {"deep": 1.5}], "flag": True, "zero": 0, "text": ""}
    assert (stored.agent, stored.thread, stored.importance) == ("ada", "talk", 1.0)
    assert stored.created_at == stored.updated_at
    assert abs(stored.created_at - before) < timedelta(seconds=30)
    assert stored.expires_at is not None
    assert abs(stored.expires_at - before - timedelta(hours=1)) < timedelta(seconds=30)


async def test_values_of_subclasses_are_stored_as_what_they_are(spine: Spine, mark: str) -> None:
    """A str or float of another library (an enum's, an array's) is a str or a float."""

    class Text(str):
        pass

    class Whole(int):
        pass

    class Number(float):
        pass

    stored = await spine.store(
        Text("content"), id=Text(f"id-{mark}"), tags=[Text(mark)], thread=Text("t"), importance=Number(0.25),
        metadata={Text("key"): Text("value"), "n": Number(0.5), "i": Whole(7), "l": [Text("x")], "d": {Text("y"): 1}},
    )  # fmt: skip
    assert await spine.get(f"id-{mark}") == stored
    assert stored.metadata == {"key": "value", "n": 0.5, "i": 7, "l": ["x"], "d": {"y": 1}}
    assert contents(await collect(spine, tags=[Text(mark)], metadata={"key": Text("value")})) == ["content"]
    page = await spine.query(tags=[mark], order=Text("oldest"), limit=Whole(3))  # type: ignore[arg-type]
    assert contents(page.memories) == ["content"]


async def test_an_id_that_was_never_stored_is_none(spine: Spine) -> None:
    assert await spine.get("never stored") is None
    assert await spine.delete("never stored") is False


async def test_storing_an_id_again_replaces_it_whole_and_keeps_its_birthday(spine: Spine, mark: str) -> None:
    first = await spine.store("one", id=mark, tags=["old"], metadata={"old": 1}, thread="t", ttl=99, importance=0.9)
    second = await spine.store("two", id=mark)
    assert await spine.get(mark) == second
    assert (second.content, second.tags, second.metadata, second.thread) == ("two", frozenset(), {}, None)
    assert (second.importance, second.expires_at) == (0.5, None)
    assert second.created_at == first.created_at
    assert second.version != first.version


async def test_store_many_answers_in_order(spine: Spine, mark: str) -> None:
    stored = await spine.store_many({"content": f"item {n}", "tags": [mark], "metadata": {"n": n}} for n in range(300))
    assert contents(stored) == [f"item {n}" for n in range(300)]
    assert await asyncio.gather(*[spine.get(memory.id) for memory in stored]) == stored
    assert await spine.store_many([]) == []


async def test_one_bad_item_of_store_many_keeps_all_from_being_stored(spine: Spine, mark: str) -> None:
    for bad in ({"content": ""}, {"tags": []}, {"content": "x", "colour": "red"}, "text", {"content": "x", "ttl": 0}):
        with pytest.raises(InvalidInput, match="memory 2"):
            await spine.store_many([{"content": "good", "tags": [mark]}] * 2 + [bad])  # type: ignore[list-item]
    assert await collect(spine, tags=[mark]) == []


async def test_an_update_changes_what_it_names_and_nothing_else(spine: Spine, mark: str) -> None:
    stored = await spine.store("text", tags=[mark, "a"], metadata={"keep": 1, "drop": 2}, thread="t", importance=0.1)
    updated = await spine.update(
        stored.id, importance=0.7, metadata={"drop": None, "new": [3]}, add_tags=["b"], remove_tags=["a"]
    )
    assert await spine.get(stored.id) == updated
    assert (updated.content, updated.importance, updated.thread) == ("text", 0.7, "t")
    assert updated.tags == {mark, "b"}
    assert updated.metadata == {"keep": 1, "new": [3]}
    assert updated.created_at == stored.created_at
    assert updated.updated_at >= stored.updated_at
    again = await spine.update(stored.id, content="other", ttl=60)
    assert again.expires_at is not None
    assert (again.content, again.importance) == ("other", 0.7)
    assert (await spine.update(stored.id, ttl=None)).expires_at is None


async def test_an_update_of_what_is_not_there_is_not_found(spine: Spine, mark: str) -> None:
    with pytest.raises(NotFound, match=mark):
        await spine.update(mark, content="x")
    await spine.store("x", id=mark)
    await spine.delete(mark)
    with pytest.raises(NotFound):
        await spine.update(mark, content="x")


async def test_an_update_with_an_old_version_conflicts(spine: Spine, mark: str) -> None:
    stored = await spine.store("one", id=mark)
    updated = await spine.update(mark, content="two", if_version=stored.version)
    with pytest.raises(VersionConflict, match=mark):
        await spine.update(mark, content="three", if_version=stored.version)
    assert await spine.get(mark) == updated
    await spine.update(mark, content="three", if_version=updated.version)


async def test_of_many_updates_with_one_version_exactly_one_wins(spine: Spine, mark: str) -> None:
    stored = await spine.store("start", id=mark)
    results = await asyncio.gather(
        *[spine.update(mark, content=f"attempt {n}", if_version=stored.version) for n in range(50)],
        return_exceptions=True,
    )
    winners = [result for result in results if isinstance(result, Memory)]
    assert len(winners) == 1
    assert sum(isinstance(result, VersionConflict) for result in results) == 49
    assert await spine.get(mark) == winners[0]


async def test_a_deleted_memory_is_gone_and_can_be_stored_anew(spine: Spine, mark: str) -> None:
    await spine.store("one", id=mark, tags=[mark, "old"], metadata={"old": 1})
    assert await spine.delete(mark) is True
    assert await spine.get(mark) is None
    assert await collect(spine, tags=[mark]) == []
    assert await spine.delete(mark) is False
    reborn = await spine.store("two", id=mark, tags=[mark])
    assert await spine.get(mark) == reborn
    assert (reborn.tags, reborn.metadata) == (frozenset([mark]), {})


async def test_the_largest_contents_of_any_text_go_there_and_back(spine: Spine, mark: str) -> None:
    largest = ["\x01" * CONTENT_BYTES_MAX, "🦊" * (CONTENT_BYTES_MAX // 4), '"' * CONTENT_BYTES_MAX]
    async with spine.subscribe(tags=[mark]) as updates:
        stored = await spine.store_many({"content": content, "tags": [mark]} for content in largest)
        assert {(await anext(updates)).memory.content for _ in largest} == set(largest)
    for memory, content in zip(stored, largest, strict=True):
        assert memory.content == content
        assert await spine.get(memory.id) == memory
        assert (await spine.update(memory.id, importance=0.9)).content == content
    assert sorted(contents(await collect(spine, tags=[mark]))) == sorted(largest)
    with pytest.raises(InvalidInput, match="content"):
        await spine.store("x" * (CONTENT_BYTES_MAX + 1))


async def test_agents_that_share_a_session_write_in_their_own_names(spine: Spine, mark: str) -> None:
    bert = spine.for_agent("bert")
    await bert.store("of bert", id=mark, tags=[mark])
    memory = await spine.get(mark)
    assert memory is not None
    assert memory.agent == "bert"
    assert contents(await collect(spine, tags=[mark], agent="bert")) == ["of bert"]
    assert await collect(spine, tags=[mark], agent="ada") == []


@pytest.mark.parametrize("level", ["eventual", "read-your-writes", "causal", Consistency.EVENTUAL, None])
async def test_every_level_but_strong_reads_what_it_wrote(spine: Spine, mark: str, level: Any) -> None:
    await spine.store("x", id=mark, tags=[mark], consistency=level)
    assert await spine.get(mark, consistency=level) is not None
    assert len((await spine.query(tags=[mark], consistency=level)).memories) == 1
    await spine.update(mark, content="y", consistency=level)
    assert await spine.delete(mark, consistency=level) is True


# -- expiry ----------------------------------------------------------------------------------------------------------


async def test_an_expired_memory_is_gone_and_its_deletion_is_told(spine: Spine, mark: str) -> None:
    async with spine.subscribe(tags=[mark]) as updates:
        stored = await spine.store("short", id=mark, tags=[mark], ttl=0.3)
        assert (await anext(updates)).kind == "stored"
        assert stored.expires_at is not None
        assert await spine.get(mark) == stored or datetime.now(UTC) >= stored.expires_at
        async with asyncio.timeout(30):
            while await spine.get(mark) is not None:
                await asyncio.sleep(0.02)
        assert datetime.now(UTC) >= stored.expires_at
        assert await collect(spine, tags=[mark]) == []
        assert await spine.delete(mark) is False
        with pytest.raises(NotFound):
            await spine.update(mark, content="longer")
        async with asyncio.timeout(30):
            deleted = await anext(updates)
    assert (deleted.kind, deleted.memory.id, deleted.memory.content) == ("deleted", mark, "")
    assert deleted.memory.tags == {mark}


# -- queries ---------------------------------------------------------------------------------------------------------


async def test_a_query_gives_the_memories_that_fulfil_every_condition(spine: Spine, mark: str) -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    colours = ("red", "green", "blue")
    stored = [
        await spine.for_agent(f"agent-{n % 2}").store(
            f"memory {n}", tags=[mark, colours[n % 3], *(["rare"] if n == 7 else [])], thread=f"{mark}-{n % 4}",
            metadata={"n": n, "even": n % 2 == 0, "half": n / 2, "name": f"{n % 5}", "list": [n % 2]},
            created_at=start + timedelta(days=n),
        )
        for n in range(24)
    ]  # fmt: skip
    cases: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
        ({}, lambda n: True),
        ({"tags": ["red"]}, lambda n: n % 3 == 0),
        ({"tags": ["red", "green"]}, lambda n: False),
        ({"any_tags": ["red", "rare"]}, lambda n: n % 3 == 0 or n == 7),
        ({"not_tags": ["red", "blue"]}, lambda n: n % 3 == 1),
        ({"agent": "agent-1"}, lambda n: n % 2 == 1),
        ({"agent": "nobody"}, lambda n: False),
        ({"thread": f"{mark}-3"}, lambda n: n % 4 == 3),
        ({"since": start + timedelta(days=5)}, lambda n: n >= 5),
        ({"until": start + timedelta(days=5)}, lambda n: n < 5),
        ({"since": start + timedelta(days=5), "until": start + timedelta(days=5)}, lambda n: False),
        ({"since": start + timedelta(days=3), "until": start + timedelta(days=9)}, lambda n: 3 <= n < 9),
        ({"metadata": {"n": 3}}, lambda n: n == 3),
        ({"metadata": {"n": 3.0}}, lambda n: n == 3),
        ({"metadata": {"even": True}}, lambda n: n % 2 == 0),
        ({"metadata": {"even": 1}}, lambda n: False),
        ({"metadata": {"half": 2}}, lambda n: n == 4),
        ({"metadata": {"name": "2"}}, lambda n: n % 5 == 2),
        ({"metadata": {"name": 2}}, lambda n: False),
        ({"metadata": {"list": [1]}}, lambda n: n % 2 == 1),
        ({"metadata": {"absent": 1}}, lambda n: False),
        ({"tags": ["blue"], "agent": "agent-0", "not_tags": ["rare"], "metadata": {"even": True}},
         lambda n: n % 3 == 2 and n % 2 == 0),
    ]  # fmt: skip
    for conditions, wanted in cases:
        expected = [memory for n, memory in enumerate(stored) if wanted(n)]
        query = {**conditions, "tags": [mark, *conditions.get("tags", [])]}
        assert await collect(spine, **query, order="oldest") == expected, conditions
        assert await collect(spine, **query, limit=5) == expected[::-1], conditions


async def test_a_page_has_a_cursor_exactly_when_there_is_more(spine: Spine, mark: str) -> None:
    await spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(10))
    for limit, pages in ((10, 1), (11, 1), (5, 2), (9, 2), (3, 4), (QUERY_LIMIT_MAX, 1)):
        page = await spine.query(tags=[mark], limit=limit)
        seen = [len(page.memories)]
        while page.cursor is not None:
            page = await spine.query(tags=[mark], limit=limit, cursor=page.cursor)
            seen.append(len(page.memories))
        assert (len(seen), sum(seen)) == (pages, 10), f"limit {limit} gave pages of {seen}"


async def test_a_cursor_goes_on_while_others_write(spine: Spine, mark: str) -> None:
    """Nothing comes twice, and nothing that existed throughout is missed."""
    kept = await spine.store_many({"content": f"kept {n}", "tags": [mark, "kept"]} for n in range(400))
    stop = asyncio.Event()

    async def disturb() -> int:
        count = 0
        while not stop.is_set():
            one, two = await spine.store_many([{"content": "extra", "tags": [mark]}] * 2)
            await spine.delete(one.id)
            await spine.update(two.id, content="changed", add_tags=["more"])
            await spine.update(kept[count % 400].id, importance=0.9)
            count += 1
        return count

    disturbing = asyncio.create_task(disturb())
    for order in ("newest", "oldest"):
        page = await spine.query(tags=[mark], order=order, limit=23)  # type: ignore[arg-type]
        ids = [memory.id for memory in page.memories]
        while page.cursor is not None and len(ids) < 100_000:
            page = await spine.query(tags=[mark], order=order, limit=23, cursor=page.cursor)  # type: ignore[arg-type]
            ids += [memory.id for memory in page.memories]
            if order == "oldest" and {memory.id for memory in kept} <= set(ids):
                break  # the end runs away from who reads towards it
        assert len(ids) == len(set(ids)), "a memory came twice"
        assert {memory.id for memory in kept} <= set(ids), "a memory that was there throughout is missing"
    stop.set()
    assert await disturbing > 0


async def test_a_cursor_of_another_query_is_refused(spine: Spine, mark: str) -> None:
    await spine.store_many({"content": f"{n}", "tags": [mark]} for n in range(3))
    cursor = (await spine.query(tags=[mark], limit=1)).cursor
    assert cursor is not None
    with pytest.raises(InvalidInput, match="another query"):
        await spine.query(tags=["other"], limit=1, cursor=cursor)
    assert len((await spine.query(tags=[mark], limit=2, cursor=cursor)).memories) == 2


async def test_a_cursor_belongs_to_its_conditions_in_whatever_order_they_are_given(spine: Spine, mark: str) -> None:
    """Sets have another order in every process, and `since` is often counted from now."""
    metadata = {"one": 1, "two": {"a": 1, "b": 2}}
    await spine.store_many({"content": f"{n}", "tags": [mark, "b", "c"], "metadata": metadata} for n in range(3))
    hour_ago, soon = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    page = await spine.query(
        tags=[mark, "b"], any_tags=["b", "c"], not_tags=["d", "e"], metadata=metadata, since=hour_ago, limit=2
    )
    last = await spine.query(
        tags=["b", mark], any_tags=["c", "b"], not_tags=["e", "d"], metadata={"two": {"b": 2, "a": 1}, "one": 1},
        since=hour_ago + timedelta(seconds=1), until=soon, limit=3, cursor=page.cursor,
    )  # fmt: skip
    assert sorted(contents([*page.memories, *last.memories])) == ["0", "1", "2"]
    assert last.cursor is None


async def test_a_text_is_found_at_once_by_all_of_its_words(spine: Spine, mark: str) -> None:
    word = f"w{mark[5:17]}"
    stored = await spine.store_many(
        {"content": content, "tags": [mark]}
        for content in (f"the {word} walks", f"{word} walked away", f"nothing of {word}s", "no such word")
    )
    assert ids(await collect(spine, text=word, order="oldest")) == ids(stored[:3])
    assert ids(await collect(spine, text=f"{word} walking", order="oldest")) == ids(stored[:2])
    assert await collect(spine, text=f"{word} absent") == []
    assert await collect(spine, text=word, tags=["other"]) == []
    await spine.update(stored[0].id, content="replaced")
    await spine.delete(stored[1].id)
    assert await collect(spine, text=word) == stored[2:3]


async def test_odd_texts_find_or_do_not_find_but_never_fail(spine: Spine, mark: str) -> None:
    await spine.store(f'odd "quoted" {mark} don\'t (a) OR b* c:d -e', tags=[mark])
    for text in ('"', '"quoted', "OR", "a AND", "b*", "c:d", "-e", "NEAR(", "🦊", "'", "don't", "(", "\u0301", " "):
        for order in ("newest", "relevance"):
            page = await spine.query(text=text, tags=[mark], order=order)  # type: ignore[arg-type]
            assert len(page.memories) <= 1


async def test_relevance_puts_the_better_match_first_and_pages_without_repeating(spine: Spine, mark: str) -> None:
    word, rare = f"c{mark[5:17]}", f"r{mark[5:17]}"
    await spine.store_many({"content": f"{word} and more words of item {n}", "tags": [mark]} for n in range(30))
    best = await spine.store(f"{word} {rare}", tags=[mark])
    page = await spine.query(text=f"{word} {rare}", order="relevance", limit=7)
    assert page.memories[0].id == best.id
    seen = [memory.id for memory in page.memories]
    while page.cursor is not None:
        page = await spine.query(text=f"{word} {rare}", order="relevance", limit=7, cursor=page.cursor)
        seen += [memory.id for memory in page.memories]
    assert len(seen) == len(set(seen)) == 31


async def test_pages_of_large_memories_are_shorter_and_lose_nothing(spine: Spine, mark: str) -> None:
    stored = await spine.store_many({"content": f"{n} " + "x" * 200_000, "tags": [mark]} for n in range(12))
    page = await spine.query(tags=[mark], limit=12)
    assert 0 < len(page.memories) < 12
    assert {memory.id for memory in await collect(spine, tags=[mark], limit=12)} == {memory.id for memory in stored}


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_who_is_given_a_token_sees_what_its_giver_wrote(spine: Spine, url: str, mark: str) -> None:
    if not url:
        await spine.store("x", id=mark)
        await spine.wait_for(spine.token)
        return
    for round in range(20):
        await spine.store(f"round {round}", id=f"{mark}-{round}")
        token = spine.token
        async with Spine.connect(url, agent="bert", token=token) as other:
            memory = await other.get(f"{mark}-{round}")
            assert memory is not None
            assert memory.content == f"round {round}"
            await other.wait_for(token)


async def test_a_token_that_nobody_can_reach_is_stale_in_time(spine: Spine, mark: str) -> None:
    hello = spine._live.hello
    token = token_text(hello.identity, hello.region, {3: {"local/nobody@never": 5}})
    started = asyncio.get_running_loop().time()
    with pytest.raises(StaleToken, match="local/nobody@never"):
        await spine.wait_for(token, timeout=60.0)
    assert asyncio.get_running_loop().time() - started < 30
    # The session asks for no more than before: it goes on.
    stored = await spine.store_many({"content": "x", "tags": [mark]} for _ in range(200))
    assert None not in await asyncio.gather(*[spine.get(memory.id) for memory in stored])
    assert len(await collect(spine, tags=[mark])) == 200


async def test_a_token_of_another_cluster_is_refused(spine: Spine) -> None:
    with pytest.raises(StaleToken, match="is of cluster 'another'"):
        await spine.wait_for(token_text("another", "region", {1: {"a": 1}}))
    for text in ("", "st1", "st3", "st3!!!", "st99abc", "nonsense", 5, None):
        with pytest.raises(InvalidInput):
            await spine.wait_for(text)  # type: ignore[arg-type]


# -- many at once ----------------------------------------------------------------------------------------------------


async def test_thousands_of_operations_at_once_are_all_answered(spine: Spine, mark: str) -> None:
    stored = await spine.store_many({"content": f"{n}", "id": f"{mark}-{n}", "tags": [mark]} for n in range(3000))
    mixed = [spine.get(memory.id) for memory in stored]
    updates = [spine.update(memory.id, importance=0.3) for memory in stored[:500]]
    got = await asyncio.gather(*mixed, *updates)
    assert None not in got
    assert len(await collect(spine, tags=[mark], limit=QUERY_LIMIT_MAX)) == 3000


async def test_status_tells_of_every_node(spine: Spine) -> None:
    report = await spine.status()
    assert report["partitions"] == 64
    assert report["nodes"]
    for node in report["nodes"]:
        assert node["state"] == "up"
        assert node["partitions"] == 64
        assert isinstance(node["memories"], int)
        assert node["pid"]


async def test_a_closed_spine_says_so(tmp_path: Path) -> None:
    spine = Spine.open(tmp_path / "m.db", agent="ada")
    with pytest.raises(ConnectionError, match="async with"):
        await spine.store("x")
    async with spine:
        await spine.store("x")
        waiting = asyncio.ensure_future(anext(spine.subscribe(tags=["never"])))
        await asyncio.sleep(0)
    with pytest.raises(ConnectionError, match="async with"):
        await spine.store("x")
    with pytest.raises((ConnectionError, StopAsyncIteration)):
        async with asyncio.timeout(30):
            await waiting
