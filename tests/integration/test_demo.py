"""The demo: real runs of its command, and its facts on recorded evidence, whole and broken."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil
import pytest
from rich.console import Console

from crdt_spine.demo.cast import ONLOOKER, PLAYERS_MAX, Follow, cast
from crdt_spine.demo.command import summarise
from crdt_spine.demo.facts import Evidence, concurrent_edits, judge, lost_writes
from crdt_spine.demo.ledger import Delivery, Feed, Ledger, Write
from crdt_spine.demo.picture import picture
from crdt_spine.demo.sample import Row, read_sample
from crdt_spine.demo.scene import NodeState, NodeView, Scene, Tone, excerpt
from crdt_spine.demo.stage import Outage
from crdt_spine.errors import InvalidInput
from crdt_spine.memory import Memory

Demo = Callable[..., Awaitable[asyncio.subprocess.Process]]

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN_SECONDS_MAX = 90  # of a run that takes eight, on a machine that is busy


# -- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
async def start_demo(tmp_path: Path) -> AsyncIterator[Demo]:
    """Start it without a terminal. All its files, and so its processes' arguments, are below `tmp_path / "temporary"`;
    afterwards none of either may be left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    started: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str) -> asyncio.subprocess.Process:
        environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLES / "demo.py"), *arguments,
            env={**environment, "TMPDIR": str(temporary), "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert processes_below(temporary) == []
    assert list(temporary.iterdir()) == []


def processes_below(folder: Path) -> list[str]:
    commands = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words) and process.info["status"] != psutil.STATUS_ZOMBIE:
            commands.append(" ".join(words))
    return commands


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Its exit code, and what it said on stdout and stderr."""
    async with asyncio.timeout(RUN_SECONDS_MAX):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_the_demo_survives_a_killed_node_and_says_so_with_numbers(start_demo: Demo) -> None:
    code, output, errors = await ended(await start_demo("--quick"))

    assert code == 0, output + errors
    assert errors == ""
    assert re.search(r"\d s  spine-\d is gone: SIGKILL", output)
    assert re.search(r"\d s  spine-\d is level again", output)
    assert re.search(r"✔ +memories stored +242 of 242 ", output)
    assert re.search(r"✔ +operations failed +0 ", output)
    assert re.search(r"✔ +writes lost +0 +of [23]\d\d acknowledged; each looked for on each of 3 nodes alone", output)
    assert re.search(r"✔ +updates delivered +[3-9]\d\d +to 16 subscriptions; (\d+) of \1 new memories, each", output)
    away = re.search(r"✔ +node lost and back +spine-\d +SIGKILL, away for [\d.]+ s; (\d+) writes", output)
    assert away is not None and int(away[1]) > 0
    assert re.search(r"✔ +time to converge +\d+\.\d\d s ", output)
    assert re.search(r"✔ +nodes identical +3 of 3 +242 memories, [1-9]\d* of them edited by several", output)
    assert re.search(r"✔ +processes left running +0 +of 5 started", output)
    assert output.endswith("demo: all 9 facts hold\n")


async def test_the_demo_runs_on_a_file_with_other_field_names(start_demo: Demo, tmp_path: Path) -> None:
    rows = [{"text": f"turn {n}", "speaker": "ab"[n % 2], "conversation": n % 3, "mood": "calm"} for n in range(20)]
    data = tmp_path / "talk.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    code, output, errors = await ended(await start_demo("--quick", "--data", str(data), "--limit", "12"))

    assert code == 0, output + errors
    assert "12 memories of 2 agents, 3 threads, 0 tags, from talk.jsonl" in output
    assert "(content=text, agent=speaker, thread=conversation); the file has more" in output
    assert re.search(r"✔ +memories stored +12 of 12 ", output)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing_behind(start_demo: Demo, signal_number: int) -> None:
    process = await start_demo("--quick")
    assert process.stdout is not None
    async with asyncio.timeout(RUN_SECONDS_MAX):
        while b"agents write" not in (line := await process.stdout.readline()):
            assert line, "it ended before the agents wrote"
    process.send_signal(signal_number)

    code, _, errors = await ended(process)

    assert (code, errors) == (128 + signal_number, "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "rows.jsonl can't be read: No such file or directory"),
        ("\n \n", "rows.jsonl has no rows"),
        ('{"content": "a"}\n{"content": ', "rows.jsonl:2: the line is no JSON"),
        (
            '{"phrase": "a", "who": "b"}\n',
            "rows.jsonl:1: there is no content: no field 'content'; the fields are phrase",
        ),
    ],
)
async def test_a_file_that_is_of_no_use_is_refused_before_anything_starts(
    start_demo: Demo, tmp_path: Path, text: str | None, complaint: str
) -> None:
    data = tmp_path / "rows.jsonl"
    if text is not None:
        data.write_text(text)

    code, output, errors = await ended(await start_demo("--data", str(data)))

    assert (code, output) == (2, "")
    assert complaint in errors


# -- the sample and the cast -------------------------------------------------------------------------------------


def rows_of(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_the_demos_own_sample_has_many_memories_of_several_agents_threads_and_tags() -> None:
    sample = read_sample(EXAMPLES / "agents_sample.jsonl", [], 10_000)

    assert len({row.arguments["content"] for row in sample.rows}) == len(sample.rows) >= 200
    assert len({row.agent for row in sample.rows}) >= 6
    assert len({row.arguments["thread"] for row in sample.rows}) >= 12
    assert len({tag for row in sample.rows for tag in row.arguments["tags"]}) >= 15
    assert sample.guessed == ()


def test_a_given_map_comes_before_a_usual_name(tmp_path: Path) -> None:
    data = rows_of(tmp_path / "rows.jsonl", [{"text": "a", "summary": "b", "speaker": "x"}])

    (row,) = read_sample(data, ["content=summary"], 10).rows

    assert (row.agent, row.arguments["content"], row.arguments["metadata"]) == ("x", "b", {"text": "a"})


def test_rows_become_memories_of_their_own_that_do_not_end(tmp_path: Path) -> None:
    data = rows_of(tmp_path / "rows.jsonl", [{"content": "a", "id": "1", "ttl": 5}, {"content": "b", "id": "1"}])

    rows = read_sample(data, [], 10).rows

    assert [row.arguments for row in rows] == [{"content": "a"}, {"content": "b"}]


def test_rows_without_an_agent_are_shared_out_and_a_thread_stays_together(tmp_path: Path) -> None:
    rows = [{"content": str(n), "thread": f"t{n % 10}"} for n in range(40)]

    read = read_sample(rows_of(tmp_path / "rows.jsonl", rows), [], 100).rows  # type: ignore[arg-type]

    assert len({row.agent for row in read}) > 1
    assert len({(row.agent, row.arguments["thread"]) for row in read}) == 10


def test_every_problem_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    data = rows_of(tmp_path / "rows.jsonl", [{"content": 1}, {"content": "fine"}, {"content": "a", "importance": 7}])

    with pytest.raises(InvalidInput, match=r"(?s)rows.jsonl:1: .*\n.*rows.jsonl:3: importance"):
        read_sample(data, [], 10)


def test_an_agent_alone_gets_an_onlooker() -> None:
    writer, onlooker = cast([Row("solo", {"content": "a", "tags": ["x"]})])

    assert (writer.name, len(writer.rows)) == ("solo", 1)
    assert (onlooker.name, onlooker.rows, onlooker.follows) == (ONLOOKER, (), (Follow(tag="x"),))


def test_a_crowd_of_agents_shares_connections_and_every_row_is_played_once() -> None:
    rows = [Row(f"agent {n % 40}", {"content": str(n)}) for n in range(100)]

    players = cast(rows)

    assert len(players) == PLAYERS_MAX
    assert sorted(row.arguments["content"] for p in players for row in p.rows) == sorted(str(n) for n in range(100))
    assert all(follow.agent not in (None, player.name) for player in players for follow in player.follows)


# -- the facts ---------------------------------------------------------------------------------------------------


def memory(id: str, version: str, **parts: object) -> Memory:
    values: dict[str, object] = {"content": f"content of {id}", "agent": "ann", "tags": frozenset({"red"}), **parts}
    born = datetime(2026, 1, 1, tzinfo=UTC)
    return Memory(id=id, version=version, created_at=born, updated_at=born, **values)  # type: ignore[arg-type]


def store(born: Memory, started: float) -> Write:
    values = {"content": born.content, "importance": born.importance}
    return Write("store", born.agent, born.id, values, born.tags, started, started + 1, born)


def edit(after: Memory, agent: str, started: float, ended: float, **values: object) -> Write:
    return Write("update", agent, after.id, dict(values), frozenset(), started, ended, after)


@pytest.fixture
def evidence() -> Evidence:
    """A record of two memories, one of them edited, of which everything holds."""
    one, two = memory("one", "a:1"), memory("two", "a:2", tags=frozenset({"red", "blue"}))
    edited = memory("two", "a:3", tags=frozenset({"red", "blue", "done"}), importance=0.9)
    ledger = Ledger()
    ledger.writes = [
        store(one, 1.0),
        store(two, 2.0),
        Write("update", "bob", "two", {"importance": 0.9}, frozenset({"done"}), 5.0, 6.0, edited),
    ]
    ledger.feeds = [
        Feed("bob", Follow(tag="blue"), [Delivery("stored", two, 3.1), Delivery("updated", edited, 6.1)]),
        Feed("cy", Follow(agent="ann"), [Delivery("stored", one, 2.1), Delivery("stored", edited, 6.2)]),
    ]
    ledger.reads, ledger.delivered = 2, 4
    outage = Outage("n2", 10, "SIGKILL", gone=1.5, new_pid=11, started=4.0, ready=4.5, level=5.0)
    nodes = ("n1", "n2", "n3")
    listed, found = ({node: {"one": one, "two": edited} for node in nodes} for _ in range(2))
    return Evidence(2, nodes, ledger, outage, listed, found, 0.1, started=5, left=0)


def broken(evidence: Evidence) -> list[str]:
    return [fact.name for fact in judge(evidence) if not fact.holds]


def told(evidence: Evidence) -> tuple[int, str]:
    """The exit code, and what is printed."""
    output = io.StringIO()
    return summarise(judge(evidence), Console(file=output, width=200)), output.getvalue()


def test_all_facts_of_an_unbroken_record_hold(evidence: Evidence) -> None:
    code, output = told(evidence)

    assert code == 0
    assert output.endswith("demo: all 9 facts hold\n")


def test_a_lost_write_is_named_and_gives_exit_code_1(evidence: Evidence) -> None:
    del evidence.found["n3"]["one"]

    code, output = told(evidence)

    assert code == 1
    assert re.search(r"writes lost +1 +the store of one by ann on n3", output)
    assert output.endswith("demo: 1 of 9 facts do not hold: writes lost\n")


@pytest.mark.parametrize(
    "parts", [{"tags": frozenset({"red", "blue"})}, {"importance": 0.5}, {"content": "other"}, {"agent": "eve"}]
)
def test_a_lost_tag_a_lost_value_and_a_wrong_author_are_lost_writes(
    evidence: Evidence, parts: dict[str, object]
) -> None:
    evidence.listed["n2"]["two"] = msgspec.structs.replace(evidence.listed["n2"]["two"], **parts)

    assert broken(evidence) == ["writes lost", "nodes identical"]
    assert "different: two" in told(evidence)[1]


def test_a_node_that_could_not_be_asked_leaves_the_writes_unproved(evidence: Evidence) -> None:
    del evidence.listed["n2"], evidence.found["n2"]

    assert broken(evidence) == ["writes lost", "nodes identical"]


def test_a_missing_a_repeated_a_foreign_and_an_outdated_update_are_found(evidence: Evidence) -> None:
    feed = evidence.ledger.feeds[0]
    stored, updated = feed.deliveries
    foreign = Delivery("stored", memory("three", "a:4"), 7.0)
    for deliveries in ([updated], [stored, stored, updated], [stored, updated, updated], [stored],
                       [stored, updated, foreign]):  # fmt: skip
        feed.deliveries = deliveries
        assert broken(evidence) == ["updates delivered"], deliveries


def test_failed_operations_stale_reads_and_processes_left_are_facts_that_fail(evidence: Evidence) -> None:
    evidence.ledger.failures.append("ann: store: no quorum")
    evidence.ledger.stale.append("ann read memory one as it was before its own write")
    evidence.left = 1

    assert broken(evidence) == ["operations failed", "reads behind own writes", "processes left running"]


def test_a_node_that_never_died_or_never_got_level_is_not_called_back(evidence: Evidence) -> None:
    assert evidence.outage is not None
    evidence.outage.level = 0.0
    assert broken(evidence) == ["time to converge"]
    evidence.outage.ending = "exit code 0"
    assert broken(evidence) == ["node lost and back", "time to converge"]


def test_the_last_write_counts_and_of_two_at_once_either() -> None:
    first = store(memory("m", "a:1"), 0.0)
    early = edit(memory("m", "a:2"), "ann", 2.0, 3.0, content="early")
    left = edit(memory("m", "a:3"), "bob", 4.0, 6.0, content="left")
    right = edit(memory("m", "b:1"), "cy", 5.0, 7.0, content="right")
    writes = [first, early, left, right]

    def lost(content: str) -> list[Write]:
        return lost_writes(writes, {"m": memory("m", "a:3,b:1", content=content)})

    assert lost("left") == lost("right") == []
    assert lost("early") == [left, right]
    assert lost("content of m") == [early, left, right]
    assert concurrent_edits(writes) == 1
    assert concurrent_edits([first, early, left]) == 0


# -- the picture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "agents"), [(80, 24, 8), (80, 24, 12), (140, 50, 12)])
def test_the_picture_fits_the_terminal_and_shows_the_killed_node(width: int, height: int, agents: int) -> None:
    scene = Scene(cast([Row(f"agent {n % agents}", {"content": "words " * 40}) for n in range(48)]))
    for number, state in enumerate((NodeState.UP, NodeState.KILLED, NodeState.CATCHING_UP), 1):
        scene.nodes[f"spine-{number}"] = NodeView(f"spine-{number}", state, 4_000_000, 9_999, lag=9_999)
    for view in scene.agents.values():
        view.last = excerpt("words " * 40)
    for number in range(30):
        scene.say(f"event {number}, " + "which is told at length " * 6, Tone.BAD)
    output = io.StringIO()

    console = Console(file=output, width=width, height=height)
    console.print(picture(scene, console))

    lines = output.getvalue().splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert any("✖ spine-2  killed" in line and "9999 behind" in line for line in lines)
    assert any("event 29, which is told" in line for line in lines)


def test_nothing_in_a_memory_can_command_the_terminal() -> None:
    assert excerpt("a\x1b[2Jb\nc\td\x07\u202e") == "a [2Jb c d"
