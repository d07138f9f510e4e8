"""A cell in JetStream's key-value format: a stream KV_<bucket> whose subject $KV.<bucket>.<key> has one last message.

    write   a publish that names the sequence of the message which it replaces; the stream's leader decides
    read    the last message, asked of the leader
    watch   a plain subscription to the subject: it hears attempts that JetStream then refuses, and nothing that came
            while the connection was gone, so it only says "look"

The key-value helpers of the client are passed by: their `create` fails in some buckets, and after a lost answer they
report a write that succeeded as refused. Here a value that is found to be there was written, whoever's it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, Header, StorageType, StreamConfig

from crdt_spine.errors import ConfigError, ConnectionFailed
from crdt_spine.transport.base import Disconnected, Kept

log = logging.getLogger(__name__)

ANSWER_SECONDS_MAX = 2.0
OPEN_SECONDS_MAX = 15.0  # brokers that start may have no leader for a while
ATTEMPTS = 3  # of one write whose answers are lost

_WRONG_LAST_SEQUENCE = (10071, 10164)
_NO_MESSAGE, _NO_STREAM = 10037, 10059
_NOT_ENABLED = (10039, 10076)  # for the account, for the server


class _Watch:
    def __init__(self, subscription: Any) -> None:
        self._subscription = subscription

    async def cancel(self) -> None:
        await self._subscription.unsubscribe()


class NatsCell:
    """A `Cell`; use `open`."""

    def __init__(self, client: Client, url: str, bucket: str, key: str, replicas: int) -> None:
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=ANSWER_SECONDS_MAX)
        self._url = url
        self._stream = f"KV_{bucket}"
        self._subject = f"$KV.{bucket}.{key}"
        self._config = StreamConfig(
            name=self._stream, subjects=[f"$KV.{bucket}.>"], max_msgs_per_subject=1, num_replicas=replicas,
            storage=StorageType.FILE, discard=DiscardPolicy.NEW, allow_rollup_hdrs=True, deny_delete=True,
            allow_direct=True,
        )  # fmt: skip

    @classmethod
    async def open(cls, client: Client, url: str, bucket: str, key: str, replicas: int) -> NatsCell:
        """See that there is the bucket. Raises ConfigError, ConnectionFailed."""
        cell = cls(client, url, bucket, key, replicas)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + OPEN_SECONDS_MAX
        while True:
            try:
                await cell._make()
                return cell
            except (Disconnected, TimeoutError) as error:
                if loop.time() >= deadline:
                    raise ConnectionFailed(
                        f"JetStream at {url} did not answer within {OPEN_SECONDS_MAX:g} s ({error!r}); the cluster's "
                        "membership is kept there: see that the broker, or most of a broker cluster, is up"
                    ) from error
            await asyncio.sleep(0.2)

    async def _make(self) -> None:
        """The bucket, unless it is there. Raises ConfigError, Disconnected, TimeoutError."""
        try:
            try:
                await self._js.stream_info(self._stream)
            except nats.js.errors.NotFoundError:
                await self._js.add_stream(self._config)
        except nats.js.errors.APIError as error:
            if error.err_code in _NOT_ENABLED or not self._enabled:
                raise self._missing() from error
            if error.code == 400:
                raise ConfigError(f"the broker at {self._url} refuses the bucket {self._stream}: {error}") from error
            raise Disconnected(f"{self._url}: {error}") from error
        except (nats.errors.Error, nats.js.errors.Error) as error:
            if not self._enabled:
                raise self._missing() from error
            raise self._told(error) from error

    @property
    def _enabled(self) -> bool:
        """Does the server that this is connected to say that it has JetStream?"""
        return bool(self._client._server_info.get("jetstream"))

    def _missing(self) -> ConfigError:
        return ConfigError(
            f"the broker at {self._url} has no JetStream, in which a cluster keeps who belongs to it: start "
            "nats-server with -js, or with a jetstream block in its configuration, or let `spine up` start one"
        )

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, nats.errors.TimeoutError):
            return TimeoutError(f"JetStream at {self._url} did not answer within {ANSWER_SECONDS_MAX:g} s")
        return Disconnected(f"{self._url}: {error!r}")

    # -- the cell ---------------------------------------------------------------------------------------------------

    async def read(self) -> Kept | None:
        try:
            message = await self._js.get_msg(self._stream, subject=self._subject)
        except nats.js.errors.APIError as error:
            if error.err_code == _NO_MESSAGE:
                return None
            if error.err_code == _NO_STREAM:  # the broker lost its disk
                await self._make()
                return None
            raise Disconnected(f"{self._url}: {error}") from error
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise self._told(error) from error
        assert message.seq is not None
        return Kept(message.data or b"", message.seq)

    async def write(self, value: bytes, revision: int) -> bool:
        problem: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                await self._js.publish(
                    self._subject, value, stream=self._stream,
                    headers={str(Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value): str(revision)},
                )  # fmt: skip
                return True
            except nats.js.errors.APIError as error:
                if error.err_code not in _WRONG_LAST_SEQUENCE:
                    raise Disconnected(f"{self._url}: {error}") from error
                kept = await self.read()  # an earlier attempt of ours may be what is there
                return kept is not None and kept.value == value
            except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
                problem = error
                log.info("not known whether %s was written: %r", self._subject, error)
        assert problem is not None
        raise self._told(problem) from problem

    async def watch(self, on_change: Callable[[], None]) -> _Watch:
        async def take(message: Msg) -> None:
            on_change()

        return _Watch(await self._client.subscribe(self._subject, cb=take))
