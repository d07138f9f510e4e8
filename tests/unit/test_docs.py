"""What README and docs say is true: examples run, links lead somewhere, names, limits, messages and layers are real.

In a text, a code block that follows one of these lines is run, in an empty folder, and must succeed:

    <!-- runnable -->           a Python program
    <!-- runnable: shell -->    a shell script
    <!-- runnable: server -->   a shell script that finds a server in SPINE_SERVER
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml

from crdt_spine import InvalidInput, Spine, config, limits
from crdt_spine.broker.binary import find_nats_server
from crdt_spine.cli.main import Elsewhere, spine
from crdt_spine.core import lock_messages, messages, subjects

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "crdt_spine"
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "ARCHITECTURE.md"
TEXTS = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [
    ROOT / "examples" / name for name in ("quickstart.py", "follow.py", "handover.py", "thread.py", "document.py")
]
SECONDS_MAX = 60

with_server = pytest.mark.xdist_group("docs-server")


class Block(NamedTuple):
    """A fenced block of a text; `runnable` is what its mark says, None without one."""

    place: str
    language: str
    runnable: str | None
    code: str


def _blocks() -> Iterator[Block]:
    pattern = re.compile(r"(?:<!-- runnable(?:: (\w+))? -->(\n)\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
    for text in TEXTS:
        content = text.read_text(encoding="utf-8")
        for found in pattern.finditer(content):
            kind, marked, language, code = found.groups()
            line = content.count("\n", 0, found.start(4)) + 1
            yield Block(f"{text.relative_to(ROOT)}:{line}", language, (kind or "python") if marked else None, code)


def _marked(kind: str) -> list[Any]:
    marks = [with_server] if kind == "server" else []
    return [pytest.param(block.code, id=block.place, marks=marks) for block in _blocks() if block.runnable == kind]


def _spans() -> Iterator[tuple[str, str]]:
    """(text's name, inline code) outside fenced blocks."""
    for text in TEXTS:
        prose = re.sub(r"^```.*?^```$", "", text.read_text(encoding="utf-8"), flags=re.M | re.S)
        for span in re.findall(r"`([^`\n]+)`", prose):
            yield text.name, span


def _rows(text: Path, heading: str) -> list[list[str]]:
    """The cells of the first table behind a line, without its head."""
    content = text.read_text(encoding="utf-8")
    table = content[content.index(f"\n{heading}\n") :].split("\n|", 1)[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def _run(command: list[str], folder: Path, **environment: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True,
        timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a `spine up` of this module's own."""
    data = tmp_path_factory.mktemp("up")
    command = [sys.executable, "-m", "crdt_spine.cli.main", "up", "--nats-port", "0", "--http-port", "0"]
    with subprocess.Popen(
        [*command, "--data", str(data)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("ready ").strip()
        finally:
            process.terminate()
            process.wait(20)


# -- what runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", _marked("python"))
def test_a_program_in_the_texts_runs(code: str, tmp_path: Path) -> None:
    assert _run([sys.executable, "-c", code], tmp_path)


@pytest.mark.parametrize("code", _marked("shell"))
def test_a_script_in_the_texts_runs(code: str, tmp_path: Path) -> None:
    assert _run(["bash", "-euo", "pipefail", "-c", code], tmp_path)


@pytest.mark.parametrize("code", _marked("server"))
def test_a_script_in_the_texts_runs_against_a_server(code: str, server: str, tmp_path: Path) -> None:
    assert _run(["bash", "-euo", "pipefail", "-c", code], tmp_path, SPINE_SERVER=server)


def test_programs_that_are_not_run_are_at_least_python() -> None:
    for block in _blocks():
        if block.language == "python":
            compile(block.code, block.place, "exec")
    assert all(_marked(kind) for kind in ("python", "shell", "server"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_with_an_embedded_node(example: Path, tmp_path: Path) -> None:
    assert _run([sys.executable, str(example)], tmp_path)


@with_server
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_against_a_server(example: Path, server: str, tmp_path: Path) -> None:
    assert _run([sys.executable, str(example), "--server", server], tmp_path)


# -- what is named exists --------------------------------------------------------------------------------------------


def test_relative_links_lead_to_files_and_headings() -> None:
    dead = []
    for text in TEXTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", text.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (text.parent / name).resolve() if name else text
            if not path.exists() or (anchor and anchor not in _anchors(path)):
                dead.append(f"{text.name}: {target}")
    assert not dead


def _anchors(text: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_paths_in_code_spans_exist() -> None:
    others = _message_types()
    named = {span for _, span in _spans() if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", span) and span not in others}
    assert named
    assert not {path for path in named if not (ROOT / path).exists() and not (PACKAGE / path).exists()}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    spoken = [span for _, span in _spans()] + [line for block in _blocks() for line in block.code.splitlines()]
    named = {found for text in spoken for found in re.findall(r"^make ([a-z]+)", text)}
    assert named and named <= targets


def test_commands_and_their_options_exist() -> None:
    lines = [span for _, span in _spans()] + [line for block in _blocks() for line in block.code.splitlines()]
    named = 0
    for line in lines:
        said = re.sub(r"^docker (?!exec spine ).*|^docker exec spine ", "", line)
        for words in re.findall(r"(?:^|[(;&|] ?)spine ([^;&|)#]*)", said):
            _check(re.split(r" -- ", words)[0].split())  # behind it, somebody else's options
            named += 1
    assert named > 15


def _check(words: list[str]) -> None:
    command: click.Command = spine
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            assert word in command.commands, f"spine {' '.join(words)}: there is no {word}"
            command = command.commands[word]
            if isinstance(command, Elsewhere):
                command = command.make_context("bench", []).command
    options = {option for parameter in (*command.params, *spine.params) for option in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= options, f"spine {' '.join(words)}: unknown option"


def test_names_of_code_are_in_the_code() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    unknown = []
    for text, span in _spans():
        if re.fullmatch(r"[A-Z][A-Z_]{5,}", span):
            known = re.search(rf"\b{span}\b", sources)
        elif member := re.fullmatch(r"([A-Z][a-z]\w+)\.(\w+)", span):
            known = re.search(rf"class {member[1]}\b.*?\b{member[2]}\b", sources, re.S)
        elif re.fullmatch(r"_\w+", span):
            known = re.search(rf"def {span}\b", sources)
        else:
            continue
        if not known:
            unknown.append(f"{text}: {span}")
    assert not unknown


def test_every_guarantee_names_a_test_that_exists() -> None:
    rows = _rows(README, "## Guaranteed, and not guaranteed")
    assert len(rows) > 8
    for what, *_, by in rows:
        named = re.findall(r"\[`?(test_\w+)`?\]\(([^)]+)\)", by)
        assert named, f"no test for: {what}"
        for test, file in named:
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {test}"


def test_consistency_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "CONSISTENCY.md").read_text(encoding="utf-8")
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./([^)]+)\)", text)
    assert len(named) > 15
    for test, file in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {test}"


# -- what is said is so ----------------------------------------------------------------------------------------------


def test_the_limits_are_those_of_the_code() -> None:
    units = {"KiB": 1024, "MiB": 1024**2, "years": 365 * 86_400, "bytes": 1, "s": 1, "ms": 1, "": 1}
    said = {}
    for _, value, name in _rows(README, "## Limits"):
        number, _, unit = value.partition(" ")
        said[name.strip("`")] = float(number.replace(",", "")) * units[unit]
    assert said == {name: getattr(limits, name) for name in said}
    source = (PACKAGE / "limits.py").read_text(encoding="utf-8")
    for_agents = re.findall(r"^(\w+): Final", source.split("# -- what an agent may store")[1].split("# --")[0], re.M)
    assert set(for_agents) <= said.keys()


def test_what_is_said_to_be_missing_is_missing(tmp_path: Path) -> None:
    """Whoever builds one of these finds here that the README has to be changed."""
    assert "bridge" not in spine.commands
    assert not (PACKAGE / "sync.py").exists() and not (PACKAGE / "telemetry").exists()
    shown = re.findall(r"^ +self\._routes = (.*)$", (PACKAGE / "http" / "pages.py").read_text(encoding="utf-8"), re.M)
    assert re.findall(r'"(/\w*)"', shown[0]) == ["/", "/health", "/status"], "there is no API over HTTP, and no metrics"


async def test_strong_documents_are_refused_with_a_reason() -> None:
    """For edits of a document: they are merged, so there is nothing that could be refused."""
    async with Spine.open(":memory:", agent="a") as one:
        with pytest.raises(InvalidInput, match="if_version"):
            one.document("x", consistency="strong")


def _message_types() -> list[str]:
    structs = {one for module in (messages, lock_messages) for one in vars(module).values() if isinstance(one, type)}
    configs = [getattr(one, "__struct_config__", None) for one in structs]
    return [found.tag for found in configs if found is not None and found.tag_field == "type"]


def test_the_table_of_messages_has_them_all() -> None:
    rows = _rows(ARCHITECTURE, "## Messages")
    assert sorted(row[1].strip("`") for row in rows[1:]) == sorted(_message_types())
    own = subjects.Subjects("<cluster>")
    made = {
        subjects.DISCOVERY_SUBJECT,
        own.gossip("<node>"),
        own.vectors("<node>"),
        own.lock,
        own.fence,
        own.delta(0).replace("0", "<partition>"),
    }
    made |= {make("<node>") for make in (own.rpc, own.ack, own.sync, own.feed, own.record, own.strays, own.claim)}
    made |= {own.round("<node>"), f"{own.rounded('<node>')}.<replica>.<n>"}
    assert {row[0].strip("`") for row in rows if row[0].startswith("`")} == made


def test_a_package_imports_only_the_layers_above_it_in_the_table() -> None:
    layer: dict[str, int] = {}
    for number, names, _ in _rows(ARCHITECTURE, "<!-- layers -->"):
        layer |= dict.fromkeys(re.findall(r"`(\w+)`", names), int(number))
    own = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert layer.keys() == own - {"__init__"}
    for path in PACKAGE.rglob("*.py"):
        importer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if importer in layer:
            others = _imports(path) & layer.keys() - {importer}
            wrong = {imported for imported in others if layer[imported] >= layer[importer]}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            parts = node.module.split(".")
            if parts[0] == "crdt_spine":
                names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("crdt_spine.")}
    return names


def test_rules_that_comments_name_are_in_the_architecture() -> None:
    rules = ARCHITECTURE.read_text(encoding="utf-8").split("\n## The rules of a replica\n")[1].split("\n## ")[0]
    numbered = re.findall(r"^(\d+)\. \*\*", rules, re.M)
    assert numbered == [str(number) for number in range(1, 12)]
    for path in PACKAGE.rglob("*.py"):
        assert set(re.findall(r"\b[Rr]ule (\d+)", path.read_text(encoding="utf-8"))) <= set(numbered), path


def test_decisions_are_numbered_and_have_their_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    for number, page in enumerate(pages, 1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04}-") and text.startswith(f"# {number:04}: ")
        assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Consequences"))
    assert len(pages) >= 13


def test_the_files_for_containers_fit_each_other_and_the_command() -> None:
    docker = ROOT / "docker"
    cluster = config.load(docker / "cluster.yaml")
    services = yaml.safe_load((docker / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for node in cluster.nodes:
        command = services[node.id]["command"]
        assert command[command.index("--id") + 1] == node.id
        assert command[command.index("--server") + 1] in cluster.nats.urls
        _check(command)
    assert services.keys() == {"nats", *(node.id for node in cluster.nodes)}
    for line in re.findall(r"^COPY (.*) \S+$", (docker / "Dockerfile").read_text(encoding="utf-8"), re.M):
        assert all((ROOT / name).exists() for name in line.split())
    payload = re.search(r"^max_payload: (\d+)$", (docker / "nats.conf").read_text(encoding="utf-8"), re.M)
    assert payload is not None and int(payload[1]) == limits.MESSAGE_BYTES_MAX
    store = re.search(r'^  store_dir: "(.*)"$', (docker / "nats.conf").read_text(encoding="utf-8"), re.M)
    assert store is not None and f"nats:{store[1]}" in services["nats"]["volumes"], "nodes need JetStream"
    subprocess.run([find_nats_server(), "-t", "-c", docker / "nats.conf"], check=True, capture_output=True, timeout=20)
