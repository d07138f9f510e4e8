"""From a memory's id to its partition, and from a partition to its replicas.

A generated id is `a3f1-<uuid7>`: four hex digits of its placement key's hash, then a time-ordered UUID, which keeps
index inserts local. The digits alone say its partition, whichever strategy chose the key. A caller's own id is hashed.
Either way there are sixteen bits, and the partition is bits * partitions >> 16: partitions are equal ranges of bits,
as even as 65,536 can be cut. An own id that looks generated is read as one, by everybody.

Replicas are the ring's: it decides where data lies, so a node that comes or goes moves little. Who of a partition's
replicas coordinates it is decided afterwards (`balanced`), because that costs no data to change.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Final

from crdt_spine.core.ring import ConsistentHashRing
from crdt_spine.limits import HASHED_KEYS_REMEMBERED_MAX

GENERATED_ID_LENGTH: Final = 41  # four digits, a dash, a UUID

_BYTES = {f"{byte:02x}": byte for byte in range(256)}  # two look-ups are faster than int(…, 16), and stricter


_remembered: dict[
    str, int
] = {}  # emptied when it is full: keeping it in the order of use would cost as much as it saves


def placement_hash(key: str) -> int:
    """The first sixteen bits of a placement key's sha256."""
    known = _remembered.get(key)
    if known is None:
        if len(_remembered) >= HASHED_KEYS_REMEMBERED_MAX:
            _remembered.clear()
        known = _remembered[key] = int.from_bytes(hashlib.sha256(key.encode()).digest()[:2])
    return known


def generated_id(hash16: int, now: int, random: int) -> str:
    """A new id, `xxxx-<uuid7>`: sixteen bits of placement, `now` in milliseconds, 74 random bits (RFC 9562, 5.7)."""
    now &= (1 << 48) - 1
    return (
        f"{hash16 & 0xFFFF:04x}-{now >> 16:08x}-{now & 0xFFFF:04x}-7{random >> 62 & 0xFFF:03x}-"
        f"{0x8000 | random >> 48 & 0x3FFF:04x}-{random & 0xFFFF_FFFF_FFFF:012x}"
    )


def partition_of(id: str, partitions: int = 64) -> int:
    """The partition of a memory, 0 … partitions - 1."""
    if len(id) == GENERATED_ID_LENGTH and id[4] == "-" and id[19] == "7":
        high, low = _BYTES.get(id[:2]), _BYTES.get(id[2:4])
        if high is not None and low is not None:
            return (high << 8 | low) * partitions >> 16
    return placement_hash(id) * partitions >> 16


def replicas_of(partition: int, ring: ConsistentHashRing, factor: int, zones: Mapping[str, str | None]) -> list[str]:
    """The nodes that hold a partition, as the ring has them, the owner first; all nodes if there are fewer.

    Each next one is the first on the ring in a zone that has the fewest of the replicas so far: distinct zones where
    there are enough, else spread evenly. A node without a zone is a zone of its own. Raises InvalidInput: empty ring.
    """
    walk = ring.get_replica_nodes(f"partition-{partition}", len(ring.nodes))
    chosen: list[str] = []
    used: Counter[str] = Counter()
    while len(chosen) < min(factor, len(walk)):
        fewest = min(used[_zone(node, zones)] for node in walk if node not in chosen)
        node = next(node for node in walk if node not in chosen and used[_zone(node, zones)] == fewest)
        chosen.append(node)
        used[_zone(node, zones)] += 1
    return chosen


def balanced(replicas: Mapping[int, list[str]]) -> dict[int, tuple[str, ...]]:
    """The same replicas, the preferred coordinator first: every node is that for about as many partitions.

    The ring's owners alone are too uneven with few nodes: 17, 22 and 25 of 64 partitions with three. In the order of
    partitions, each takes the one of its replicas that coordinates the fewest so far, ties going to the ring's order.
    A node that comes or goes moves preferences, never any data.
    """
    load: Counter[str] = Counter()
    ordered: dict[int, tuple[str, ...]] = {}
    for partition in sorted(replicas):
        nodes = replicas[partition]
        first = min(nodes, key=lambda node: (load[node], nodes.index(node)))
        load[first] += 1
        ordered[partition] = (first, *[node for node in nodes if node != first])
    return ordered


def _zone(node: str, zones: Mapping[str, str | None]) -> str:
    return zones.get(node) or node
