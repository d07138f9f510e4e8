"""The nodes' HTTP ports, kept from everybody else until the nodes are gone.

A port that was free may be anybody's a moment later: another cluster's, or that of some connection that goes out. So
sockets stay bound to them that never listen. On Linux a node can listen beside such a socket (both have SO_REUSEADDR),
nobody is given the port by chance, and a connection to a node that is down is refused, as it should be. Elsewhere the
node could not, so there they are only looked at.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

from crdt_spine.http.address import bind

ADVICE = "choose another with --http-port (0 is a free one)"


class Ports:
    """What one supervisor holds, until `release`."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def take(self, places: Sequence[tuple[str, int]]) -> list[int]:
        """Hold these ports of these hosts, instead of what was held before; 0 is a free one. Raises ConfigError; then
        none is held."""
        self.release()
        ports = []
        try:
            for host, port in places:
                bound = bind(host, port, ADVICE)
                self._sockets += bound
                ports.append(int(bound[0].getsockname()[1]))
        except BaseException:
            self.release()
            raise
        if sys.platform != "linux":
            self.release()
        return ports

    def release(self) -> None:
        """May be called again."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()
