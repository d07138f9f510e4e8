"""`spine cluster` as an operator uses it: a cluster grows and shrinks while the command watches, and says why not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import yaml

from tests.conftest import free_port

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

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{len(self.started)}.log").open("wb")
        with log:
            self.started.append(
                subprocess.Popen(
                    [*SPINE, *arguments], stdout=subprocess.PIPE, stderr=log, env=environment or self.environment
                )
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

    def start_node(self, id: str, port: int, *, by_file: bool = False) -> subprocess.Popen[bytes]:
        """A node beside those of `spine up`, with a cluster.yaml that names it. `by_file`: and the broker, and leaves
        out what follows from the number of nodes."""
        config = yaml.safe_load((self.folder / "data" / "cluster.yaml").read_text())
        config["cluster"]["nodes"].append({"id": id, "host": "127.0.0.1", "port": port, "zone": "zone-4"})
        server = self.environment["SPINE_SERVER"]
        path = self.folder / f"{id}.yaml"
        arguments = ["node", "--config", str(path), "--id", id, "--data", str(self.folder / id)]
        if not by_file:
            path.write_text(yaml.safe_dump(config))
            return self.start(*arguments, "--server", server)
        del (
            config["cluster"]["replication"],
            config["cluster"]["nodes"][:2],
        )  # of two nodes a factor of two would follow
        config["cluster"]["nats"] = {"urls": ["nats://127.0.0.1:1", server]}
        path.write_text(yaml.safe_dump(config))
        unsaid = {name: value for name, value in self.environment.items() if name != "SPINE_SERVER"}
        return self.start(*arguments, environment=unsaid)

    def until_joined(self, id: str) -> None:
        """Wait until a node that has been started belongs to the cluster."""
        deadline = time.monotonic() + 60
        while id not in (cluster := self.json("cluster", "show"))["members"] or cluster["change"] is not None:
            assert time.monotonic() < deadline, cluster
            time.sleep(0.2)

    def until_said(self, process: subprocess.Popen[bytes], words: str) -> None:
        """Wait until a process has said that."""
        deadline = time.monotonic() + 60
        while words not in self.said(process):
            assert time.monotonic() < deadline and process.poll() is None, self.said(process)
            time.sleep(0.1)

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

    other = ("add", "--id", "spine-4", "--host", "10.9.9.9", "--port", "7777", "--zone", "zone-3", "--replica")
    told = operator.run("cluster", *other, "--no-wait", code=1).stderr.decode()
    assert f"127.0.0.1:{port} in zone zone-4 as a primary, and not at 10.9.9.9:7777 in zone zone-3 as a replica" in told
    told = operator.run("cluster", "remove", "spine-4", code=1).stderr.decode()
    assert "spine-4 is being added" in told and "say that it is dead" not in told, "that would be refused next"

    watching.send_signal(signal.SIGINT)  # watching does not matter to the change
    assert watching.wait(10) == 130
    assert operator.json("cluster", "show")["change"]["comes"] == "spine-4"

    node = operator.start_node("spine-4", port)
    document = operator.json(*aim)
    assert (document["finished"], document["kind"], document["node"]) == (True, "add", "spine-4")
    assert set(document["members"]) == {"spine-1", "spine-2", "spine-3", "spine-4"}
    report = operator.json("status")
    assert report["membership"]["epoch"] >= document["epoch"]
    assert {node["id"]: node["partitions"] > 0 for node in report["nodes"]} == dict.fromkeys(document["members"], True)
    assert report["skew"]["nodes"].keys() == {"memories", "bytes", "operations_per_second"}
    assert len(report["by_partition"]) == report["partitions"]

    assert b"as a replica" in operator.run(*aim, "--replica", code=1).stderr
    held = {id: member["partitions"] for id, member in operator.json("cluster", "show")["members"].items()}
    assert held == dict.fromkeys(document["members"], 48)
    gone = operator.run("cluster", "remove", "spine-4")
    assert b"the leaving of spine-4 is done: 3 nodes" in gone.stdout
    assert b"replicas moved" in gone.stderr or gone.stderr == b""
    assert b"is done: 3 nodes" in operator.run("cluster", "remove", "spine-4").stdout, "the same command once more"
    assert node.wait(15) == 0, "it is done, and nobody is to start it again"
    assert b"spine-4: removed from the cluster; the folder can be deleted" in node.communicate()[0]
    assert operator.run("get", "m1").returncode == 0
    for view in ((), ("--partitions",)):
        assert b"cluster spine" in operator.run("status", *view).stdout


def test_of_a_node_that_dies_while_it_leaves_the_command_says_what_to_do_and_that_is_a_way_out(
    operator: Operator,
) -> None:
    node = operator.start_node("spine-5", free_port(), by_file=True)
    operator.until_joined("spine-5")
    node.kill()
    watching = operator.start("cluster", "remove", "spine-5")  # it counts as up for a moment
    advice = "spine cluster cancel --dead spine-5"
    operator.until_said(watching, advice)
    assert re.search(r"spine-5 has not been heard for \d+ s and has to confirm: start it", operator.said(watching))
    waiting = operator.run("cluster", "show").stdout.decode()
    assert "spine-5 is being removed" in waiting and advice in waiting and "not heard" in waiting
    told = operator.run("cluster", "remove", "spine-5", "--dead", "--no-wait", code=1).stderr.decode()
    assert advice in told, "it would wait for spine-5 for ever"
    operator.run("cluster", "cancel", "spine-5", code=2)
    assert b"nobody is not in the cluster" in operator.run("cluster", "cancel", "--dead", "nobody", code=1).stderr
    assert b"spine-1 is up" in operator.run("cluster", "cancel", "--dead", "spine-1", code=1).stderr
    ended = operator.run("cluster", "cancel", "--dead", "spine-5")
    assert b"the turning back is done: 4 nodes" in ended.stdout
    assert b"`spine cluster remove spine-5 --dead`" in ended.stderr
    assert watching.wait(20) == 1 and "the leaving of spine-5 was turned back" in operator.said(watching)
    assert "dead" in operator.run("cluster", "show").stdout.decode()
    assert b"done: 3 nodes" in operator.run("cluster", "remove", "spine-5", "--dead").stdout


def test_status_without_a_node_that_answers_is_unavailable(operator: Operator) -> None:
    ran = operator.run("status", "--cluster", "another", "--timeout", "2", code=4)
    assert b"error: " in ran.stderr


def test_a_removed_node_of_spine_up_stays_down_now_and_at_the_next_start(operator: Operator) -> None:
    operator.start_node("spine-6", free_port())
    operator.until_joined("spine-6")
    operator.run("cluster", "remove", "spine-3")
    ended = "spine-3 has ended, and is not started again; node.log in its folder says why"
    up, data = operator.started[0], operator.folder / "data"
    operator.until_said(up, ended)
    assert "spine-3: removed from the cluster" in (data / "spine-3" / "node.log").read_text()
    up.send_signal(signal.SIGTERM)
    assert up.wait(20) == 0
    again = operator.start("up", "--data", str(data), "--nats-port", "0", "--http-port", "0")
    assert again.stdout is not None
    word, server = again.stdout.readline().decode().split()
    assert word == "ready"
    operator.environment["SPINE_SERVER"] = server
    operator.until_said(again, ended)
    assert "spine-3 was taken out of the cluster" in (data / "spine-3" / "node.log").read_text()
    assert operator.json("cluster", "show")["members"].keys() == {"spine-1", "spine-2", "spine-6"}
