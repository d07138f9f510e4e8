"""What is past its time: writes without their quorum, operations that waited long enough, memories that expire."""

from __future__ import annotations

import asyncio
import contextlib
import time

from crdt_spine import wall_clock
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.messages import Delete
from crdt_spine.core.replica import Refused, Replica
from crdt_spine.node.admission import Admission
from crdt_spine.node.committer import Committer
from crdt_spine.node.coordinator import Coordinator
from crdt_spine.node.load import Load
from crdt_spine.node.parking import Parking
from crdt_spine.node.replication import Replication
from crdt_spine.node.seats import Seats
from crdt_spine.node.serving import Serving
from crdt_spine.storage.engine import Engine
from crdt_spine.storage.records import RecordStore

EXPIRED_AT_ONCE = 200
EXPIRE_SECONDS = 1.0


class Expiry:
    """Looks at the time now and then, for those who have no timer of their own."""

    def __init__(
        self, replica: Replica, store: RecordStore, engine: Engine, committer: Committer, replication: Replication,
        seats: Seats, admission: Admission, coordinator: Coordinator, parking: Parking, load: Load, serving: Serving,
    ) -> None:  # fmt: skip
        self.replica = replica
        self.store = store
        self.engine = engine
        self.committer = committer
        self.replication = replication
        self.seats = seats
        self.admission = admission
        self.coordinator = coordinator
        self.parking = parking
        self.load = load
        self.serving = serving

    async def run(self) -> None:
        """Until cancelled."""
        expired = 0.0
        while True:
            await asyncio.sleep(EXPIRE_SECONDS / (4 if self.load.waiting or self.parking.occupied else 2))
            self.load.look()
            self.coordinator.failed(self.replica.expire(wall_clock.now()))
            self.parking.look_again()
            mute = self.committer.full or self.serving.closed or self.admission.abstains(wall_clock.now())
            if time.monotonic() - expired >= EXPIRE_SECONDS and not mute:
                expired = time.monotonic()
                self._delete()

    def _delete(self) -> None:
        """Delete what is past its time, where this node is the first replica of those that are there."""
        here = self.replica.node
        present = {here} | self.replication.peers.alive()
        for id in self._expired():
            record = self.store.get(id)
            number = self.seats.layout.partition_of(id)
            replicas = self.seats.layout.replicas[number]
            first = next((node for node in replicas if node in present), "")
            mine = first == here and number in self.serving.writable
            if mine and record is not None and record.alive and record.expired(at_milliseconds(wall_clock.now())):
                with contextlib.suppress(Refused):
                    self.replica.delete_expired(number, Delete(i=0, id=id), wall_clock.now())
                    self.committer.touch()

    def _expired(self) -> list[str]:
        """Memories past their time, some of those in the tables and all that are not there yet."""
        now = at_milliseconds(wall_clock.now())
        return self.store.expired(now) + self.engine.expired(now, EXPIRED_AT_ONCE)
