"""The OR-set without tombstones (ORSWOT) that holds a memory's tags: an add wins over a concurrent remove.

A set maps an element to the origins of its adds. A remove names the dots it saw and takes away only those. When two
states meet, an add that only one of them has is either news to the other (its version has not seen the dot: keep) or
was removed there (its version has: drop). The version is the whole record's, so no tombstone is kept per element.
Bieniusa et al., "An optimized conflict-free replicated set" (2012).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from crdt_spine.core.registers import Origin

Dot = tuple[str, int]
Tags = dict[str, tuple[Origin, ...]]


def add(tags: Tags, elements: Iterable[str], origin: Origin) -> None:
    """Add elements to a set of the caller's own. Origins are kept in order, so that equal sets are equal values."""
    for element in elements:
        before = tags.get(element)
        tags[element] = (origin,) if before is None else tuple(sorted((*before, origin)))


def remove(tags: Tags, seen: Mapping[str, Collection[Dot]]) -> None:
    """Take away, from a set of the caller's own, the adds of each element that the remover saw.

    Dots are named per element: one change may add several elements, and they share its dot.
    """
    for element, dots in seen.items():
        if element in tags:
            _keep(tags, element, tuple([o for o in tags[element] if (o.actor, o.n) not in dots]))


def merge(one: Tags, one_version: Mapping[str, int], other: Tags, other_version: Mapping[str, int]) -> Tags:
    """The join of two sets in the context of their records' versions."""
    if one == other:
        return one  # as most are: few changes touch the tags
    merged: Tags = {}
    for element, mine in one.items():
        theirs = other.get(element)
        if theirs is None:
            kept = _unseen(mine, other_version)
        elif mine == theirs:
            kept = mine
        else:
            both = set(mine) & set(theirs)
            kept = tuple(sorted(both.union(_unseen(mine, other_version), _unseen(theirs, one_version))))
        if kept:
            merged[element] = kept
    for element, theirs in other.items():
        if element not in one and (kept := _unseen(theirs, one_version)):
            merged[element] = kept
    return merged


def drop_below(tags: Tags, floor: Origin) -> Tags:
    """The set without what was added before the last store or delete; the same object if that is nothing."""
    if all(origin >= floor for origins in tags.values() for origin in origins):
        return tags
    living: Tags = {}
    for element, origins in tags.items():
        _keep(living, element, tuple(o for o in origins if o >= floor))
    return living


def _keep(tags: Tags, element: str, origins: tuple[Origin, ...]) -> None:
    if origins:
        tags[element] = origins
    else:
        tags.pop(element, None)


def _unseen(origins: tuple[Origin, ...], version: Mapping[str, int]) -> tuple[Origin, ...]:
    """The adds that a version has not seen."""
    return tuple([origin for origin in origins if origin.n > version.get(origin.actor, 0)])
