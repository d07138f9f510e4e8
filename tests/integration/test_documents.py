"""`spine.document`: many agents edit one text at the same time, and every edit survives on every replica."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pycrdt
import pytest
import pytest_asyncio

from crdt_spine import InvalidInput, NotFound, Spine
from crdt_spine import document as module
from crdt_spine.core.document import Document, canonical, text_in
from crdt_spine.core.messages import EditDocument, GetDocument
from crdt_spine.core.registers import Origin, Register
from crdt_spine.errors import SpineError, VersionConflict
from crdt_spine.limits import (
    CLIENTS_REMEMBERED_MAX,
    CONTENT_BYTES_MAX,
    DOCUMENT_EDIT_BYTES_MAX,
    DOCUMENTS_REMEMBERED_MAX,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("documents")]

Cluster = Any


@pytest.fixture(scope="module", params=["embedded", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """Where the cluster is; empty for a node in this process."""
    return str(request.getfixturevalue("cluster").url) if request.param == "cluster" else ""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spine(url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Spine]:
    path = tmp_path_factory.mktemp("embedded") / "memories.db"
    async with Spine.connect(url, agent="ada") if url else Spine.open(path, agent="ada") as opened:
        yield opened


@pytest.fixture
def id() -> str:
    return f"plan-{uuid.uuid4().hex}"


def text(doc: Any) -> pycrdt.Text:
    content: pycrdt.Text = doc.get("content", type=pycrdt.Text)
    return content


async def append(spine: Spine, id: str, what: str) -> None:
    async with spine.document(id) as doc:
        content = text(doc)
        content += what


async def content(spine: Spine, id: str) -> str:
    memory = await spine.get(id)
    assert memory is not None
    return memory.content


# -- one agent -------------------------------------------------------------------------------------------------------


async def test_what_a_block_changes_is_the_memorys_content(spine: Spine, id: str) -> None:
    stored = await spine.store("the plan", id=id, tags=[id], metadata={"a": 1})
    async with spine.document(id) as doc:
        assert str(text(doc)) == str(doc["content"]) == "the plan"
        text(doc).insert(0, "This is ")
        assert (await spine.get(id)) == stored, "nobody sees it before the block is left"
    after = await spine.get(id)
    assert after is not None and after.content == "This is the plan"
    assert (after.tags, after.metadata, after.agent, after.created_at) == (
        stored.tags, stored.metadata, stored.agent, stored.created_at,
    )  # fmt: skip
    assert after.version != stored.version and after.updated_at > stored.updated_at
    assert (await spine.query(tags=[id])).memories == [after]


async def test_a_document_without_a_memory_makes_one(spine: Spine, id: str) -> None:
    async with spine.document(id) as doc:
        assert str(text(doc)) == ""
    assert await spine.get(id) is None, "nothing was changed"
    await append(spine, id, "first ")
    await append(spine, id, "second")
    memory = await spine.get(id)
    assert memory is not None and (memory.content, memory.agent) == ("first second", "ada")


async def test_an_exception_in_the_block_sends_nothing(spine: Spine, id: str) -> None:
    stored = await spine.store("whole", id=id)
    with pytest.raises(RuntimeError, match="oops"):
        async with spine.document(id) as doc:
            text(doc).insert(0, "half ")
            raise RuntimeError("oops")
    assert await spine.get(id) == stored
    await append(spine, id, " again")
    assert await content(spine, id) == "whole again"


async def test_a_text_may_become_empty_and_full_again(spine: Spine, id: str) -> None:
    await append(spine, id, "something")
    async with spine.document(id) as doc:
        text(doc).clear()
    assert await content(spine, id) == ""
    await append(spine, id, "else")
    assert await content(spine, id) == "else"


async def test_astral_characters_are_edited_by_their_bytes_and_come_back(spine: Spine, id: str) -> None:
    await spine.store("a🦊b", id=id)
    async with spine.document(id) as doc:
        text(doc).insert(len("a🦊".encode()), "→👩‍👩‍👧")
    assert await content(spine, id) == "a🦊→👩‍👩‍👧b"
    async with spine.document(id) as doc:
        del text(doc)[1 : 1 + len("🦊".encode())]
    assert await content(spine, id) == "a→👩‍👩‍👧b"


async def test_formatting_and_other_root_types_travel_along(spine: Spine, id: str) -> None:
    async with spine.document(id) as doc:
        text(doc).insert(0, "bold plain")
        text(doc).format(0, 4, {"bold": True})
        doc["state"] = pycrdt.Map({"done": False})
        doc["steps"] = pycrdt.Array(["measure"])
    async with spine.document(id) as doc:
        doc.get("state", type=pycrdt.Map)["done"] = True
    async with spine.document(id) as doc:
        assert text(doc).diff() == [("bold", {"bold": True}), (" plain", None)]
        assert doc.get("state", type=pycrdt.Map).to_py() == {"done": True}
        assert doc.get("steps", type=pycrdt.Array).to_py() == ["measure"]
    assert await content(spine, id) == "bold plain"


async def test_a_document_that_is_kept_after_its_block_has_no_effect(spine: Spine, id: str) -> None:
    await append(spine, id, "one")
    async with spine.document(id) as kept:
        text(kept).insert(0, "two ")
    text(kept).insert(0, "leaked ")
    async with spine.document(id) as doc:
        text(kept).insert(0, "leaked ")
        assert str(text(doc)) == "two one"
        text(doc).insert(0, "three ")
    assert await content(spine, id) == "three two one"


async def test_text_that_was_typed_is_found_and_told_of(spine: Spine, id: str) -> None:
    word = f"w{uuid.uuid4().hex}"
    await spine.store("plan", id=id, tags=[id])
    async with spine.subscribe(tags=[id]) as updates:
        await append(spine, id, f" {word}")
        async with asyncio.timeout(30):
            update = await anext(updates)
    assert (update.kind, update.memory.content) == ("updated", f"plan {word}")
    found = await spine.query(text=word)
    assert [memory.id for memory in found.memories] == [id]
    assert found.memories[0].content == f"plan {word}"


async def test_updates_of_other_parts_leave_the_text_alone(spine: Spine, id: str) -> None:
    await append(spine, id, "text")
    async with spine.document(id) as doc:
        updated = await spine.update(id, add_tags=["tagged"], importance=1)
        assert updated.content == "text"
        text(doc).insert(4, "!")
    memory = await spine.get(id)
    assert memory is not None and (memory.content, memory.tags, memory.importance) == ("text!", {"tagged"}, 1.0)


# -- several agents ----------------------------------------------------------------------------------------------------


async def test_blocks_that_are_open_at_the_same_time_are_merged(spine: Spine, id: str) -> None:
    await spine.store("middle", id=id)
    async with spine.document(id) as one, spine.for_agent("bob").document(id) as other, spine.document(id) as third:
        text(one).insert(0, "[")
        text(other).insert(6, "]")
        text(third).insert(3, "|")
    assert await content(spine, id) == "[mid|dle]"
    ids = spine._documents._known[id].clients
    assert len(ids) == 2, "the two blocks of one spine had a client id each, and may use it again"


async def test_agents_that_begin_a_document_at_the_same_time_all_have_their_text_in_it(spine: Spine, id: str) -> None:
    words = [f"word{i}" for i in range(8)]
    await asyncio.gather(*[append(spine.for_agent(word), id, f"{word} ") for word in words])
    assert sorted((await content(spine, id)).split()) == words


async def test_a_content_written_anew_while_a_block_is_open_keeps_the_blocks_edit(spine: Spine, id: str) -> None:
    await spine.store("The fox jumps.", id=id)
    async with spine.document(id) as doc:
        text(doc).insert(len("The "), "quick ")
        await spine.update(id, content="The fox jumps over the dog.")
    assert await content(spine, id) == "The quick fox jumps over the dog."
    async with spine.document(id) as doc:
        text(doc).insert(0, "NB: ")
        await spine.store("Something else", id=id)
    assert sorted(await content(spine, id)) == sorted("NB: Something else")


async def test_a_memory_deleted_while_a_block_is_open_stays_deleted(spine: Spine, id: str) -> None:
    await spine.store("short-lived", id=id)
    with pytest.raises(NotFound):
        async with spine.document(id) as doc:
            text(doc).insert(0, "x")
            assert await spine.delete(id)
    assert await spine.get(id) is None
    await append(spine, id, "born again")
    assert await content(spine, id) == "born again"


async def test_a_block_begun_from_nothing_fits_whatever_was_begun_meanwhile(spine: Spine, id: str) -> None:
    async with spine.document(id) as doc:
        text(doc).insert(0, "mine ")
        doc["state"] = pycrdt.Map({"mine": True})
        await append(spine, id, "theirs ")
    assert sorted((await content(spine, id)).split()) == ["mine", "theirs"]
    async with spine.document(id) as doc:
        assert doc.get("state", type=pycrdt.Map).to_py() == {"mine": True}


# -- client ids --------------------------------------------------------------------------------------------------------


async def test_a_client_id_is_used_again_only_after_its_block_was_left_well(spine: Spine, id: str) -> None:
    await append(spine, id, "a")
    async with spine.document(id) as doc:
        first = doc.client_id
        text(doc).insert(0, "b")
    async with spine.document(id) as doc:
        assert doc.client_id == first
    with pytest.raises(RuntimeError):
        async with spine.document(id) as doc:
            assert doc.client_id == first
            text(doc).insert(0, "lost")
            raise RuntimeError
    async with spine.document(id) as doc:
        assert doc.client_id != first, "it had numbered what nobody has"


async def test_a_client_id_whose_edits_were_lost_is_not_used_again(spine: Spine, id: str) -> None:
    """As after a cluster was restored from a copy: the document has less of it than it had made."""
    await append(spine, id, "a")
    async with spine.document(id) as doc:
        first = doc.client_id
        text(doc).insert(0, "b")
    spine._documents._known[id].clients[first] += 3
    async with spine.document(id) as doc:
        assert doc.client_id != first
        text(doc).insert(0, "c")
    assert await content(spine, id) == "cba"


async def test_an_agent_restored_from_a_copy_notices_that_its_client_id_goes_on_elsewhere(
    spine: Spine, id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies of one agent are in a block with one client id: the second one's edit is made anew under another."""
    await append(spine, id, "a")
    with monkeypatch.context() as patched:
        patched.setattr(module, "new_client", lambda: 4711)
        one, other = spine.document(id), spine.document(id)
        first, second = await one.__aenter__(), await other.__aenter__()
        assert first.client_id == second.client_id == 4711
    text(first).insert(0, "one ")
    text(second).insert(0, "two ")
    await one.__aexit__(None, None, None)
    await other.__aexit__(None, None, None)
    assert sorted((await content(spine, id)).split()) == ["a", "one", "two"]


async def test_what_a_spine_remembers_is_bounded(spine: Spine, id: str) -> None:
    await asyncio.gather(*[append(spine, f"{id}-{i}", "x") for i in range(DOCUMENTS_REMEMBERED_MAX + 5)])
    assert len(spine._documents) <= DOCUMENTS_REMEMBERED_MAX
    await append(spine, id, "x")
    await asyncio.gather(*[append(spine, id, "x") for _ in range(CLIENTS_REMEMBERED_MAX + 5)])
    assert len(spine._documents._known[id].clients) <= CLIENTS_REMEMBERED_MAX
    assert await content(spine, id) == "x" * (CLIENTS_REMEMBERED_MAX + 6)


# -- what is refused ---------------------------------------------------------------------------------------------------


async def test_bad_input_is_refused_and_nothing_is_changed(spine: Spine, id: str) -> None:
    stored = await spine.store("short", id=id)
    for wrong in ("", "x" * 300, None, 3):
        with pytest.raises(InvalidInput):
            spine.document(wrong)  # type: ignore[arg-type]
    for text_of_block in ("x" * CONTENT_BYTES_MAX, "with \0 in it"):
        with pytest.raises(InvalidInput):
            await append(spine, id, text_of_block)
    with pytest.raises(InvalidInput, match="change less"):
        async with spine.document(id) as doc:
            doc["large"] = pycrdt.Array(["y" * 1000] * (DOCUMENT_EDIT_BYTES_MAX // 1000 + 1))
    assert await spine.get(id) == stored
    await append(spine, id, "x" * (CONTENT_BYTES_MAX - 5))
    with pytest.raises(InvalidInput):
        await append(spine, id, "y")
    async with spine.document(id) as doc:
        text(doc).clear()
    assert await content(spine, id) == ""


async def test_a_node_refuses_what_an_agent_should_not_have_sent(spine: Spine, id: str) -> None:
    await append(spine, id, "text")
    before = await spine.get(id)
    session, levels = spine._live, spine._levels
    force = levels.of_document(id, None)
    key = spine._documents._known.get(id) or await spine._documents.read(session, id, levels, force, None)
    assert key is not None
    for update in (b"\xff\xff", b"\x01\x01\x63\x05\x84\x63\x04\x01x\x00"):
        operation = EditDocument(i=session.number(), id=id, update=update, client=99, base=key.key)
        with pytest.raises(InvalidInput):
            await session.on_memory(operation, id)
    with pytest.raises(VersionConflict):
        operation = EditDocument(i=session.number(), id=id, update=b"\0\0", client=99, base=(1, "nobody"))
        await session.on_memory(operation, id)
    assert await spine.get(id) == before


async def test_two_thousand_edits_of_a_long_document_cost_what_they_change(spine: Spine, id: str, url: str) -> None:
    """A tenth of it here, on a document of five thousand random edits; after the first block only news travels."""
    chance = random.Random(5)
    async with spine.document(id) as doc:
        content_ = text(doc)
        for _ in range(5_000):
            content_.insert(chance.randrange(len(content_) + 1), chance.choice("abc "))
    await append(spine, id, "!")
    session = spine._live
    known = spine._documents._known[id]
    operation = GetDocument(i=session.number(), id=id, base=known.key, have=known.document.reached)
    part = (await session.on_memory(operation, id)).document
    assert part is not None and part.base is None and len(part.tail) == 1
    began = time.monotonic()
    for _ in range(200):
        await append(spine, id, "!")
    assert time.monotonic() - began < 60, "it takes two seconds"
    assert (await content(spine, id)).endswith("!" * 201)


# -- a cluster ---------------------------------------------------------------------------------------------------------


async def documents_at(cluster: Cluster, id: str) -> list[tuple[str, dict[int, int]]]:
    """What each node's document reads as, and its Yjs state vector."""
    found = []
    for node in cluster.ids:
        part = (await cluster.run_at(node, GetDocument, id=id)).document
        assert part is not None, f"{node} has no memory {id}"
        register = Register(Origin(*part.key, 0, ""), part.content)
        found.append(canonical(register, Document(part.seen, part.base, tuple(part.tail))))
    return found


async def converged(cluster: Cluster, id: str, seconds: float = 30.0) -> str:
    """Wait until all nodes have the same document; its text."""
    found: list[Any] = []
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    found = await documents_at(cluster, id)
                except SpineError as error:
                    found = [error]
                if len(found) == len(cluster.ids) and all(one == found[0] for one in found):
                    return str(found[0][0])
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"the nodes have different documents: {found}")


async def press(spine: Spine, id: str, chance: random.Random, edits: int, model: pycrdt.Doc[Any] | None = None) -> None:
    """Blocks of one single-character edit each; `model` is a plain Yjs document that gets the same edits."""
    for _ in range(edits):
        async with spine.document(id) as doc:
            updates: list[bytes] = []
            watching = doc.observe(lambda event, updates=updates: updates.append(event.update))
            content = text(doc)
            if len(content) and chance.random() < 0.25:
                at = chance.randrange(len(content))
                del content[at : at + 1]
            else:
                content.insert(chance.randrange(len(content) + 1), chance.choice("abcdef "))
            doc.unobserve(watching)
        if model is not None:
            for update in updates:
                model.apply_update(update)


async def test_three_agents_at_three_nodes_type_at_once_and_all_nodes_read_as_yjs_says(
    cluster: Cluster, id: str
) -> None:
    async with cluster.spine("a") as a, cluster.spine("b") as b, cluster.spine("c") as c:
        for spine, order in ((a, (0, 1, 2)), (b, (1, 2, 0)), (c, (2, 0, 1))):
            spine._live.layout.replicas.update(
                {number: tuple(cluster.ids[i] for i in order) for number in spine._live.layout.replicas}
            )
        await append(a, id, "begin")
        await b.wait_for(a.token)
        await c.wait_for(a.token)
        model = pycrdt.Doc(client_id=1)
        async with a.document(id) as doc:
            model.apply_update(doc.get_update())
        await asyncio.gather(*[press(spine, id, random.Random(n), 150, model) for n, spine in enumerate((a, b, c))])
        part = (await cluster.run_at(cluster.ids[0], GetDocument, id=id)).document
        assert len(Document(part.seen, part.base, tuple(part.tail)).reached) == 3, "three nodes coordinated"
    assert await converged(cluster, id) == text_in(model)


async def test_a_node_killed_while_agents_type_catches_up_and_no_edit_is_lost(cluster: Cluster, id: str) -> None:
    async with cluster.spine("a") as a, cluster.spine("b") as b:
        await append(a, id, ".")
        victim = a._live.layout.replicas[a._live.layout.partition_of(id)][0]

        async def type(spine: Spine, letter: str) -> None:
            for _ in range(60):
                await append(spine, id, letter)

        async def typed(count: int) -> None:
            async with asyncio.timeout(60):
                while len(await content(a, id)) < count:
                    await asyncio.sleep(0.01)

        typing = asyncio.gather(type(a, "a"), type(b, "b"))
        await typed(15)
        await cluster.kill(victim)
        await typed(60)  # of 121
        await cluster.bring_back(victim)
        await typing
    found = await converged(cluster, id)
    assert (found.count("a"), found.count("b"), len(found)) == (60, 60, 121)


async def test_a_missed_edit_of_a_long_document_does_not_bring_the_whole_of_it(cluster: Cluster, id: str) -> None:
    async with cluster.spine("a") as a:
        async with a.document(id) as doc:
            doc["scratch"] = pycrdt.Array(["z" * 1000 for _ in range(200)])
        for _ in range(70):
            await append(a, id, "x")
        assert await converged(cluster, id) == "x" * 70
        victim = a._live.layout.replicas[a._live.layout.partition_of(id)][2]
        await cluster.kill(victim)
        await append(a, id, "missed")
        await cluster.bring_back(victim)
        assert await converged(cluster, id) == "x" * 70 + "missed"
        taken = (await cluster.status(victim))["counts"].get("sync_bytes_taken", 0)
        assert 0 < taken < 100_000, "the base is 200 KB"


async def test_a_node_whose_disk_was_rolled_back_has_every_edit_again(
    start_cluster: Any, tmp_path: Path, id: str
) -> None:
    cluster = await start_cluster()
    async with cluster.spine("a") as a, cluster.spine("b") as b:
        await append(a, id, ".")
        victim = a._live.layout.replicas[a._live.layout.partition_of(id)][0]
        await cluster.kill(victim)
        shutil.copytree(cluster.folder / victim, tmp_path / "old")
        await cluster.bring_back(victim)
        typed = 0
        while typed < 100 or not (await cluster.status(victim))["counts"].get("writes"):
            await append(a, id, "a")  # until it gave dots that the old copy does not have
            typed += 1
        before = (await cluster.status(victim))["actor"]
        await cluster.kill(victim)
        shutil.rmtree(cluster.folder / victim)
        shutil.copytree(tmp_path / "old", cluster.folder / victim)
        await append(b, id, "b")
        await cluster.bring_back(victim)
        for _ in range(20):
            await append(a, id, "a")
        assert (await cluster.status(victim))["actor"] != before
    found = await converged(cluster, id)
    assert (found.count("a"), found.count("b"), len(found)) == (typed + 20, 1, typed + 22)


async def test_an_agent_killed_in_a_block_leaves_nothing_behind(cluster: Cluster, id: str, run_script: Any) -> None:
    script = (
        "import asyncio, sys\nfrom crdt_spine import Spine\n"
        "async def main():\n"
        "    async with Spine.connect(sys.argv[1], agent='killed') as spine:\n"
        "        async with spine.document(sys.argv[2]) as doc:\n"
        "            doc['content'] += 'whole '\n"
        "        async with spine.document(sys.argv[2]) as doc:\n"
        "            doc['content'] += 'half'\n"
        "            print('in the block', flush=True)\n"
        "            await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    process = await run_script(script, cluster.url, id)
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"in the block\n"
    process.kill()
    await process.wait()
    async with cluster.spine("other") as other:
        await append(other, id, "and on")
        assert await content(other, id) == "whole and on"
    assert await converged(cluster, id) == "whole and on"


async def test_a_document_survives_a_restart_of_an_embedded_node(tmp_path: Path, id: str) -> None:
    path = tmp_path / "memories.db"
    for round in range(3):
        async with Spine.open(path, agent="ada") as spine:
            for _ in range(40):
                await append(spine, id, str(round))
    async with Spine.open(path, agent="ada") as spine:
        assert await content(spine, id) == "0" * 40 + "1" * 40 + "2" * 40
        assert [memory.id for memory in (await spine.query(text="0" * 40 + "1" * 40 + "2" * 40)).memories] == [id]


async def test_a_process_without_documents_does_not_load_yjs() -> None:
    program = (
        "import asyncio, sys\nfrom crdt_spine import Spine\n"
        "async def main():\n"
        "    async with Spine.open(':memory:', agent='a') as spine:\n"
        "        await spine.store('x', id='m'); await spine.update('m', content='y'); await spine.query(text='y')\n"
        "asyncio.run(main())\nprint('pycrdt' in sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert out.strip() == b"False"
