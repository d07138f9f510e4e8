"""Where an id is in the tables' indexes: a number in which what is used together lies together."""

from __future__ import annotations

from zlib import crc32

from crdt_spine.core.placement import GENERATED_ID_LENGTH

_PLACE_MASK = 2**63 - 1


def place_of(id: str) -> int:
    """63 bits. Several ids may share a place; whoever looks there compares the id itself.

    A generated id is at its time, with sixteen of its random bits behind it: new ones, and whatever is in use while it
    is new, are neighbours. Any other id is somewhere among the first 2**32 places.
    """
    if len(id) == GENERATED_ID_LENGTH and id[4] == "-" and id[19] == "7":
        try:
            return int(id[5:13] + id[14:18] + id[37:], 16) & _PLACE_MASK
        except ValueError:
            pass
    return crc32(id.encode())
