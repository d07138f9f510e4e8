"""Where an HTTP listener is: its address for people, and its sockets, taken before anything else is done."""

from __future__ import annotations

import errno
import os
import socket

from crdt_spine.errors import ConfigError
from crdt_spine.limits import HTTP_CONNECTIONS_MAX


def url_of(host: str, port: int) -> str:
    """What a browser is given."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int, advice: str) -> list[socket.socket]:
    """As `bind`, and listening: who connects waits until a `Listener` is there."""
    return _sockets(host, port, advice, listening=True)


def bind(host: str, port: int, advice: str) -> list[socket.socket]:
    """Sockets of all addresses that `host` has here, bound and not listening; port 0 is a free one.

    Raises ConfigError where the port is in use (then "…, or" and `advice`) or the host is none of this machine's. An
    address of several that this machine does not have is left out.
    """
    return _sockets(host, port, advice, listening=False)


def _sockets(host: str, port: int, advice: str, *, listening: bool) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: a part of the name is longer than 63 characters
        raise ConfigError(_elsewhere(host)) from error
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    for family, place in dict.fromkeys((family, place) for family, _, _, _, place in found):
        try:
            sockets.append(_socket(family, place, listening))
        except OSError as error:
            problem = error
            if error.errno == errno.EADDRINUSE:
                break
    if problem is None or (sockets and problem.errno != errno.EADDRINUSE):
        return sockets
    for one in sockets:
        one.close()
    raise ConfigError(_reason(host, port, problem, advice)) from problem


def _socket(family: int, place: tuple[object, ...], listening: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # else the port of a node that just ended could not be taken for a minute
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(place)
        if listening:
            one.listen(HTTP_CONNECTIONS_MAX)
    except BaseException:
        one.close()
        raise
    return one


def _reason(host: str, port: int, error: OSError, advice: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: stop what listens there, or {advice}"
    if error.errno == errno.EADDRNOTAVAIL:
        return _elsewhere(host)
    return f"port {port} of {host} can't be listened on ({error.strerror}): {advice}"


def _elsewhere(host: str) -> str:
    return f"{host} is no address of this machine: name one as the node's host in cluster.yaml (0.0.0.0 is all of them)"
