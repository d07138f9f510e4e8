"""The floors of the package: who may import whom; no cycles, no file that nothing reaches, a core that is pure."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "crdt_spine"

#: Part of the package -> the other parts that it may import. A part is a folder or a file at the top.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "limits": set(),
    "memory": set(),
    "wall_clock": set(),
    "core": {"errors", "limits"},
    "storage": {"core", "errors", "limits"},
    "transport": {"core", "errors", "limits"},
    "yaml_document": {"errors", "limits"},
    "config": {"core", "errors", "limits", "memory", "yaml_document"},
    "http": {"errors", "limits"},
    "node": {
        "config",
        "core",
        "errors",
        "http",
        "interchange",
        "limits",
        "memory",
        "storage",
        "transport",
        "wall_clock",
        "yaml_document",
    },
    "locks": {"core", "discovery", "errors", "limits", "transport"},
    "broker": {"errors", "limits"},
    "supervisor": {"broker", "errors", "http", "limits"},
    "validation": {"core", "errors", "limits", "memory"},
    "discovery": {"core", "errors", "limits", "transport"},
    "health": set(),
    "lateness": set(),
    "routing": {"core", "health"},
    "call": {"core", "errors", "health"},
    "requests": {"call", "core", "errors", "lateness", "limits", "transport"},
    "whereabouts": {"core", "discovery", "errors", "health", "lateness", "routing", "transport"},
    "pings": {"call", "core", "health", "requests", "whereabouts"},
    "hedging": {"call", "health", "requests", "transport", "whereabouts"},
    "dispatch": {
        "call",
        "core",
        "errors",
        "health",
        "hedging",
        "lateness",
        "limits",
        "pings",
        "requests",
        "transport",
        "whereabouts",
    },
    "session": {
        "call",
        "core",
        "discovery",
        "dispatch",
        "errors",
        "health",
        "hedging",
        "lateness",
        "limits",
        "pings",
        "requests",
        "routing",
        "transport",
        "whereabouts",
    },
    "past": {"call", "core", "errors", "limits", "memory", "session"},
    "reshaping": {"core", "errors", "session"},
    "document": {"core", "errors", "levels", "limits", "memory", "session", "validation"},
    "written": {"core", "memory"},
    "levels": {"call", "core", "errors", "limits", "memory", "session"},
    "thread": {"core", "errors", "levels", "limits", "memory", "paging", "session", "validation", "written"},
    "subscription": {"core", "errors", "limits", "memory", "session", "transport"},
    "homing": {"core", "session"},
    "paging": {"core", "limits", "memory"},
    "report": {"core"},
    "embedded": {"core", "errors", "locks", "node", "session", "storage", "transport"},
}
#: What the core must not know of: the world outside, which its callers pass in.
IMPURE = {
    "apsw", "asyncio", "nats", "os", "pathlib", "random", "secrets", "socket", "sqlite3", "subprocess", "sys",
    "threading", "time", "uuid",
}  # fmt: skip
#: Functions of pure modules that ask the world all the same.
ASKS_THE_WORLD = re.compile(r"\b(datetime\.(now|utcnow|today)|date\.today)\b")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Everything a file imports, wherever in it; what is only for type checkers is not imported."""
    found: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                found.add(below if below in modules() else node.module)
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(path.read_text(encoding="utf-8")))
    return found


@cache
def graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    return {name: imports_of(path) & modules().keys() for name, path in modules().items()}


def part_of(module: str) -> str:
    return [*module.split("."), ""][1]


def named_in(module: str) -> set[str]:
    """Modules that a module names in words: imported when they are called, `python -m`, a script beside it."""
    text = modules()[module].read_text(encoding="utf-8")
    beside = {f"{module.rpartition('.')[0]}.{name}" for name in re.findall(r"with_name\(\"(\w+)\.py\"\)", text)}
    return (beside | set(re.findall(r"crdt_spine(?:\.\w+)+", text))) & modules().keys()


# -- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_floor_imports_only_the_floors_below_it(part: str) -> None:
    mine = [name for name in modules() if part_of(name) == part]
    assert mine, f"there is no {part} any more: take it out of MAY_IMPORT"
    allowed = MAY_IMPORT[part] | {part}
    wrong = [f"{name} imports {other}" for name in mine for other in graph()[name] if part_of(other) not in allowed]
    assert wrong == []


def test_the_core_does_not_know_the_world_outside() -> None:
    for name, path in modules().items():
        if part_of(name) == "core":
            roots = {imported.split(".")[0] for imported in imports_of(path)}
            assert not roots & IMPURE, f"{name} imports {sorted(roots & IMPURE)}"
            assert not ASKS_THE_WORLD.search(path.read_text(encoding="utf-8")), f"{name} asks for the time"


def test_nobody_imports_the_command_line() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if part_of(other) == "cli" and part_of(name) != "cli" and part_of(name) not in ("bench", "demo")
    ]
    assert wrong == []


def test_no_module_imports_the_package_itself() -> None:
    """Its root imports `Spine` and with it nearly everything: who imports it is in a cycle."""
    wrong = [
        name for name, others in graph().items() if "crdt_spine" in others and part_of(name) not in ("cli", "bench")
    ]
    assert wrong == []


def test_there_are_no_cycles() -> None:
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            raise AssertionError(" -> ".join([*way[way.index(module) :], module]))
        if module not in done:
            for other in sorted(graph()[module] - {"crdt_spine"}):
                walk(other, [*way, module])
            done.add(module)

    for module in graph():
        walk(module, [])


def test_every_module_is_reached_from_an_entry_point() -> None:
    """What the installed commands, `import crdt_spine`, the examples or the benchmarks lead to. Tests don't count."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = {"crdt_spine"} | {place.split(":")[0] for place in project["scripts"].values()}
    entries |= {place.split(":")[0] for group in project.get("entry-points", {}).values() for place in group.values()}
    for folder in ("examples", "benchmarks", "bridges"):
        for path in (ROOT / folder).rglob("*.py"):
            entries |= imports_of(path) & modules().keys()
    reached: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += graph()[module] | named_in(module)
            waiting += [module.rpartition(".")[0]] if "." in module else []
    assert sorted(modules().keys() - reached) == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name
        for name, path in modules().items()
        if (text := path.read_text(encoding="utf-8")).strip() and ast.get_docstring(ast.parse(text)) is None
    ]
    assert silent == []


def test_importing_an_agents_interface_loads_no_node_and_no_storage() -> None:
    """An agent of a cluster starts as often as a shell command does."""
    import subprocess

    program = "import crdt_spine, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "crdt_spine.session" in loaded
    assert not [name for name in loaded if name.startswith(("apsw", "yaml", "click", "rich"))]
    assert not [
        name for name in loaded if name.startswith("crdt_spine") and part_of(name) in ("node", "storage", "cli")
    ]
