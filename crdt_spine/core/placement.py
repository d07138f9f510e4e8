"""From a memory's id to its partition, and from a partition to its replicas.

A generated id is `a3f1-<uuid7>`: four hex digits of its placement key's hash, then a time-ordered UUID, which keeps
index inserts local. The digits alone say its partition, whichever strategy chose the key. A caller's own id is hashed.
Either way there are sixteen bits, and the partition is bits * partitions >> 16: partitions are equal ranges of bits,
as even as 65,536 can be cut. An own id that looks generated is read as one, by everybody.

Where the replicas of a new cluster lie is the ring's word, as far as that is even (`placed`); from then on the register
of the membership has it, and little moves when a node comes or goes (rebalancing.py). Who of a partition's replicas
coordinates it is decided afterwards (`balanced`), because that costs no data to change.
Mirrokni, Thorup, Zadimoghaddam, "Consistent hashing with bounded loads" (2016): who is full is passed over.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from crdt_spine.core.evenness import even_out
from crdt_spine.core.rebalancing import Shares
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


def placed(partitions: int, nodes: Iterable[str], factor: int, zones: Mapping[str, str | None]) -> dict[int, list[str]]:
    """Who holds each partition of a new cluster: `replicas_of`, but a node that has its share already is passed over
    where that costs no zone; then what is left uneven is evened out. Raises InvalidInput: no nodes."""
    ring = ConsistentHashRing(sorted(set(nodes)))
    factor = min(factor, len(ring.nodes))
    share_max = -(-partitions * factor // max(1, len(ring.nodes)))
    load: Counter[str] = Counter()
    replicas: dict[int, list[str]] = {}
    for number in range(partitions):
        walk = ring.get_replica_nodes(f"partition-{number}", len(ring.nodes))
        used: Counter[str] = Counter()
        for _ in range(factor):
            fewest = min(used[_zone(node, zones)] for node in walk)
            free = [node for node in walk if used[_zone(node, zones)] == fewest]
            node = next((node for node in free if load[node] < share_max), min(free, key=load.__getitem__))
            walk.remove(node)
            replicas.setdefault(number, []).append(node)
            used[_zone(node, zones)] += 1
            load[node] += 1
    moves = True
    while moves:  # one replica a partition and round
        shares = Shares(replicas, ring, zones)
        shares.even_out(replicas)
        moves = bool(shares.moves)
        for number, move in shares.moves.items():
            replicas[number] = [str(move.to) if node == move.frm else node for node in replicas[number]]
    return replicas


def balanced(
    replicas: Mapping[int, Sequence[str]], reluctant: Collection[str] = frozenset()
) -> dict[int, tuple[str, ...]]:
    """The same replicas, the preferred coordinator first: every node is that for as many partitions as the others, or
    one fewer, where that can be. The `reluctant` come last, and are first only where there is nobody else.

    Each partition begins with the one of its replicas that a hash of both says (Thaler, Ravishankar, "A name-based
    mapping scheme for rendezvous" (1996)), whatever the others do; then as few as can be change to even it out. So a
    partition whose replicas change takes few others along. A preference that moves costs no data.
    """
    willing = {number: [node for node in nodes if node not in reluctant] for number, nodes in replicas.items()}
    able = {number: willing[number] or nodes for number, nodes in replicas.items()}
    weight = {(number, node): _weight(number, node) for number, nodes in able.items() for node in nodes}
    first = {number: min(nodes, key=lambda node: weight[number, node]) for number, nodes in sorted(able.items())}
    load = Counter(first.values())
    load.update(dict.fromkeys((node for nodes in replicas.values() for node in nodes), 0))

    def find(frm: str, to: str, used: Collection[int]) -> int | None:
        can = (number for number, node in first.items() if node == frm and to in able[number])
        return min((number for number in can if number not in used), key=lambda n: weight[n, to], default=None)

    def shift(number: int, frm: str, to: str) -> None:
        first[number] = to
        load[frm] -= 1
        load[to] += 1

    even_out(load, find, shift)
    return {
        number: (node, *sorted((other for other in replicas[number] if other != node), key=lambda n: n in reluctant))
        for number, node in first.items()
    }


def _weight(number: int, node: str) -> bytes:
    return hashlib.sha256(f"partition-{number} {node}".encode()).digest()


def _zone(node: str, zones: Mapping[str, str | None]) -> str:
    return zones.get(node) or node
