"""The supervisor: real brokers and real processes; a stand-in script plays the node."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import nats
import psutil
import pytest
import yaml

from crdt_spine.broker.folder_lock import FolderLock
from crdt_spine.errors import ConfigError, ConnectionFailed, InvalidInput
from crdt_spine.supervisor import (
    ChildDied,
    ChildFailed,
    ChildReady,
    ChildStarted,
    ChildState,
    Event,
    ServiceSpec,
    SpineReady,
    Supervisor,
)
from crdt_spine.supervisor.output import BoundedLog
from crdt_spine.supervisor.supervisor import node_command

Alive = Callable[[int], bool]
Eventually = Callable[..., Awaitable[None]]
RunScript = Callable[..., Awaitable[asyncio.subprocess.Process]]

#: Serves when it finds no file "refuse" in its folder; a file "stubborn" makes it ignore SIGTERM.
STAND_IN = """
import pathlib, signal, sys
id, folder, url = sys.argv[1:]
folder = pathlib.Path(folder)
if (folder / "refuse").exists():
    sys.exit("cannot serve: told to refuse")
if (folder / "removed").exists():
    sys.exit(0)
if (folder / "stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
print("connecting to", url)
print("ready", id)
while True:
    signal.pause()
"""


def stand_in(id: str, config: Path, folder: Path, url: str) -> Sequence[str]:
    assert config.exists()
    return [sys.executable, "-S", "-c", STAND_IN, id, str(folder), url]


def supervisor_of(folder: Path, events: list[Event] | None = None, **options: Any) -> Supervisor:
    options = {"nats_port": 0, "http_port": 0, "node_command": stand_in, **options}
    return Supervisor(folder, on_event=None if events is None else events.append, **options)


def pids(supervisor: Supervisor) -> list[int]:
    return [child.pid for child in supervisor.children if child.pid is not None]


def described(event: Event) -> tuple[str, ...]:
    name = type(event).__name__
    return (name,) if isinstance(event, SpineReady) else (name, event.name)


# -- up and down -------------------------------------------------------------------------------------------------


async def test_broker_and_nodes_come_up_in_order_and_stopping_leaves_no_process(tmp_path: Path, alive: Alive) -> None:
    events: list[Event] = []
    supervisor = supervisor_of(tmp_path, events, nodes=3)
    await supervisor.start()
    assert [(node.id, node.state) for node in supervisor.nodes] == [
        ("spine-1", ChildState.READY),
        ("spine-2", ChildState.READY),
        ("spine-3", ChildState.READY),
    ]
    told = [described(event) for event in events]
    assert told[:2] == [("ChildStarted", "broker"), ("ChildReady", "broker")]
    assert sorted(told[2:-1]) == sorted((k, f"spine-{n}") for k in ("ChildStarted", "ChildReady") for n in (1, 2, 3))
    assert supervisor.cluster is not None
    pages = {node.id: f"http://127.0.0.1:{node.port}" for node in supervisor.cluster.nodes}
    assert events[-1] == SpineReady(supervisor.url, pages)
    assert f"connecting to {supervisor.url}" in (tmp_path / "spine-2" / "node.log").read_text()

    running = pids(supervisor)
    assert len(set(running)) == 4
    assert all(map(alive, running))
    begun = time.monotonic()
    await asyncio.gather(supervisor.stop(), supervisor.stop(), supervisor.wait())
    await supervisor.stop()
    assert time.monotonic() - begun < 30
    assert not any(map(alive, running))
    assert not any(isinstance(event, ChildDied) for event in events)
    assert {child.state for child in supervisor.children} == {ChildState.STOPPED}
    (await FolderLock.acquire(tmp_path, "supervisor.lock")).release()


async def test_a_node_that_ignores_the_request_to_end_is_killed_in_time(tmp_path: Path, alive: Alive) -> None:
    (tmp_path / "spine-1").mkdir()
    (tmp_path / "spine-1" / "stubborn").touch()
    supervisor = supervisor_of(tmp_path)
    await supervisor.start()
    running = pids(supervisor)
    begun = time.monotonic()
    await supervisor.stop()
    assert 1 < time.monotonic() - begun < 30
    assert not any(map(alive, running))


async def test_a_node_that_cannot_serve_fails_the_start_with_its_words(tmp_path: Path, alive: Alive) -> None:
    (tmp_path / "spine-2").mkdir()
    (tmp_path / "spine-2" / "refuse").touch()
    events: list[Event] = []
    supervisor = supervisor_of(tmp_path, events, nodes=2)
    with pytest.raises(ConnectionFailed, match=r"spine-2 ended with 1 before it served: cannot serve: told to refuse"):
        await supervisor.start()
    assert not any(alive(event.pid) for event in events if isinstance(event, ChildStarted))


async def test_a_node_that_never_says_ready_fails_the_start(tmp_path: Path) -> None:
    mute = ServiceSpec("mute", "service", lambda url: ["sleep", "600"], ready_seconds=0.2)
    with pytest.raises(ConnectionFailed, match=r"mute did not serve within 0\.2 s"):
        await supervisor_of(tmp_path, services=[mute]).start()


async def test_a_start_that_is_stopped_or_cancelled_leaves_no_process(
    tmp_path: Path, alive: Alive, eventually: Eventually
) -> None:
    mute = ServiceSpec("mute", "service", lambda url: ["sleep", "600"])
    for end in ("stop", "cancel"):
        events: list[Event] = []
        supervisor = supervisor_of(tmp_path, events, services=[mute])
        starting = asyncio.create_task(supervisor.start())
        await eventually(lambda told=events: ("ChildStarted", "mute") in map(described, told))
        started = [event.pid for event in events if isinstance(event, ChildStarted)]
        if end == "stop":
            await supervisor.stop()
            with pytest.raises(ConnectionFailed, match="stopped while it started"):
                await starting
        else:
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        assert len(started) == 3
        assert not any(map(alive, started))


def test_a_loop_that_is_closed_over_a_running_supervisor_takes_its_children_along(tmp_path: Path, alive: Alive) -> None:
    running: list[int] = []

    async def forget_to_stop() -> None:
        supervisor = supervisor_of(tmp_path)
        await supervisor.start()
        running.extend(pids(supervisor))
        raise RuntimeError("something else went wrong")

    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="something else"):
        asyncio.run(forget_to_stop())
    assert time.monotonic() - begun < 60
    assert len(running) == 2
    assert not any(map(alive, running))


async def test_nothing_remains_of_a_killed_supervisor_and_its_folder_serves_again(
    tmp_path: Path, alive: Alive, eventually: Eventually, run_script: RunScript
) -> None:
    script = f"""
import asyncio, json, sys
from crdt_spine.supervisor import Supervisor

def stand_in(id, config, folder, url):
    return [sys.executable, "-S", "-c", {STAND_IN!r}, id, str(folder), url]

async def main():
    supervisor = Supervisor(sys.argv[1], nodes=2, nats_port=0, http_port=0, node_command=stand_in)
    await supervisor.start()
    print(json.dumps([child.pid for child in supervisor.children]), flush=True)
    await supervisor.wait()

asyncio.run(main())
"""
    parent = await run_script(script, str(tmp_path))
    assert parent.stdout is not None
    children: list[int] = msgspec.json.decode(await parent.stdout.readline())
    assert len(children) == 3
    assert all(map(alive, children))
    with pytest.raises(ConfigError, match=f"{tmp_path} is in use by process {parent.pid}"):
        await supervisor_of(tmp_path).start()
    assert all(map(alive, children))

    parent.kill()
    await eventually(lambda: not any(map(alive, children)), seconds=20, what="the children's end")
    async with supervisor_of(tmp_path) as again:
        assert [node.id for node in again.nodes] == ["spine-1", "spine-2"]


async def test_a_new_supervisor_takes_over_the_moment_the_old_one_is_killed(
    tmp_path: Path, run_script: RunScript
) -> None:
    # The old children may still be ending; nobody should have to wait and try again by hand.
    script = f"""
import asyncio, sys
from crdt_spine.supervisor import Supervisor

def stand_in(id, config, folder, url):
    return [sys.executable, "-S", "-c", {STAND_IN!r}, id, str(folder), url]

async def main():
    supervisor = Supervisor(sys.argv[1], nodes=3, nats_port=0, http_port=0, node_command=stand_in)
    await supervisor.start()
    print("up", flush=True)
    await supervisor.wait()

asyncio.run(main())
"""
    parent = await run_script(script, str(tmp_path))
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"up\n"
    parent.kill()
    async with supervisor_of(tmp_path) as again:
        assert len(again.nodes) == 3


# -- restarts ----------------------------------------------------------------------------------------------------


async def test_a_node_that_dies_is_restarted_and_everyone_is_told(tmp_path: Path, eventually: Eventually) -> None:
    events: list[Event] = []
    async with supervisor_of(tmp_path, events, nodes=2) as supervisor:
        before = supervisor.nodes[1]
        assert before.pid is not None
        events.clear()
        os.kill(before.pid, signal.SIGTERM)
        await eventually(lambda: any(isinstance(event, ChildReady) for event in events), what="the restart")
        after = supervisor.nodes[1]
        assert after.pid not in (None, before.pid)
        assert (after.state, after.restarts) == (ChildState.READY, 1)
        assert events[0] == ChildDied("spine-2", "node", before.pid, -signal.SIGTERM, 0.1)
        assert events[0].ending == "SIGTERM"
        assert events[1:] == [
            ChildStarted("spine-2", "node", after.pid, 1),
            ChildReady("spine-2", "node", after.pid, 1),
        ]
        assert supervisor.nodes[0].restarts == 0


async def test_a_node_that_is_done_is_not_started_again_and_does_not_keep_the_others_from_starting(
    tmp_path: Path, eventually: Eventually
) -> None:
    events: list[Event] = []
    async with supervisor_of(tmp_path, events, nodes=2) as supervisor:
        pid = supervisor.nodes[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)
        died = ChildDied("spine-2", "node", pid, 0, None)
        await eventually(lambda: died in events, what="its end")
        await asyncio.sleep(0.5)
        assert supervisor.nodes[1].state is ChildState.DOWN
        supervisor.start_node("spine-2")  # unless it is told to
        await eventually(lambda: supervisor.nodes[1].state is ChildState.READY, what="the start")
        (tmp_path / "spine-2" / "removed").touch()
        events.clear()
        pid = supervisor.nodes[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: any(isinstance(e, ChildDied) and e.returncode == 0 for e in events), what="its end")
        assert supervisor.nodes[1].restarts == 2
    events.clear()
    async with supervisor_of(tmp_path, events) as again:
        assert [node.state for node in again.nodes] == [ChildState.READY, ChildState.DOWN]
        await eventually(lambda: any(isinstance(event, ChildDied) for event in events), what="that it is told")
        await asyncio.sleep(0.3)
        assert again.nodes[1].restarts == 0
        assert not any(isinstance(event, ChildFailed) for event in events)


async def test_a_restarted_broker_keeps_its_port_and_its_streams(tmp_path: Path, eventually: Eventually) -> None:
    async with supervisor_of(tmp_path) as supervisor:
        client = await nats.connect(supervisor.url)
        await client.jetstream().add_stream(name="kept", subjects=["kept"])
        await client.jetstream().publish("kept", b"still here")
        await client.close()
        broker, node = supervisor.children
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        await eventually(lambda: supervisor.children[0].restarts == 1, what="the restart")
        client = await nats.connect(supervisor.url)
        try:
            assert (await client.jetstream().get_last_msg("kept", "kept")).data == b"still here"
        finally:
            await client.close()
        assert supervisor.children[1] == node  # untouched


async def test_a_killed_node_stays_down_as_long_as_it_is_told_to(tmp_path: Path, eventually: Eventually) -> None:
    events: list[Event] = []
    async with supervisor_of(tmp_path, events) as supervisor:
        supervisor.set_node_restart(False)
        pid = supervisor.nodes[0].pid
        assert await supervisor.kill_node("spine-1") == pid
        await eventually(lambda: isinstance(events[-1], ChildDied))
        assert events[-1] == ChildDied("spine-1", "node", pid or 0, -signal.SIGKILL, None)
        assert supervisor.nodes[0].pid is None
        assert supervisor.nodes[0].state is ChildState.DOWN
        assert await supervisor.kill_node("spine-1") is None
        supervisor.start_node("spine-1")
        await eventually(lambda: supervisor.nodes[0].state is ChildState.READY)

        await supervisor.kill_node("spine-1")
        await eventually(lambda: supervisor.nodes[0].state is ChildState.DOWN)
        supervisor.set_node_restart(True, delay_seconds=0.0)
        await eventually(lambda: supervisor.nodes[0].state is ChildState.READY)
        with pytest.raises(InvalidInput, match=r"no node 'spine-9'; there are spine-1"):
            await supervisor.kill_node("spine-9")


async def test_restarts_that_fail_are_repeated_ever_more_slowly_until_one_succeeds(
    tmp_path: Path, eventually: Eventually
) -> None:
    events: list[Event] = []
    async with supervisor_of(tmp_path, events) as supervisor:
        refuse = tmp_path / "spine-1" / "refuse"
        refuse.touch()
        await supervisor.kill_node("spine-1")
        await eventually(lambda: sum(isinstance(event, ChildFailed) for event in events) >= 2)
        refuse.unlink()
        await eventually(lambda: supervisor.nodes[0].state is ChildState.READY)
        pauses = [event.restart_seconds for event in events if isinstance(event, ChildDied | ChildFailed)]
        assert pauses[:3] == [0.1, 0.2, 0.4]
        assert "told to refuse" in next(event.reason for event in events if isinstance(event, ChildFailed))


async def test_stopping_while_a_node_waits_for_its_restart_is_quick(tmp_path: Path, eventually: Eventually) -> None:
    supervisor = supervisor_of(tmp_path)
    await supervisor.start()
    supervisor.set_node_restart(True, delay_seconds=600)
    await supervisor.kill_node("spine-1")
    await eventually(lambda: supervisor.nodes[0].state is ChildState.DOWN)
    begun = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - begun < 60


async def test_another_kind_of_service_runs_beside_the_nodes_and_is_restarted(
    tmp_path: Path, eventually: Eventually
) -> None:
    spec = ServiceSpec("locks-1", "locks", lambda url: stand_in("locks-1", tmp_path, tmp_path / "locks-1", url))
    async with supervisor_of(tmp_path, services=[spec]) as supervisor:
        supervisor.set_node_restart(False)  # nodes only
        assert [child.kind for child in supervisor.children] == ["broker", "node", "locks"]
        assert [node.id for node in supervisor.nodes] == ["spine-1"]
        psutil.Process(supervisor.children[2].pid).kill()
        await eventually(lambda: supervisor.children[2].restarts == 1)


async def test_a_listener_that_fails_does_not_end_the_supervision(tmp_path: Path, eventually: Eventually) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["message"]))

    def listener(event: Event) -> None:
        raise RuntimeError("printer on fire")

    async with Supervisor(tmp_path, nats_port=0, http_port=0, node_command=stand_in, on_event=listener) as supervisor:
        await supervisor.kill_node("spine-1")
        await eventually(lambda: supervisor.nodes[0].restarts == 1)
    assert any("listener" in complaint for complaint in complaints)


# -- the data folder ---------------------------------------------------------------------------------------------


async def test_the_first_start_writes_the_cluster_file_and_later_ones_read_it(tmp_path: Path) -> None:
    async with supervisor_of(tmp_path, nodes=2, region="north", http_port=0) as first:
        cluster = first.cluster
    document = yaml.safe_load((tmp_path / "cluster.yaml").read_text())["cluster"]
    assert (document["name"], document["region"]) == ("spine", "north")
    assert [(n["id"], n["host"], n["zone"]) for n in document["nodes"]] == [
        ("spine-1", "127.0.0.1", "zone-1"),
        ("spine-2", "127.0.0.1", "zone-2"),
    ]
    assert len({n["port"] for n in document["nodes"]}) == 2
    assert document["replication"] == {"factor": 2, "write_quorum": 2, "read_quorum": 1}

    async with supervisor_of(tmp_path, http_port=None) as again:
        assert again.cluster == cluster
    with pytest.raises(ConfigError, match=rf"{tmp_path} was created with --nodes 2 \(spine-1, spine-2\), not 3: leave"):
        await supervisor_of(tmp_path, nodes=3).start()
    with pytest.raises(ConfigError, match="created in the region north, not south"):
        await supervisor_of(tmp_path, region="south").start()


async def test_http_ports_follow_the_first_and_may_change_later_without_losing_other_keys(tmp_path: Path) -> None:
    async with supervisor_of(tmp_path, nodes=3, http_port=21_000) as first:
        assert first.cluster is not None
        assert [node.port for node in first.cluster.nodes] == [21_000, 21_001, 21_002]
    file = tmp_path / "cluster.yaml"
    document = yaml.safe_load(file.read_text())
    document["cluster"]["consistency"] = {"default": "causal"}
    file.write_text(yaml.safe_dump(document))
    async with supervisor_of(tmp_path, http_port=22_000) as second:
        assert second.cluster is not None
        assert [node.port for node in second.cluster.nodes] == [22_000, 22_001, 22_002]
    assert yaml.safe_load(file.read_text())["cluster"]["consistency"] == {"default": "causal"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cluster: [", "can't be read"),
        ("- 1", "not a mapping"),
        ("cluster: {nodes: []}", "there is no node"),
        ("cluster: {nodes: [{id: a, host: h, port: x}]}", "port"),
        ("cluster: {nodes: [{id: ../up, host: h, port: 1}]}", r"\.\./up"),
    ],
)
async def test_an_unusable_cluster_file_is_named_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/cluster\.yaml.*{reason}"):
        await supervisor_of(tmp_path).start()


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"nodes": 0}, "--nodes 0"), ({"http_port": 65_530}, "--http-port"), ({"region": "a/b"}, "--region 'a/b'")],
)
async def test_arguments_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        await supervisor_of(tmp_path, **options).start()
    assert not (tmp_path / "cluster.yaml").exists()


async def test_a_taken_port_and_an_unusable_folder_are_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            await supervisor_of(tmp_path / "data", nats_port=port).start()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/below can't be used"):
        await supervisor_of(tmp_path / "file" / "below").start()


def test_a_childs_log_is_bounded(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "node.log", bytes_max=1_000)
    for number in range(100):
        log.write(f"{number:099}\n".encode())
    log.close()
    assert (tmp_path / "node.log").read_text().endswith("99\n")
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert sizes == [1_000, 1_000]


def test_a_log_that_cannot_be_written_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "missing" / "node.log")
    log.write(b"lost")
    assert log.bytes_lost == 4
    (tmp_path / "missing").mkdir()
    log.write(b"kept")
    log.close()
    assert log.path.read_bytes() == b"kept"


def test_a_node_is_the_spine_command_in_this_interpreter() -> None:
    command = node_command("spine-1", Path("/d/cluster.yaml"), Path("/d/spine-1"), "nats://127.0.0.1:1")
    assert command[0] == sys.executable
    assert command[3:] == [
        *("node", "--config", "/d/cluster.yaml", "--id", "spine-1"),
        *("--data", "/d/spine-1", "--server", "nats://127.0.0.1:1"),
    ]
