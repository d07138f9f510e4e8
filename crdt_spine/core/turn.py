"""What one turn of a replica did: what is to be durable, and what may leave the node once it is."""

from __future__ import annotations

import msgspec

from crdt_spine.core.messages import Promised, Vectors
from crdt_spine.core.quorum import Waiting
from crdt_spine.core.record import Record


class Event(msgspec.Struct, frozen=True, gc=False):
    """A record changed. `actor` is empty where a sync brought the change: it may stand for several dots."""

    partition: int
    before: Record | None
    after: Record
    actor: str
    n: int


class Turn(msgspec.Struct):
    """To be journaled (`journal`, one row), then to be sent (`deltas`, `acks`)."""

    journal: list[bytes] = []
    deltas: list[tuple[int, bytes]] = []  # partition, encoded: to publish
    acks: dict[str, dict[int, int]] = {}  # actor -> partition -> n
    vectors: Vectors = {}  # what is durable with it
    records: list[str] = []  # ids whose state is visible from then on
    waiting: list[tuple[int, Waiting]] = []
    events: list[Event] = []  # what changed, for feeds
    repeats: set[tuple[int, str, int]] = (
        set()
    )  # of these, the dots of operations that were here under another dot already
    promised: list[Promised] = []

    @property
    def empty(self) -> bool:
        return not (self.journal or self.acks or self.waiting or self.vectors)


__all__ = ["Event", "Turn"]
