"""Which path shows what. All of it is read-only, and all of it is about this one node.

/         a page for people             /health   200 when it serves, else 503, with its state
/status   the node's report, as in `spine status --json`
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

import msgspec

from crdt_spine.http.connection import Answer, failure
from crdt_spine.http.page import page_of

METHODS = ("GET", "HEAD")
PATH_SHOWN_CHARACTERS = 64  # of one that there is not, in the error
#: The page is made here and loads nothing, so nothing else may run in it, should something ever get past the escaping.
PAGE_POLICY = ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")


class Pages:
    """The application of a node's listener.

    `state` says the node's state at any time, `report` gives its report as JSON; `urls` says where the listeners of the
    cluster's nodes are, for the page's links.
    """

    def __init__(
        self, id: str, state: Callable[[], str], report: Callable[[], Awaitable[bytes]], urls: Mapping[str, str]
    ) -> None:
        self._id = id
        self._state = state
        self._report = report
        self._urls = urls
        self._routes = {"/": self._page, "/health": self._health, "/status": self._status}

    async def answer(self, method: str, target: str) -> Answer:
        """The answer to one request."""
        path = _path_of(target)
        handler = self._routes.get(path)
        if handler is None:
            *others, last = self._routes
            shown = path[:PATH_SHOWN_CHARACTERS] + ("…" if len(path) > PATH_SHOWN_CHARACTERS else "")
            return failure(HTTPStatus.NOT_FOUND, f"there is no {shown}; there are {', '.join(others)} and {last}")
        if method not in METHODS:
            allow = ("Allow", ", ".join(METHODS))
            return failure(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {' and '.join(METHODS)} only", allow)
        return await handler()

    async def _health(self) -> Answer:
        state = self._state()
        status = HTTPStatus.OK if state == "up" else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status, msgspec.json.encode({"status": state, "node": self._id}) + b"\n")

    async def _status(self) -> Answer:
        return Answer(HTTPStatus.OK, await self._report() + b"\n")

    async def _page(self) -> Answer:
        text = page_of(msgspec.json.decode(await self._report()), self._urls)
        return Answer(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8", (PAGE_POLICY,))


def _path_of(target: str) -> str:
    """Without the query, and without scheme and host, which a proxy's request has."""
    if target[:7].lower() == "http://":
        target = "/" + target[7:].partition("/")[2]
    return target.partition("?")[0]
