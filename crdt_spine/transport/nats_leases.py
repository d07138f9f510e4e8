"""What locks are kept in (core/locks.py): a JetStream stream whose messages end by themselves.

The stream's *epoch* is in its metadata and in its subjects. So it comes into being together with the stream, and what
somebody publishes who knows only a former stream of this name reaches nothing. Of a cluster of brokers, three keep it.

    put    a publish under a condition on the last message of a subject, or of all subjects of a lock; the stream's
           leader decides. The time after which it ends is counted in whole seconds there
    drop   without the overwriting that JetStream otherwise does: five times as quick. It names a sequence and nothing
           else. So that a holder whose stream is gone does not delete somebody else's lease in the next one, each
           epoch's sequences begin elsewhere (`first_sequence`)

**The anchor.** What is published lies in blocks, and JetStream replaces a block of which nothing is left by a new file;
it does so before it answers the delete that emptied it. A lock that nobody else wants would pay for that with every
release. So one message that means nothing is kept in the newest block, and published anew from time to time, as blocks
follow one another. Nothing depends on it: without it, a release takes longer.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsPySubscription
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, Header, StorageType, StreamConfig

from crdt_spine.core.fences import SEQUENCE_BITS
from crdt_spine.core.locks import Kept
from crdt_spine.errors import ConfigError
from crdt_spine.limits import LOCK_MESSAGES_MAX
from crdt_spine.transport.base import Disconnected, LeasesGone, Subscription

ANSWER_SECONDS_MAX: Final = 2.0
CLUSTERED_REPLICAS: Final = 3
ANCHOR: Final = "anchor"  # its path; a lock's have a dot
ANCHOR_EVERY: Final = 256  # messages: a block of 4 MiB holds some ten thousand

_EXPECTED: Final = str(Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value)
_EPOCHS_APART_BITS: Final = 12
_EPOCH: Final = "crdt_spine_epoch"
_REFUSED: Final = (10071, 10164)  # wrong last sequence
_NO_MESSAGE: Final = (10037, 10057)
_NO_STREAM: Final = 10059
_NOT_ENABLED: Final = (10039, 10076)  # for the account, for the server
_NOT_CLUSTERED: Final = 10074
_FULL: Final = 10077
_SECONDS: Final = re.compile(rb"Nats-TTL: *(\d+)", re.IGNORECASE)


class _Hearing:
    def __init__(self, subscription: NatsPySubscription) -> None:
        self._subscription = subscription

    async def cancel(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()


class NatsLeases:
    """A `Leases` of one cluster. `replicas` None: three on a cluster of brokers, else one."""

    def __init__(self, client: Client, url: str, cluster: str, replicas: int | None = None) -> None:
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=ANSWER_SECONDS_MAX)
        self._url = url
        self._stream = f"spine_locks_{cluster}"
        self._root = f"spine.{cluster}.leases"
        self._prefix = ""
        self._replicas = replicas

    # -- the stream itself ------------------------------------------------------------------------------------------

    async def find(self) -> tuple[int, int] | None:
        try:
            info = await self._js.stream_info(self._stream)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise self._told(error) from error
        epoch = (info.config.metadata or {}).get(_EPOCH, "")
        return (int(epoch) if epoch.isdigit() else 0), info.state.last_seq

    async def make(self, epoch: int) -> None:
        replicas = self._replicas or (CLUSTERED_REPLICAS if self._clustered else 1)
        config = StreamConfig(
            name=self._stream, subjects=[f"{self._root}.{epoch}.>"], max_msgs_per_subject=1,
            max_msgs=LOCK_MESSAGES_MAX, num_replicas=replicas, storage=StorageType.FILE, discard=DiscardPolicy.NEW,
            allow_msg_ttl=True, allow_direct=False, metadata={_EPOCH: str(epoch)}, first_seq=first_sequence(epoch),
        )  # fmt: skip
        try:
            await self._js.add_stream(config)
        except nats.js.errors.APIError as error:
            if error.err_code == 10058:  # another one has made it meanwhile; `find` says which
                return
            if error.err_code in _NOT_ENABLED:
                raise ConfigError(
                    f"the broker at {self._url} has no JetStream, in which locks are kept: start nats-server with -js"
                ) from error
            if error.code == 400 or error.err_code == _NOT_CLUSTERED:
                raise ConfigError(
                    f"the broker at {self._url} refuses the stream {self._stream} with {replicas} replicas: {error}; "
                    "it must be nats-server 2.11 or newer, and have as many servers with JetStream"
                ) from error
            raise self._told(error) from error
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise self._told(error) from error

    async def discard(self) -> None:
        try:
            await self._js.delete_stream(self._stream)
        except nats.js.errors.NotFoundError:
            return
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise self._told(error) from error

    def use(self, epoch: int) -> None:
        self._prefix = f"{self._root}.{epoch}."

    @property
    def _clustered(self) -> bool:
        return bool(self._client._server_info.get("cluster"))

    # -- its messages -----------------------------------------------------------------------------------------------

    async def put(self, path: str, value: bytes, expected: int, seconds: int, whole: str = "") -> int | None:
        headers = {_EXPECTED: str(expected), str(Header.MSG_TTL.value): str(seconds)}
        if whole:
            headers[f"{_EXPECTED}-Subject"] = self._prefix + whole
        try:
            acknowledged = await self._js.publish(self._prefix + path, value, stream=self._stream, headers=headers)
            if acknowledged.seq % ANCHOR_EVERY == 1:
                await self._anchor()
            return acknowledged.seq
        except nats.js.errors.NoStreamResponseError as error:
            raise await self._nobody() from error
        except nats.js.errors.APIError as error:
            if error.err_code in _REFUSED:
                return None
            if error.err_code == _FULL:
                message = f"{self._url} keeps {LOCK_MESSAGES_MAX:,} leases and waiters, and no more"
                raise Disconnected(message) from error
            raise self._told(error) from error
        except nats.errors.TimeoutError:
            return None  # it may have been taken: the next look shows it
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise self._told(error) from error

    async def last(self, path: str) -> Kept | None:
        return await self._read({"last_by_subj": self._prefix + path})

    async def first(self, path: str, after: int = 0) -> Kept | None:
        return await self._read({"seq": after + 1, "next_by_subj": self._prefix + path})

    async def drop(self, sequence: int) -> bool:
        answer = await self._ask("MSG.DELETE", {"seq": sequence, "no_erase": True})
        return "error" not in answer

    async def hear(self, path: str, heard: Callable[[str], None]) -> Subscription:
        async def take(message: Msg) -> None:
            _, _, published = message.subject.removeprefix(f"{self._root}.").partition(".")  # the epoch's
            heard(published)

        subscription = await self._client.subscribe(f"{self._root}.*.{path}", cb=take)
        return _Hearing(subscription)

    async def paths(self) -> list[str]:
        found = await self.find()
        if found is None or self._prefix != f"{self._root}.{found[0]}.":
            raise LeasesGone
        try:
            info = await self._js.stream_info(self._stream, subjects_filter=f"{self._prefix}>")
        except (nats.errors.Error, nats.js.errors.Error, OSError) as error:
            raise self._told(error) from error
        paths = [subject.removeprefix(self._prefix) for subject in info.state.subjects or {}]
        return [path for path in paths if path != ANCHOR]

    async def _anchor(self) -> None:
        """Have the anchor here. Nobody waits for it to be there, and it is not missed if it is lost."""
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._client.publish(self._prefix + ANCHOR)

    async def _read(self, what: dict[str, Any]) -> Kept | None:
        answer = await self._ask("MSG.GET", what)
        if "error" in answer:
            if answer["error"].get("err_code") in _NO_MESSAGE:
                return None
            raise Disconnected(f"{self._url}: {answer['error']}")
        message = answer["message"]
        return Kept(message["seq"], base64.b64decode(message.get("data", "")), _left(message))

    async def _ask(self, what: str, question: dict[str, Any]) -> dict[str, Any]:
        """An answer of JetStream, errors included, from the leader. Raises LeasesGone, Disconnected, TimeoutError."""
        try:
            message = await self._client.request(
                f"$JS.API.STREAM.{what}.{self._stream}", json.dumps(question).encode(), timeout=ANSWER_SECONDS_MAX
            )
        except (nats.errors.Error, OSError) as error:
            raise self._told(error) from error
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer and answer["error"].get("err_code") == _NO_STREAM:
            raise LeasesGone
        return answer

    async def _nobody(self) -> Exception:
        """Nobody takes what is published: is the stream another one by now, or has it no leader at the moment?"""
        found = await self.find()
        if found is None or self._prefix != f"{self._root}.{found[0]}.":
            return LeasesGone()
        return Disconnected(f"{self._url}: the stream {self._stream} has no leader")

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, nats.errors.TimeoutError):
            return TimeoutError(f"JetStream at {self._url} did not answer within {ANSWER_SECONDS_MAX:g} s")
        return Disconnected(f"{self._url}: {error!r}")


def first_sequence(epoch: int) -> int:
    """Where the sequences of an epoch begin: two hundred million messages away from those of any other one but the one
    four thousand epochs before."""
    return ((epoch % (1 << _EPOCHS_APART_BITS)) << (SEQUENCE_BITS - _EPOCHS_APART_BITS)) + 1


def _left(message: dict[str, Any]) -> float | None:
    """In how many seconds a message ends, if the server's clock is ours."""
    seconds = _SECONDS.search(base64.b64decode(message.get("hdrs", "")))
    if seconds is None:
        return None
    ttl = int(seconds[1])
    age = time.time() - datetime.fromisoformat(message["time"]).timestamp()
    return round(min(max(ttl - age, 0.0), ttl), 1)
