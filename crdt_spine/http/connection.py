"""One client's connection: its requests, one after the other, within bounds. The rules of HTTP/1.1 are h11's.

    waiting for a request ──first byte──▶ reading it ──complete──▶ answering ──▶ waiting …
            └──── too long ────┴── wrong, too large, too slow ──▶ refused: told why, then closed

There is one deadline at a time. A byte more does not put it off: a client that sends a byte now and then is refused as
is one that sends nothing. While an answer is being made or the client does not take it, nothing is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol, cast

import h11
import msgspec

from crdt_spine.limits import (
    HTTP_BODY_BYTES_MAX,
    HTTP_HEAD_BYTES_MAX,
    HTTP_IDLE_SECONDS_MAX,
    HTTP_LINGER_SECONDS,
    HTTP_REQUEST_SECONDS_MAX,
)

log = logging.getLogger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """What is sent; to HEAD without the body."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


#: Method and target of a request -> its answer.
Application = Callable[[str, str], Awaitable[Answer]]


def failure(status: HTTPStatus, message: str, *headers: tuple[str, str]) -> Answer:
    """An error as JSON: `error` is the status in words, `message` what to do."""
    return Answer(status, msgspec.json.encode({"error": status.phrase, "message": message}) + b"\n", headers=headers)


class Admission(Protocol):
    """Who knows all connections."""

    def admit(self, connection: Connection) -> bool: ...
    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """A client's. `waiting_since` is when it began to wait for its client, None while an answer is made."""

    def __init__(self, application: Application, admission: Admission) -> None:
        self.waiting_since: float | None = None
        self._application = application
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HTTP_HEAD_BYTES_MAX)
        self._request: h11.Request | None = None
        self._body_bytes = 0
        self._begun = False  # bytes of the next request are here
        self._refused = False
        self._untaken = False  # the client is not reading what was sent
        self._answering: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # -- what the loop tells ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it
        if not self._admission.admit(self):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many connections; try again")
            self._transport.close()
            return
        self._await_client(HTTP_REQUEST_SECONDS_MAX)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._begun and self._answering is None:
            self._begin()
        self._http.receive_data(data)
        self._go_on()

    def eof_received(self) -> bool:
        """True: it may still be answered."""
        if self._refused:
            return False
        self._http.receive_data(b"")
        self._go_on()
        return not self._refused and not self._transport.is_closing()

    def pause_writing(self) -> None:
        self._untaken = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._untaken = False
        if self._answering is None:
            self._transport.resume_reading()
            self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        self._admission.forget(self)
        self._refused = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._answering is not None:
            self._answering.cancel()

    # -- what the listener asks ---------------------------------------------------------------------------------------

    def end(self) -> None:
        """At once; an answer that was not taken yet is lost."""
        self._transport.abort()

    # -- a request ----------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take what has come, as far as there may be a next request."""
        while self._answering is None and not self._untaken and not self._refused:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(_status_of(error), f"the request is no HTTP/1.1 that is understood here: {error}")
                return
            if event is h11.NEED_DATA:
                if not self._begun and (self._request is not None or self._http.trailing_data[0]):  # came ahead
                    self._begin()
                return
            match event:
                case h11.Request():
                    self._take_head(event)
                case h11.Data():
                    self._body_bytes += len(event.data)
                    if self._body_bytes > HTTP_BODY_BYTES_MAX:
                        self._refuse_body()
                case h11.EndOfMessage():
                    assert self._request is not None
                    self.waiting_since = None
                    self._transport.pause_reading()
                    self._answering = self._loop.create_task(self._answer(self._request))
                case _:  # ConnectionClosed, or PAUSED: there is nothing to come that could be answered
                    self._transport.close()
                    return

    def _begin(self) -> None:
        """Bytes of a request are here: from now on it has its time."""
        self._begun = True
        self._set_deadline(HTTP_REQUEST_SECONDS_MAX)

    def _take_head(self, request: h11.Request) -> None:
        self._request = request
        self._body_bytes = 0
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        announced = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
        if size > HTTP_HEAD_BYTES_MAX:  # h11 looks only at one that comes in pieces
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(status, f"line and headers are more than {HTTP_HEAD_BYTES_MAX:,} bytes")
        elif request.http_version not in (b"1.0", b"1.1"):
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 and HTTP/1.1 are understood here")
        elif announced > HTTP_BODY_BYTES_MAX:
            self._refuse_body()
        elif self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))

    async def _answer(self, request: h11.Request) -> None:
        try:
            answer = await self._application(request.method.decode("ascii"), request.target.decode("latin-1"))
        except Exception:
            log.exception("no answer to %r %r", request.method, request.target)
            answer = failure(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a mistake of the node; its log says more")
        self._answering = self._request = None
        if self._transport.is_closing():
            return
        self._send(answer, body=request.method != b"HEAD")
        if self._http.our_state is not h11.DONE:  # the client's wish, or HTTP/1.0
            self._transport.close()
            return
        self._http.start_next_cycle()
        self._begun = False
        self._await_client(HTTP_IDLE_SECONDS_MAX)
        if not self._untaken:
            self._transport.resume_reading()
        self._go_on()

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send(self, answer: Answer, *, body: bool = True, close: bool = False) -> None:
        headers = [
            ("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body))),
            ("Date", formatdate(usegmt=True)), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"),
            *answer.headers,
        ]  # fmt: skip
        if close:
            headers.append(("Connection", "close"))
        response = h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase)
        self._write(response, *([h11.Data(data=answer.body)] if body else []), h11.EndOfMessage())

    def _write(self, *events: h11.Event) -> None:
        """In one piece."""
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Say why, and take no more. What still comes is thrown away for a moment: closing a socket with unread bytes
        resets it, and the client would not get to read the reason."""
        self._refused = True
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(
                failure(status, message), body=self._request is None or self._request.method != b"HEAD", close=True
            )
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._set_deadline(HTTP_LINGER_SECONDS)

    def _refuse_body(self) -> None:
        reason = f"the body is more than {HTTP_BODY_BYTES_MAX:,} bytes; nothing here takes one"
        self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _await_client(self, seconds: float) -> None:
        self.waiting_since = self._loop.time()
        self._set_deadline(seconds)

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self._is_late)

    def _is_late(self) -> None:
        slow = self._begun and self._answering is None and not self._untaken
        if slow and not self._refused and not self._transport.is_closing():
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, f"the request took more than {HTTP_REQUEST_SECONDS_MAX:g} s to come"
            )
        else:
            self._transport.abort()


def _status_of(error: h11.RemoteProtocolError) -> HTTPStatus:
    try:
        return HTTPStatus(error.error_status_hint)
    except ValueError:
        return HTTPStatus.BAD_REQUEST
