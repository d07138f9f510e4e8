"""The `spine` command line as one uses it: `spine up` with three nodes, and commands as processes of their own."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import pytest

pytestmark = pytest.mark.xdist_group("cli-cluster")  # one cluster for the module

SPINE: Final = [sys.executable, "-m", "crdt_spine.cli.main"]


class Up:
    """A running `spine up`; `url` once it is ready."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [*SPINE, "up", "--data", str(folder), "--nats-port", "0", "--http-port", "0", *options]
        self.log = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment())
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline().decode()
            assert re.fullmatch(r"ready nats://127\.0\.0\.1:\d+\n", line), (line, self.log.read_text())
        except BaseException:
            self.process.kill()
            raise
        self.url = line.split()[1]
        self.processes = psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it this signal and return once neither it nor a process of its is left; its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(10)
        assert self.process.stdout is not None
        assert self.process.stdout.read() == b""  # the ready line was all
        self.process.stdout.close()
        _, left = psutil.wait_procs(self.processes, 5)
        assert left == []
        return code


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPINE_") and name != "COLUMNS"}
    return {**kept, **more}


class Cluster:
    """Runs commands against a cluster."""

    def __init__(self, url: str) -> None:
        self.environment = environment(SPINE_SERVER=url)
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*SPINE, *arguments], input=stdin, capture_output=True, env=self.environment, check=False)

    def json(self, *arguments: str, stdin: bytes = b"") -> Any:
        ran = self(*arguments, "--json", stdin=stdin)
        assert ran.returncode == 0, ran.stderr
        return msgspec.json.decode(ran.stdout)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        self.started.append(subprocess.Popen([*SPINE, *arguments], env=self.environment, **pipes))
        return self.started[-1]

    def kill(self) -> None:
        """End what was started and runs still, because a test failed."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def count(self, *conditions: str) -> int:
        return len(self.json("query", "--all", *conditions)["memories"])


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("cli") / "data", "--nodes", "3")
    try:
        yield running
    finally:
        assert running.end() == 0


@pytest.fixture
def cluster() -> Iterator[Callable[[Up], Cluster]]:
    """`cluster(up)`: commands against a running cluster. What they started, and the cluster of a test's own, are gone
    after the test even when it failed."""
    made: list[tuple[Up, Cluster]] = []

    def commands(running: Up) -> Cluster:
        made.append((running, Cluster(running.url)))
        return made[-1][1]

    yield commands
    for running, commands_of in made:
        commands_of.kill()
        running.process.kill()


@pytest.fixture
def spine(up: Up) -> Iterator[Cluster]:
    """Commands against the module's cluster."""
    commands = Cluster(up.url)
    yield commands
    commands.kill()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines_of(process: subprocess.Popen[bytes], count: int) -> list[Any]:
    assert process.stdout is not None
    return [msgspec.json.decode(process.stdout.readline()) for _ in range(count)]


def ended(process: subprocess.Popen[bytes], number: int | None = None) -> tuple[int, bytes, bytes]:
    """Its exit code, what else it printed, and its errors; after this signal, if one is named."""
    if number is not None:
        process.send_signal(number)
    try:
        code = process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        return code, process.stdout.read(), process.stderr.read()


# -- commands ----------------------------------------------------------------------------------------------------


def test_a_session_file_makes_each_command_see_what_the_ones_before_it_wrote(spine: Cluster, tmp_path: Path) -> None:
    session = ("--session", str(tmp_path / "session"))
    for turn in range(3):
        id = spine("store", f"turn {turn}", "--tag", "session", *session).stdout.decode().strip()
        assert spine.count("--tag", "session", *session) == turn + 1
        assert spine.json("update", id, "--content", f"turn {turn} again", *session)["content"] == f"turn {turn} again"
        assert spine.json("get", id, *session)["content"] == f"turn {turn} again"
    assert spine("delete", id, *session).returncode == 0
    assert spine("get", id, *session).returncode == 3


def test_watch_prints_each_change_as_it_happens_and_goes_on_after_a_token(spine: Cluster, tmp_path: Path) -> None:
    session = tmp_path / "session"
    spine("store", "before", "--tag", "watched", "--session", str(session))
    watch = ("watch", "--tag", "watched", "--token", session.read_text().strip(), "--json")
    watching = spine.start(*watch, "--count", "3")
    spine("store", "one", "--id", "w", "--tag", "watched", "--agent", "ann")
    spine("store", "unwatched")
    first = lines_of(watching, 1)
    assert first[0]["memory"]["content"] == "one"
    spine("update", "w", "--content", "two")
    second = lines_of(watching, 1)
    spine("delete", "w")
    third = lines_of(watching, 1)
    assert [(update["kind"], update["memory"]["id"]) for update in (*first, *second, *third)] == [
        ("stored", "w"), ("updated", "w"), ("deleted", "w"),
    ]  # fmt: skip
    assert second[0]["memory"]["content"] == "two"
    assert ended(watching) == (0, b"", b"")

    spine("store", "three", "--tag", "watched")
    again = spine.start("watch", "--tag", "watched", "--token", second[0]["token"], "--json", "--count", "2")
    missed = {(update["kind"], update["memory"]["content"]) for update in lines_of(again, 2)}
    assert missed == {("deleted", ""), ("stored", "three")}  # of two partitions, in either order
    assert ended(again)[0] == 0


def test_watch_ends_on_ctrl_c_with_130_and_when_its_reader_leaves(spine: Cluster) -> None:
    watching = spine.start("watch", "--agent", "eve")
    assert watching.stderr is not None
    assert watching.stderr.readline() == b"watching; Ctrl-C ends\n"
    id = spine("store", "se\x1b[31mcret\nplan", "--agent", "eve", "--tag", "t").stdout.decode().strip()
    assert watching.stdout is not None
    line = watching.stdout.readline().decode()
    assert re.fullmatch(rf"\d\d:\d\d:\d\d stored  {id}  eve  #t  se␛\[31mcret plan\n", line)
    assert ended(watching, signal.SIGINT) == (130, b"", b"")

    watching = spine.start("watch", "--agent", "eve", "--json")
    assert watching.stdout is not None
    until(lambda: spine("store", "x", "--agent", "eve").returncode == 0 and readable(watching))
    watching.stdout.readline()
    watching.stdout.close()
    until(lambda: spine("store", "y", "--agent", "eve").returncode == 0 and watching.poll() is not None)
    assert watching.returncode == 141
    assert watching.stderr is not None
    assert watching.stderr.read() == b""


def readable(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0)[0])


def test_thousands_of_lines_of_many_agents_come_in_and_go_out_again(spine: Cluster, tmp_path: Path) -> None:
    rows = [
        msgspec.json.encode({"text": f"memory {n}", "speaker": f"agent-{n % 9}", "tags": ["bulk"], "turn": n})
        for n in range(3_000)
    ]
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"\n".join([*rows[:2_000], b"{broken", *rows[2_000:]]))
    ran = spine("import", str(file), "--map", "content=text", "--map", "agent=speaker")
    assert ran.returncode == 1
    assert re.fullmatch(rb"3,000 stored, 1 failed in [\d.]+ s \([\d,]+/s\)\n", ran.stdout)
    assert ran.stderr.startswith(b"error: line 2001: the line is no JSON")
    until(lambda: spine.count("--tag", "bulk", "--agent", "agent-4") == 333)

    exported = tmp_path / "out.jsonl"
    until(lambda: spine.json("export", str(exported), "--tag", "bulk")["exported"] == 3_000)
    found = [msgspec.json.decode(line) for line in exported.read_bytes().splitlines()]
    assert {(row["content"], row["agent"], row["metadata"]["turn"]) for row in found} == {
        (f"memory {n}", f"agent-{n % 9}", n) for n in range(3_000)
    }
    again = spine.json("import", str(exported))
    assert (again["stored"], again["failed"]) == (3_000, 0)
    until(lambda: spine.count("--tag", "bulk") == 3_000)


def test_an_import_from_a_silent_pipe_stores_what_came_and_ends_on_ctrl_c(spine: Cluster) -> None:
    importing = spine.start("import", "-")
    assert importing.stdin is not None
    importing.stdin.write(
        b'{"content": "one", "tags": "pipe"}\n{"content": "two", "tags": "pipe"}\n{"content": "unfinis'
    )
    importing.stdin.flush()
    until(lambda: spine.count("--tag", "pipe") == 2)
    code, out, err = ended(importing, signal.SIGINT)  # its stdin is open still
    assert (code, err) == (130, b"")
    assert out.startswith(b"2 stored, 0 failed")


def test_status_tells_of_every_node_as_a_table_and_as_a_document(spine: Cluster, up: Up) -> None:
    document = spine.json("status")
    assert (document["cluster"], document["region"], document["partitions"]) == ("spine", "local", 64)
    assert [(node["id"], node["state"], node["zone"]) for node in document["nodes"]] == [
        (f"spine-{n}", "up", f"zone-{n}") for n in (1, 2, 3)
    ]
    assert {node["pid"] for node in document["nodes"]} <= {process.pid for process in up.processes}
    assert {"memories", "partitions", "replication_lag_seconds"} <= document["nodes"][0].keys()
    table = spine("status").stdout.decode()
    for node in document["nodes"]:
        assert re.search(rf"{node['id']} .*● up .*{node['zone']}.* {node['pid']}\n", table)
    assert "every partition has its quorum" in table

    watching = spine.start("status", "--watch", "--interval", "0.1", "--json")
    assert {report["cluster"] for report in lines_of(watching, 3)} == {"spine"}
    code, _, err = ended(watching, signal.SIGINT)
    assert (code, err) == (130, b"")


def test_a_killed_node_is_shown_and_started_again_while_commands_go_on(spine: Cluster, up: Up) -> None:
    victim = spine.json("status")["nodes"][1]
    os.kill(victim["pid"], signal.SIGKILL)
    ids = [spine.json("store", f"meanwhile {n}", "--timeout", "15")["id"] for n in range(5)]
    assert all(spine("get", id).returncode == 0 for id in ids)

    def back() -> bool:
        node = spine.json("status")["nodes"][1]
        return bool(node["state"] == "up" and node["pid"] != victim["pid"])

    until(back)
    log = up.log.read_text()
    assert re.search(r"spine-2 died \(SIGKILL\)", log)
    assert re.search(r"spine-2 serves again \(pid \d+\)", log)
    up.processes = psutil.Process(up.process.pid).children(recursive=True)


# -- up ----------------------------------------------------------------------------------------------------------


def test_a_killed_up_leaves_nothing_behind_and_the_same_folder_has_everything_again(
    tmp_path: Path, cluster: Callable[[Up], Cluster]
) -> None:
    folder = tmp_path / "data"
    first = Up(folder, "--region", "eu")
    spine = cluster(first)
    id = spine.json("store", "acknowledged", "--tag", "kept")["id"]
    before = spine.json("get", id)
    assert first.end(signal.SIGKILL) == -signal.SIGKILL

    second = Up(folder)
    spine = cluster(second)
    assert spine.json("get", id) == before
    assert spine.json("status")["region"] == "eu"
    in_use = spine("up", "--data", str(folder), "--nats-port", "0")
    assert second.end(signal.SIGINT) == 0
    other_shape = spine("up", "--data", str(folder), "--nats-port", "0", "--nodes", "2")
    for refused, reason in ((in_use, "in use"), (other_shape, "--nodes 1")):
        assert refused.returncode == 1
        error = refused.stderr.decode().splitlines()[-1]
        assert error.startswith("error: ")
        assert str(folder) in error
        assert reason in error


def test_up_tells_what_happens_as_json_lines_and_ends_with_its_terminal(tmp_path: Path) -> None:
    command: Sequence[str] = [*SPINE, "up", "--data", str(tmp_path / "data"), "--nats-port", "0", "--json"]
    running = subprocess.Popen(
        [*command, "--http-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    try:
        told = lines_of(running, 7)
        assert {(event["event"], event.get("name")) for event in told} == {
            ("ChildStarted", "broker"), ("ChildReady", "broker"), ("ChildStarted", "spine-1"),
            ("ChildReady", "spine-1"), ("ChildStarted", "locks"), ("ChildReady", "locks"), ("SpineReady", None),
        }  # fmt: skip
        url = next(event["url"] for event in told if event["event"] == "SpineReady")
        pid = next(event["pid"] for event in told if (event["event"], event.get("name")) == ("ChildReady", "spine-1"))
        assert Cluster(url).json("status")["nodes"][0]["pid"] == pid
        assert ended(running, signal.SIGHUP) == (0, b"", b"")
    finally:
        running.kill()


def test_an_import_ends_with_4_when_the_cluster_goes_away_and_names_the_lines(
    tmp_path: Path, cluster: Callable[[Up], Cluster]
) -> None:
    up = Up(tmp_path / "data")
    spine = cluster(up)
    importing = spine.start("import", "-", "--timeout", "1", "--json")
    assert importing.stdin is not None
    importing.stdin.write(b'{"content": "in time"}\n')
    importing.stdin.flush()
    until(lambda: spine.count() == 1)
    up.end(signal.SIGKILL)
    importing.stdin.write(b'{"content": "too late"}\n{"content": "too late as well"}\n')
    importing.stdin.flush()
    code, out, err = ended(importing)  # the pipe stays open and silent, so only the failure can end it
    assert code == 4
    summary = msgspec.json.decode(out)
    assert (summary["stored"], summary["failed"]) == (1, 2)
    errors = [msgspec.json.decode(line) for line in err.splitlines()]
    assert [error.get("line") for error in errors] == [2, 3, None]
    assert {error["error"] for error in errors} <= {"ConnectionFailed", "QuorumFailed"}
