"""Changes that came here inside a memory only, and whose actor has ended: no vector will ever have them.

A page of a sync may bring a memory from a node that is lost before the page that would bring its vector. Vectors are
equal then, so nobody asks, and the memory stays as it is on the one replica that was given that page. So replicas
announce, beside their vectors, a fingerprint of what is stranded with them; who has another one pulls, since a page has
every memory that is ahead of the asker's vector. In the end all have all of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping

from crdt_spine.core.record import Record


def fingerprint(records: Iterable[Record], vector: Mapping[str, int], ended: Callable[[str], bool]) -> int:
    """Of those dots in a partition's `records` that are beyond its `vector` and of an actor that has `ended`: a
    positive number, equal where they are equal; 0: there are none."""
    total = 0
    for record in records:
        for actor, n in record.version.items():
            if vector.get(actor, 0) < n and ended(actor):
                total += 1 + zlib.crc32(f"{record.id}\n{actor}\n{n}".encode())  # a sum: records come in any order
    return total
