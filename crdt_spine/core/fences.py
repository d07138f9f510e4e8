"""Fencing tokens: what keeps a lock's former holder from writing, however long it was paused (Kleppmann 2016).

A token is one number that rises with every acquisition of any lock, for ever: the epoch of the stream in which leases
are kept, above, and a sequence of that stream, below. A stream that is made anew counts from one, in a higher epoch.

A node remembers the newest token of each lock that it heard of. A fenced write says which token it was made under; one
below what is known is refused. What is known of too many locks is forgotten, the longest unheard first, and a floor
remains: of a lock that is not remembered, nothing below the newest forgotten token is taken. That is always safe, since
tokens of all locks rise together; a lease that long outlives ten thousand others is heard of with every renewal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec

from crdt_spine.limits import FENCES_MAX, LOCK_NAME_BYTES_MAX

SEQUENCE_BITS: Final = 40  # a thousand messages a second for thirty years
SEQUENCE_MAX: Final = (1 << SEQUENCE_BITS) - 1
EPOCH_MAX: Final = (1 << (63 - SEQUENCE_BITS)) - 1  # a stream made anew every minute for fifteen years

LockName = Annotated[str, msgspec.Meta(min_length=1, max_length=LOCK_NAME_BYTES_MAX)]
Token = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


def token_of(epoch: int, sequence: int) -> int:
    """The token of a lease that is the message `sequence` of the stream of this epoch."""
    assert 0 <= epoch <= EPOCH_MAX and 0 <= sequence <= SEQUENCE_MAX, (epoch, sequence)
    return epoch << SEQUENCE_BITS | sequence


def epoch_of(token: int) -> int:
    """The epoch of the stream that gave a token."""
    return token >> SEQUENCE_BITS


def sequence_of(token: int) -> int:
    """Which message of its stream a token is."""
    return token & SEQUENCE_MAX


class Fence(msgspec.Struct, frozen=True, tag_field="type", tag="fence/1", forbid_unknown_fields=True, gc=False):
    """A lease of a lock, by its token. It travels with a fenced write, and is told to all nodes with each grant."""

    lock: LockName
    token: Token

    @property
    def epoch(self) -> int:
        return epoch_of(self.token)


class Fences:
    """What a node knows of leases. `floor` holds for locks that it does not remember, `epoch` is the highest it knows:
    no lease is given in a lower one once a majority knows it."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}  # lock -> newest token, the longest unheard first
        self.floor = 0
        self._epoch = 0
        self._kept: dict[str, int] = {}  # lock -> token, where it is in the journal

    @property
    def epoch(self) -> int:
        return max(self._epoch, epoch_of(self.floor))

    @property
    def highest(self) -> int:
        """The newest token of any lock."""
        return max(self.floor, max(self.tokens.values(), default=0))

    def newest(self, lock: str) -> int:
        """The newest token of a lock, as far as it is known; 0 where nothing is."""
        return self.tokens.get(lock, self.floor)

    def admits(self, fence: Fence) -> bool:
        """May who holds this lease write? Not once a later one of the same lock is known."""
        return fence.token >= self.newest(fence.lock)

    def learn(self, fence: Fence) -> bool:
        """Know of a lease; did what is known of its lock rise by it?"""
        known = self.newest(fence.lock)
        if fence.token < known:
            return False
        rose = fence.token > known
        self.tokens.pop(fence.lock, None)
        self.tokens[fence.lock] = fence.token
        self._epoch = max(self._epoch, fence.epoch)
        while len(self.tokens) > FENCES_MAX:
            forgotten = next(iter(self.tokens))
            self.floor = max(self.floor, self.tokens.pop(forgotten))
            self._kept.pop(forgotten, None)
        return rose

    def keep(self, fence: Fence) -> bool:
        """Know of a lease for good; is that to be journaled?"""
        self.learn(fence)
        if self._kept.get(fence.lock, 0) >= fence.token:
            return False
        self._kept[fence.lock] = fence.token
        return True

    def learn_epoch(self, epoch: int) -> bool:
        """Know that there is such an epoch; did the highest rise by it?"""
        rose = epoch > self.epoch
        self._epoch = max(self._epoch, epoch)
        return rose

    def recall(self, fence: Fence) -> None:
        """What the journal has: a lease, or (sequence 0) only that there is an epoch."""
        if sequence_of(fence.token):
            self.learn(fence)
        self.learn_epoch(fence.epoch)

    def join(self, tokens: Mapping[str, int], floor: int = 0, epoch: int = 0) -> None:
        """Know what another node knows as well."""
        self.floor = max(self.floor, floor)
        self.learn_epoch(epoch)
        for lock, token in tokens.items():
            self.learn(Fence(lock, token))

    @property
    def saved(self) -> dict[str, Any]:
        """For a checkpoint; `restore` takes it."""
        return {"fences": {"tokens": dict(self.tokens), "floor": self.floor, "epoch": self.epoch}}

    def restore(self, extra: Mapping[str, Any]) -> None:
        """What a checkpoint had."""
        self.join(**extra.get("fences", {"tokens": {}}))


def outdated(fence: Fence, newest: int) -> str:
    """Why a write is refused, and what to do."""
    return (
        f"the lock {fence.lock!r} has been acquired since: this write's token is {fence.token}, the newest is "
        f"{newest}; nothing was written. Acquire the lock again, and read again what you decided by"
    )


def refused(fences: Fences, asked: Iterable[Fence]) -> list[Fence]:
    """The leases that were told of and are not the newest, as what is newer: lock and token."""
    return [Fence(fence.lock, fences.newest(fence.lock)) for fence in asked if not fences.admits(fence)]
