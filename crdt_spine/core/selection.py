"""Which memories a query or a subscription means: one predicate, used in both places and for what is not on disk yet.

The SQL of storage must answer as `Selection.matches` does; a property test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec


class Selection(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """All conditions must hold; an empty selection means every memory.

    `since` (inclusive) and `until` (exclusive) are creation times as hybrid-clock integers (milliseconds << 16).
    `metadata` asks for equality of each named key's JSON value.
    """

    tags: tuple[str, ...] = ()
    any_tags: tuple[str, ...] = ()
    not_tags: tuple[str, ...] = ()
    agent: str | None = None
    thread: str | None = None
    since: int | None = None
    until: int | None = None
    metadata: dict[str, Any] = {}

    def matches(
        self, tags: Collection[str], agent: str, thread: str | None, created: int, metadata: Mapping[str, Any]
    ) -> bool:
        """Does a memory with these properties belong to the selection?"""
        return (
            (self.agent is None or self.agent == agent)
            and (self.thread is None or self.thread == thread)
            and all(tag in tags for tag in self.tags)
            and (not self.any_tags or any(tag in tags for tag in self.any_tags))
            and not any(tag in tags for tag in self.not_tags)
            and (self.since is None or created >= self.since)
            and (self.until is None or created < self.until)
            and all(key in metadata and _equal(metadata[key], value) for key, value in self.metadata.items())
        )


def _equal(one: Any, other: Any) -> bool:
    """JSON equality: numbers by value, but a truth value is no number (in Python True == 1)."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
