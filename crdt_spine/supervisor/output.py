"""What a child prints: kept in a bounded log, searched for the line that says that it serves.

The child writes into a pipe and not into the file, so that the file can be rotated under a child that knows nothing of
it. A disk that takes no more loses log lines and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import BinaryIO

from crdt_spine.limits import LOG_BYTES_MAX, LOG_LINE_BYTES_MAX

READ_BYTES = 64 * 1024
DRAIN_SECONDS_MAX = 0.5  # the pipe ends with the child, unless the child left one of its own behind
LINES_REMEMBERED = 8  # for the message about a child that ended


def says_ready(line: str, name: str) -> bool:
    """Is this the line in which the child `name` says that it serves: `ready NAME`, perhaps with more behind it?"""
    return line.split()[:2] == ["ready", name]


class BoundedLog:
    """A file that is appended to, and moved to `….1` when it is full."""

    def __init__(self, path: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._file: BinaryIO | None = None
        self._size = 0
        self.bytes_lost = 0

    def write(self, data: bytes) -> None:
        try:
            if self._file is not None and self._size + len(data) > self._bytes_max:
                self.close()
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
                self._size = self._file.tell()
            self._size += self._file.write(data)
        except OSError:
            self.bytes_lost += len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class ChildOutput:
    """Reads a child's output to its end. `ready` is set once it said so, `ended` once there will be no more."""

    def __init__(self, name: str, reader: asyncio.StreamReader, log: BoundedLog) -> None:
        self.name = name
        self.log = log
        self.ready = asyncio.Event()
        self.last_lines: deque[str] = deque(maxlen=LINES_REMEMBERED)
        self._reader = reader
        self._partial = b""
        self._task = asyncio.get_running_loop().create_task(self._pump(), name=f"output-{name}")

    async def ended(self) -> None:
        """Wait until all of it has been read, of a child that has exited."""
        await asyncio.wait([self._task], timeout=DRAIN_SECONDS_MAX)
        self._task.cancel()

    async def _pump(self) -> None:
        try:
            while data := await self._reader.read(READ_BYTES):
                self.log.write(data)
                self._look_at(data)
        finally:
            self.log.close()

    def _look_at(self, data: bytes) -> None:
        *lines, partial = (self._partial + data).split(b"\n")
        self._partial = partial[-LOG_LINE_BYTES_MAX:]
        for line in lines:
            text = line[:LOG_LINE_BYTES_MAX].decode("utf-8", "replace").rstrip()
            if text:
                self.last_lines.append(text)
            if says_ready(text, self.name):
                self.ready.set()
