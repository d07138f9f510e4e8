"""A file or a pipe as numbered lines, without ever having much of it in memory.

A pipe may stay silent for hours, and a thread that waits for it would keep a Ctrl-C from ending the process: so each
read happens in a thread that nobody waits for at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from typing import Final

import msgspec

CHUNK_BYTES: Final = 256 * 1024

#: A line's number, from 1, and its bytes without the newline; None: it is longer than allowed.
Line = tuple[int, bytes | None]


class Lines(msgspec.Struct):
    """Use it as `async for batch in lines`; `bytes_read` is how far it is."""

    descriptor: int
    line_bytes_max: int
    bytes_read: int = 0

    async def __aiter__(self) -> AsyncIterator[list[Line]]:
        number, rest, too_long = 0, b"", False
        while chunk := await _read(self.descriptor):
            self.bytes_read += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            batch: list[Line] = []
            for line in whole:
                number += 1
                batch.append((number, None if too_long or len(line) > self.line_bytes_max else line))
                too_long = False
            if len(rest) > self.line_bytes_max:
                rest, too_long = b"", True  # what follows belongs to this line until its newline
            yield batch
        if rest or too_long:
            yield [(number + 1, None if too_long else rest)]


async def _read(descriptor: int) -> bytes:
    """The next bytes as soon as there are some; empty at the end. Raises OSError."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def settle(data: bytes, error: OSError | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(data)
            else:
                future.set_exception(error)

    def read() -> None:
        data, problem = b"", None
        try:
            data = os.read(descriptor, CHUNK_BYTES)
        except OSError as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, data, problem)

    threading.Thread(target=read, name="read-lines", daemon=True).start()
    return await future
