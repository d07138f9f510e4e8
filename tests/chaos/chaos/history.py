"""What happened, as JSON lines: every operation of every agent, what subscribers were told, every fault, and the end.

All times are seconds of the machine's monotonic clock, which all processes share. Contents and tags are made up so that
each is written by one operation only: who shows a value says whose write it saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Literal

import msgspec

Outcome = Literal["ok", "unknown", "not applied", "failed"]
Do = Literal["store", "update", "delete", "get", "query", "append", "read"]


class Op(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="op"):
    """One call of an agent. `outcome` of a read that raised is "failed". `tries`: messages that carried it; with more
    than one, two nodes may have coordinated it.

    `kind` says what sort of memory `id` is (agents.py). `value`, `add` and `remove` are what it writes, `found` what a
    delete answered, `seen` and `seen_tags` what a get showed (`found` false: nothing), `shown` what a query or a thread
    listed: ids of memories, contents of a thread's entries.
    """

    session: str
    do: Do
    kind: str
    level: str
    call: float
    back: float
    outcome: Outcome
    id: str = ""
    value: str = ""
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    found: bool | None = None
    seen: str = ""
    seen_tags: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    tries: int = 1
    error: str = ""

    @property
    def with_token(self) -> bool:
        return self.level != "eventual"

    @property
    def writes(self) -> bool:
        return self.do in ("store", "update", "delete", "append")


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="told"):
    """A subscriber was told of a change; `version` is the memory's."""

    subscriber: str
    at: float
    kind: str
    id: str
    content: str = ""
    version: str = ""


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="fault"):
    """Something was broken from `begin` to `end`."""

    what: str
    target: str
    begin: float
    end: float


class Held(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="held"):
    """In the end a node has this memory. `all` is the whole of it as JSON: equal replicas have equal bytes."""

    node: str
    partition: int
    id: str
    content: str
    tags: tuple[str, ...]
    all: str


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="end"):
    """Everything was healed at `healed`. `holders` are each partition's replicas; `problems` what never came right."""

    healed: float
    converged: float
    holders: dict[int, tuple[str, ...]]
    problems: tuple[str, ...] = ()


Entry = Op | Told | Fault | Held | End
_decode = msgspec.json.Decoder(Entry).decode
_encode = msgspec.json.Encoder().encode


class History:
    """A recorded run. `ops` are in the order in which they were called, `told` in the order of arrival."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        everything = list(entries)
        self.ops = sorted((one for one in everything if isinstance(one, Op)), key=lambda op: op.call)
        self.told = sorted((one for one in everything if isinstance(one, Told)), key=lambda told: told.at)
        self.faults = [one for one in everything if isinstance(one, Fault)]
        self.held = [one for one in everything if isinstance(one, Held)]
        self.end = next((one for one in everything if isinstance(one, End)), None)

    @classmethod
    def read(cls, paths: Iterable[Path]) -> History:
        """The history of these files; the last line of a process that was killed may be half a one."""
        return cls(entry for path in paths for entry in _lines(path))

    def final(self) -> dict[str, Held]:
        """Memory by id, as the end has it; where replicas differ, as one of them has it (`convergence` complains)."""
        return {held.id: held for held in self.held}

    @property
    def lossy(self) -> bool:
        """Was a disk rolled back? Then a write that one replica had may be gone."""
        return any(fault.what == "rollback" for fault in self.faults)


def _lines(path: Path) -> Iterator[Entry]:
    for line in path.read_bytes().splitlines():
        try:
            yield _decode(line)
        except msgspec.DecodeError:
            continue


class Recorder:
    """Appends entries to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("ab")

    def add(self, entry: Entry) -> None:
        self._file.write(_encode(entry) + b"\n")

    def close(self) -> None:
        self._file.close()
