"""Clusters of the same name are told apart: every `spine up` is called "spine", every embedded node "embedded"."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
import pytest_asyncio

from crdt_spine import InvalidInput, Spine, StaleToken
from crdt_spine.core.membership import from_json
from crdt_spine.supervisor import Supervisor
from crdt_spine.supervisor.service import lock_service

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("identity of clusters"),
    pytest.mark.timeout(120),
]

BUCKET, ENTRY = "KV_spine_spine", "$KV.spine_spine.membership"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Supervisor, Supervisor]]:
    """Two `spine up` of one node each."""
    async with contextlib.AsyncExitStack() as stack:
        both = [
            Supervisor(tmp_path_factory.mktemp(name), nodes=1, nats_port=0, http_port=0, services=(lock_service(),))
            for name in ("one", "other")
        ]
        for supervisor in both:
            stack.push_async_callback(supervisor.stop)
        await asyncio.gather(*[supervisor.start() for supervisor in both])
        yield both[0], both[1]


def identity(spine: Spine) -> str:
    return spine.session.hello.identity


async def refused_everywhere(spine: Spine, token: str, again: Callable[[], Spine]) -> None:
    """This token of another cluster is refused at once, wherever it can be given, and changes nothing."""
    with pytest.raises(StaleToken, match=r"another cluster of that name.*begin without a token"):
        async with again():
            pass
    with pytest.raises(StaleToken, match="another cluster of that name"):
        await spine.wait_for(token)
    with pytest.raises(StaleToken, match="another cluster of that name"):
        spine.subscribe(token=token)
    await spine.query(limit=1)


async def test_a_lease_of_another_cluster_of_the_same_name_shut_out_the_rightful_holder(
    two: tuple[Supervisor, Supervisor],
) -> None:
    """The foreign token was higher, so the own lease and all later ones were refused, for good."""
    x_url, y_url = two[0].url, two[1].url
    async with Spine.connect(x_url, agent="x") as x, Spine.connect(y_url, agent="y") as y:
        assert x.session.hello.cluster == y.session.hello.cluster and identity(x) != identity(y)
        for _ in range(3):
            async with x.lock("p"):
                pass
        async with x.lock("p") as theirs, y.lock("p") as mine:
            assert theirs.token > mine.token
            for there, lease in ((y, theirs), (x, mine)):
                with pytest.raises(InvalidInput, match=f"from the cluster '{lease.cluster}'.*acquire the lock"):
                    await there.store("foreign", id="p", fence=lease)
            assert (await y.store("by y", id="p", fence=mine)).content == "by y"
            text = f"{theirs.cluster}/{theirs.token}/p"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "crdt_spine.cli.main", "store", "foreign", "--id", "p", "--json",
                env={**os.environ, "SPINE_SERVER": y_url, "SPINE_FENCE": text}, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, err = await asyncio.wait_for(process.communicate(), 40)
            assert process.returncode == 2 and msgspec.json.decode(err)["error"] == "InvalidInput"
            assert identity(x).encode() in err and identity(y).encode() in err
        async with y.lock("p") as later:
            assert (await y.store("by y again", id="p", fence=later)).content == "by y again"


async def test_a_token_of_another_cluster_of_the_same_name_was_taken_for_an_own_one(
    two: tuple[Supervisor, Supervisor],
) -> None:
    async with Spine.connect(two[0].url, agent="x") as x, Spine.connect(two[1].url, agent="y") as y:
        await x.store("x")
        token = x.token
        await refused_everywhere(y, token, lambda: Spine.connect(two[1].url, agent="z", token=token))
        async with Spine.connect(two[0].url, agent="z", token=token) as z:
            assert await z.query(limit=1)


async def test_embedded_nodes_are_told_apart_by_their_files(tmp_path: Path) -> None:
    files = [tmp_path / "one.db", tmp_path / "other.db"]
    names = []
    for file in (*files, *files):
        async with Spine.open(file, agent="a") as spine:
            names.append(identity(spine))
    assert names[:2] == names[2:] and names[0] != names[1]
    async with Spine.open(files[0], agent="a") as one, Spine.open(files[1], agent="a") as other:
        await one.store("x")
        token = one.token
        await refused_everywhere(other, token, lambda: Spine.open(":memory:", agent="z", token=token))
        async with one.lock("p") as lease:
            with pytest.raises(InvalidInput, match="acquire the lock of this one"):
                await other.store("foreign", fence=lease)
    async with Spine.open(files[0], agent="b", token=token) as one:
        assert len((await one.query()).memories) == 1


async def test_a_cluster_keeps_its_identity_without_its_register_and_over_restarts(
    start_cluster: Callable[..., Awaitable[Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    running = await start_cluster(nodes=2, folder=folder)
    async with running.spine() as spine:
        before, token = identity(spine), (await spine.store("x") and spine.token)
    client = await nats.connect(running.url)
    try:
        await client.jetstream().delete_stream(BUCKET)
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(nats.js.errors.NotFoundError):
                    kept = await client.jetstream().get_last_msg(BUCKET, ENTRY)
                    break
                await asyncio.sleep(0.1)
    finally:
        await client.close()
    settings = from_json(kept.data or b"").settings
    assert f"{settings.cluster}@{settings.cluster_id}" == before, "it was made again of what the nodes have"
    await running.close()
    again = await start_cluster(nodes=2, folder=folder)
    for id in again.ids:
        with again.stopped(*[other for other in again.ids if other != id]):
            async with again.spine() as spine:
                assert (spine.session.hello.node, identity(spine)) == (id, before)
    async with again.spine(token=token) as spine:
        assert len((await spine.query()).memories) == 1
