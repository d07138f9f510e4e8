"""`spine cluster` as an operator uses it: a cluster grows and shrinks while the command watches, and says why not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

pytestmark = [pytest.mark.xdist_group("cli-growth"), pytest.mark.timeout(120)]

SPINE: Final = [sys.executable, "-m", "crdt_spine.cli.main"]


class Operator:
    """A cluster of three nodes, what an operator starts beside it, and the commands that he gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("SPINE_") and name != "COLUMNS"
        }
        self.environment = kept
        self.started: list[subprocess.Popen[bytes]] = []
        up = self.start("up", "--data", str(folder / "data"), "--nodes", "3", "--nats-port", "0", "--http-port", "0")
        assert up.stdout is not None
        self.environment = {**kept, "SPINE_SERVER": up.stdout.readline().decode().split()[1]}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{len(self.started)}.log").open("wb")
        with log:
            self.started.append(
                subprocess.Popen([*SPINE, *arguments], stdout=subprocess.PIPE, stderr=log, env=self.environment)
            )
        return self.started[-1]

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has said on stderr so far."""
        return (self.folder / f"{self.started.index(process)}.log").read_text()

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        command = [*SPINE, *arguments]
        ran = subprocess.run(command, capture_output=True, env=self.environment, check=False, timeout=90)
        assert ran.returncode == code, (ran.stdout, ran.stderr)
        return ran

    def json(self, *arguments: str) -> Any:
        return msgspec.json.decode(self.run(*arguments, "--json").stdout)

    def start_node(self, id: str, port: int) -> subprocess.Popen[bytes]:
        """A node beside those of `spine up`, with a cluster.yaml that names it."""
        config = yaml.safe_load((self.folder / "data" / "cluster.yaml").read_text())
        config["cluster"]["nodes"].append({"id": id, "host": "127.0.0.1", "port": port, "zone": "zone-4"})
        path = self.folder / f"{id}.yaml"
        path.write_text(yaml.safe_dump(config))
        return self.start("node", "--config", str(path), "--id", id, "--data", str(self.folder / id), "--server",
                          self.environment["SPINE_SERVER"])  # fmt: skip

    def end(self) -> None:
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    one = Operator(tmp_path_factory.mktemp("growth"))
    try:
        yield one
    finally:
        one.end()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_what_can_not_be_is_refused_with_the_reason_and_changes_nothing(operator: Operator) -> None:
    before = operator.json("cluster", "show")
    assert (set(before["members"]), before["change"]) == ({"spine-1", "spine-2", "spine-3"}, None)
    for arguments, words in (
        (("remove", "spine-3"), b"every partition is kept on 3"),
        (("remove", "nobody"), b"'nobody' is not in the cluster"),
        (("add", "--id", "spine-1", "--host", "127.0.0.1"), b"spine-1"),
        (("add", "--id", "n", "--host", "h", "--replace", "nobody"), b"nobody"),
        (("add", "--id", "n", "--host", "h", "--replace", "spine-1", "--dead"), b"spine-1 is up"),
        (("cancel",), b"no change is under way"),
    ):
        refused = operator.run("cluster", *arguments, code=1)
        assert words in refused.stderr, refused.stderr
        assert refused.stdout == b""
    told = msgspec.json.decode(operator.run("cluster", "remove", "spine-3", "--json", code=1).stderr)
    assert told["error"] == "InvalidInput"
    for arguments in (
        ("add", "--id", "a b", "--host", "h"), ("add", "--id", "n", "--host", "http://h"), ("add", "--id", "n"),
        ("add", "--id", "n", "--host", "h", "--port", "0"), ("add", "--id", "n", "--host", "h", "--dead"),
        ("remove",), ("remove", "a/b"),
    ):  # fmt: skip
        operator.run("cluster", *arguments, code=2)
    assert operator.json("cluster", "show") == before


def test_a_node_joins_and_leaves_while_the_command_watches(operator: Operator) -> None:
    operator.run("store", "memory", "--id", "m1")
    port = free_port()
    aim = ("cluster", "add", "--id", "spine-4", "--host", "127.0.0.1", "--port", str(port), "--zone", "zone-4")
    watching = operator.start(*aim)
    begun = operator.json(*aim, "--no-wait")  # or the other way round: it is one change
    assert begun["finished"] is False
    assert b"spine-4" in operator.run("cluster", "add", "--id", "spine-5", "--host", "h", code=1).stderr

    watching.send_signal(signal.SIGINT)  # watching does not matter to the change
    assert watching.wait(10) == 130
    assert operator.json("cluster", "show")["change"]["comes"] == "spine-4"

    operator.start_node("spine-4", port)
    document = operator.json(*aim)
    assert (document["finished"], document["kind"], document["node"]) == (True, "add", "spine-4")
    assert set(document["members"]) == {"spine-1", "spine-2", "spine-3", "spine-4"}
    report = operator.json("status")
    assert report["membership"]["epoch"] >= document["epoch"]
    assert {node["id"]: node["partitions"] > 0 for node in report["nodes"]} == dict.fromkeys(document["members"], True)
    assert report["skew"]["nodes"].keys() == {"memories", "bytes", "operations_per_second"}
    assert len(report["by_partition"]) == report["partitions"]

    gone = operator.run("cluster", "remove", "spine-4")
    assert b"the leaving of spine-4 is done: 3 nodes" in gone.stdout
    assert b"replicas moved" in gone.stderr or gone.stderr == b""
    assert operator.run("get", "m1").returncode == 0
    for view in ((), ("--partitions",)):
        assert b"cluster spine" in operator.run("status", *view).stdout


def test_status_without_a_node_that_answers_is_unavailable(operator: Operator) -> None:
    ran = operator.run("status", "--cluster", "another", "--timeout", "2", code=4)
    assert b"error: " in ran.stderr
