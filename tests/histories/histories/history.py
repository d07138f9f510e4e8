"""A history: what processes asked of a shared object, when, and what they were told. JSON lines, one operation each.

    {"process": "a3/1", "operation": "cas", "key": "h7-k2", "input": {"expected": "…", "value": "a3.41"},
     "output": {"value": "a3.41", "version": "…"}, "invoke": 812345678, "return": 813000111, "outcome": "ok"}

Times are nanoseconds of the machine's monotonic clock, which all processes share. `outcome`:

    ok       it was answered; `output` is the answer, a refusal included
    fail     it certainly never happened, and never will
    unknown  nobody knows (a timeout): it may happen at any time from `invoke` on, or never; `return` says nothing

Operations of a memory, `output` in parentheses: write value (value, version), read (value, version; value null: there
is none), cas expected value (value, version; or refused "version" or "absent"), update value (value, version; or
refused "absent"), delete (found). Of a lock: models.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

Outcome = Literal["ok", "fail", "unknown"]


class Operation(msgspec.Struct, frozen=True, kw_only=True, rename={"returned": "return"}):
    """One operation of one process. A process has one under way at a time; after an unknown one it goes on as another
    process, for the old one may still be at it."""

    process: str
    operation: str
    key: str
    input: dict[str, Any] = {}
    output: dict[str, Any] = {}
    invoke: int
    returned: int
    outcome: Outcome = "ok"


_decode = msgspec.json.Decoder(Operation).decode
_encode = msgspec.json.Encoder().encode


def write(path: Path, operations: Iterable[Operation]) -> None:
    """Write a history, in the order in which it was invoked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for operation in sorted(operations, key=lambda one: one.invoke):
            file.write(_encode(operation) + b"\n")


def read(path: Path) -> list[Operation]:
    """Read one. Raises ValueError, with file and line, where it is none."""
    operations = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            operations.append(_decode(line))
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return operations


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The histories of each object, in the order in which they were invoked."""
    found: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in sorted(operations, key=lambda one: one.invoke):
        found[operation.key].append(operation)
    return dict(found)
