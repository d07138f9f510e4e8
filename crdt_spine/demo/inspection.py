"""Asks one node, alone and as it is.

An agent's session goes wherever the answer is to be had, and waits until that replica has what the session saw. Whoever
wants to know what a *certain* node has must name it as the only candidate, and bring no token.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from crdt_spine.core.messages import Get, Query, Status
from crdt_spine.core.selection import Selection
from crdt_spine.errors import SpineError
from crdt_spine.limits import QUERY_LIMIT_MAX
from crdt_spine.memory import Memory
from crdt_spine.session import Session
from crdt_spine.transport.nats import NatsTransport

REPORT_SECONDS_MAX: Final = 0.5
CONNECT_SECONDS_MAX: Final = 4.0

_decode_memory = msgspec.json.Decoder(Memory).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class Inspector:
    """`async with Inspector(url)`."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Self:
        self._transport = await NatsTransport.connect(self._url, "spine demo", CONNECT_SECONDS_MAX)
        try:
            self._session = await Session.discover(self._transport, "demo", timeout=CONNECT_SECONDS_MAX)
        except BaseException:
            await self._transport.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._transport.close()

    @property
    def nodes(self) -> list[str]:
        return [node.id for node in self._session.hello.nodes]

    async def report(self, node: str) -> dict[str, Any] | None:
        """The node's own report; None where it does not answer."""
        try:
            result = await self._session.run(
                Status(i=self._session.number()), (node,), use_token=False, timeout=REPORT_SECONDS_MAX
            )
        except SpineError:
            return None
        report: dict[str, Any] = msgspec.json.decode(result.status)
        return report

    async def all_memories(self, node: str) -> dict[str, Memory]:
        """Everything that this node has, page by page. Raises SpineError."""
        found: dict[str, Memory] = {}
        after: tuple[int, str] | None = None
        while True:
            page = Query(
                i=self._session.number(), selection=Selection(), order="oldest", limit=QUERY_LIMIT_MAX, after=after
            )
            result = await self._session.run(page, (node,), use_token=False)
            hits = result.hits or []
            for hit in hits:
                found[hit.id] = _decode_memory(hit.memory)
            if not result.more or not hits:
                return found
            after = (hits[-1].created, hits[-1].id)

    async def get(self, node: str, ids: Iterable[str]) -> dict[str, Memory]:
        """Those of the memories that this node alone can read, each asked for by its id. Raises SpineError."""

        async def one(id: str) -> tuple[str, Memory | None]:
            result = await self._session.run(Get(i=self._session.number(), id=id), (node,), use_token=False)
            return id, _decode_memory(result.memory) if result.memory else None

        answers = await asyncio.gather(*map(one, ids))
        return {id: memory for id, memory in answers if memory is not None}


def digest(memories: Mapping[str, Memory]) -> str:
    """One text for a node's whole content: equal contents, versions included, give equal texts."""
    sha = hashlib.sha256()
    for id in sorted(memories):
        sha.update(_encode(memories[id]))
    return sha.hexdigest()
