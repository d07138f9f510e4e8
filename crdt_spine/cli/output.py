"""Output for programs: documents and lines of JSON; and text made safe for a terminal.

A memory's text comes from any agent, so nothing of it may reach a terminal as a control sequence. In JSON it is escaped
by the format; for people `printable` shows control characters as symbols.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from crdt_spine.errors import NotFound, SpineError
from crdt_spine.memory import LevelInForce, Memory

if TYPE_CHECKING:
    from crdt_spine.spine import Spine

LEVEL: Final = "in_force"  # what an error has of the call that failed
_SYMBOLS: Final = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    # What turns the reading direction, and with it what a line seems to say.
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}  # fmt: skip


def memory_document(memory: Memory) -> dict[str, Any]:
    """A memory as JSON has it; tags in order, so that equal memories are equal text."""
    return {**msgspec.structs.asdict(memory), "tags": sorted(memory.tags)}


def in_force(levels: list[LevelInForce]) -> dict[str, Any]:
    """At which consistency level the last of these calls was done, and why, as a part of a document."""
    return {"consistency": {"level": levels[-1].level.value, "because": levels[-1].because}} if levels else {}


@contextmanager
def leveled(spine: Spine) -> Iterator[list[LevelInForce]]:
    """The levels of the calls in this block. One that fails takes its level along, into the error's document."""
    with spine.levels() as levels:
        try:
            yield levels
        except SpineError as error:
            vars(error)[LEVEL] = in_force(levels)
            raise


def absent(message: str, levels: list[LevelInForce]) -> NotFound:
    """The error that says so, of a call that found nothing."""
    error = NotFound(message)
    vars(error)[LEVEL] = in_force(levels)
    return error


def emit(document: Any) -> None:
    """One JSON document; readable in a terminal, on one line elsewhere."""
    encoded = msgspec.json.encode(document)
    emit_bytes(msgspec.json.format(encoded, indent=2) if sys.stdout.isatty() else encoded)


def emit_line(document: Any) -> None:
    """One line of JSON lines, out at once."""
    emit_bytes(msgspec.json.encode(document))


def emit_bytes(line: bytes) -> None:
    """A line that is encoded already, out at once. Raises BrokenPipeError, OSError."""
    click.echo(line)


def representable(text: str) -> str:
    """The text without what UTF-8, and with it JSON, can't say: the bytes of a file's name that are no text."""
    return text.encode(errors="backslashreplace").decode()


def printable(text: str) -> str:
    """The text without anything that a terminal would obey; newlines and tabs stay."""
    return text.translate(_SYMBOLS)


def one_line(text: str) -> str:
    """The text on one line, for lists."""
    return " ".join(printable(text).split())
