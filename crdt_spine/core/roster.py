"""The heartbeats of all members as one table: by their places in the sorted list of names instead of by name.

A heartbeat takes six bytes, eight characters in a message, whatever number it is; by name it takes up to thirty more.
Who has another list can't read such a table: so the digest of the list goes with it (core/gossip.py).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import Final

from crdt_spine.limits import BEAT_MAX

BEAT_BYTES: Final = 6
BEAT_CHARACTERS: Final = 8  # of base64, which is what bytes are in a message

assert BEAT_MAX < 1 << 8 * BEAT_BYTES


def digest_of(names: Iterable[str]) -> str:
    """Of a sorted list of members: sixteen hex digits, the same where the lists are."""
    return blake2b("\n".join(names).encode(), digest_size=8).hexdigest()


def packed(beats: Collection[int]) -> bytes:
    """Numbers of up to BEAT_MAX, six bytes each, the lowest byte first. Raises struct.error for negative ones."""
    wide = struct.pack(f"<{len(beats)}Q", *beats)
    narrow = bytearray(BEAT_BYTES * len(beats))
    for place in range(BEAT_BYTES):
        narrow[place::BEAT_BYTES] = wide[place::8]
    return bytes(narrow)


def unpacked(table: bytes) -> tuple[int, ...]:
    """What was packed. Raises ValueError for bytes that are no such table."""
    count, rest = divmod(len(table), BEAT_BYTES)
    if rest:
        raise ValueError(f"a table of {len(table)} bytes")
    wide = bytearray(8 * count)
    for place in range(BEAT_BYTES):
        wide[place::8] = table[place::BEAT_BYTES]
    return struct.unpack(f"<{count}Q", wide)
