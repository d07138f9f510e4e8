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
from crdt_spine.memory import Memory, Update

WIDTH_ELSEWHERE: Final = 120  # columns, where the output is no terminal
PREVIEW_LINES_MAX: Final = 3  # of a memory's content in a list

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
