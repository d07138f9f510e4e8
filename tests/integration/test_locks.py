"""Locks against real brokers, nodes and instances of the lock service, of which each dies or is paused in its turn."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio
from nats.aio.client import Client

from crdt_spine import FenceRejected, InvalidInput, Lease, LockTimeout, Spine
from crdt_spine.broker.guard import BoundProcess, spawn_bound_to_parent
from crdt_spine.config import LocksConfig, NodeConfig, new_cluster
from crdt_spine.core.fences import Fence, epoch_of
from crdt_spine.core.lock_messages import EpochAnswer, EpochQuestion, ListLocks, LockAnswer, LockRequest, Release, Renew
from crdt_spine.core.messages import Hello, NodeInfo, encode
from crdt_spine.core.subjects import DISCOVERY_SUBJECT, Subjects
from crdt_spine.errors import ConnectionFailed, LeaseLost
from crdt_spine.locks.client import LockClient
from crdt_spine.locks.service import LockService
from crdt_spine.supervisor import lock_service
from crdt_spine.transport.base import Message
from crdt_spine.transport.nats import NatsTransport
from tests.brokers import BrokerCluster
from tests.conftest import RunningCluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("locks")]

Started = Callable[..., Awaitable[RunningCluster]]
STREAM = "spine_locks_spine"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningCluster]:
    """A node and two instances of the lock service, for the whole module."""
    from crdt_spine.supervisor import Supervisor

    supervisor = Supervisor(
        tmp_path_factory.mktemp("locks"), nodes=1, nats_port=0, http_port=0,
        services=(lock_service(), lock_service("locks-2")),
    )  # fmt: skip
    await supervisor.start()
    running = RunningCluster(supervisor)
    await running.start()
    yield running
    await running.close()


@pytest_asyncio.fixture(loop_scope="module", params=["embedded", "cluster"])
async def spines(request: pytest.FixtureRequest, one: RunningCluster) -> AsyncIterator[tuple[Spine, Spine]]:
    """Two agents."""
    if request.param == "embedded":
        async with Spine.open(":memory:", agent="a") as a:
            yield a, a.for_agent("b")
    else:
        async with one.spine("a") as a, one.spine("b") as b:
            yield a, b


async def in_line(spine: Spine, name: str, count: int) -> None:
    """Return once so many wait."""
    async with asyncio.timeout(20):
        while not any(lock.name == name and lock.waiters == count for lock in await spine.locks()):
            await asyncio.sleep(0.02)


async def line_up(spine: Spine, name: str, count: int, **options: Any) -> list[asyncio.Task[tuple[int, int]]]:
    """Tasks that wait for a lock, one behind the other; what each has then: when, and its token."""
    served = iter(range(1_000))

    async def wait() -> tuple[int, int]:
        async with spine.lock(name, **options) as lease:
            place = next(served)
            await asyncio.sleep(0.01)
            return place, lease.token

    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(wait()))
        await in_line(spine, name, number + 1)
    return tasks


async def all_in_order(tasks: list[asyncio.Task[tuple[int, int]]], above: int, seconds: float = 30) -> int:
    """They were served in line, with tokens that rise; the last one's."""
    async with asyncio.timeout(seconds):
        found = await asyncio.gather(*tasks)
    assert [place for place, _ in found] == list(range(len(tasks)))
    tokens = [above, *(token for _, token in found)]
    assert tokens == sorted(set(tokens))
    return tokens[-1]


# -- holding, waiting, in line ----------------------------------------------------------------------------------------


async def test_one_holds_it_the_others_wait_in_line_and_tokens_rise(spines: tuple[Spine, Spine]) -> None:
    a, b = spines
    async with a.lock("deploy", ttl=20) as lease:
        assert (lease.name, lease.lost.is_set()) == ("deploy", False) and isinstance(lease.token, int)
        with pytest.raises(LockTimeout, match="held by a"):
            await b.lock("deploy", wait=0).__aenter__()
        begun = time.monotonic()
        with pytest.raises(LockTimeout, match=r"was not to be had within 0\.3 s: a holds it"):
            await b.lock("deploy", wait=0.3).__aenter__()
        assert time.monotonic() - begun < 5
        tasks = await line_up(b, "deploy", 4)
        token = lease.token
        await lease.renew()
        assert lease.token == token
    assert lease.lost.is_set()
    last = await all_in_order(tasks, token)
    async with a.lock("deploy", wait=0) as again:
        assert again.token > last
    assert await a.locks() == []


async def test_a_later_lease_fences_off_whoever_held_it_before(spines: tuple[Spine, Spine]) -> None:
    a, b = spines
    async with a.lock("file", ttl=20) as first:
        memory = await a.store("one", id="fenced", fence=first)
        await a.update("fenced", content="two", fence=first)
        old = Fence("file", first.token)  # what a paused holder would still send
    async with b.lock("file") as second:
        assert (await b.update("fenced", content="three", fence=second)).content == "three"
    for write in (a.store, a.update, a.delete):
        with pytest.raises(FenceRejected, match=f"{first.token}"):
            content: dict[str, Any] = {} if write == a.delete else {"content": "late"}
            await write(id="fenced", fence=old, **content)  # type: ignore[operator]
    with pytest.raises(LeaseLost, match="Acquire the lock again"):
        await a.store("late", id="fenced", fence=first)
    with pytest.raises(LeaseLost):
        await first.renew()
    found = await b.get("fenced")
    assert found is not None and found.content == "three" and memory.id == "fenced"


async def test_a_later_lease_is_known_before_its_holder_has_it(spines: tuple[Spine, Spine]) -> None:
    a, b = spines
    async with a.lock("told") as first:
        old = Fence("told", first.token)
    async with b.lock("told"):  # which writes nothing
        with pytest.raises(FenceRejected):
            await a.store("late", fence=old)  # type: ignore[arg-type]


async def test_who_gives_up_leaves_the_line(spines: tuple[Spine, Spine]) -> None:
    a, b = spines
    async with a.lock("queue") as lease:
        tasks = await line_up(b, "queue", 3)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        await in_line(b, "queue", 2)
    await all_in_order(tasks[1:], lease.token)


async def test_bad_input_says_what_to_do(spines: tuple[Spine, Spine], one: RunningCluster) -> None:
    a, _ = spines
    for bad in ({"ttl": 0.5}, {"ttl": 1e9}, {"ttl": "1"}, {"ttl": float("nan")}, {"wait": -1}, {"wait": "x"}):
        with pytest.raises(InvalidInput, match="must be"):
            a.lock("x", **bad)  # type: ignore[arg-type]
    for name in ("", "x" * 129, 7):
        with pytest.raises(InvalidInput, match="lock"):
            a.lock(name)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="fence must be a Lease"):
        await a.store("x", fence=7)  # type: ignore[arg-type]
    async with Spine.open(":memory:", agent="z") as other, one.spine("z") as here, other.lock("x") as theirs:
        with pytest.raises(InvalidInput, match="from the cluster 'embedded@"):
            await here.store("x", fence=theirs)


async def test_each_of_many_memories_may_have_a_fence(spines: tuple[Spine, Spine]) -> None:
    """`store_many` takes what `store` takes; it called `fence` unknown."""
    a, _ = spines
    async with a.lock("many") as lease:
        found = await a.store_many([{"content": "1", "fence": lease}, {"content": "2"}])
        assert [memory.content for memory in found] == ["1", "2"]
        old = Fence("many", lease.token)
    with pytest.raises(LeaseLost):
        await a.store_many([{"content": "3", "fence": lease}])
    async with a.lock("many"):
        with pytest.raises(FenceRejected):
            await a.store_many([{"content": "3", "fence": old}])
    with pytest.raises(InvalidInput, match="memory 0: fence must be a Lease"):
        await a.store_many([{"content": "3", "fence": 7}])


async def test_the_first_lock_of_an_embedded_node_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """That leases are given out in a new epoch is news where there was another one."""
    async with Spine.open(":memory:", agent="a") as spine, spine.lock("x"):
        pass
    assert [record.message for record in caplog.records if record.levelname not in ("INFO", "DEBUG")] == []


async def test_names_may_be_anything_that_is_text(spines: tuple[Spine, Spine]) -> None:
    a, _ = spines
    for name in ("a.b.*.>", "ein Schloß 🔒", " ", "x" * 128):
        async with a.lock(name):
            assert name in [lock.name for lock in await a.locks()]


async def test_tokens_of_an_embedded_node_rise_when_it_is_opened_again(tmp_path: Path) -> None:
    tokens = []
    for _ in range(3):
        async with Spine.open(tmp_path / "memories.db", agent="a") as spine, spine.lock("x") as lease:
            await spine.store("x", fence=lease)
            tokens.append(lease.token)
    assert tokens == sorted(set(tokens))


async def test_without_a_lock_service_it_is_said_what_to_start(start_cluster: Started) -> None:
    cluster = await start_cluster(nodes=1)
    async with cluster.spine() as spine:
        with pytest.raises(ConnectionFailed, match="`spine locks` starts one"):
            await spine.lock("x", wait=0.5).__aenter__()
        assert (await spine.status())["locks"] is None


# -- who dies, is paused, or loses an answer ---------------------------------------------------------------------------

HOLDER = """
import asyncio, sys
from crdt_spine import Spine, FenceRejected
async def main():
    async with Spine.connect(sys.argv[1], agent="holder") as spine, spine.lock("work", ttl=2) as lease:
        print(lease.token, flush=True)
        await lease.lost.wait()
        try:
            await spine.store("late", id="work", fence=lease)
        except FenceRejected as error:
            print("lost", type(error).__name__, flush=True)
asyncio.run(main())
"""


@pytest_asyncio.fixture(loop_scope="module")
async def holder(one: RunningCluster) -> AsyncIterator[BoundProcess]:
    """A process that holds the lock "work" for two seconds at a time."""
    process = await spawn_bound_to_parent([sys.executable, "-c", HOLDER, one.url])
    yield process
    await process.stop(0)


async def said(process: BoundProcess) -> bytes:
    assert process.output is not None
    return await asyncio.wait_for(process.output.readline(), 20)


async def test_the_lock_of_who_was_killed_is_free_after_its_time(one: RunningCluster, holder: BoundProcess) -> None:
    token = int(await said(holder))
    async with one.spine() as spine:
        tasks = await line_up(spine, "work", 2)
        holder.kill()
        begun = time.monotonic()
        await all_in_order(tasks, token)
        assert time.monotonic() - begun < 15


async def test_who_was_paused_past_its_lease_learns_it_and_writes_nothing(
    one: RunningCluster, holder: BoundProcess
) -> None:
    token = int(await said(holder))
    os.kill(holder.pid, signal.SIGSTOP)
    async with one.spine() as spine:
        async with spine.lock("work", wait=30) as lease:
            assert lease.token > token
            await spine.store("mine", id="work", fence=lease)
            with pytest.raises(FenceRejected):
                await spine.store("late", id="work", fence=Fence("work", token))  # type: ignore[arg-type]
            os.kill(holder.pid, signal.SIGCONT)
            assert (await said(holder)).startswith(b"lost ")
        memory = await spine.get("work")
        assert memory is not None and memory.content == "mine"


async def test_the_line_outlives_the_instances_of_the_service(one: RunningCluster) -> None:
    async with one.spine("a") as a, one.spine("b") as b:
        async with a.lock("line", ttl=30) as lease:
            tasks = await line_up(b, "line", 6)
            for name in ("locks", "locks-2"):  # one after the other, so that nothing of what either remembers is left
                pid = one.pid(name)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(30):
                    while one.pid(name) in (pid, None) or not all(
                        child.state == "ready" for child in one.supervisor.children
                    ):
                        await asyncio.sleep(0.02)
            assert not lease.lost.is_set()
        await all_in_order(tasks, lease.token)


async def renewed(lease: Lease) -> None:
    """Renew a lease, as soon as that is answered again."""
    async with asyncio.timeout(40):
        while True:
            try:
                await lease.renew()
                return
            except ConnectionFailed:
                await asyncio.sleep(0.1)


async def test_a_lease_and_the_line_outlive_the_broker(one: RunningCluster) -> None:
    async with one.spine("a") as a, one.spine("b") as b:
        async with a.lock("broker", ttl=60) as lease:
            tasks = await line_up(b, "broker", 4)
            one.kill_broker()
            await renewed(lease)
            assert not lease.lost.is_set()
        await all_in_order(tasks, lease.token, 40)


async def test_tokens_rise_when_the_stream_is_made_anew(one: RunningCluster) -> None:
    async with one.spine("a") as a, one.spine("b") as b, a.lock("anew", ttl=4) as lease:
        client = Client()
        await client.connect(one.url)
        assert await client.jetstream().delete_stream(STREAM)
        await client.close()
        await asyncio.wait_for(lease.lost.wait(), 20)
        async with b.lock("anew", wait=30) as later:
            assert later.token > lease.token and epoch_of(later.token) > epoch_of(lease.token)
            await b.store("mine", fence=later)
            with pytest.raises(FenceRejected):
                await a.store("late", fence=Fence("anew", lease.token))  # type: ignore[arg-type]


async def test_who_releases_a_lease_of_a_stream_that_is_gone_ends_no_other_one(one: RunningCluster) -> None:
    """A message is deleted by its sequence alone, and a new stream would have the same ones."""
    transport = await NatsTransport.connect(one.url, "test")
    old, new = transport.leases("gone"), transport.leases("gone")
    try:
        for leases, epoch in ((old, 1), (new, 2)):
            await leases.discard()
            await leases.make(epoch)
            leases.use(epoch)
        second = [await new.put(f"b{number}.held", b"x", 0, 30) for number in range(5)]
        await new.discard()
        await old.make(1)
        first = [await old.put(f"a{number}.held", b"x", 0, 30) for number in range(5)]
        await old.discard()
        await new.make(2)
        second = [await new.put(f"b{number}.held", b"x", 0, 30) for number in range(5)]
        assert None not in first + second
        assert not any([await old.drop(sequence or 0) for sequence in first])
        assert sorted(await new.paths()) == [f"b{number}.held" for number in range(5)]
        assert await new.drop(second[0] or 0) and len(await new.paths()) == 4
    finally:
        await new.discard()
        await transport.close()


async def test_a_lock_that_nobody_else_wants_is_had_and_released_without_the_service(one: RunningCluster) -> None:
    """Once the service has given one: then it knows the epoch, and may stand still."""
    pids = [one.pid(name) or 0 for name in ("locks", "locks-2")]
    async with one.spine("a") as a, one.spine("b") as b:
        for spine in (a, b):
            async with spine.lock("first"):
                pass
        async with a.lock("direct", ttl=20) as lease:
            pass
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):
                async with a.lock("direct", ttl=20) as again:
                    old = Fence("direct", again.token)
                async with b.lock("direct", ttl=20) as later:
                    assert lease.token < again.token < later.token
                    with pytest.raises(FenceRejected):  # the nodes have been told
                        await a.store("late", fence=old)  # type: ignore[arg-type]
                    waiting = asyncio.create_task(a.lock("direct", wait=40).__aenter__())
                    await asyncio.sleep(0.2)
                    assert not waiting.done()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        last = await asyncio.wait_for(waiting, 40)
        assert last.token > later.token
        await last.release()


async def test_one_paused_instance_of_two_costs_neither_leases_nor_acquisitions(one: RunningCluster) -> None:
    """The broker gives it every other request all the same. All leases of two seconds were lost, and half of the
    acquisitions failed after the whole of their wait."""
    pid = one.pid("locks-2") or 0
    async with one.spine("a") as a, contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(a.lock(f"held {number}", ttl=3)) for number in range(6)]
        agents = [await stack.enter_async_context(one.spine(f"f{number}")) for number in range(6)]
        os.kill(pid, signal.SIGSTOP)
        try:

            async def fresh(spine: Spine, number: int) -> None:
                async with spine.lock(f"fresh {number}", wait=6):
                    pass

            await asyncio.gather(*(fresh(spine, number) for number, spine in enumerate(agents)))
            await asyncio.sleep(4)  # longer than a lease
            assert not any(lease.lost.is_set() for lease in held)
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(20):  # what it finds when it wakes up is old: nobody is given a lock for it
            while len(await a.locks()) != len(held):
                await asyncio.sleep(0.1)


async def test_a_lock_that_is_given_too_late_is_given_back(one: RunningCluster) -> None:
    """By an instance that was slow, while another one had answered, to who has released the lock since."""
    transport = await NatsTransport.connect(one.url, "test")
    slow, answered = asyncio.Event(), asyncio.Event()
    released: list[str] = []

    async def instance(message: Message) -> None:
        request = msgspec.json.decode(message.payload, type=LockRequest)
        if isinstance(request, Release):
            released.append(request.nonce)
            transport.send(message.reply, encode(LockAnswer(state="released")))
        elif not slow.is_set():
            slow.set()
            await answered.wait()
            transport.send(message.reply, encode(LockAnswer(state="granted", token=2, sequence=2)))
        else:
            transport.send(message.reply, encode(LockAnswer(state="held", holder="x")))

    await transport.subscribe(
        Subjects("slow").lock, lambda message: running.append(asyncio.create_task(instance(message)))
    )
    running: list[asyncio.Task[None]] = []
    agent = await NatsTransport.connect(one.url, "agent")
    client = LockClient(agent, "slow", "a")
    try:
        with pytest.raises(LockTimeout):
            await client.acquire("x", 10, 0)
        given_up = len(released)
        answered.set()
        async with asyncio.timeout(10):
            while len(released) == given_up:
                await asyncio.sleep(0.02)
        assert len(set(released)) == 1
    finally:
        await client.close()
        await agent.close()
        await transport.close()


async def test_a_lease_is_renewed_without_the_service(one: RunningCluster) -> None:
    pids = [one.pid(name) or 0 for name in ("locks", "locks-2")]
    async with one.spine("a") as a, a.lock("renewed", ttl=3) as lease:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(4)
            assert not lease.lost.is_set()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


async def test_how_many_brokers_keep_leases_is_what_the_cluster_says(one: RunningCluster) -> None:
    """A node of another cluster says three; there is one broker."""
    transport = await NatsTransport.connect(one.url, "test")
    hello = Hello(
        cluster="three", region="r", node="n", state="up", nodes=[NodeInfo(id="n")], partitions=1, factor=1,
        write_quorum=1, lock_replicas=3,
    )  # fmt: skip

    async def node(message: Message) -> None:
        transport.send(message.reply, encode(hello))

    async def fence(message: Message) -> None:
        if b"epoch/1" in message.payload:
            asked = msgspec.json.decode(message.payload, type=EpochQuestion)
            transport.send(message.reply, encode(EpochAnswer(node="n", epoch=asked.epoch, newest=0)))

    try:
        await transport.subscribe(DISCOVERY_SUBJECT, node)
        await transport.subscribe(Subjects("three").fence, fence)
        code, _, err = await command(one, "locks", "--cluster", "three")
        assert code == 1 and "refuses the stream spine_locks_three with 3 replicas" in err
        serving = await spawn_bound_to_parent(
            [sys.executable, "-m", "crdt_spine.cli.main", "locks", "--cluster", "three", "--replicas", "1", "--server",
             one.url]
        )  # fmt: skip
        try:
            await asyncio.wait_for(_ready(serving.output), 30)
        finally:
            await serving.stop(5)
    finally:
        await transport.close()


async def test_times_of_leases_are_what_cluster_yaml_says(start_cluster: Started, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    node = NodeConfig(id="spine-1", host="127.0.0.1", port=_free_port())
    locks = LocksConfig(ttl_seconds=4, ttl_seconds_max=9)
    msgspec.structs.replace(new_cluster([node]), locks=locks).save(folder / "cluster.yaml")
    cluster = await start_cluster(nodes=1, folder=folder, services=(lock_service(),))
    async with cluster.spine() as spine:
        async with spine.lock("x") as lease:
            assert lease.ttl == 4
            (listed,) = await spine.locks()
            assert listed.ttl_seconds == 4 and (listed.expires_in_seconds or 9) <= 4
        with pytest.raises(InvalidInput, match="ttl_seconds_max"):
            spine.lock("x", ttl=10)


async def test_a_stream_that_is_behind_what_nodes_know_is_made_anew(start_cluster: Started) -> None:
    """As after an old copy of the broker's disk was restored."""
    cluster = await start_cluster(nodes=1, services=(lock_service(),))
    async with cluster.spine() as spine:
        async with spine.lock("x") as before:
            pass
        newer = before.token + 1_000_000
        client = Client()
        await client.connect(cluster.url)
        await client.publish(Subjects("spine").fence, encode(Fence("y", newer)))
        await client.flush()
        await client.close()
        pid = cluster.pid("locks")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    async with cluster.spine() as spine, spine.lock("x", wait=30) as after:
        assert after.token > newer


async def test_a_fence_outlives_all_nodes(start_cluster: Started) -> None:
    cluster = await start_cluster(nodes=3, services=(lock_service(),))
    async with cluster.spine(timeout=40) as spine:
        async with spine.lock("x") as first:
            pass
        async with spine.lock("x") as second:
            await spine.store("mine", id="fenced", fence=second)
        await cluster.kill(*cluster.ids)
        await cluster.bring_back(*cluster.ids)
        with pytest.raises(FenceRejected, match=f"the newest is {second.token}"):
            await spine.store("late", id="fenced", fence=Fence("x", first.token))  # type: ignore[arg-type]
        await spine.store("again", id="fenced", fence=Fence("x", second.token))  # type: ignore[arg-type]


async def test_an_instance_that_has_not_noticed_a_new_stream_ended_leases_and_listed_nothing(
    one: RunningCluster,
) -> None:
    """Another instance has made it anew; this one goes by what it found before."""
    transport = await NatsTransport.connect(one.url, "test")
    try:
        async with one.spine("a") as a, a.lock("renewed", ttl=30) as lease:
            leases = transport.leases("spine")
            service = LockService(transport, "spine", leases, None)  # type: ignore[arg-type]
            service.epoch = epoch_of(lease.token) + 7  # whichever it is, it is not the stream's
            leases.use(service.epoch)
            said: list[Any] = []
            service._reply = lambda message, answer: said.append(answer)  # type: ignore[method-assign]
            opened: list[bool] = []
            service._open_anew = lambda: opened.append(True)  # type: ignore[method-assign, assignment, return-value, func-returns-value]
            nonce, sequence = lease._nonce, lease._sequence
            renewal = Renew(lock="renewed", nonce=nonce, sequence=sequence, token=lease.token, ttl=30, agent="a")
            message = Message("", b"", "inbox")
            for request in (renewal, ListLocks()):
                await service._handle(message, request)
            assert [answer.state for answer in said] == ["again", "again"] and len(opened) == 2
            service.epoch -= 7
            leases.use(service.epoch)
            for request in (renewal, ListLocks()):
                await service._handle(message, request)
            assert said[2].state == "granted" and [lock.name for lock in said[3].locks] == ["renewed"]
    finally:
        await transport.close()


async def test_an_acquisition_whose_answer_is_lost_is_recognised(one: RunningCluster) -> None:
    """A service of a cluster of its own, whose broker takes what it publishes and does not say so."""
    transport = await NatsTransport.connect(one.url, "test")
    leases = transport.leases("lossy")
    put, lost = leases.put, 0

    async def losing(*arguments: Any) -> int | None:
        nonlocal lost
        sequence = await put(*arguments)
        lost += sequence is not None
        return None

    leases.put = losing  # type: ignore[method-assign, assignment]

    async def nodes() -> frozenset[str]:
        return frozenset({"n"})

    async def node(message: Any) -> None:
        if b"epoch/1" in message.payload:
            epoch = msgspec.json.decode(message.payload, type=EpochQuestion).epoch
            highest.append(max(epoch, *highest))
            other.send(message.reply, encode(EpochAnswer(node="n", epoch=highest[-1], newest=0)))

    highest = [0, 0]
    other = await NatsTransport.connect(one.url, "test")
    await other.subscribe(Subjects("lossy").fence, node)
    service = LockService(transport, "lossy", leases, nodes)
    await service.start()
    try:
        client = LockClient(other, "lossy", "a")
        first = await client.acquire("x", 10, 5)
        waiting = asyncio.create_task(client.acquire("x", 10, 15))
        await asyncio.sleep(0.3)
        await first.renew()
        await first.release()
        second = await asyncio.wait_for(waiting, 15)
        assert second.token > first.token and lost >= 3
        await second.release()
        await client.close()
    finally:
        await service.stop()
        await transport.close()
        await other.close()


async def test_three_brokers_keep_leases_and_one_of_them_may_die(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    sockets = BrokerCluster(tmp_path)
    async with sockets as brokers:
        config = tmp_path / "cluster.yaml"
        new_cluster([NodeConfig(id="spine-1", host="127.0.0.1", port=_free_port())]).save(config)
        spine_command = [sys.executable, "-m", "crdt_spine.cli.main"]
        started = [
            await spawn_bound_to_parent([*spine_command, *words, "--server", brokers.url])
            for words in (
                ["node", "--config", str(config), "--id", "spine-1", "--data", str(folder)],
                ["locks"],
                ["locks"],
            )
        ]
        try:
            for process in started:
                await asyncio.wait_for(_ready(process.output), 60)
            async with Spine.connect(brokers.url, agent="a") as spine:
                client = Client()
                await client.connect(brokers.url.split(","))
                info = await client.jetstream().stream_info(STREAM)
                assert info.config.num_replicas == 3 and info.cluster is not None
                await client.close()
                async with spine.lock("x", ttl=30) as lease:
                    tasks = await line_up(spine, "x", 3)
                    await brokers.kill(int(info.cluster.leader[1:]))
                    await renewed(lease)
                await all_in_order(tasks, lease.token, 60)
        finally:
            await asyncio.gather(*(process.stop(2) for process in started))


async def _ready(output: asyncio.StreamReader | None) -> None:
    assert output is not None
    said = []
    while not (line := await output.readline()).startswith(b"ready"):
        said.append(line)
        assert line, said


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- the command line --------------------------------------------------------------------------------------------------


async def command(one: RunningCluster, *words: str) -> tuple[int | None, str, str]:
    """Run `spine …` against the cluster: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crdt_spine.cli.main", *words, env={**os.environ, "SPINE_SERVER": one.url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 40)
    return process.returncode, out.decode(), err.decode()


async def test_a_command_runs_while_the_lock_is_held_and_finds_its_token(one: RunningCluster) -> None:
    shell = "echo $SPINE_LOCK_NAME $SPINE_LOCK_TOKEN; exit 7"
    async with one.spine("a") as spine:
        async with spine.lock("cli") as before:
            pass
        code, out, _ = await command(one, "lock", "run", "cli", "--ttl", "5", "--", "sh", "-c", shell)
        name, token = out.split()
        assert (code, name) == (7, "cli") and int(token) > before.token
        async with spine.lock("cli", wait=0) as held:
            code, out, err = await command(one, "lock", "run", "cli", "--wait", "0.3", "echo", "never")
            assert (code, out) == (4, "") and "a holds it" in err
            code, _, err = await command(one, "lock", "run", "--no-wait", "cli", "echo", "never", "--json")
            assert code == 4 and "held by a" in err
            code, out, _ = await command(one, "lock", "ls", "--json")
            (listed,) = msgspec.json.decode(out)
            assert listed | {"expires_in_seconds": 0} == {
                "name": "cli", "holder": "a", "token": held.token, "expires_in_seconds": 0, "ttl_seconds": 30.0,
                "waiters": 0,
            }  # fmt: skip
            assert 20 < listed["expires_in_seconds"] <= 30
            code, out, _ = await command(one, "lock", "ls")
            assert code == 0 and str(held.token) in out
            status = await spine.status()
            assert [lock["name"] for lock in status["locks"]] == ["cli"]
            code, out, _ = await command(one, "status")
            assert code == 0 and "held by a" in out
        assert await command(one, "lock", "ls") == (0, "", "no lock is held\n")


SAYS = """
import os, signal, sys, time
def told(number, frame):
    print("told", number, flush=True)
    sys.exit(9)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, told)
print("runs", os.getpid(), flush=True)
time.sleep(120)
"""


DEFAULT_SIGNALS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
"""


async def runner(one: RunningCluster, name: str) -> asyncio.subprocess.Process:
    """`spine lock run` around a command that says which signal it got, without a terminal."""
    # Where these tests run in the background, signals may be ignored, and so they would be here.
    words = [sys.executable, "-c", f"{DEFAULT_SIGNALS}\nfrom crdt_spine.cli.main import main\nsys.exit(main())"]
    return await asyncio.create_subprocess_exec(
        *words, "lock", "run", name, "--ttl", "60", "--", sys.executable, "-c", SAYS, start_new_session=True,
        env={**os.environ, "SPINE_SERVER": one.url}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def line(process: asyncio.subprocess.Process) -> list[bytes]:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 40)).split()


async def test_a_command_under_a_lock_gets_the_signals_that_its_runner_gets(one: RunningCluster) -> None:
    """SIGINT to the runner alone did nothing; after SIGHUP and SIGQUIT the command went on without the lock."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        process = await runner(one, "signals")
        try:
            assert (await line(process))[0] == b"runs"
            process.send_signal(number)
            assert await line(process) == [b"told", str(int(number)).encode()]
            assert await asyncio.wait_for(process.wait(), 20) == 9
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent's life")
async def test_a_command_under_a_lock_does_not_outlive_its_runner(one: RunningCluster) -> None:
    """It went on, while the lock's next holder had its turn."""
    process = await runner(one, "killed")
    _, pid = await line(process)
    process.kill()
    await asyncio.wait_for(process.wait(), 20)
    async with asyncio.timeout(20):
        while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)
    async with one.spine() as spine:  # of which nobody knows that its holder is dead
        (left,) = [lock for lock in await spine.locks() if lock.name == "killed"]
        assert left.ttl_seconds == 60


async def test_who_is_told_to_end_while_it_waits_for_a_lock_leaves_the_line(one: RunningCluster) -> None:
    """It stood in `spine lock ls` for as long as the lock was held."""
    async with one.spine("a") as a, a.lock("left", ttl=60):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process = await runner(one, "left")
            try:
                await in_line(a, "left", 1)
                process.send_signal(number)
                assert await asyncio.wait_for(process.wait(), 20) == 128 + number
                await in_line(a, "left", 0)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()


async def test_a_command_that_is_not_there_is_named_before_anybody_waits_for_the_lock(one: RunningCluster) -> None:
    async with one.spine("a") as a, a.lock("not there", ttl=30):
        code, out, err = await command(one, "lock", "run", "not there", "--", "no-such-command", "x")
        assert (code, out) == (127, "") and "no-such-command: command not found" in err
        code, _, err = await command(one, "lock", "run", "not there", "--json", "--", "./no-such")
        assert code == 127 and msgspec.json.decode(err)["error"] == "NotStarted"
        code, _, err = await command(one, "lock", "run", "not there", "/")
        assert code == 126 and "/: Permission denied" in err


async def test_a_command_whose_lock_is_lost_is_ended(one: RunningCluster) -> None:
    running = asyncio.create_task(command(one, "lock", "run", "gone", "--ttl", "3", "--", "sleep", "60"))
    async with one.spine() as spine, asyncio.timeout(30):
        while not any(lock.name == "gone" for lock in await spine.locks()):
            await asyncio.sleep(0.05)
        client = Client()
        await client.connect(one.url)
        await client.jetstream().delete_stream(STREAM)
        await client.close()
    code, _, err = await running
    assert code == 4 and "is lost: sleep is ended" in err


async def test_spine_up_has_a_lock_service_and_starts_it_again(tmp_path: Path) -> None:
    words = ["up", "--nats-port", "0", "--http-port", "0", "--data", str(tmp_path / "data"), "--json"]
    process = await spawn_bound_to_parent([sys.executable, "-m", "crdt_spine.cli.main", *words])
    try:
        ready = await _event(process, event="SpineReady")
        async with Spine.connect(ready["url"], agent="a") as spine, spine.lock("x", ttl=30) as lease:
            (listed,) = await spine.locks()
            assert listed.token == lease.token
            found = [child for child in psutil.Process(process.pid).children() if "locks" in child.cmdline()]
            os.kill(found[0].pid, signal.SIGKILL)
            await _event(process, event="ChildDied", name="locks")
            await _event(process, event="ChildReady", name="locks", restarts=1)
            await lease.renew()
    finally:
        await process.stop(10)
    assert process.returncode == 0


async def _event(process: BoundProcess, **wanted: Any) -> dict[str, Any]:
    assert process.output is not None
    async with asyncio.timeout(60):
        while line := await process.output.readline():
            event: dict[str, Any] = msgspec.json.decode(line) if line.startswith(b"{") else {}
            if wanted.items() <= event.items():
                return event
    raise AssertionError(f"{wanted} did not happen")


async def test_what_a_command_writes_under_its_lock_is_fenced(one: RunningCluster) -> None:
    async with one.spine("a") as a, one.spine("b") as b:
        words = ["store", "--id", "guarded", "under the lock"]
        code, out, err = await command(
            one, "lock", "run", "guard", "--", sys.executable, "-m", "crdt_spine.cli.main", *words
        )
        assert (code, out) == (0, "guarded\n"), err
        async with a.lock("guard") as first:
            code, out, _ = await command(one, "update", "guarded", "--content", "2", "--fence", str(first.token))
            assert (code, out) == (0, "guarded\n")
            text = f"spine/{first.token}/guard"
            assert (await command(one, "delete", "guarded", "--fence", text))[0] == 0
            async with a.lock("other") as other:
                for token in (other.token, first.token + 1):
                    code, _, err = await command(one, "store", "x", "--fence", f"spine/{token}/guard")
                    assert code == 2 and f"{token} is no token of the lock 'guard'" in err
            code, _, err = await command(one, "store", "x", "--fence", f"elsewhere/{first.token}/guard")
            assert code == 2 and "from the cluster 'elsewhere'" in err
        code, _, err = await command(one, "store", "x", "--json", "--fence", text)
        assert (code, msgspec.json.decode(err)["error"]) == (1, "LeaseLost")
        async with b.lock("guard") as second:
            code, _, err = await command(one, "store", "x", "--json", "--fence", text)
            assert (code, msgspec.json.decode(err)["error"]) == (1, "FenceRejected") and str(second.token) in err
            code, _, err = await command(one, "store", "x", "--fence", str(first.token))
            assert code == 1 and "nobody holds a lock with the token" in err
        for garbage in ("x", "spine/1"):
            code, _, err = await command(one, "store", "x", f"--fence={garbage}")
            assert code == 2 and "is no fence" in err, garbage
        assert await a.get("guarded") is None
