"""The OR-set without tombstones (ORSWOT) that holds a memory's tags: an add wins over a concurrent remove.

A set maps an element to the origins of its adds. A remove names the dots it saw and takes away only those. When two
states meet, an add that only one of them has is either news to the other (its version has not seen the dot: keep) or
was removed there (its version has: drop). The version is the whole record's, so no tombstone is kept per element.
Bieniusa et al., "An optimized conflict-free replicated set" (2012).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from crdt_spine.core.registers import Origin

Dot = tuple[str, int]
Tags = dict[str, tuple[Origin, ...]]


def add(tags: Tags, elements: Iterable[str], origin: Origin) -> None:
    """Add elements to a set of the caller's own. Origins are kept in order, so that equal sets are equal values."""
    for element in elements:
        before = tags.get(element)
        tags[element] = (origin,) if before is None else tuple(sorted((*before, origin)))


def remove(tags: Tags, seen: Mapping[str, Iterable[Dot]]) -> None:
    """Take away, from a set of the caller's own, the adds of each element that the remover saw.

    Dots are named per element: one change may add several elements, and they share its dot.
    """
    for element, dots in seen.items():
        if element in tags:
            gone = set(dots)
            _keep(tags, element, tuple(o for o in tags[element] if (o.actor, o.n) not in gone))


def merge(one: Tags, one_version: Mapping[str, int], other: Tags, other_version: Mapping[str, int]) -> Tags:
    """The join of two sets in the context of their records' versions."""
    merged: Tags = {}
    for element in one.keys() | other.keys():
        mine, theirs = one.get(element, ()), other.get(element, ())
        kept = {o for o in mine if o in theirs or o.n > other_version.get(o.actor, 0)}
        kept |= {o for o in theirs if o.n > one_version.get(o.actor, 0)}
        _keep(merged, element, tuple(sorted(kept)))
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
