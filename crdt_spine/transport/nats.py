"""The transport over a NATS broker: one connection that reconnects for ever and never waits in `send`.

What nats-py would do silently is made visible or impossible here: a payload over the broker's limit closes a client
for good, so it is refused before; a slow handler's messages are dropped, so that is counted; a refused password loops
for ever inside `connect`, so that is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsPySubscription

from crdt_spine.errors import ConnectionFailed, InvalidInput
from crdt_spine.limits import CONNECT_SECONDS_MAX, FRAMING_BYTES_MAX, MESSAGE_BYTES_MAX
from crdt_spine.transport.base import Disconnected, Handler, Message, NobodyListens
from crdt_spine.transport.nats_cell import NatsCell
from crdt_spine.transport.nats_leases import NatsLeases
from crdt_spine.transport.pace import Pace

log = logging.getLogger(__name__)

_NO_RESPONDERS = "503"
_PACE_SECONDS_MAX = 0.001  # between two writes to the socket, if the first ...
_PACE_MESSAGES = 2  # ... had this many messages
_PENDING_BYTES_MAX = 64 * 1024 * 1024  # of one subscription; a handler that is this far behind loses messages


class NatsSubscription:
    def __init__(self, subscription: NatsPySubscription) -> None:
        self._subscription = subscription

    async def cancel(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()


class NatsTransport:
    """Use `connect`. `dropped` counts messages that handlers were too slow for, `lost` those sent while disconnected.

    `closed` is set when the client has given up, which it does on some errors of the broker: then nothing goes on.
    """

    def __init__(self, client: Client, url: str, pace_seconds_max: float = _PACE_SECONDS_MAX) -> None:
        self._client = client
        self._outgoing: list[tuple[str, bytes, str]] = []
        self._sending: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(self._write, pace_seconds_max, _PACE_MESSAGES)
        self.url = _shown(url)
        self.closed = asyncio.Event()
        self.connected_at = self._loop.time()  # the last time
        self.dropped = 0
        self.lost = 0

    @classmethod
    async def connect(
        cls, url: str, name: str, timeout: float = CONNECT_SECONDS_MAX, *, pace_seconds_max: float = _PACE_SECONDS_MAX
    ) -> NatsTransport:
        """Connect within `timeout` seconds. `pace_seconds_max` 0: what is sent never waits for more to travel with it.
        Raises ConnectionFailed with the address, InvalidInput for no NATS URL."""
        check_url(url)
        client = Client()
        transport = cls(client, url, pace_seconds_max)

        async def on_closed() -> None:
            transport.closed.set()

        async def on_reconnected() -> None:
            transport.connected_at = transport._loop.time()

        async def on_error(error: Exception) -> None:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # nats-py was cancelled while it connected, and took that for a failed attempt: it would go on for ever.
                raise asyncio.CancelledError
            if isinstance(error, nats.errors.SlowConsumerError):
                transport.dropped += 1
            failures.append(error)
            del failures[:-1]
            if isinstance(error, nats.errors.Error | OSError):
                log.info("%s: %r", transport.url, error)
            else:  # a handler of ours
                log.error("a handler failed", exc_info=error)

        failures: list[Exception] = []
        try:
            async with asyncio.timeout(timeout):
                options: dict[str, Any] = {"reconnect_time_wait": 0.25, "connect_timeout": max(1, int(timeout / 2))}
                await client.connect(
                    servers=url.split(","),
                    name=name,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    reconnected_cb=on_reconnected,
                    max_reconnect_attempts=-1,
                    ping_interval=10,
                    max_outstanding_pings=2,
                    no_echo=True,
                    **options,
                )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.close(), 1)
            reason = failures[-1] if failures else error
            raise ConnectionFailed(
                f"no NATS broker answered at {transport.url} within {timeout:g} s ({reason or type(reason).__name__}); "
                "is it running? `spine up` starts one"
            ) from error
        return transport

    @property
    def connected(self) -> bool:
        return bool(self._client.is_connected)

    @property
    def payload_bytes_max(self) -> int:
        return min(MESSAGE_BYTES_MAX, int(self._client.max_payload)) - FRAMING_BYTES_MAX

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> NatsSubscription:
        async def take(message: Msg) -> None:
            nobody = message.headers is not None and message.headers.get("Status") == _NO_RESPONDERS
            waiting = handler(Message(message.subject, message.data, message.reply, nobody))
            if waiting is not None:
                await waiting

        subscription = await self._client.subscribe(subject, queue, cb=take, pending_bytes_limit=_PENDING_BYTES_MAX)
        return NatsSubscription(subscription)

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        if not self._client.is_connected:
            self.lost += 1
            return
        if not self._outgoing:
            self._pace.plan()
        self._outgoing.append((subject, payload, reply))

    async def say(self, subject: str, payload: bytes) -> None:
        """Send, and return once the broker has it: whoever is told of it otherwise comes later. Raises Disconnected."""
        try:
            await self._client.publish(subject, payload)
            await self._client.flush(int(CONNECT_SECONDS_MAX))
        except (nats.errors.Error, OSError) as error:
            raise Disconnected(f"{self.url}: {error!r}") from error

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        if not self._client.is_connected:
            raise Disconnected(self.url)
        try:
            answer = await self._client.request(subject, payload, timeout=timeout)
        except nats.errors.NoRespondersError as error:
            raise NobodyListens(subject) from error
        except nats.errors.TimeoutError as error:
            raise TimeoutError(f"{subject} did not answer within {timeout:g} s") from error
        except nats.errors.Error as error:
            raise Disconnected(f"{self.url}: {error}") from error
        return bytes(answer.data)

    async def cell(self, bucket: str, key: str, replicas: int = 1) -> NatsCell:
        """A value in JetStream, on so many of the brokers. Raises ConfigError: the broker has no JetStream;
        ConnectionFailed: it does not answer."""
        return await NatsCell.open(self._client, self.url, bucket, key, replicas)

    def leases(self, cluster: str, replicas: int | None = None) -> NatsLeases:
        """What a cluster's locks are kept in, on so many of the brokers (None: three where that can be)."""
        return NatsLeases(self._client, self.url, cluster, replicas)

    async def close(self) -> None:
        self._write()
        if self._sending is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._sending, 1)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1):
                if self._client.is_connected:
                    await self._client.flush(1)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                await self._client.close()

    def _write(self) -> None:
        if self._sending is None and self._outgoing:
            self._sending = self._loop.create_task(self._send_all())

    async def _send_all(self) -> None:
        publish: Any = self._client.publish
        try:
            while self._outgoing:
                batch, self._outgoing = self._outgoing, []
                self._pace.sent(len(batch))
                for subject, payload, reply in batch:
                    try:
                        await publish(subject, payload, reply)
                    except (nats.errors.Error, OSError) as error:
                        self.lost += 1
                        log.debug("not sent to %s: %r", subject, error)
        finally:
            self._sending = None


def check_url(url: object) -> None:
    """Is this the address of a broker, or several with commas between? Raises InvalidInput."""
    if not isinstance(url, str):
        raise InvalidInput(f"url must be a string such as nats://127.0.0.1:4222, not {type(url).__name__}")
    for one in url.split(","):
        try:
            parts = urlsplit(one)
            usable = parts.scheme in ("nats", "tls", "ws", "wss") and parts.hostname and parts.port != 0
            usable = usable and one.isprintable()
        except ValueError:
            usable = False
        if not usable:
            shown = one.rpartition("@")[2]  # without a password
            raise InvalidInput(f"url: {shown!r} is no broker's address; it looks like nats://127.0.0.1:4222")


def _shown(url: str) -> str:
    """The address without a password."""
    shown = []
    for one in url.split(","):
        parts = urlsplit(one)
        shown.append(f"{parts.scheme}://{parts.hostname}:{parts.port or 4222}")
    return ",".join(shown)
