"""All connections of a node's HTTP listener. While nobody is connected it is a socket in the event loop, nothing else.

Too many connections: the one that has waited longest for its client gives way, if it has waited a while; else the
newcomer is refused. So clients that connect and say nothing, or next to nothing, do not keep a health check out.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from crdt_spine.http.connection import Application, Connection
from crdt_spine.limits import HTTP_CONNECTIONS_MAX, HTTP_YIELD_SECONDS_MIN


class Listener:
    """Serves `application` on bound sockets from `start` to `close`, in the running event loop."""

    def __init__(self, sockets: Sequence[socket.socket], application: Application) -> None:
        self._sockets = sockets
        self._application = application
        self._servers: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._closed = False

    async def start(self) -> None:
        """From here on who connects is answered."""
        loop = asyncio.get_running_loop()
        for one in self._sockets:
            server = await loop.create_server(
                lambda: Connection(self._application, self), sock=one, backlog=HTTP_CONNECTIONS_MAX
            )
            self._servers.append(server)

    def close(self) -> None:
        """End every connection at once and free the port. May be called again."""
        self._closed = True
        for server in self._servers:
            server.close()
        for one in self._sockets:
            one.close()
        for connection in tuple(self._connections):
            connection.end()

    # -- what connections ask -----------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> bool:
        """Is there room for it? Then it is known until it says `forget`."""
        if self._closed or (len(self._connections) >= HTTP_CONNECTIONS_MAX and not self._make_room()):
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def _make_room(self) -> bool:
        waiting = [(one.waiting_since, one) for one in self._connections if one.waiting_since is not None]
        since, longest = min(waiting, key=lambda pair: pair[0], default=(None, None))
        if longest is None or since is None or asyncio.get_running_loop().time() - since < HTTP_YIELD_SECONDS_MIN:
            return False
        longest.end()
        self._connections.discard(longest)
        return True
