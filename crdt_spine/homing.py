"""Where a new memory is to lie, and where to look for those of an agent or with a tag (docs/placement.md).

A cluster's `placement` says by which key a generated id is placed: `hash`, one of its own; `agent`; or `tag`, the
primary tag. Under the last two a query by that key asks its home partition, and then those others, if any, of which the
node that answered can't say that they have no stray (core/strays.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Set

import msgspec

from crdt_spine.core.messages import Query, Result
from crdt_spine.core.placement import placement_hash
from crdt_spine.core.strays import home, query_keys
from crdt_spine.session import Session


def placement_key(placement: str, agent: str, tags: Iterable[str], given: object) -> str | None:
    """The key of a new memory; None: any place will do. Its primary tag is the first of its `tags` as they were
    `given`; of a set, which has no order, the smallest."""
    if placement == "agent":
        return agent
    if placement == "tag":
        return min(tags, default=None) if isinstance(given, Set) else next(iter(tags), None)
    return None


async def query(session: Session, query: Query, *, use_token: bool) -> list[Result]:
    """The pages of the fewest nodes that have everything a query may mean. Raises as `Session.query` does."""
    hello, partitions = session.hello, session.layout.partitions
    keys = query_keys(hello.placement, query.selection)
    if not keys or len(session.routing.cover()) == 1:
        return await session.query(query, use_token=use_token)
    homes = {home(key, partitions) for key in keys}
    shown = {number: vector for number, vector in session.strays.items() if use_token and number not in homes}
    narrow = msgspec.structs.replace(query, keys=tuple(map(placement_hash, keys)), strays=shown)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + session.timeout
    results = await session.query(narrow, use_token=use_token, partitions=homes)
    others = {number for result in results for number in result.elsewhere} - homes
    if others:
        left = max(deadline - loop.time(), 0.001)
        results += await session.query(query, use_token=use_token, partitions=others, timeout=left)
    return results
