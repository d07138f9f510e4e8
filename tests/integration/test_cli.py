"""The `spine` command line without a cluster: on an embedded database, and where nothing answers."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crdt_spine import Spine as Open
from crdt_spine.cli.main import main
from crdt_spine.cli.show import conflict_table, show
from crdt_spine.core.token import token_text
from crdt_spine.limits import CONNECT_SECONDS_MAX, CONTENT_BYTES_MAX
from crdt_spine.memory import Conflict

NOWHERE = "nats://127.0.0.1:1"


class Ran(msgspec.Struct):
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return msgspec.json.decode(self.out)

    @property
    def error(self) -> Any:
        return msgspec.json.decode(self.err)


Spine = Callable[..., Ran]


@pytest.fixture
def spine(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Spine:
    """`spine("store", "text")`: a command on an embedded database of this test; `stdin` is what it can read."""
    for name in ("SPINE_SERVER", "SPINE_AGENT", "SPINE_SESSION", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, stdin: bytes = b"", embedded: bool = True) -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        place = ("--path", str(tmp_path / "memories.db")) if embedded else ()
        code = main([*place, *arguments])
        sys.stdout.flush()
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


def contents(ran: Ran) -> list[str]:
    assert ran.code == 0, ran.err
    return [memory["content"] for memory in ran.document["memories"]]


# -- one memory --------------------------------------------------------------------------------------------------


def test_store_prints_the_id_alone_and_get_shows_everything_that_was_stored(spine: Spine) -> None:
    stored = spine(
        "store", "the build is red", "--tag", "ci", "--tag", "build", "--meta", "run=17", "--meta", "branch=main",
        "--meta", 'steps=["a", 2]', "--thread", "t1", "--importance", "0.9", "--ttl", "2h", "--agent", "reviewer-1",
    )  # fmt: skip
    assert (stored.code, stored.err) == (0, "")
    id = stored.out.removesuffix("\n")
    assert re.fullmatch(r"[0-9a-f]{4}-[0-9a-f-]{36}", id)
    memory = spine("get", id, "--json").document
    assert memory["id"] == id
    assert memory["content"] == "the build is red"
    assert memory["tags"] == ["build", "ci"]
    assert memory["metadata"] == {"run": 17, "branch": "main", "steps": ["a", 2]}
    assert (memory["thread"], memory["importance"], memory["agent"]) == ("t1", 0.9, "reviewer-1")
    lifetime = datetime.fromisoformat(memory["expires_at"]) - datetime.fromisoformat(memory["created_at"])
    assert 7199 < lifetime.total_seconds() < 7201
    card = spine("get", id).out
    for part in (id, "the build is red", "#build #ci", "reviewer-1", "t1", "branch", "main", "17"):
        assert part in card


def test_store_with_json_prints_the_memory_that_get_prints(spine: Spine) -> None:
    stored = spine("store", "x", "--id", "own", "--json").document
    assert stored["id"] == "own"
    assert stored == spine("get", "own", "--json").document


def test_content_comes_from_stdin_without_its_last_newline_or_from_a_file_as_it_is(
    spine: Spine, tmp_path: Path
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("one\ntwö\n")
    assert spine("store", "-", "--json", stdin="one\ntwö\n".encode()).document["content"] == "one\ntwö"
    assert spine("store", "--file", "-", "--json", stdin=b"one\n").document["content"] == "one"
    assert spine("store", "--file", str(note), "--json").document["content"] == "one\ntwö\n"
    largest = b"x" * CONTENT_BYTES_MAX
    assert spine("store", "-", stdin=largest + b"\n").code == 0
    for stdin, reason in ((largest + b"x", "longer than the 262,144 bytes"), (b"a\xff", "no UTF-8 at byte 1")):
        refused = spine("store", "-", stdin=stdin)
        assert refused.code == 2
        assert reason in refused.err
    assert spine("store", "--file", str(tmp_path / "missing")).code == 1


def test_update_changes_what_is_named_and_leaves_the_rest(spine: Spine) -> None:
    spine("store", "old", "--id", "m", "--tag", "a", "--tag", "b", "--meta", "k=1", "--meta", "l=2", "--ttl", "60")
    before = spine("get", "m", "--json").document
    arguments = ("--content", "new", "--add-tag", "c", "--remove-tag", "a", "--unset", "k", "--meta", "n=null!")
    after = spine("update", "m", *arguments, "--if-version", before["version"], "--json").document
    assert (after["content"], after["tags"], after["metadata"]) == ("new", ["b", "c"], {"l": 2, "n": "null!"})
    assert (after["importance"], after["expires_at"]) == (before["importance"], before["expires_at"])
    assert spine("update", "m", "--no-ttl", "--importance", "1").out == "m\n"
    assert spine("get", "m", "--json").document["expires_at"] is None

    conflict = spine("update", "m", "--content", "late", "--if-version", before["version"], "--json")
    assert (conflict.code, conflict.out, conflict.error["error"]) == (1, "", "VersionConflict")
    assert spine("get", "m", "--json").document["content"] == "new"


def test_what_is_not_there_ends_with_3_and_says_so_on_stderr_alone(spine: Spine) -> None:
    spine("store", "x", "--id", "m")
    for arguments in (("get", "none"), ("delete", "none"), ("update", "none", "--content", "x")):
        ran = spine(*arguments)
        assert (ran.code, ran.out) == (3, "")
        assert re.fullmatch(r"error: [^\n]*none[^\n]*\n", ran.err)
        assert spine(*arguments, "--json").error["error"] == "NotFound"
    by_default = {"level": "read-your-writes", "because": "default"}
    assert spine("delete", "m", "--json").document == {"id": "m", "deleted": True, "consistency": by_default}
    assert spine("delete", "m").code == 3


# -- many memories -----------------------------------------------------------------------------------------------


def test_query_finds_by_every_condition(spine: Spine) -> None:
    spine("store", "red build", "--tag", "ci", "--tag", "x", "--agent", "ann", "--meta", "run=1", "--thread", "t")
    spine("store", "green build", "--tag", "ci", "--agent", "bob", "--meta", "run=2")
    spine("store", "lunch", "--tag", "food", "--agent", "bob")
    for conditions, expected in (
        ((), ["lunch", "green build", "red build"]),
        (("--order", "oldest"), ["red build", "green build", "lunch"]),
        (("--tag", "ci"), ["green build", "red build"]),
        (("--tag", "ci", "--tag", "x"), ["red build"]),
        (("--any-tag", "x", "--any-tag", "food"), ["lunch", "red build"]),
        (("--tag", "ci", "--not-tag", "x"), ["green build"]),
        (("--agent", "bob"), ["lunch", "green build"]),
        (("--thread", "t"), ["red build"]),
        (("--meta", "run=2"), ["green build"]),
        (("--meta", 'run="2"'), []),
        (("--text", "builds red"), ["red build"]),
        (("--text", "builds red", "--order", "relevance", "--limit", "1"), ["red build"]),
        (("--since", "1h"), ["lunch", "green build", "red build"]),
        (("--until", "1h"), []),
        (("--since", datetime.now(UTC).isoformat()), []),
        (("--until", "2999-01-01"), ["lunch", "green build", "red build"]),
    ):
        assert contents(spine("query", "--json", *conditions)) == expected, conditions


def test_pages_follow_by_cursor_and_all_of_them_are_one_document(spine: Spine) -> None:
    for number in range(5):
        spine("store", str(number))
    first = spine("query", "--json", "--limit", "2").document
    second = spine("query", "--json", "--limit", "2", "--cursor", first["cursor"]).document
    assert [memory["content"] for page in (first, second) for memory in page["memories"]] == ["4", "3", "2", "1"]
    everything = spine("query", "--json", "--limit", "2", "--all")
    assert contents(everything) == ["4", "3", "2", "1", "0"]
    assert everything.document["cursor"] is None

    shown = spine("query", "--limit", "2")
    assert first["cursor"] in shown.err
    assert shown.out.count("\n") == 4
    assert spine("query", "--tag", "none").err == "no memory fulfils this\n"


def test_a_cursor_goes_on_under_a_time_that_is_counted_from_now(spine: Spine) -> None:
    for number in range(3):
        spine("store", str(number))
    first = spine("query", "--since", "2h", "--limit", "2", "--json").document
    second = spine("query", "--since", "2h", "--limit", "2", "--cursor", first["cursor"], "--json")
    assert contents(second) == ["0"]


def test_lists_fit_the_width_and_nothing_in_them_can_command_a_terminal(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    evil = "\x1b[2J\x9b31m\u202eword " * 100
    spine(
        "store", evil, "--id", "m", "--tag", "t\x1b", "--meta", "k=\x1b]0;x\x07", "--agent", "a\rb", "--thread", "t\x7f"
    )
    for shown in (spine("query").out, spine("get", "m").out):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)
        assert "␛[2J" in shown
        assert max(map(len, shown.splitlines())) <= 60
    assert len(spine("query").out.splitlines()) == 4  # a head, and three lines of the content
    assert spine("get", "m", "--json").document["content"] == evil


# -- options -----------------------------------------------------------------------------------------------------


def test_options_mean_the_same_in_front_of_the_command_and_the_nearer_one_wins(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spine("--agent", "front", "--json", "store", "x").document["agent"] == "front"
    assert spine("--agent", "front", "store", "x", "--agent", "near", "--json").document["agent"] == "near"
    monkeypatch.setenv("SPINE_AGENT", "environment")
    assert spine("store", "x", "--json").document["agent"] == "environment"
    assert spine("--agent", "front", "store", "x", "--json").document["agent"] == "front"
    found = spine("--agent", "asks", "query", "--agent", "near", "--json").document["memories"]
    assert [memory["agent"] for memory in found] == ["near"]
    monkeypatch.setenv("SPINE_SERVER", NOWHERE)  # an explicit --path is nearer than the environment
    assert spine("query").code == 0


def test_a_session_file_carries_the_token_from_one_command_to_the_next(spine: Spine, tmp_path: Path) -> None:
    session = tmp_path / "session"
    spine("store", "x", "--session", str(session))
    first = session.read_text()
    spine("store", "y", "--session", str(session))
    assert session.read_text() != first
    assert contents(spine("query", "--json", "--session", str(session))) == ["y", "x"]
    missing = spine("store", "not stored", "--session", str(tmp_path / "missing" / "session"))
    assert (missing.code, missing.out) == (2, "")
    assert "there is no folder" in missing.err
    assert contents(spine("query", "--json")) == ["y", "x"]

    # What is lost of it is told once; every command was told so, as the file stayed what it was.
    async def with_what_is_lost() -> str:
        async with Open.open(tmp_path / "memories.db", agent="other") as opened:
            hello, vectors = opened.session.hello, opened.session.vectors
            number = next(iter(opened.session.vectors), 0)
            lost = {**vectors, number: {**vectors.get(number, {}), "local/nobody@never": 5}}
            return token_text(hello.identity, hello.region, lost)

    session.write_text(asyncio.run(with_what_is_lost()))
    told = spine("query", "--session", str(session))
    assert told.code == 4 and "local/nobody@never" in told.err
    assert contents(spine("query", "--json", "--session", str(session))) == ["y", "x"]
    session.write_text("nonsense")
    assert spine("query", "--session", str(session)).code == 2
    session.write_bytes(b"\xff\xfe")
    assert spine("query", "--session", str(session)).code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("store",),
        ("store", "text", "--file", "also.txt"),
        ("store", "text", "--colour", "red"),
        ("store", "text", "--importance", "high"),
        ("store", "text", "--importance", "1.5"),
        ("store", "text", "--ttl", "soon"),
        ("store", "text", "--ttl", "-1"),
        ("store", "text", "--meta", "novalue"),
        ("store", "text", "--meta", "a=1", "--meta", "a=2"),
        ("store", "text", "--meta", "a=null"),
        ("store", "text", "--tag", ""),
        ("store", "\udcff"),
        ("store", ""),
        ("get",),
        ("get", "a", "b"),
        ("update", "id"),
        ("update", "id", "--meta", "a=1", "--unset", "a"),
        ("update", "id", "--ttl", "1", "--no-ttl"),
        ("query", "--limit", "0"),
        ("query", "--limit", "100000"),
        ("query", "--since", "yesterday"),
        ("query", "--order", "relevance"),
        ("query", "--cursor", "nonsense"),
        ("query", "--consistency", "eventually"),
        ("query", "--server", NOWHERE),  # the fixture gives --path
        ("query", "--timeout", "0"),
        ("watch", "--count", "0"),
        ("watch", "--token", "nonsense"),
        ("import", "/nonexistent.jsonl"),
        ("import", __file__, "--map", "text"),
        ("import", __file__, "--map", "colour=text"),
        ("up", "--nodes", "0"),
        ("up", "--nats-port", "65536"),
        ("up", "--data", ""),
        ("up", "--data", "\udcff"),
        ("export", ""),
        ("store", "text", "--session", ""),
        ("node", "--id", "spine-1"),
        ("config", "check"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line_that_says_why(
    spine: Spine, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments and arguments[0] in ("query", "watch"):
        spine("store", "so that there is a database")
    ran = spine(*arguments)
    assert (ran.code, ran.out) == (2, "")
    if arguments:
        assert re.fullmatch(r"error: [^\n]+\n", ran.err)
        error = spine(*arguments, "--json").error
        assert error["error"] in ("UsageError", "InvalidInput")
        assert error["message"] in ran.err or "--json" in error["message"]
    else:
        assert ran.err.startswith("Usage: spine")


def test_help_and_version_need_no_server(spine: Spine) -> None:
    shown = spine("--help")
    assert shown.code == 0
    listed = re.findall(r"^  (\w+) ", shown.out.partition("Commands:")[2], re.MULTILINE)
    assert listed == [
        "up", "store", "get", "update", "delete", "query", "watch", "history", "conflicts", "import", "export",
        "status", "cluster", "config", "node", "locks", "lock", "bench",
    ]  # fmt: skip
    assert "..." not in shown.out.partition("Commands:")[2]
    for command in (*listed, "config check"):
        ran = spine(*command.split(), "--help")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith(f"Usage: spine {command} ")
    assert re.fullmatch(r"spine \d+\.\d+\.\d+\n", spine("--version").out)


# -- where nothing answers ---------------------------------------------------------------------------------------


def test_no_server_ends_with_4_within_five_seconds_and_names_the_address(spine: Spine) -> None:
    assert CONNECT_SECONDS_MAX < 5
    began = time.monotonic()
    ran = spine("status", "--server", NOWHERE, embedded=False)
    assert time.monotonic() - began < CONNECT_SECONDS_MAX + 10, "and a busy machine's own"
    assert (ran.code, ran.out) == (4, "")
    assert re.fullmatch(rf"error: [^\n]*{NOWHERE}[^\n]*\n", ran.err)


def test_a_shorter_timeout_is_kept(spine: Spine) -> None:
    for arguments in (
        ("store", "x"),
        ("get", "x"),
        ("query",),
        ("watch",),
        ("status",),
        ("export",),
        ("import", __file__),
    ):
        began = time.monotonic()
        ran = spine(*arguments, "--server", NOWHERE, "--timeout", "0.2", "--json", embedded=False)
        assert time.monotonic() - began < CONNECT_SECONDS_MAX
        assert ran.code == 4, arguments
        assert NOWHERE in msgspec.json.decode(ran.err.splitlines()[0])["message"]
        assert ran.out in ("", "\n") or arguments[0] == "import"


def test_reading_commands_make_no_database(spine: Spine, tmp_path: Path) -> None:
    for arguments in (("get", "x"), ("query",), ("export",), ("status",), ("watch",), ("delete", "x")):
        assert spine(*arguments).code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_another_process_has_is_refused_with_1(spine: Spine, tmp_path: Path) -> None:
    path = str(tmp_path / "memories.db")
    spine("store", "x")
    command = [sys.executable, "-m", "crdt_spine.cli.main", "watch", "--path", path]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stderr is not None
            assert "watching" in holder.stderr.readline()
            refused = spine("query")
            assert refused.code == 1
            assert f"in use by process {holder.pid}" in refused.err
        finally:
            holder.kill()


def test_a_name_that_is_no_utf_8_is_told_in_json_too(spine: Spine, tmp_path: Path) -> None:
    """File names are bytes. One that is no text once ended in a traceback, even after a success."""
    odd = os.fsdecode(b"\xff")
    (tmp_path / "cluster.yaml").write_text('cluster: {name: "\\ud800"}\n')
    spine("store", "x")
    for arguments, code in (
        (("store", "--file", str(tmp_path / odd)), 1),
        (("store", "x", "--session", str(tmp_path / odd / "session")), 2),
        (("import", str(tmp_path / "cluster.yaml"), "--map", f"{odd}=x"), 2),
    ):
        ran = spine(*arguments, "--json")
        assert ran.code == code
        assert "\\udcff" in ran.error["message"]
    exported = spine("export", str(tmp_path / odd), "--json")
    assert (exported.code, exported.document["file"]) == (0, f"{tmp_path}/\\udcff")
    assert spine("config", "check", str(tmp_path / "missing" / odd), "--json").document["file"].endswith("\\udcff")
    assert spine("config", "check", str(tmp_path / "cluster.yaml"), "--json").document["problems"]


def test_answers_come_without_the_storage_engine_and_without_the_renderer_being_loaded() -> None:
    script = (
        "import sys; from crdt_spine.cli.main import main\n"
        f"code = main(['get', 'x', '--server', '{NOWHERE}', '--timeout', '0.1'])\n"
        "print(code, [name for name in ('apsw', 'rich', 'yaml', 'crdt_spine.node.node') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "4 []\n"


def test_a_full_disk_is_an_error_and_not_silence(spine: Spine, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    spine("store", "x")
    path = str(tmp_path / "memories.db")
    for command in ("query", "export", "--help"):
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            arguments = [command] if command == "--help" else [command, "--path", path]
            ran = subprocess.run(
                [sys.executable, "-m", "crdt_spine.cli.main", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert ran.returncode == 1
        assert b"No space left on device" in ran.stderr
        assert b"Traceback" not in ran.stderr


# -- configuration -----------------------------------------------------------------------------------------------


def test_config_check_tells_every_problem_with_file_line_key_and_reason(spine: Spine, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster:\n  name: c\n  nodes:\n    - {id: a, host: h, port: 99999}\n  replicatoin: {}\n")
    ran = spine("config", "check", str(file), embedded=False)
    assert (ran.code, ran.out) == (1, "")
    assert f"{file}:4 cluster.nodes[0].port: found 99999" in ran.err.replace(":4:", ":4")
    assert "replicatoin" in ran.err
    document = spine("config", "check", str(file), "--json", embedded=False)
    assert document.code == 1
    assert document.document["valid"] is False
    assert {problem["line"] for problem in document.document["problems"]} == {4, 5}

    file.write_text("cluster:\n  name: c\n  nodes:\n    - {id: a, host: h, port: 99}\n")
    assert spine("config", "check", str(file), embedded=False).code == 0
    assert spine("config", "check", str(file), "--json", embedded=False).document["valid"] is True
    assert spine("config", "check", str(tmp_path / "missing"), embedded=False).code == 1


def test_environment_is_not_needed() -> None:
    """A process without a name for its user and without HOME still has an agent."""
    script = (
        "import os, sys\nfrom crdt_spine.cli import options\nos.getuid = lambda: 4_000_000_000\nprint(options._user())"
    )
    environment = {"PATH": os.environ["PATH"]}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout == "cli\n"


# -- what was --------------------------------------------------------------------------------------------------------


def test_history_lists_the_versions_newest_first_and_what_changed(spine: Spine) -> None:
    spine("store", "one", "--id", "m", "--tag", "a", "--meta", "k=1", "--agent", "ada")
    spine("update", "m", "--content", "two \x1b[31m", "--add-tag", "b", "--remove-tag", "a", "--unset", "k")
    ran = spine("history", "m")
    assert ran.code == 0
    head, newest, oldest = ran.out.splitlines()
    assert head.split() == ["written", "agent", "version", "changed", "content"]
    assert "content, +#b, -#a, meta k" in newest and "\x1b" not in newest
    assert "stored" in oldest and oldest.rstrip().endswith("one") and "ada" in oldest
    versions = spine("history", "m", "--json").document
    assert [(memory["content"], memory["tags"]) for memory in versions] == [("two \x1b[31m", ["b"]), ("one", ["a"])]
    by_default = {"level": "read-your-writes", "because": "default"}
    assert {**versions[0], "consistency": by_default} == spine("get", "m", "--json").document
    assert spine("delete", "m").code == 0
    assert spine("history", "m", "--json").document == versions


def test_history_of_what_nobody_stored_is_not_found(spine: Spine) -> None:
    spine("store", "text")
    ran = spine("history", "nobody")
    assert (ran.code, ran.out) == (3, "")
    assert "nobody" in ran.err
    assert spine("history", "nobody", "--json").error["error"] == "NotFound"


def test_no_conflicts_are_no_error(spine: Spine) -> None:
    spine("store", "one", "--id", "m")
    spine("store", "two", "--id", "m")
    for arguments in ((), ("m",)):
        ran = spine("conflicts", *arguments)
        assert (ran.code, ran.out) == (0, "")
        assert spine("conflicts", *arguments, "--json").document == []
    assert spine("conflicts", "--limit", "0").code == 2


def test_conflicts_are_shown_with_both_values_agents_and_times(capfd: pytest.CaptureFixture[str]) -> None:
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    conflict = Conflict(
        memory_id="m", field="metadata.k", lost={"deep": [1]}, kept=None, lost_agent="ada", kept_agent="bob\x1b[2J",
        lost_at=moment, kept_at=moment,
    )  # fmt: skip
    show(conflict_table([conflict]))
    _, lost, kept = capfd.readouterr().out.splitlines()
    assert lost.split() == ["m", "metadata.k", "lost", "ada", "2026-01-31", '{"deep":[1]}']
    assert kept.split()[:2] == ["kept", "bob␛[2J"]
