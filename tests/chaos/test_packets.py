"""Packets are really lost, in one direction or in both, in a network namespace that goes with its processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos import packets

HERE = Path(__file__).parent
REASON = packets.why_not()
pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.skipif(bool(REASON), reason=REASON)]

INSIDE = f"""
import socket, sys
sys.path[:0] = [{str(HERE)!r}]
from chaos import packets
if not packets.inside():
    packets.enter([sys.executable, "-c", sys.argv[1], *sys.argv[1:]])
server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
"""
STORY = (
    INSIDE
    + """
here = socket.create_connection(("127.0.0.1", port))
there, _ = server.accept()
here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

def arrives(sender, receiver, seconds):
    sender.sendall(b"x")
    receiver.settimeout(seconds)
    try:
        return receiver.recv(1) == b"x"
    except TimeoutError:
        return False

told = [arrives(here, there, 10), arrives(there, here, 10)]
packets.lose(port, "out", 1.0)
told += [arrives(here, there, 0.5), arrives(there, here, 10)]
packets.lose_nothing(port, "out")
there.settimeout(10)
told += [there.recv(1) == b"x", arrives(there, here, 10)]  # the latter brings an acknowledgement along
packets.lose(port, "in", 1.0)
told += [arrives(here, there, 10), arrives(there, here, 0.5)]
packets.lose_nothing(port, "in")
packets.lose(port, "in", 0.2)
packets.lose(port, "out", 0.2)
here.settimeout(20)
told += [here.recv(1) == b"x"]
print(told)
"""
)
WAITS = (
    INSIDE
    + """
import subprocess
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
packets.lose(port, "in", 1.0)
print("waits", flush=True)
sys.stdin.read()
"""
)


def test_one_direction_is_lost_while_the_other_arrives_and_nothing_is_lost_for_good() -> None:
    done = subprocess.run([sys.executable, "-c", STORY, STORY], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == str([True, True, False, True, True, True, True, False, True]), done.stderr


async def test_a_namespace_ends_with_its_processes_when_they_are_killed(eventually: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WAITS, WAITS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"waits\n"
        name = _of(str(process.pid))
        assert name != _of("self")
        assert len(_inside(name)) == 2
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    await eventually(lambda: not _inside(name), seconds=20, what="nothing is left of the namespace")


def _of(process: str) -> str:
    return str(Path(f"/proc/{process}/ns/net").readlink())


def _inside(name: str) -> list[str]:
    """The processes in a namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if _of(entry.name) == name:
                found.append(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.timeout(240)
async def test_everything_holds_while_packets_are_lost(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "run.py"), "--seed", "5", "--seconds", "8", "--faults", "lossy,deaf,mute",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        async with asyncio.timeout(220):
            told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, told.decode()
    assert " × " in told.decode().split("faults: ")[-1], "nothing went wrong"
