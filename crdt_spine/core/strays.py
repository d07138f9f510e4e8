"""Which memories lie elsewhere than their placement key says: so that a query by agent or tag may ask one partition.

Under the strategy `agent` or `tag` a new memory lies at *home*, in the partition that its agent's or primary tag's
hash says, and a query by that key asks there. What else has the key is a *stray*: a memory with an id of its caller's
own, an entry of a thread, one that has the tag as a second one or got it later. A partition's replica knows the hashes
of its strays' keys, and tells everybody in a way that is exactly as true as its vector:

    keys         of all that any change within the replica's vector ever made a stray here
    established  dots that brought those keys: who has these changes has these keys

So, of two replicas of a partition: if what is `established` at one is within the vector of the other, then the other
has all keys of the one. A reader who was shown something by the one may therefore do without asking the partition if
the other does not name the key; else the partition is asked. Without strays both are empty and cost nothing; where the
same tags come again, `established` soon stops growing.

Keys come from changes, whatever became of them, and with the last page of a sync, which stands for changes that nobody
sees any more; from records only those that a sync brings ahead of the vector. They are never taken away: what was a
stray once costs queries a look where nothing is any more. Sixteen bits of a key's hash are enough, since its home has
no more than that either; two keys with the same bits share their strays.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from crdt_spine.core.causality import Vector, join_into, within
from crdt_spine.core.messages import Change
from crdt_spine.core.placement import placement_hash
from crdt_spine.core.record import Record
from crdt_spine.core.selection import Selection

_BYTES: Final = 1 << 13  # a bit for each hash


class Keys:
    """A set of key hashes."""

    __slots__ = ("_bits", "_packed")

    def __init__(self) -> None:
        self._bits: bytearray | None = None  # most have none
        self._packed: bytes | None = None

    def __contains__(self, key: int) -> bool:
        return self._bits is not None and bool(self._bits[key >> 3] >> (key & 7) & 1)

    def __bool__(self) -> bool:
        return self._bits is not None

    def add(self, key: int) -> None:
        """`key` is a placement_hash."""
        if self._bits is None:
            self._bits = bytearray(_BYTES)
        self._bits[key >> 3] |= 1 << (key & 7)
        self._packed = None

    def fill(self) -> None:
        """Every key may be here."""
        self._bits, self._packed = bytearray(b"\xff" * _BYTES), None

    def packed(self) -> bytes:
        """The set as bytes: at most 8 KiB and a few, far less where there are few keys."""
        if self._packed is None:
            self._packed = b"" if self._bits is None else zlib.compress(bytes(self._bits), 1)
        return self._packed

    def unite(self, packed: bytes) -> None:
        """Add what another set has, as `packed`. Raises ValueError: it is none."""
        if not packed:
            return
        try:
            bits = zlib.decompressobj().decompress(packed, _BYTES + 1)
        except zlib.error as error:
            raise ValueError(f"no set of keys: {error}") from error
        if len(bits) != _BYTES:
            raise ValueError("no set of keys: it has another size")
        mine = int.from_bytes(self._bits or b"")
        self._bits = bytearray((mine | int.from_bytes(bits)).to_bytes(_BYTES))
        self._packed = None


class Strays:
    """The strays of one partition, as one replica knows them."""

    __slots__ = ("established", "keys")

    def __init__(self) -> None:
        self.keys = Keys()
        self.established: Vector = {}


class OwnStrays:
    """The strays in the partitions of one node, which tells of every change and of every record that a sync brings."""

    def __init__(self, placement: str, partitions: int) -> None:
        self.by_agent = placement == "agent"
        self.partition_count = partitions
        self.partitions: dict[int, Strays] = {}

    def note_change(self, number: int, actor: str, n: int, change: Change) -> None:
        """A change of a partition becomes part of its vector."""
        if self.by_agent:
            if change.alive:
                self._note(number, change.agent, {actor: n})
        else:
            for tag in change.add:
                self._note(number, tag, {actor: n})

    def note_record(self, number: int, record: Record) -> None:
        """A record of a partition is to be seen, maybe ahead of the vector."""
        if record.alive:
            for key in (record.life.value.agent,) if self.by_agent else record.tags:
                self._note(number, key, record.version)

    def unite(self, number: int, keys: bytes, established: Mapping[str, int]) -> None:
        """What a source's vector, which is to be joined, stands for. Raises ValueError."""
        strays = self.of(number)
        strays.keys.unite(keys)
        join_into(strays.established, established)

    def packed(self, number: int) -> tuple[bytes, Vector] | None:
        """What `unite` takes elsewhere; None where there are no strays."""
        strays = self.partitions.get(number)
        return (strays.keys.packed(), strays.established) if strays is not None and strays.keys else None

    def _note(self, number: int, key: str, dots: Mapping[str, int]) -> None:
        hash16 = placement_hash(key)
        if hash16 * self.partition_count >> 16 != number:
            strays = self.of(number)
            if hash16 not in strays.keys:
                strays.keys.add(hash16)
                join_into(strays.established, dots)

    def of(self, number: int) -> Strays:
        """The strays of a partition."""
        return self.partitions.setdefault(number, Strays())

    def established(self, number: int) -> Vector:
        """Empty where a partition has no strays."""
        strays = self.partitions.get(number)
        return {} if strays is None else strays.established


class _Known:
    """What is known of the strays of a partition: `keys` are all of those within `upto`."""

    __slots__ = ("keys", "told", "upto")

    def __init__(self) -> None:
        self.keys = Keys()
        self.upto: Vector = {}
        self.told = False  # one who answers for the partition has said how it is there


class StrayMap:
    """What one node knows of the strays everywhere. `answering` has, by partition, the nodes that answer for it."""

    def __init__(self, node: str, own: OwnStrays, answering: Callable[[], Mapping[int, Collection[str]]]) -> None:
        self.node = node
        self.own = own
        self.answering = answering
        self._known: dict[int, _Known] = {}

    def hear(self, node: str, vectors: Mapping[int, Mapping[str, int]], established: Mapping[int, Vector]) -> list[int]:
        """A node that serves says of which partitions it has what vectors, and up to where strays were established: the
        partitions of which it is to be asked for the keys. Of the others it has no keys that are not known."""
        answering = self.answering()
        news: list[int] = []
        for number, vector in vectors.items():
            if node in answering.get(number, ()):
                known = self._known.setdefault(number, _Known())
                if within(established.get(number, {}), known.upto):
                    known.told = True
                    join_into(known.upto, vector)
                else:
                    news.append(number)
        return news

    def learn(self, number: int, keys: bytes, upto: Mapping[str, int]) -> None:
        """A replica of a partition has these strays, up to its vector. Raises ValueError."""
        known = self._known.setdefault(number, _Known())
        known.keys.unite(keys)
        join_into(known.upto, upto)
        known.told = True

    def elsewhere(
        self, keys: Collection[int], asked: Collection[int], shown: Mapping[int, Mapping[str, int]],
        durable: Mapping[int, Mapping[str, int]],
    ) -> tuple[int, ...]:  # fmt: skip
        """The partitions besides those `asked` that must be asked for memories with one of these keys. `shown` is what
        the asker knows of established strays, `durable` the vectors of this node's own partitions."""
        answering = self.answering()
        return tuple(
            number
            for number in sorted(answering.keys() - set(asked))
            if not self._vouches(number, keys, shown.get(number, {}), durable, self.node in answering[number])
        )

    def _vouches(
        self, number: int, keys: Collection[int], shown: Mapping[str, int],
        durable: Mapping[int, Mapping[str, int]], here: bool,
    ) -> bool:  # fmt: skip
        """Does no memory with one of these keys lie there?"""
        known = self._known.get(number)
        upto = dict(known.upto) if known is not None else {}
        own = self.own.partitions.get(number)
        if number in durable:
            join_into(upto, durable[number])
        if not (here or (known is not None and known.told)) or not within(shown, upto):
            return False
        of_others = known.keys if known is not None else ()
        of_own = own.keys if own is not None else ()
        return not any(key in of_others or key in of_own for key in keys)


def home(key: str, partitions: int) -> int:
    """The partition of a placement key."""
    return placement_hash(key) * partitions >> 16


def is_stray(placement: str, partitions: int, number: int, agent: str, tags: Iterable[str]) -> bool:
    """Is a memory of a partition one?"""
    keys = () if placement == "hash" else (agent,) if placement == "agent" else tags
    return any(home(key, partitions) != number for key in keys)


def query_keys(placement: str, selection: Selection) -> tuple[str, ...]:
    """Placement keys of which every memory that a selection means has at least one; empty where there are none."""
    if placement == "agent" and selection.agent is not None:
        return (selection.agent,)
    if placement == "tag":
        return selection.tags[:1] or selection.any_tags
    return ()
