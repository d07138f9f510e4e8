"""Which level an operation goes at: the caller's word, else what a memory's tags demand, else the default.

Levels are ordered by strictness, eventual < read-your-writes < causal < strong. A cluster's overrides
(`consistency.overrides` of cluster.yaml) map tags to levels; of several that a memory has, the strictest counts. The
caller's own word is taken as it is, be it weaker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from crdt_spine.core.messages import Level

RANK: Final[dict[Level, int]] = {"eventual": 0, "read-your-writes": 1, "causal": 2, "strong": 3}


class Demand(NamedTuple):
    """The level that a tag demands."""

    level: Level
    tag: str


class Overrides:
    """A cluster's overrides, as `Hello` and cluster.yaml have them: tags, and the level of each."""

    def __init__(self, overrides: Iterable[tuple[Iterable[str], Level]] = ()) -> None:
        self.levels: dict[str, Level] = {tag: level for tags, level in overrides for tag in tags}

    def __bool__(self) -> bool:
        return bool(self.levels)

    def demand(self, *tags: Iterable[str]) -> Demand | None:
        """What these tags demand, the strictest of it; None: nothing."""
        found: Demand | None = None
        for some in tags:
            for tag in some:
                level = self.levels.get(tag)
                if level is not None and (found is None or (RANK[level], tag) > (RANK[found.level], found.tag)):
                    found = Demand(level, tag)
        return found


def stricter(one: Level, other: Level) -> bool:
    """Does `one` promise more than `other`?"""
    return RANK[one] > RANK[other]
