"""Version vectors: which changes of which actors are here.

A vector maps an actor to n and means: all changes 1…n of that actor. A missing actor means 0. Vectors are plain
dicts, so that they travel as JSON objects; nobody changes one that somebody else can see.
Parker et al., "Detection of mutual inconsistency in distributed systems" (1983).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Vector = dict[str, int]


def within(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Has `other` everything that `one` has?"""
    for actor, n in one.items():  # noqa: SIM110 — called for every operation; a generator takes twice as long
        if other.get(actor, 0) < n:
            return False
    return True


def join(one: Mapping[str, int], other: Mapping[str, int]) -> Vector:
    """The least vector that has everything of both."""
    joined = dict(one)
    join_into(joined, other)
    return joined


def join_into(target: Vector, other: Mapping[str, int]) -> None:
    """Grow `target` by what `other` has more."""
    for actor, n in other.items():
        if target.get(actor, 0) < n:
            target[actor] = n


def meet(vectors: Iterable[Mapping[str, int]]) -> Vector:
    """The greatest vector that every one of `vectors` has; empty for none."""
    common: Vector | None = None
    for vector in vectors:
        if common is None:
            common = dict(vector)
        else:
            common = {actor: min(n, vector[actor]) for actor, n in common.items() if actor in vector}
    return common or {}


def missing(have: Mapping[str, int], wanted: Mapping[str, int]) -> int:
    """How many changes of `wanted` are not in `have`."""
    return sum(max(0, n - have.get(actor, 0)) for actor, n in wanted.items())
