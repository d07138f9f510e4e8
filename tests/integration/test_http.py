"""The nodes' HTTP listeners: what they show, what they refuse, and that no client keeps the others out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from crdt_spine.broker.server import EmbeddedBroker
from crdt_spine.config import NodeConfig, new_cluster
from crdt_spine.errors import ConfigError
from crdt_spine.http.address import listen, url_of
from crdt_spine.http.page import page_of
from crdt_spine.http.pages import Pages
from crdt_spine.limits import HTTP_BODY_BYTES_MAX, HTTP_CONNECTIONS_MAX, HTTP_HEAD_BYTES_MAX
from crdt_spine.supervisor import Supervisor
from crdt_spine.supervisor.ports import Ports
from crdt_spine.supervisor.supervisor import node_command
from tests.conftest import free_port

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("http")]

Cluster = Any
Eventually = Callable[..., Awaitable[None]]
HOST = "127.0.0.1"
SPINE = [sys.executable, "-m", "crdt_spine.cli.main"]


def node_with(**limits: float) -> Callable[[str, Path, Path, str], list[str]]:
    """The command of a node with other limits."""
    program = "import sys; from crdt_spine import limits\n"
    program += "".join(f"limits.{name} = {value}\n" for name, value in limits.items())
    program += "from crdt_spine.cli.main import main; sys.exit(main())"

    def command(id: str, config: Path, folder: Path, url: str) -> list[str]:
        return [sys.executable, "-c", program, *node_command(id, config, folder, url)[3:]]

    return command


class Reply(msgspec.Struct):
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return msgspec.json.decode(self.body)


def port_of(cluster: Cluster, id: str = "spine-1") -> int:
    return next(node.port for node in cluster.supervisor.cluster.nodes if node.id == id)


async def next_reply(reader: asyncio.StreamReader, *, body: bool = True) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *rest = head.splitlines()
    headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in rest if one)}
    content = await reader.readexactly(int(headers["content-length"])) if body else b""
    return Reply(int(line.split()[1]), headers, content)


async def ask(port: int, path: str = "/health", method: str = "GET") -> Reply:
    async with asyncio.timeout(40):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            reply = await next_reply(reader, body=method != "HEAD")
            assert await reader.read() == b"", "nothing follows"
            return reply
        finally:
            writer.close()


async def send(port: int, data: bytes, *, end: bool = True) -> bytes:
    """Everything that comes back until the node closes; `end`: it is told that nothing more will be sent."""
    async with asyncio.timeout(40):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(data)
            if end:
                writer.write_eof()
            return await reader.read()
        except (ConnectionResetError, BrokenPipeError):
            return b""
        finally:
            writer.close()


async def until_healthy(port: int, seconds: float = 60.0) -> None:
    """Others may be in its way for a moment, not longer."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                if (await ask(port)).status == 200:
                    return
            except (OSError, asyncio.IncompleteReadError):
                pass
            await asyncio.sleep(0.05)


# -- what is shown ---------------------------------------------------------------------------------------------------


async def test_each_node_says_that_it_is_well_and_gives_the_report_of_spine_status(cluster: Cluster) -> None:
    for id in cluster.ids:
        reply = await ask(port_of(cluster, id))
        assert (reply.status, reply.json) == (200, {"status": "up", "node": id})
        assert reply.headers["cache-control"] == "no-store"
        shown = (await ask(port_of(cluster, id), "/status")).json
        told = await cluster.status(id)
        assert shown.keys() == told.keys()
        same = ("id", "state", "zone", "pid", "actor", "partitions")
        assert {key: shown[key] for key in same} == {key: told[key] for key in same}


async def test_head_is_get_without_the_body(cluster: Cluster) -> None:
    for path in ("/", "/health", "/status", "/nothing"):
        got, headed = await ask(port_of(cluster), path), await ask(port_of(cluster), path, "HEAD")
        assert (headed.status, headed.headers["content-type"]) == (got.status, got.headers["content-type"])
        assert int(headed.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/health/", 404), ("GET", "//", 404), ("POST", "/nothing", 404),
        ("GET", "/../etc/passwd", 404), ("GET", "/" + "x" * 5_000, 404), ("POST", "/health", 405), ("DELETE", "/", 405),
        ("OPTIONS", "/status", 405), ("CONNECT", "x:1", 404), ("GET", "/health?verbose=1", 200),
        ("GET", "http://somewhere:1/health", 200),
    ],
)  # fmt: skip
async def test_other_paths_and_methods_are_json_errors(cluster: Cluster, method: str, path: str, status: int) -> None:
    reply = await ask(port_of(cluster), path, method)
    assert reply.status == status
    if status != 200:
        assert reply.json.keys() == {"error", "message"}
        assert len(reply.body) < 300
    if status == 405:
        assert reply.headers["allow"] == "GET, HEAD"


class Look(HTMLParser):
    """What a browser would see and load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_shows_the_node_and_its_peers_and_loads_nothing(cluster: Cluster) -> None:
    async with cluster.spine() as spine:
        await spine.store_many({"content": f"{n}"} for n in range(50))
        await spine.wait_for(spine.token)
    reply = await ask(port_of(cluster), "/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    look = Look(reply.body.decode())
    for words in ("spine-1 ● up", "zone-1", f"process {cluster.pid('spine-1')}", "memories", "lag behind", "spine-2"):
        assert words in look.text
    assert re.search(r"memories50\n", look.text)
    assert ("http-equiv", "refresh") in look.attributes
    links = {value for name, value in look.attributes if name == "href"}
    peers = {url_of(HOST, port_of(cluster, id)) for id in cluster.ids if id != "spine-1"}
    assert links == {"/health", "/status", *peers}
    assert not {"script", "link", "img", "iframe", "object"} & set(look.tags)
    assert not [name for name, _ in look.attributes if name == "src" or name.startswith("on")]
    assert "url(" not in reply.body.decode() and "@import" not in reply.body.decode()


async def test_the_page_takes_no_tags_from_what_it_shows() -> None:
    nasty = "<script>alert(1)</script>\"' onload=x"
    peer = {"alive": True, "state": nasty, "lag_changes": 3}
    report = {"id": nasty, "state": nasty, "zone": nasty, "pid": 1, "memories": 2, "peers": {nasty: peer, "b": peer}}
    look = Look(page_of(report, {"b": nasty, "c": "http://c:1"}))
    assert "script" not in look.tags
    assert not [name for name, _ in look.attributes if name.startswith("on")]
    assert look.text.count(nasty) >= 5


async def test_the_page_showed_no_lag_of_peers_that_are_away() -> None:
    peers = {
        "b": {"alive": False, "state": "up", "silent_seconds": 12.3, "lag_changes": 1_203},
        "c": {"alive": False, "state": "up", "silent_seconds": 4.1, "lag_changes": 0},
    }
    text = Look(page_of({"id": "a", "state": "up", "peers": peers}, {})).text
    assert "1,203 changes behind, heard 12 s ago" in text
    assert "nothing missing, heard 4 s ago" in text


@pytest.mark.parametrize(("state", "status"), [("starting", 503), ("up", 200), ("full", 503), ("stopping", 503)])
async def test_health_is_200_only_while_the_node_is_up(state: str, status: int) -> None:
    async def report() -> bytes:
        return msgspec.json.encode({"id": "n", "state": state})

    pages = Pages("n", lambda: state, report, {})
    answer = await pages.answer("GET", "/health")
    assert (answer.status, msgspec.json.decode(answer.body)) == (status, {"status": state, "node": "n"})
    assert (await pages.answer("GET", "/status")).status == 200
    assert state in Look((await pages.answer("GET", "/")).body.decode()).text


# -- many requests, and wrong ones -----------------------------------------------------------------------------------


async def test_a_connection_is_used_again_and_requests_ahead_are_answered_in_order(cluster: Cluster) -> None:
    reader, writer = await asyncio.open_connection(HOST, port_of(cluster))
    async with asyncio.timeout(40):
        for _ in range(3):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await next_reply(reader)).status == 200
        requests = [
            ("GET", "/health", 200),
            ("HEAD", "/status", 200),
            ("POST", "/health", 405),
            ("GET", "/x", 404),
        ] * 50
        body = b"Content-Length: 5\r\n\r\nhello"
        for method, path, _ in requests:
            more = body if method == "POST" else b"\r\n"
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode() + more)
        replies = [await next_reply(reader, body=method != "HEAD") for method, _, _ in requests]
        assert [reply.status for reply in replies] == [status for _, _, status in requests]
        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
        assert (await next_reply(reader)).status == 200
        assert await reader.read() == b"", "HTTP/1.0 ends with its answer"
    writer.close()


async def test_a_client_that_says_it_has_finished_is_still_answered(cluster: Cluster) -> None:
    answer = await send(port_of(cluster), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


#: What is wrong -> the request, and the status of its answer.
WRONG: dict[str, tuple[bytes, int]] = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a version of the future": (b"GET / HTTP/3.9\r\nHost: x\r\n\r\n", 505),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n", 400),
    "two lengths": (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a negative length": (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    "a length of many digits": (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n" % (b"9" * 5_000), 400),
    "an unknown encoding": (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "a broken chunk": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a large header": (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * HTTP_HEAD_BYTES_MAX + b"\r\n\r\n", 431),
    "a long path": (b"GET /" + b"p" * HTTP_HEAD_BYTES_MAX + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000, 431),
    "a large body": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + b"b" * 1_000_000, 413),
    "many chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"3e8\r\n%s\r\n" % (b"b" * 1_000) * (HTTP_BODY_BYTES_MAX // 1_000 + 2),
        413,
    ),
    "nonsense behind a good one": (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n", 200),
}


@pytest.mark.parametrize("what", WRONG)
async def test_wrong_and_oversized_requests_are_told_why_and_closed(cluster: Cluster, what: str) -> None:
    """The node ends the connection by itself, and its reason is read even by who has not finished sending."""
    request, status = WRONG[what]
    answer = await send(port_of(cluster), request, end=False)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert head.endswith(b"\r\nConnection: close")
    assert msgspec.json.decode(body).keys() == {"error", "message"}


async def test_garbage_of_every_kind_changes_nothing(cluster: Cluster) -> None:
    chance = random.Random(5)
    pid = cluster.pid("spine-1")
    good = b"GET /status HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"
    for _ in range(20):
        some = []
        for _ in range(10):
            data = bytearray(good * chance.randint(1, 3))
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            some += [bytes(data), chance.randbytes(chance.randint(1, 3_000)), good[: chance.randrange(len(good))]]
        answers = await asyncio.gather(*[send(port_of(cluster), data) for data in some])
        assert {answer[:9] for answer in answers} <= {b"HTTP/1.1 ", b""}
    assert (await ask(port_of(cluster))).json["status"] == "up"
    assert cluster.pid("spine-1") == pid
    log = (cluster.folder / "spine-1" / "node.log").read_text()
    assert "Traceback" not in log


async def test_clients_that_vanish_in_the_middle_leave_nothing(cluster: Cluster, eventually: Eventually) -> None:
    process = psutil.Process(cluster.pid("spine-1"))
    before = process.num_fds()
    for n in range(200):
        with socket.create_connection((HOST, port_of(cluster))) as client:
            client.send(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"[: n % 40 or None])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, at once
    await eventually(lambda: process.num_fds() <= before + 3, what="the node has closed them all")
    assert "Traceback" not in (cluster.folder / "spine-1" / "node.log").read_text()


# -- slow clients, and many ------------------------------------------------------------------------------------------


async def drip(port: int) -> tuple[bytes, float]:
    """A request that never ends, a byte now and then; what came of it, and after how long."""
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection(HOST, port)
    answer = asyncio.ensure_future(reader.read())
    writer.write(b"GET / HTTP/1.1\r\nX: ")
    try:
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.05)
        return answer.result(), time.monotonic() - begun
    except (ConnectionResetError, BrokenPipeError):
        return b"", time.monotonic() - begun
    finally:
        writer.close()


async def test_slow_silent_and_greedy_clients_are_sent_away(start_cluster: Any) -> None:
    impatient = node_with(HTTP_REQUEST_SECONDS_MAX=0.6, HTTP_IDLE_SECONDS_MAX=1.2)
    cluster = await start_cluster(nodes=1, node_command=impatient)
    port = port_of(cluster)
    process = psutil.Process(cluster.pid("spine-1"))
    async with asyncio.timeout(60):
        # Who sends a byte now and then is told, although it never stops sending.
        answers = await asyncio.gather(*[drip(port) for _ in range(5)])
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer, _ in answers)
        assert all(seconds > 0.5 for _, seconds in answers)

        # A request that came with the one before it has no more time than others.
        ahead = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        for rest in (b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nx"):
            answer = await send(port, ahead + rest, end=False)
            assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"408"]

        # Who says nothing, at once or after a request, is closed without a word.
        assert await send(port, b"", end=False) == b""
        answer = await send(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", end=False)
        assert answer.count(b"HTTP/1.1 ") == 1

        # Who asks and never reads: its answers don't pile up, and it is closed.
        memory = process.memory_info().rss
        with socket.socket() as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            greedy.connect((HOST, port))
            greedy.setblocking(False)
            reset = await asyncio.to_thread(flood, greedy)
        assert reset
        assert process.memory_info().rss < memory + 20 * 1024 * 1024
        assert (await ask(port)).status == 200
        assert "Traceback" not in (cluster.folder / "spine-1" / "node.log").read_text()


async def test_silent_clients_keep_nobody_out(start_cluster: Any, eventually: Eventually) -> None:
    """When there is no room each newcomer takes the place of who has been silent for a while, or is refused."""
    patient = node_with(HTTP_REQUEST_SECONDS_MAX=600, HTTP_YIELD_SECONDS_MIN=0.3)
    cluster = await start_cluster(nodes=1, node_command=patient)
    port = port_of(cluster)
    process = psutil.Process(cluster.pid("spine-1"))
    fds = process.num_fds()
    silent = [socket.create_connection((HOST, port)) for _ in range(HTTP_CONNECTIONS_MAX + 100)]
    for one in silent[::2]:
        with contextlib.suppress(OSError):  # it was refused
            one.send(b"GET / HTTP/1.1\r\nX: and no end")
    await until_healthy(port)
    assert process.num_fds() <= fds + HTTP_CONNECTIONS_MAX + 5
    for one in silent:
        one.close()
    await eventually(lambda: process.num_fds() <= fds + 3, what="the node has closed them all")
    assert "Traceback" not in (cluster.folder / "spine-1" / "node.log").read_text()


def flood(client: socket.socket) -> bool:
    """Ask for pages until it is reset; is it, within a bound?"""
    asked = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            client.send(asked)
        except BlockingIOError:
            time.sleep(0.02)
        except OSError as error:
            assert error.errno in (errno.ECONNRESET, errno.EPIPE)
            return True
    return False


async def test_many_clients_at_once_are_all_answered(cluster: Cluster) -> None:
    for _ in range(5):
        replies = await asyncio.gather(*[ask(port_of(cluster), "/status") for _ in range(HTTP_CONNECTIONS_MAX // 2)])
        assert {reply.status for reply in replies} == {200}


# -- the node's life -------------------------------------------------------------------------------------------------


async def test_it_answers_before_the_node_can_serve_and_ends_with_it(tmp_path: Path) -> None:
    port, broker_port = free_port(), free_port()
    config = tmp_path / "cluster.yaml"
    new_cluster([NodeConfig(id="a", host=HOST, port=port, zone="z")]).save(config)
    command = [*SPINE, "node", "--config", str(config), "--id", "a", "--data", str(tmp_path / "data")]
    process = await asyncio.create_subprocess_exec(
        *command, "--server", f"nats://{HOST}:{broker_port}", stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            reply = None
            while reply is None:
                try:
                    reply = await ask(port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.05)
            assert (reply.status, reply.json) == (503, {"status": "starting", "node": "a"})
            report = (await ask(port, "/status")).json
            assert report == {"id": "a", "state": "starting", "zone": "z", "pid": process.pid}
            assert "a ● starting" in Look((await ask(port, "/")).body.decode()).text

            async with await EmbeddedBroker.start(tmp_path / "broker", port=broker_port):
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready a\n"
                assert (await ask(port)).json["status"] == "up"
                idle = await asyncio.open_connection(HOST, port)  # is no reason to stay
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
                assert await idle[0].read() == b""
                idle[1].close()
            with pytest.raises(ConnectionRefusedError):
                await ask(port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_killed_nodes_port_answers_again(cluster: Cluster) -> None:
    port = port_of(cluster, "spine-3")
    assert (await ask(port)).status == 200
    await cluster.kill("spine-3")
    try:
        with pytest.raises(ConnectionRefusedError):
            await ask(port)
        page = Look((await ask(port_of(cluster), "/")).body.decode())
        assert "spine-3" in page.text
    finally:
        await cluster.bring_back("spine-3")
    assert (await ask(port)).json == {"status": "up", "node": "spine-3"}


async def test_a_port_in_use_ends_a_node_before_it_writes_anything(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        config = tmp_path / "cluster.yaml"
        new_cluster([NodeConfig(id="a", host=HOST, port=port)]).save(config)
        data = tmp_path / "below" / "data"
        ran = await asyncio.to_thread(
            subprocess.run, [*SPINE, "node", "--config", str(config), "--id", "a", "--data", str(data)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.count("\n") == 1
    assert f"port {port} of {HOST} is in use" in ran.stderr
    assert f"give node a another port in {config}" in ran.stderr
    assert not data.parent.exists()


async def test_up_names_a_port_in_use_and_what_to_do_and_writes_no_cluster(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        command = [*SPINE, "up", "--nats-port", "0", "--data", str(tmp_path / "data")]
        ran = await asyncio.to_thread(
            subprocess.run,
            [*command, "--http-port", str(port)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (ran.returncode, ran.stdout) == (1, "")
        error = ran.stderr.splitlines()[-1]
        assert error.startswith(f"error: port {port} of {HOST} is in use")
        assert "--http-port" in error
        assert not (tmp_path / "data" / "cluster.yaml").exists()
        assert not (tmp_path / "data" / "broker").exists()

        # A folder whose ports somebody else has by now: named as well, or others with --http-port 0.
        new_cluster([NodeConfig(id="a", host=HOST, port=port)]).save(tmp_path / "data" / "cluster.yaml")
        before = (tmp_path / "data" / "cluster.yaml").read_bytes()
        with pytest.raises(ConfigError, match=f"port {port} of {HOST} is in use.*--http-port"):
            await Supervisor(tmp_path / "data", nats_port=0).start()
        assert (tmp_path / "data" / "cluster.yaml").read_bytes() == before
        async with Supervisor(tmp_path / "data", nats_port=0, http_port=0) as other:
            assert other.cluster is not None
            assert other.cluster.nodes[0].port != port
            await until_healthy(other.cluster.nodes[0].port)


async def test_up_says_where_its_nodes_can_be_looked_at(tmp_path: Path) -> None:
    command = [*SPINE, "up", "--nodes", "2", "--nats-port", "0", "--http-port", "0", "--data", str(tmp_path / "data")]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=file)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert (await process.stdout.readline()).startswith(b"ready nats://")
            said = dict(re.findall(rf"(spine-\d) shows its state at http://{HOST}:(\d+)\n", log.read_text()))
            assert said.keys() == {"spine-1", "spine-2"}
            for id, port in said.items():
                assert (await ask(int(port))).json == {"status": "up", "node": id}
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_clusters_with_free_ports_do_not_clash(tmp_path: Path) -> None:
    supervisors = [Supervisor(tmp_path / name, nodes=2, nats_port=0, http_port=0) for name in "abc"]
    try:
        await asyncio.gather(*[one.start() for one in supervisors])
        ports = [node.port for one in supervisors if one.cluster is not None for node in one.cluster.nodes]
        assert len(set(ports)) == 6
        replies = await asyncio.gather(*[ask(port) for port in ports])
        assert [reply.json for reply in replies] == [{"status": "up", "node": f"spine-{n}"} for n in (1, 2)] * 3
    finally:
        await asyncio.gather(*[one.stop() for one in supervisors])


async def test_a_port_that_is_kept_is_for_its_node_and_nobody_else() -> None:
    ports = Ports()
    with contextlib.closing(socket.socket()) as other:
        kept = ports.take([(HOST, 0), (HOST, 0)])
        assert len(set(kept)) == 2
        with pytest.raises(ConnectionRefusedError):
            await ask(kept[0])  # no node listens
        with pytest.raises(OSError) as refused:
            other.bind((HOST, kept[1]))
        assert refused.value.errno == errno.EADDRINUSE
        listening = listen(HOST, kept[1], "")
        with pytest.raises(ConfigError, match=f"port {kept[1]} of {HOST} is in use"):
            listen(HOST, kept[1], "")
        with pytest.raises(ConfigError, match=f"port {kept[1]} of {HOST} is in use"):
            Ports().take([(HOST, kept[1])])
        listening[0].close()
        ports.release()
        other.bind((HOST, kept[1]))


# -- addresses -------------------------------------------------------------------------------------------------------


async def test_an_address_that_is_not_this_machines_is_named() -> None:
    for host in ("192.0.2.1", "no-such-host.invalid", "x" * 64):
        with pytest.raises(ConfigError, match=rf"{re.escape(host)} is no address of this machine"):
            listen(host, 8788, "choose another")


async def test_a_host_with_several_addresses_is_listened_on_at_all_of_them() -> None:
    sockets = listen("localhost", 0, "choose another")
    assert {one.getsockname()[0] for one in sockets} <= {"127.0.0.1", "::1"}
    assert all(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for one in sockets)
    for one in sockets:
        one.close()
    assert url_of("::1", 8788) == "http://[::1]:8788"
    assert os.name != "posix" or url_of("localhost", 1) == "http://localhost:1"
