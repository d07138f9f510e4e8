"""A link between one process and the broker that can go wrong: a TCP proxy on loopback.

cut        every connection is reset, new ones are refused by a reset
delay      every piece of data comes later, in both directions
stall      one direction stands still; what was sent comes late, once it is healed
half-open  nothing passes and nobody is told; once healed, the connections turn out to be dead
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Literal

Mode = Literal["pass", "cut", "delay", "stall-in", "stall-out", "half-open"]
DELAY_SECONDS = 0.05
CHUNK_BYTES = 64 * 1024


class Link:
    """Use `open`. `url` is what the process is to connect to; `mode` is how it is now."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.mode: Mode = "pass"
        self.port = port  # the broker's
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.url = ""

    @property
    def own_port(self) -> int:
        """Where the process connects to."""
        return int(self.url.rpartition(":")[2])

    @classmethod
    async def open(cls, name: str, port: int = 0) -> Link:
        """A link to the broker at this port of loopback."""
        link = cls(name, port)
        link._server = await asyncio.start_server(link._serve, "127.0.0.1", 0)
        link.url = f"nats://127.0.0.1:{link._server.sockets[0].getsockname()[1]}"
        return link

    def set(self, mode: Mode) -> None:
        """From now on it is so."""
        before, self.mode = self.mode, mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode == "cut" or before == "half-open":
            for pair in list(self._pairs):
                for writer in pair:
                    _reset(writer)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up: asyncio.StreamWriter | None = None
        try:
            if self.mode == "cut":
                return
            up_reader, up = await asyncio.open_connection("127.0.0.1", self.port)
            pair = (writer, up)
            self._pairs.add(pair)
            pumps = [
                asyncio.ensure_future(self._pump(reader, up, "stall-out")),
                asyncio.ensure_future(self._pump(up_reader, writer, "stall-in")),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._pairs.discard(pair)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in (writer, up):
                if one is not None:
                    _reset(one)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stall: Mode) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                while self.mode in (stall, "half-open"):
                    await self._changed.wait()
                if self.mode == "delay":
                    await asyncio.sleep(DELAY_SECONDS)
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a machine does that knows nothing of it."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
