"""The memories that the demo's agents write: a JSON-lines file, its own or the caller's.

What a row's fields mean is said by maps (`content=text`), as in an import; where neither a map nor a field of that name
says what a target is, a field with a usual name for it is taken. Every row becomes a memory of its own, with a new id
and without an end: a demo that lets memories replace each other or expire could not count what was lost.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from crdt_spine.errors import InvalidInput
from crdt_spine.interchange import FieldMap
from crdt_spine.limits import MESSAGE_BYTES_MAX

#: Usual names elsewhere, the likeliest first.
USUAL_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "content": ("text", "message", "body", "utterance", "note", "memory"),
    "agent": ("speaker", "author", "sender", "user", "from", "role", "name"),
    "thread": ("conversation", "conversation_id", "thread_id", "session", "session_id", "channel", "dialogue_id"),
    "tags": ("labels", "topics", "keywords"),
}
NAMELESS_AGENTS: Final = 4  # who write the rows that name no agent
ROWS_LOOKED_AT: Final = 50  # to see which fields there are
PROBLEMS_SHOWN_MAX: Final = 5

_decode = msgspec.json.Decoder().decode


class Row(msgspec.Struct, frozen=True):
    """One memory to be stored: by whom, and the arguments of `Spine.store`."""

    agent: str
    arguments: dict[str, Any]


class Sample(msgspec.Struct, frozen=True):
    """The rows of a file. `guessed` are the maps that were not given; `more`: the file has rows beyond the limit."""

    rows: tuple[Row, ...]
    guessed: tuple[str, ...]
    more: bool


def read_sample(path: Path, maps: Sequence[str], limit: int) -> Sample:
    """The first `limit` rows of a file. Raises InvalidInput naming the file, the line and what is wrong with it."""
    lines, more = _lines(path, limit)
    if not lines:
        raise InvalidInput(f"{path} has no rows; a row is a JSON object on a line of its own")
    guessed = _guess(maps, [line for _, line in lines[:ROWS_LOOKED_AT]])
    fields = FieldMap.parse([*maps, *guessed])
    now = datetime.now(UTC)
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in lines:
        try:
            arguments = fields.arguments(line, now)
        except InvalidInput as error:
            problems.append(f"{path}:{number}: {error}")
            if len(problems) == PROBLEMS_SHOWN_MAX:
                break
            continue
        if arguments is not None:
            rows.append(_row(arguments, len(rows)))
    if problems:
        raise InvalidInput("\n".join(problems))
    if not rows:
        raise InvalidInput(f"{path}: all {len(lines)} memories have expired")
    return Sample(tuple(rows), guessed, more)


def _lines(path: Path, limit: int) -> tuple[list[tuple[int, bytes]], bool]:
    """The lines that are not blank, numbered, and whether there are more. A long file is not read to its end."""
    lines: list[tuple[int, bytes]] = []
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MESSAGE_BYTES_MAX + 1):
                number += 1
                if len(line) > MESSAGE_BYTES_MAX:
                    raise InvalidInput(f"{path}:{number}: the line is longer than {MESSAGE_BYTES_MAX:,} bytes")
                if line.strip():
                    if len(lines) == limit:
                        return lines, True
                    lines.append((number, line))
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror or error}") from error
    return lines, False


def _guess(maps: Sequence[str], lines: Iterable[bytes]) -> tuple[str, ...]:
    """Maps for the targets that no map and no field names, from the names that fields usually have."""
    fields: set[str] = set()
    for line in lines:
        try:
            row = _decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            continue  # said with its line's number when it is read
        if isinstance(row, dict):
            fields.update(row)
    named = FieldMap.parse(maps)
    given = {text.partition("=")[0] for text in maps}
    free = fields.difference(named.sources.values())
    guessed = []
    for target, names in USUAL_NAMES.items():
        if target in given or target in fields:
            continue
        found = next((name for name in names if name in free), None)
        if found is not None:
            free.discard(found)
            guessed.append(f"{target}={found}")
    return tuple(guessed)


def _row(arguments: dict[str, Any], index: int) -> Row:
    for ignored in ("id", "ttl"):
        arguments.pop(ignored, None)
    agent = arguments.pop("agent", None)
    if agent is None:  # those of a thread stay together
        thread = arguments.get("thread")
        turn = index if thread is None else zlib.crc32(thread.encode())
        agent = f"agent-{turn % NAMELESS_AGENTS + 1}"
    return Row(agent, arguments)
