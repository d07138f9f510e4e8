"""What callers see as a memory's version: opaque text, another one after each change, no two memories have the same.

Dots count a partition's changes, so the first memory of each partition has `actor:1` in its vector: the text begins
with what tells whose version it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from zlib import crc32

_SHOWN_CHARACTERS_MAX = 400  # of what was given for a version: one of several actors is some 200 long
_VERSION = re.compile(r"([0-9a-f]{8})~[^\s,]+:[0-9]+(?:,[^\s,]+:[0-9]+)*")


def vector_text(vector: Mapping[str, int]) -> str:
    """A vector as text: equal vectors, equal texts."""
    if len(vector) == 1:
        for actor, n in vector.items():
            return f"{actor}:{n}"
    return ",".join([f"{actor}:{vector[actor]}" for actor in sorted(vector)])


def version_text(id: str, vector: str) -> str:
    """The version of a memory, of its vector's text."""
    return f"{crc32(id.encode()):08x}~{vector}"


def version_vector(version: str) -> dict[str, int]:
    """The vector of a memory's version; nothing, where this is no version."""
    if _VERSION.fullmatch(version) is None:
        return {}
    dots = (dot.rpartition(":") for dot in version[9:].split(","))
    return {actor: int(n) for actor, _, n in dots}


def conflict(id: str, now: str, asked: str) -> str:
    """Why an update of a memory that is at version `now` is refused, and what to do."""
    found = _VERSION.fullmatch(asked)
    given = repr(asked if len(asked) <= _SHOWN_CHARACTERS_MAX else f"{asked[:_SHOWN_CHARACTERS_MAX]}…")
    if found is None:
        return f"{given} is no version of a memory: give the `version` that you have read of {id!r}"
    if found[1] != now[:8]:
        return f"{given} is the version of another memory: give the one that you have read of {id!r}"
    return f"memory {id!r} is at version {now!r}, not {given}: read it again and decide anew"


__all__ = ["conflict", "vector_text", "version_text", "version_vector"]
