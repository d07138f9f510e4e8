"""Who is there: every node answers on one subject with its cluster's description."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import msgspec

from crdt_spine.core.messages import Hello, Unreadable
from crdt_spine.core.subjects import DISCOVERY_SUBJECT
from crdt_spine.errors import ConfigError, ConnectionFailed
from crdt_spine.transport.base import Message, Transport

ASK_SECONDS = 0.2  # between two questions, while nobody answers
OTHERS_SECONDS = 0.02  # after the first answer: another cluster's nodes on this broker may be a little later

_decode_hello = msgspec.json.Decoder(Hello).decode


async def discover(transport: Transport, cluster: str | None, timeout: float, *, epoch: int = 0) -> Hello:
    """The description of the cluster behind a transport; `cluster` names it where there may be several.

    Somebody knows that there is an `epoch`: nodes that have not heard of it yet are not listened to, unless all of them
    say the same for `timeout` seconds; then it is the newest that there is.

    Raises ConnectionFailed: no node answers within `timeout` seconds; ConfigError: several clusters do.
    """
    hellos: dict[str, Hello] = {}
    heard = asyncio.Event()

    def take(message: Message) -> None:
        with contextlib.suppress(*Unreadable):
            if not message.nobody:
                hello = _decode_hello(message.payload)
                if cluster is None or hello.cluster == cluster:
                    known = hellos.get(hello.cluster)
                    if known is None or known.epoch <= hello.epoch:
                        hellos[hello.cluster] = hello
                    if hello.epoch >= epoch:
                        heard.set()

    inbox = f"_INBOX.spine.{secrets.token_hex(5)}"
    subscription = await transport.subscribe(inbox, take)
    try:
        async with asyncio.timeout(timeout):
            while not heard.is_set():
                transport.send(DISCOVERY_SUBJECT, b"", inbox)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(heard.wait(), ASK_SECONDS)
        if cluster is None:
            await asyncio.sleep(OTHERS_SECONDS)
    except TimeoutError as error:
        if hellos:
            return next(iter(hellos.values()))
        which = f"of cluster {cluster!r}" if cluster else "of any cluster"
        address = getattr(transport, "url", "this address")
        raise ConnectionFailed(
            f"a broker answers at {address}, but no node {which} does within {timeout:.1f} s"
        ) from error
    finally:
        await subscription.cancel()
    if len(hellos) > 1:
        raise ConfigError(f"this broker carries the clusters {sorted(hellos)}: say which, with cluster=")
    return next(iter(hellos.values()))
