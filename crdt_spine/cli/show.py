"""Memories and updates for people: fitted to the terminal, in colour where there is one.

Everything is drawn into a text first and written afterwards in one place, so that a closed pipe and a full disk are
noticed in the same way as everywhere else.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crdt_spine.cli.output import one_line, printable
from crdt_spine.memory import Conflict, Memory, Update

WIDTH_ELSEWHERE: Final = 120  # columns, where the output is no terminal
PREVIEW_LINES_MAX: Final = 3  # of a memory's content in a list
PREVIEW_CHARACTERS_MAX: Final = 80  # of it, or of another value, in a table

_KIND_STYLES: Final = {"stored": "green", "updated": "yellow", "deleted": "red"}


def show(*renderables: RenderableType) -> None:
    """Draw on stdout."""
    click.echo(drawn(*renderables), nl=False)


def drawn(*renderables: RenderableType) -> str:
    """The text, with colours where stdout is a terminal."""
    console = Console(file=io.StringIO(), width=width(), force_terminal=sys.stdout.isatty(), highlight=False)
    for renderable in renderables:
        console.print(renderable)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text if sys.stdout.isatty() else "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def width() -> int:
    """Columns to fill."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return shutil.get_terminal_size().columns if known else WIDTH_ELSEWHERE


def memory_card(memory: Memory) -> RenderableType:
    """One memory with everything that is known of it, its content below."""
    fields = Table.grid(padding=(0, 2))
    fields.add_column(style="dim", no_wrap=True)
    fields.add_column(overflow="fold")
    metadata = [(f"meta {one_line(key)}", printable(_json(value))) for key, value in sorted(memory.metadata.items())]
    rows: list[tuple[str, str | Text]] = [
        ("id", Text(one_line(memory.id), style="bold cyan")),
        ("agent", one_line(memory.agent)),
        ("tags", _tags(memory)),
        ("thread", one_line(memory.thread or "")),
        *metadata,
        ("importance", f"{memory.importance:g}"),
        ("created", _moment(memory.created_at)),
        ("updated", _moment(memory.updated_at) if memory.updated_at != memory.created_at else ""),
        ("expires", "" if memory.expires_at is None else _moment(memory.expires_at)),
        ("clock", ", ".join(f"{one_line(agent)} {n}" for agent, n in sorted(memory.clock.items()))),
        ("version", Text(memory.version, style="dim")),
    ]
    for name, value in rows:
        if value:
            fields.add_row(name, value if isinstance(value, Text) else Text(value))
    return Group(fields, Text(), Text(printable(memory.content), overflow="fold"))


def memory_list(memories: Sequence[Memory]) -> RenderableType:
    """Memories, each with a line about it and the beginning of its content."""
    parts: list[RenderableType] = []
    for memory in memories:
        head = Text(overflow="fold")
        head.append(one_line(memory.id), "bold cyan")
        head.append(f"  {one_line(memory.agent)}", "magenta")
        head.append(f"  {ago(memory.created_at)}", "dim")
        if memory.tags:
            head.append("  ")
            head.append_text(_tags(memory))
        if memory.thread is not None:
            head.append(f"  in {one_line(memory.thread)}", "dim")
        parts += [head, Padding(_preview(memory.content), (0, 0, 0, 2))]
    return Group(*parts)


def version_table(versions: Sequence[Memory]) -> RenderableType:
    """A memory's versions, newest first: when, by whom, what is different from the one before it, the content."""
    table = _table("written", "agent", "version", "changed", "content")
    for memory, before in zip(versions, [*versions[1:], None], strict=True):
        table.add_row(
            Text(ago(memory.updated_at), style="dim"),
            Text(one_line(memory.agent), style="magenta"),
            Text(memory.version, style="dim", overflow="fold"),
            Text(changes(before, memory)),
            _beginning(memory.content),
        )
    return table


def conflict_table(conflicts: Sequence[Conflict]) -> RenderableType:
    """Lost values, each above what was kept, with agents and times."""
    table = _table("memory", "field", "", "agent", "written", "value")
    for conflict in conflicts:
        table.add_row(
            Text(one_line(conflict.memory_id), style="bold cyan", overflow="fold"),
            Text(one_line(conflict.field)),
            Text("lost", style="red"),
            Text(one_line(conflict.lost_agent), style="magenta"),
            Text(ago(conflict.lost_at), style="dim"),
            _value(conflict.lost),
        )
        table.add_row(
            "",
            "",
            Text("kept", style="green"),
            Text(one_line(conflict.kept_agent), style="magenta"),
            Text(ago(conflict.kept_at), style="dim"),
            _value(conflict.kept),
        )
    return table


def changes(before: Memory | None, after: Memory) -> str:
    """What is different from the version before; of the earliest one known, whether it is the first."""
    if before is None:
        return "stored" if after.created_at == after.updated_at else ""
    said = [name for name in ("content", "importance", "thread", "expires_at") if _differs(name, before, after)]
    said += [f"+#{one_line(tag)}" for tag in sorted(after.tags - before.tags)]
    said += [f"-#{one_line(tag)}" for tag in sorted(before.tags - after.tags)]
    keys = sorted(before.metadata.keys() | after.metadata.keys())
    said += [f"meta {one_line(key)}" for key in keys if before.metadata.get(key) != after.metadata.get(key)]
    return ", ".join(said)


def _differs(name: str, one: Memory, other: Memory) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _value(value: object) -> Text:
    return Text("nothing", style="dim italic") if value is None else _beginning(_json(value))


def _beginning(content: str) -> Text:
    return Text(one_line(content[: PREVIEW_CHARACTERS_MAX + 1])[:PREVIEW_CHARACTERS_MAX], overflow="fold")


def show_update(update: Update) -> None:
    """One step of a subscription on one line; cut to the terminal's width, whole elsewhere."""
    memory = update.memory
    line = Text()
    line.append(f"{datetime.now():%H:%M:%S} ", "dim")
    line.append(f"{update.kind:<8}", _KIND_STYLES[update.kind])
    line.append(one_line(memory.id), "cyan")
    line.append(f"  {one_line(memory.agent)}", "magenta")
    if memory.tags:
        line.append("  ")
        line.append_text(_tags(memory))
    if memory.content:
        line.append(f"  {one_line(memory.content)}")
    if sys.stdout.isatty():
        line.truncate(width(), overflow="ellipsis")
        show(line)
    else:
        click.echo(line.plain)


def ago(moment: datetime, now: datetime | None = None) -> str:
    """How long ago, roughly; the day where it is long."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 0:
        return f"{moment.astimezone():%Y-%m-%d %H:%M}"
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    if seconds < 3_600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86_400:
        return f"{seconds // 3_600:.0f} h ago"
    if seconds < 30 * 86_400:
        return f"{seconds // 86_400:.0f} d ago"
    return f"{moment.astimezone():%Y-%m-%d}"


def _preview(content: str) -> RenderableType:
    """The first lines, as many as fit; an ellipsis where there is more."""
    columns = max(20, width() - 2)
    text = one_line(content[: columns * (PREVIEW_LINES_MAX + 1)])
    console = Console(file=io.StringIO(), width=columns)
    lines = Text(text).wrap(console, columns)
    if len(lines) <= PREVIEW_LINES_MAX:
        return Text(text)
    last = lines[PREVIEW_LINES_MAX - 1]
    last.truncate(columns - 2)
    last.append(" …")
    return Group(*lines[:PREVIEW_LINES_MAX])


def _tags(memory: Memory) -> Text:
    return Text(" ").join(Text(f"#{one_line(tag)}", style="blue") for tag in sorted(memory.tags))


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z} ({ago(moment)})"


def _json(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
