"""At which level an operation goes: the call's word, else what the memory's tags demand, else the default; and how
that is seen. Three real nodes in this process, and the command."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pycrdt
import pytest

from crdt_spine import Consistency, InvalidInput, NotFound, QuorumFailed, Spine, SpineError, VersionConflict
from crdt_spine.core.messages import Hello, Level, NodeInfo, Request
from crdt_spine.node.node import Node
from crdt_spine.session import Session
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.base import Message
from crdt_spine.transport.local import LocalTransport

pytestmark = pytest.mark.timeout(60)

IDS = ("a", "b", "c")
OVERRIDES: list[tuple[tuple[str, ...], Level]] = [
    (("metric", "noise"), "eventual"),
    (("talk",), "causal"),
    (("plain",), "read-your-writes"),
    (("critical",), "strong"),
]


class Cluster:
    """Three nodes, each with all partitions; `requests` are the sessions' messages."""

    def __init__(self, default: Level, overrides: Sequence[tuple[tuple[str, ...], Level]], read_quorum: int) -> None:
        self.transport = LocalTransport()
        self.requests: list[Request] = []
        self.nodes = {
            id: Node(
                id,
                Hello(
                    cluster="c", region="r", node=id, state="up", nodes=[NodeInfo(id=one) for one in IDS], partitions=4,
                    factor=3, write_quorum=2, read_quorum=read_quorum, default_level=default, overrides=[*overrides],
                ),
                SqliteEngine.open(":memory:"),
                self.transport,
            )
            for id in IDS
        }  # fmt: skip
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        await asyncio.gather(*[node.start() for node in self.nodes.values()])
        await self.transport.subscribe("spine.c.node.*.rpc", self._note)

    def _note(self, message: Message) -> None:
        self.requests.append(msgspec.json.decode(message.payload, type=Request))

    async def spine(self, agent: str, consistency: str | None = None, timeout: float = 10.0) -> Spine:
        async def opening() -> tuple[Session, Callable[[], Awaitable[None]]]:
            session = await Session.discover(self.transport, agent)
            session.timeout = timeout
            return session, session.close

        level = None if consistency is None else Consistency(consistency)
        return await self._stack.enter_async_context(Spine(agent, opening, level, None))

    async def stop(self, *ids: str) -> None:
        await asyncio.gather(*[self.nodes.pop(id).stop() for id in ids])

    async def close(self) -> None:
        await self._stack.aclose()
        await self.stop(*self.nodes)
        await self.transport.close()


Start = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """`await start(default=…, overrides=…, read_quorum=…)`: a cluster."""
    running: list[Cluster] = []

    async def begin(
        default: Level = "read-your-writes", overrides: Sequence[tuple[tuple[str, ...], Level]] = OVERRIDES,
        read_quorum: int = 1,
    ) -> Cluster:  # fmt: skip
        running.append(Cluster(default, overrides, read_quorum))
        await running[-1].start()
        return running[-1]

    yield begin
    for cluster in running:
        await cluster.close()


async def level_of(spine: Spine, call: Awaitable[object]) -> tuple[str, str]:
    """At which level a call was done, and why."""
    with spine.levels() as levels:
        await call
    (one,) = levels
    return one.level.value, one.because


# -- which one -------------------------------------------------------------------------------------------------------


async def test_the_calls_word_else_the_strictest_tag_else_the_spines_else_the_default(start: Start) -> None:
    cluster = await start()
    ada, cal = await cluster.spine("ada"), await cluster.spine("cal", "causal")
    for spine, default in ((ada, ("read-your-writes", "default")), (cal, ("causal", "spine"))):
        id = f"{spine.agent}'s"
        assert await level_of(spine, spine.store("x", id=id)) == default
        assert await level_of(spine, spine.get(id)) == default
        assert await level_of(spine, spine.query()) == default
        assert await level_of(spine, spine.get(id, consistency="eventual")) == ("eventual", "call")
        assert await level_of(spine, spine.store("x", id=id, tags=["metric"])) == ("eventual", "override:metric")
        assert await level_of(spine, spine.get(id)) == ("eventual", "override:metric")
        assert await level_of(spine, spine.get(id, consistency="causal")) == ("causal", "call"), "the call's word"
        assert await level_of(spine, spine.update(id, add_tags=["talk"])) == ("causal", "override:talk"), (
            "the strictest"
        )
        assert await level_of(spine, spine.update(id, content="y", remove_tags=["talk"])) == ("causal", "override:talk")
        assert await level_of(spine, spine.get(id)) == ("eventual", "override:metric")
        assert await level_of(spine, spine.delete(id)) == ("eventual", "override:metric")
        assert await level_of(spine, spine.get(id)) == default


async def test_what_only_the_coordinator_knows_it_says_and_the_session_remembers(start: Start) -> None:
    cluster = await start(default="eventual")
    ada, ben = await cluster.spine("ada"), await cluster.spine("ben")
    ids = [f"m{n}" for n in range(8)]
    for id in ids:
        await ada.store("x", id=id, tags=["talk"])
    async with asyncio.timeout(40):
        while None in [await ben.get(id, consistency="eventual") for id in ids]:
            await asyncio.sleep(0.01)
    ben = await cluster.spine("ben")
    assert await level_of(ben, ben.get("m0")) == ("causal", "override:talk")
    assert await level_of(ben, ben.update("m1", content="y")) == ("causal", "override:talk")
    assert await level_of(ben, ben.store("y", id="m2")) == ("causal", "override:talk"), "by what it replaces"
    assert await level_of(ben, ben.delete("m3")) == ("causal", "override:talk")
    assert ben.session.counts["levels_raised"] == 4, "sent again, once for each"
    assert await level_of(ben, ben.get("m0")) == ("causal", "override:talk")
    assert await level_of(ben, ben.update("m1", content="z")) == ("causal", "override:talk")
    assert ben.session.counts["levels_raised"] == 4, "then it is known"
    assert await level_of(ben, ben.get("m2")) == ("eventual", "default"), "it has no tags any more"
    assert (await ben.history("m1"))[0].content == "z"
    assert [memory.content for memory in await ben.history("m1")] == ["z", "y", "x"], "nothing was applied twice"


async def test_what_is_strong_by_its_tag_is_so_for_who_does_not_know_the_tag(start: Start) -> None:
    cluster = await start()
    ada, ben = await cluster.spine("ada"), await cluster.spine("ben")
    assert await level_of(ada, ada.store("x", id="m", tags=["critical"])) == ("strong", "override:critical")
    assert await level_of(ada, ada.get("m")) == ("strong", "override:critical")
    await ben.wait_for(ada.token)
    assert await level_of(ben, ben.update("m", content="y")) == ("strong", "override:critical")
    assert await level_of(ben, ben.get("m")) == ("strong", "override:critical")
    assert ben.session.counts["levels_raised"] == 1
    assert await level_of(ben, ben.get("m", consistency="eventual")) == ("eventual", "call")
    assert await level_of(ada, ada.update("m", remove_tags=["critical"])) == ("strong", "override:critical")
    memory = await ada.get("m", consistency="causal")
    assert memory is not None and memory.content == "y"
    assert await level_of(ada, ada.get("m")) == ("read-your-writes", "default")
    assert await level_of(ada, ada.update("m", content="z", if_version=memory.version)) == ("strong", "if_version")


async def test_a_tag_that_is_gone_demands_nothing_any_more(start: Start) -> None:
    cluster = await start()
    ada, ben = await cluster.spine("ada"), await cluster.spine("ben")
    await ada.store("x", id="m", tags=["metric"])
    await ben.wait_for(ada.token)
    assert await level_of(ben, ben.get("m")) == ("eventual", "override:metric")
    await ada.update("m", remove_tags=["metric"], consistency="read-your-writes")
    async with asyncio.timeout(40):
        while await level_of(ben, ben.get("m")) != ("read-your-writes", "default"):
            await asyncio.sleep(0.01)


async def test_threads_follow_the_same_rule(start: Start) -> None:
    cluster = await start()
    ada = await cluster.spine("ada")
    thread = ada.thread("t")
    assert await level_of(ada, thread.append("one", tags=["metric"])) == ("eventual", "override:metric")
    assert await level_of(ada, thread.append("two")) == ("read-your-writes", "default")
    assert await level_of(ada, thread.read()) == ("read-your-writes", "default")
    assert [memory.content for memory in await thread.read()] == ["one", "two"]


async def test_reads_of_several_replicas_follow_the_same_rule(start: Start) -> None:
    cluster = await start(read_quorum=2)
    ada, ben = await cluster.spine("ada"), await cluster.spine("ben", "eventual")
    await ada.store("x", id="talk", tags=["talk"])
    await ada.store("x", id="metric", tags=["metric"])
    await ben.wait_for(ada.token)
    cal = await cluster.spine("cal")
    await cal.wait_for(ada.token)
    assert await level_of(ben, ben.get("talk")) == ("causal", "override:talk")
    before = sum(node.quorum_reads.counts["quorum_reads"] for node in cluster.nodes.values())
    for spine in (ada, cal):
        assert await level_of(spine, spine.get("metric")) == ("eventual", "override:metric")
    assert sum(node.quorum_reads.counts["quorum_reads"] for node in cluster.nodes.values()) == before


# -- what that means -------------------------------------------------------------------------------------------------


async def test_what_is_eventual_by_its_tag_needs_one_replica_and_no_token(start: Start) -> None:
    """Also where the session did not know the tag, and where what it has seen is not here."""
    cluster = await start()
    ada, ben, cal = [await cluster.spine(name, timeout=2.0) for name in ("ada", "ben", "cal")]
    await ada.store("x", id="metric", tags=["metric"])
    await ada.store("x", id="plain", tags=["plain"])
    await ben.wait_for(ada.token)
    await cal.wait_for(ada.token)
    await cluster.stop("b", "c")
    cal.session.see({cal.session.layout.partition_of("metric"): {"elsewhere/node@1": 1}})
    assert await level_of(cal, cal.get("metric")) == ("eventual", "override:metric")
    for spine in (ada, ben):
        assert await level_of(spine, spine.update("metric", content="y")) == ("eventual", "override:metric")
        with pytest.raises(QuorumFailed):
            await spine.update("plain", content="y")
        # Nobody has this; whoever must wait for it waits in vain.
        number = spine.session.layout.partition_of("metric")
        spine.session.see({number: {"elsewhere/node@1": 1}})
        memory = await spine.get("metric")
        assert memory is not None and memory.content == "y"
        with pytest.raises(SpineError):
            await spine.get("metric", consistency="read-your-writes")


async def test_without_overrides_no_message_says_a_level(start: Start) -> None:
    cluster = await start(overrides=())
    spine = await cluster.spine("ada")
    await spine.store("x", id="m", tags=["critical"])
    await spine.get("m")
    await spine.update("m", content="y")
    await spine.delete("m")
    sent = [operation for request in cluster.requests for operation in request.operations]
    assert len(sent) >= 4
    assert all(getattr(operation, "level", None) is None for operation in sent)


async def test_the_calls_word_is_in_no_message_either(start: Start) -> None:
    cluster = await start()
    spine = await cluster.spine("ada")
    await spine.store("x", id="m", tags=["metric"], consistency="causal")
    (operation,) = cluster.requests[-1].operations
    assert getattr(operation, "level", None) is None and getattr(operation, "acks", None) is None


# -- what is seen ----------------------------------------------------------------------------------------------------


async def test_levels_are_noted_by_task_and_in_order() -> None:
    async with Spine.open(":memory:", agent="a", overrides={"metric": "eventual"}) as spine:

        async def one(tags: list[str]) -> list[str]:
            with spine.levels() as levels:
                for _ in range(3):
                    await spine.store("x", tags=tags)
            return [level.because for level in levels]

        assert await asyncio.gather(one([]), one(["metric"])) == [["default"] * 3, ["override:metric"] * 3]
        with spine.levels() as levels:
            stored = await spine.store_many([{"content": "x"}, {"content": "x", "consistency": "eventual"}])
            await spine.get("nothing")
        assert [(level.operation, level.id) for level in levels] == [
            *[("store", memory.id) for memory in stored], ("get", "nothing"),
        ]  # fmt: skip
        await spine.store("x")
        assert len(levels) == 3, "nothing is noted behind the block"


@pytest.mark.parametrize("level", ["bogus", "", "STRONG", 5, ["strong"]])
async def test_an_unknown_level_is_refused_with_those_that_there_are(level: Any) -> None:
    allowed = "consistency must be one of eventual, read-your-writes, causal, strong"
    async with Spine.open(":memory:", agent="a") as spine:
        for call in (
            spine.store("x", consistency=level), spine.get("m", consistency=level), spine.query(consistency=level),
            spine.delete("m", consistency=level), spine.update("m", content="x", consistency=level),
            spine.thread("t").read(consistency=level), spine.thread("t").append("x", consistency=level),
            spine.store_many([{"content": "x", "consistency": level}]),
        ):  # fmt: skip
            with pytest.raises(InvalidInput, match=allowed):
                await call
        with pytest.raises(InvalidInput, match=allowed):
            spine.document("m", consistency=level)
    with pytest.raises(InvalidInput, match=allowed):
        Spine.connect("nats://127.0.0.1:1", agent="a", consistency=level)
    with pytest.raises(InvalidInput, match=allowed):
        Spine.open(":memory:", agent="a", overrides={"tag": level})


async def test_eventual_and_if_version_exclude_each_other() -> None:
    async with Spine.open(":memory:", agent="a") as spine:
        memory = await spine.store("x")
        with pytest.raises(InvalidInput, match="if_version needs a majority"):
            await spine.update(memory.id, content="y", if_version=memory.version, consistency="eventual")


def test_the_command_shows_the_level(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from crdt_spine.cli.main import main

    def run(*arguments: str) -> Any:
        assert main(["--path", str(tmp_path / "db"), "--json", *arguments]) == 0
        return msgspec.json.decode(capfd.readouterr().out)["consistency"]

    by_default = {"level": "read-your-writes", "because": "default"}
    assert run("store", "x", "--id", "m") == by_default
    for command in (("get", "m"), ("query",), ("query", "--all"), ("update", "m", "--content", "y")):
        assert run(*command) == by_default
        assert run(*command, "--consistency", "eventual") == {"level": "eventual", "because": "call"}
    assert main(["--path", str(tmp_path / "db"), "get", "m", "--consistency", "bogus"]) == 2
    said = capfd.readouterr().err
    assert "eventual" in said and "strong" in said


# -- documents -------------------------------------------------------------------------------------------------------


async def insert(spine: Spine, id: str, words: str, **level: Any) -> None:
    """Edit a document."""
    async with spine.document(id, **level) as document:
        document.get("content", type=pycrdt.Text).insert(0, words)


async def test_what_is_strong_by_its_tag_was_edited_as_a_document_all_the_same(start: Start) -> None:
    """Without a word, at the default level, by who knew the tag and by who did not."""
    cluster = await start()
    ada, ben = await cluster.spine("ada"), await cluster.spine("ben")
    await ada.store("x", id="gate", tags=["critical"])
    for spine in (ada, ben):
        with (
            spine.levels() as levels,
            pytest.raises(InvalidInput, match=r"override:critical.*document\(…, consistency="),
        ):
            await insert(spine, "gate", "y")
        assert [(one.operation, one.id, one.level, one.because) for one in levels] == [
            ("document", "gate", Consistency.STRONG, "override:critical")
        ]
        with spine.levels() as levels, pytest.raises(InvalidInput, match="call"):
            await insert(spine, "gate", "y", consistency="strong")
        assert [(one.operation, one.level, one.because) for one in levels] == [("document", Consistency.STRONG, "call")]
    assert await level_of(ben, insert(ben, "gate", "y", consistency="causal")) == ("causal", "call"), "the call's word"
    found = await ben.get("gate")
    assert found is not None and found.content == "yx"


async def test_what_became_strong_while_a_block_was_open_is_not_edited_either(start: Start) -> None:
    cluster = await start()
    ada = await cluster.spine("ada")
    await ada.store("x", id="gate")
    with pytest.raises(InvalidInput, match="override:critical"):
        async with ada.document("gate") as document:
            await ada.update("gate", add_tags=["critical"], consistency="causal")  # leaves the content as it is
            document.get("content", type=pycrdt.Text).insert(0, "y")
    found = await ada.get("gate")
    assert found is not None and found.content == "x"
    await ada.update("gate", remove_tags=["critical"])
    assert await level_of(ada, insert(ada, "gate", "y")) == ("read-your-writes", "default"), "nor for ever"


async def test_the_level_of_a_document_was_shown_nowhere(start: Start) -> None:
    cluster = await start()
    ada, cal = await cluster.spine("ada"), await cluster.spine("cal", "causal")
    assert await level_of(ada, insert(ada, "plan", "new")) == ("read-your-writes", "default")
    assert await level_of(cal, insert(cal, "plan", "older")) == ("causal", "spine")
    assert await level_of(ada, insert(ada, "plan", "x", consistency="eventual")) == ("eventual", "call")
    await ada.store("x", id="talk", tags=["talk"])
    await ada.store("x", id="noise", tags=["noise"])
    for id, level in (("talk", ("causal", "override:talk")), ("noise", ("eventual", "override:noise"))):
        assert await level_of(ada, insert(ada, id, "y")) == level
        async with asyncio.timeout(20):
            await cal.wait_for(ada.token)
        assert await level_of(cal, insert(cal, id, "z")) == level
        found = await cal.get(id)
        assert found is not None and found.content == "zyx"
    with ada.levels() as levels:
        async with ada.document("talk"):
            pass  # changes nothing
    assert [(one.operation, one.because) for one in levels] == [("document", "override:talk")]


async def test_where_strong_is_the_default_a_document_wants_another_word(start: Start) -> None:
    strong = await (await start(overrides=())).spine("ada", "strong")
    with pytest.raises(InvalidInput, match=r"\(spine\).*read-your-writes"):
        strong.document("plan")
    assert await level_of(strong, insert(strong, "plan", "x", consistency="eventual")) == ("eventual", "call")


# -- calls that fail -------------------------------------------------------------------------------------------------


async def test_calls_that_failed_were_missing_among_the_levels(start: Start) -> None:
    cluster = await start()
    ada, ben = await cluster.spine("ada"), await cluster.spine("ben", timeout=1.0)
    await ada.store("x", id="gate", tags=["critical"])
    with ada.levels() as levels:
        with pytest.raises(NotFound):
            await ada.update("nothing", content="y")
        with pytest.raises(VersionConflict):
            await ada.update("gate", content="y", if_version="old")
    await ben.wait_for(ada.token)
    await cluster.stop("b", "c")
    with ben.levels() as more:
        for call in (
            ben.get("gate"), ben.update("gate", content="y"), ben.query(consistency="strong"),
            ben.thread("t").read(consistency="strong"), ben.delete("gate"),
        ):  # fmt: skip
            with pytest.raises(SpineError):
                await call
    assert [(one.operation, one.level.value, one.because) for one in levels] == [
        ("update", "read-your-writes", "default"), ("update", "strong", "if_version"),
    ]  # fmt: skip
    assert [(one.operation, one.level.value, one.because) for one in more] == [
        ("get", "strong", "override:critical"), ("update", "strong", "override:critical"),
        ("query", "strong", "call"), ("thread", "strong", "call"), ("delete", "strong", "override:critical"),
    ]  # fmt: skip


def test_a_deletion_and_what_is_not_found_said_no_level(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from crdt_spine.cli.main import main

    def run(*arguments: str) -> tuple[int, Any]:
        code = main(["--path", str(tmp_path / "db"), "--json", *arguments])
        said = capfd.readouterr()
        document = msgspec.json.decode(said.err if code else said.out)
        return code, document.get("consistency")

    by_default = {"level": "read-your-writes", "because": "default"}
    run("store", "x", "--id", "m")
    assert run("update", "m", "--content", "y", "--if-version", "old") == (
        1, {"level": "strong", "because": "if_version"},
    )  # fmt: skip
    assert run("delete", "m") == (0, by_default)
    for command in (("delete", "m"), ("get", "m"), ("update", "m", "--content", "y")):
        assert run(*command) == (3, by_default)
        assert run(*command, "--consistency", "strong") == (3, {"level": "strong", "because": "call"})
