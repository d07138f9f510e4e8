"""What is offered: a pure description of a load, and the operations that it consists of.

The operations are made before anything is measured and are the same for every system that is compared: equal seeds
give equal operations, byte for byte. Contents are words, not one repeated letter, so that whoever compresses or
indexes them has real work; ids are drawn uniformly, which is the hard case for caches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle
from typing import Final, NamedTuple

import msgspec

OPERATIONS_PREPARED: Final = 65_536  # repeated from the start once they are used up
CONTENTS_PREPARED: Final = 2_048  # distinct texts; each is written to many ids
TOPICS: Final = 40
KINDS: Final = 12

_TEXT: Final = (
    "the agent noted that reviewer found a failing test in module parser after merge and asked planner to retry with "
    "smaller batch because memory budget was exceeded on worker seven while customer prefers short answers in german "
    "deadline moved to friday so release branch stays frozen until security team confirms patch for token refresh "
    "latency rose between region east west when cache restarted observed error rate two percent decided rollback "
    "approved by lead user likes tea lives near lake visited museum last summer wants reminder about dentist question "
    "remains open whether schema migration may run during business hours see ticket four hundred twelve for details"
)
WORDS: Final = tuple(_TEXT.split())


class Operation(NamedTuple):
    """One call: a store of `content` and `tags` under `id`, or, if not `write`, a read of `id`."""

    write: bool
    id: str
    content: str
    tags: tuple[str, ...]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A load. With `rate` (operations a second) arrivals follow a timetable; without it, `in_flight` callers each
    wait for their answer before they call again. `write_share` is between 0 and 1; times are in seconds."""

    write_share: float = 0.5
    in_flight: int = 256
    rate: float | None = None
    seconds: float = 5.0
    warmup_seconds: float = 1.0
    ids: int = 20_000
    content_bytes: int = 350
    tags: int = 2
    seed: int = 1

    @property
    def name(self) -> str:
        """The load in words; what rows of a report are called."""
        offered = f"{self.in_flight} in flight" if self.rate is None else f"{self.rate:,.0f} ops/s offered"
        return f"{self.write_share * 100:g} % writes, {offered}"

    def id_of(self, number: int) -> str:
        """The id of the memory with this number, 0 ≤ number < ids."""
        return f"m-{number:05d}"

    def preload(self) -> Iterator[Operation]:
        """One write for every id, in order: what must be there before anything is measured."""
        source = random.Random(f"{self.seed}/preload")
        contents = self._contents(source)
        for number in range(self.ids):
            yield Operation(True, self.id_of(number), source.choice(contents), self._tags(source))

    def operations(self) -> Iterator[Operation]:
        """The operations, endless: OPERATIONS_PREPARED of them are made now and then repeated.

        Writes are spread evenly by a running sum and not drawn, so that the share holds in every stretch of the load
        and two runs differ in nothing but the system.
        """
        source = random.Random(f"{self.seed}/operations")
        contents = self._contents(source)
        prepared, owed = [], 0.5  # half a write owed: rounds to the nearest instead of always down
        for _ in range(OPERATIONS_PREPARED):
            owed += self.write_share
            write = owed >= 1.0
            if write:
                owed -= 1.0
            identity = self.id_of(source.randrange(self.ids))
            prepared.append(
                Operation(True, identity, source.choice(contents), self._tags(source))
                if write
                else Operation(False, identity, "", ())
            )
        return cycle(prepared)

    def _contents(self, source: random.Random) -> list[str]:
        return [text(source, self.content_bytes) for _ in range(CONTENTS_PREPARED)]

    def _tags(self, source: random.Random) -> tuple[str, ...]:
        first = (f"topic-{source.randrange(TOPICS):02d}", f"kind-{source.randrange(KINDS):02d}")
        return (*first, *(f"extra-{number:02d}" for number in range(2, self.tags)))[: self.tags]


def text(source: random.Random, size_bytes: int) -> str:
    """Words, cut to exactly `size_bytes` (they are ASCII)."""
    words: list[str] = []
    length = -1
    while length < size_bytes:
        words.append(source.choice(WORDS))
        length += len(words[-1]) + 1
    return " ".join(words)[:size_bytes]


#: What `make bench` and `spine bench` run: three shares of writes at three depths, and one timetable.
STANDARD: Final[tuple[Workload, ...]] = (
    *(Workload(write_share=share, in_flight=in_flight) for share in (0.5, 0.05, 1.0) for in_flight in (64, 256, 512)),
    Workload(write_share=0.5, rate=15_000.0),
)
