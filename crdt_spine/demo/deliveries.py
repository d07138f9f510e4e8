"""What a subscription had to bring, and what it brought.

A memory that fits when it is stored comes as stored, exactly once, also when the feed moves to another node in the
middle. An update comes at most once; several may come as one where the feed had to catch up, so updates are not
counted against the writes. Instead the last that the subscriber saw of each memory must look as it does on the nodes,
and no version may come twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from crdt_spine.demo.ledger import Feed, Write
from crdt_spine.memory import Memory


class Account(msgspec.Struct):
    """One subscription. `expected`: the memories that had to come as stored; `stored`: how many of them did;
    `slowest_seconds`: the longest that one of these took from its acknowledgement until it was here."""

    expected: int
    stored: int
    slowest_seconds: float
    problems: list[str]


def expected_stored(feed: Feed, writes: Sequence[Write]) -> set[str]:
    """The ids that must come as stored: acknowledged stores that fit the subscription as they were stored."""
    return set(_expected(feed, writes))


def complete(feed: Feed, writes: Sequence[Write]) -> bool:
    """Has everything come that must come as stored?"""
    came = {delivery.memory.id for delivery in feed.deliveries if delivery.kind == "stored"}
    return expected_stored(feed, writes) <= came


def current(feed: Feed, final: Mapping[str, Memory]) -> bool:
    """Is the last that came of each memory what a node has?"""
    return not _outdated(feed, final)


def account(feed: Feed, writes: Sequence[Write], final: Mapping[str, Memory]) -> Account:
    """Hold a subscription against the writes and against what the nodes have in the end."""
    expected = _expected(feed, writes)
    stored = Counter(delivery.memory.id for delivery in feed.deliveries if delivery.kind == "stored")
    versions = Counter((delivery.memory.id, delivery.memory.version) for delivery in feed.deliveries)
    where = f"{feed.agent}, {feed.follow}"
    problems = [f"{where}: {id} was not delivered" for id in sorted(expected.keys() - stored.keys())]
    problems += [f"{where}: {id} came {n} times as stored" for id, n in stored.items() if n > 1]
    problems += [f"{where}: {id} came {n} times at one version" for (id, _), n in versions.items() if n > 1]
    problems += [
        f"{where}: {delivery.memory.id} came and does not belong to it"
        for delivery in feed.deliveries
        if not feed.follow.matches(delivery.memory)
    ]
    problems += [f"{where}: the last update of {id} did not come" for id in _outdated(feed, final)]
    slowest = max(
        (d.at - expected[d.memory.id] for d in feed.deliveries if d.memory.id in expected and d.kind == "stored"),
        default=0.0,
    )
    return Account(len(expected), len(expected.keys() & stored.keys()), max(0.0, slowest), problems)


def _expected(feed: Feed, writes: Sequence[Write]) -> dict[str, float]:
    """What must come as stored, and when it was acknowledged."""
    return {
        write.id: write.ended
        for write in writes
        if write.kind == "store" and write.memory is not None and feed.follow.matches(write.memory)
    }


def _outdated(feed: Feed, final: Mapping[str, Memory]) -> list[str]:
    last = {delivery.memory.id: _seen(delivery.memory) for delivery in feed.deliveries}
    return [id for id, memory in final.items() if feed.follow.matches(memory) and last.get(id) != _seen(memory)]


def _seen(memory: Memory) -> Memory:
    """What a reader sees of it: a write that changes nothing need not be told, but makes another version."""
    return msgspec.structs.replace(memory, version="", updated_at=memory.created_at)
