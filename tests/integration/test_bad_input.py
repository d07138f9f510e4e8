"""What an agent passes by mistake: refused before anything leaves the process, by an error that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from crdt_spine import InvalidInput, Spine, limits
from crdt_spine.core.fences import Fence

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("bad_input")]

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LONE = "a\ud800b"

NO_TEXT: list[Any] = [5, 1.5, True, b"bytes", ["a"], {"a": 1}, object(), "", "a\0b", LONE]
NO_TAGS: list[Any] = [
    5, "tag", b"tag", {"tag": 1}, object(), [5], [None], [""], ["a\0"], [LONE], [["a"]], None, range(3),
    [f"t{n}" for n in range(limits.TAGS_MAX + 1)], ["x" * (limits.TAG_BYTES_MAX + 1)], ["é" * limits.TAG_BYTES_MAX],
]  # fmt: skip
NO_METADATA: list[Any] = [
    5, "text", ["a"], [("a", 1)], {5: 1}, {None: 1}, {"": 1}, {"a\0": 1}, {LONE: 1}, {"a": object()}, {"a": {1, 2}},
    {"a": b"x"}, {"a": NOW}, {"a": float("nan")}, {"a": float("inf")}, {"a": 1 << 63}, {"a": -(1 << 63) - 1},
    {"a": "\0"}, {"a": [LONE]}, {"a": {5: 1}}, {"a": [[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]},
    {"x" * (limits.METADATA_KEY_BYTES_MAX + 1): 1}, {str(n): n for n in range(limits.METADATA_KEYS_MAX + 1)},
    {"a": "x" * limits.METADATA_BYTES_MAX}, {str(n): "x" * 1000 for n in range(17)},
]  # fmt: skip
NO_NUMBER: list[Any] = ["1", None, [1], {}, float("nan"), float("inf"), True]
NO_TIME: list[Any] = [
    5, 1.5, "yesterday", "", "2026-01-31", "2026-01-31T12:00:00", datetime(2026, 1, 31), NOW.date(),
    datetime(1969, 12, 31, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC),
]  # fmt: skip
NO_LEVEL: list[Any] = ["strongest", "", 5, [], "EVENTUAL"]


def too_long(limit: int) -> list[Any]:
    return ["x" * (limit + 1), "é" * (limit // 2) + "xx", "🦊" * (limit // 4 + 1)]


STORE: dict[str, list[Any]] = {
    "content": [*NO_TEXT, None, *too_long(limits.CONTENT_BYTES_MAX)],
    "id": [*NO_TEXT, *too_long(limits.ID_BYTES_MAX)],
    "tags": NO_TAGS,
    "metadata": [*NO_METADATA, {"a": None}],
    "thread": [*NO_TEXT, *too_long(limits.THREAD_BYTES_MAX)],
    "importance": [*NO_NUMBER, -0.001, 1.001, 2, -1],
    "ttl": [*[value for value in NO_NUMBER if value is not None], 0, -1, limits.TTL_SECONDS_MAX + 1],
    "created_at": NO_TIME,
    "consistency": NO_LEVEL,
}
UPDATE: dict[str, list[Any]] = {
    "id": [*NO_TEXT, None, *too_long(limits.ID_BYTES_MAX)],
    "content": STORE["content"],
    "importance": STORE["importance"],
    "ttl": STORE["ttl"],
    "metadata": NO_METADATA,
    "add_tags": NO_TAGS,
    "remove_tags": NO_TAGS,
    "if_version": [*NO_TEXT, *too_long(limits.TOKEN_BYTES_MAX)],
    "consistency": NO_LEVEL,
}
AGENT = [*NO_TEXT, *too_long(limits.AGENT_BYTES_MAX)]
SUBSCRIBE: dict[str, list[Any]] = {
    "tags": NO_TAGS, "any_tags": NO_TAGS, "agent": AGENT, "thread": STORE["thread"],
    "token": [5, "", "nonsense", "st1", "st1====", ["a"]],
}  # fmt: skip
QUERY: dict[str, list[Any]] = {
    **{name: values for name, values in SUBSCRIBE.items() if name != "token"},
    "not_tags": NO_TAGS,
    "since": NO_TIME,
    "until": NO_TIME,
    "metadata": [*NO_METADATA, {"a": None}],
    "text": [*NO_TEXT, *too_long(limits.QUERY_TEXT_BYTES_MAX)],
    "order": ["latest", "", 5, None, ["newest"], "relevance"],
    "limit": [*NO_NUMBER, 0, -1, 1.5, 50.0, limits.QUERY_LIMIT_MAX + 1, 10**30],
    "cursor": [5, "", "nonsense", "sc1", "sc1====", ["a"]],
    "consistency": NO_LEVEL,
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{index}")
        for name, values in table.items()
        for index, value in enumerate(values)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spine() -> Any:
    async with Spine.open(":memory:", agent="ada") as opened:
        await opened.store("there", id="there", tags=["kept"])
        yield opened
        left = [memory for memory in (await opened.query(limit=1000)).memories if not memory.id.startswith("good")]
        assert [(memory.id, memory.content, memory.tags) for memory in left] == [("there", "there", {"kept"})]


@pytest.mark.parametrize(("name", "value"), cases(STORE))
async def test_store_refuses(spine: Spine, name: str, value: Any) -> None:
    arguments = {"content": "text", name: value}
    with pytest.raises(InvalidInput, match=name):
        await spine.store(**arguments)
    with pytest.raises(InvalidInput, match=f"memory 1: .*{name}"):
        await spine.store_many([{"content": "good"}, arguments])


async def test_store_many_stored_some_before_it_saw_that_another_cannot_be_done_at_its_level(spine: Spine) -> None:
    fenced = {"content": "bad", "fence": Fence("gate", 1), "consistency": "eventual"}
    with pytest.raises(InvalidInput, match="memory 1: fence needs a majority"):
        await spine.store_many([{"content": "bad"}, fenced])


@pytest.mark.parametrize(("name", "value"), cases(UPDATE))
async def test_update_refuses(spine: Spine, name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=name):
        await spine.update(**{"id": "there", name: value})


@pytest.mark.parametrize(("name", "value"), cases(QUERY))
async def test_query_refuses(spine: Spine, name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=name):
        await spine.query(**{name: value})


@pytest.mark.parametrize(("name", "value"), cases(SUBSCRIBE))
async def test_subscribe_refuses_at_once(spine: Spine, name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=name):
        spine.subscribe(**{name: value})


@pytest.mark.parametrize("id", STORE["id"])
async def test_get_and_delete_refuse(spine: Spine, id: Any) -> None:
    with pytest.raises(InvalidInput, match="id"):
        await spine.get(id)
    with pytest.raises(InvalidInput, match="id"):
        await spine.delete(id)


@pytest.mark.parametrize("agent", [*AGENT, None])
async def test_an_agent_must_have_a_name(spine: Spine, agent: Any) -> None:
    for make in (
        lambda: Spine.open(":memory:", agent=agent),
        lambda: Spine.connect("nats://127.0.0.1:4222", agent=agent),
        lambda: spine.for_agent(agent),
    ):
        with pytest.raises(InvalidInput, match="agent"):
            make()


@pytest.mark.parametrize(
    ("name", "value"),
    cases(
        {
            "consistency": ["strongest", "", 5, []],
            "token": [5, "", ["a"], LONE],
            "zone": [5, "", "a\0"],
            "cluster": [5, "", "a\0"],
            "timeout": [*NO_NUMBER, 0, -1],
        }
    ),
)
async def test_connect_refuses_at_once(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=name):
        Spine.connect("nats://127.0.0.1:4222", agent="ada", **{name: value})


@pytest.mark.parametrize("url", ["", "127.0.0.1", "http://127.0.0.1:4222", "nats://a\0b:4222", "nats://:4222", 5])
async def test_what_is_no_address_is_refused_at_once(url: Any) -> None:
    with pytest.raises(InvalidInput, match="url"):
        Spine.connect(url, agent="ada")


async def test_what_a_list_of_memories_is_not(spine: Spine) -> None:
    bad: list[Any] = [
        5,
        None,
        "text",
        {"content": "x"},
        [5],
        ["content"],
        [{"content": "x"}, None],
        [{}],
        [{"colour": "red"}],
    ]
    for memories in bad:
        with pytest.raises(InvalidInput, match=r"memories|memory \d"):
            await spine.store_many(memories)  # type: ignore[arg-type]


async def test_options_that_do_not_exist_are_type_errors(spine: Spine) -> None:
    calls: list[Callable[..., Any]] = [
        spine.store, spine.store_many, spine.get, spine.update, spine.delete, spine.query, spine.subscribe,
        spine.wait_for, Spine.open, Spine.connect,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match="colour"):
            call("x", colour="red")
    with pytest.raises(TypeError):
        Spine.open(":memory:")  # type: ignore[call-arg]


async def test_a_tag_can_not_be_added_and_removed_at_once(spine: Spine) -> None:
    with pytest.raises(InvalidInput, match="both in add_tags and in remove_tags"):
        await spine.update("there", add_tags=["a", "b"], remove_tags=["b"])


async def test_limits_hold_for_what_updates_add_up_to(spine: Spine) -> None:
    tags = [f"t{n}" for n in range(limits.TAGS_MAX)]
    keys = {str(n): n for n in range(limits.METADATA_KEYS_MAX)}
    await spine.store("x", id="good sum", tags=tags, metadata=keys)
    with pytest.raises(InvalidInput, match="tags"):
        await spine.update("good sum", add_tags=["one more"])
    with pytest.raises(InvalidInput, match="metadata"):
        await spine.update("good sum", metadata={"one": "more"})
    updated = await spine.update(
        "good sum", add_tags=["one more"], remove_tags=["t0"], metadata={"one": "more", "0": None}
    )
    assert len(updated.tags) == limits.TAGS_MAX
    assert len(updated.metadata) == limits.METADATA_KEYS_MAX


async def test_everything_at_its_limit_is_taken(spine: Spine) -> None:
    metadata: dict[str, Any] = {str(n): n for n in range(limits.METADATA_KEYS_MAX - 1)}
    metadata["k" * limits.METADATA_KEY_BYTES_MAX] = -(1 << 63)
    metadata["0"] = (1 << 63) - 1
    metadata["1"] = [[[[[[[[[[[[[[[["deep"]]]]]]]]]]]]]]]]
    metadata["2"] = {"": "", "empty": [], "f": 1.7976931348623157e308}
    used = sum(len(str(key)) + len(str(value)) + 8 for key, value in metadata.items())
    metadata["3"] = "x" * (limits.METADATA_BYTES_MAX - used - 500)
    arguments: list[dict[str, Any]] = [
        {"content": "x" * limits.CONTENT_BYTES_MAX},
        {"content": " "},
        {"id": "good" + "é" * (limits.ID_BYTES_MAX // 2 - 2)},
        {"tags": ["é" * (limits.TAG_BYTES_MAX // 2)]},
        {"tags": (f"t{n}" for n in range(limits.TAGS_MAX))},
        {"tags": ["same"] * 1000},
        {"metadata": metadata},
        {"thread": "t" * limits.THREAD_BYTES_MAX},
        {"importance": 0},
        {"importance": 1},
        {"ttl": limits.TTL_SECONDS_MAX},
        {"created_at": datetime(1970, 1, 2, tzinfo=UTC)},
        {"created_at": NOW + timedelta(days=365_000)},
        {"created_at": "2026-01-31T12:00:00+02:00"},
        {"agent": "a" * limits.AGENT_BYTES_MAX},
    ]
    for number, argument in enumerate(arguments):
        agent = spine.for_agent(argument.pop("agent", "ada"))
        stored = await agent.store(**{"content": "good", "id": f"good {number}", **argument})
        assert await spine.get(stored.id) == stored
    assert len((await spine.query(limit=limits.QUERY_LIMIT_MAX, text="x" * limits.QUERY_TEXT_BYTES_MAX)).memories) == 0
