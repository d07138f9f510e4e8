"""A node whose disk was retired (core/retirement.py): it says so, keeps what only it has in a file, and begins anew.

    told           it serves nobody any more; that it was told is in the checkpoint, so a restart knows it at once
    seeds          each of its partitions is on a peer that serves: who threw the only copy away would lose it
    refused        what no peer has is written to `refused-<actor>.jsonl` beside the data, as `spine import` reads it
    discarded      a mark on the disk: whoever opens the folder next finds it empty (storage/folder.py)

Then `Retired` ends the node, and its process starts a new one on the empty folder, which is a node with a new name that
asks for since(nothing). A crash at any moment goes on from there: before the mark the old disk is told again and the
file is written again, behind it nothing of the old disk is looked at any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from crdt_spine.core.causality import join_into
from crdt_spine.core.record import Record
from crdt_spine.interchange import export_line
from crdt_spine.limits import ANNOUNCE_SECONDS, REFUSED_BYTES_MAX, SYNC_PAGE_RECORDS_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.replication import Replication
from crdt_spine.node.view import memory_of
from crdt_spine.storage.engine import Engine, StorageFull
from crdt_spine.storage.records import RecordStore

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2  # between two looks at whether the peers are there
RETRY_SECONDS = 5.0  # after a file that could not be written
_FOREVER = (1 << 63) - 1


class Retired(Exception):
    """The node's disk was retired and is to be found empty from now on: start a new node on it."""


class Reseeding:
    """Waits until the node's disk is retired, and sees to the rest. `on_serving` and `write` are as in `Identity`."""

    def __init__(
        self,
        replication: Replication,
        store: RecordStore,
        committer: Committer,
        engine: Engine,
        write: Callable[[], Awaitable[None]],
        on_serving: Callable[[str], None],
    ) -> None:
        self.replication = replication
        self.replica = replication.replica
        self.store = store
        self.committer = committer
        self.engine = engine
        self.write = write
        self.on_serving = on_serving
        self.trouble = ""  # why it can't begin anew yet

    @property
    def problem(self) -> str:
        """Why this node does not serve; empty where it does."""
        if not self.replica.retirement.expelled:
            return ""
        node = self.replica.node
        words = f"node {node} was away for too long and is retired: it takes everything anew from its peers"
        return f"{words}; {self.trouble}" if self.trouble else words

    async def run(self) -> None:
        """Until cancelled. Raises Retired once the disk may be thrown away, StorageFull."""
        await self.replication.expelled.wait()
        self.on_serving(self.problem)
        log.error("%s (%s)", self.problem, self.replica.actor)
        await self.committer.barrier()
        await self.write()
        await self._seeds()
        while True:
            try:
                await self._keep_refused()
                self.engine.discard()
                break
            except (OSError, StorageFull) as error:
                self.trouble = f"what only this node has could not be written to a file: {error}"
                log.error("%s", self.problem)
                await asyncio.sleep(RETRY_SECONDS)
        raise Retired(self.problem)

    async def _seeds(self) -> None:
        """Wait until each partition can be had from a peer, and every peer that is there has said what it has."""
        told = time.monotonic()
        while True:
            without = [number for number in self.replica.partitions if not self.replication.pulling.sources(number)]
            if not without and time.monotonic() - told >= 2 * ANNOUNCE_SECONDS:
                self.trouble = ""
                return
            trouble = f"no peer is there yet for {len(without)} of its partitions" if without else ""
            if trouble and not self.trouble:
                log.warning("%s; %s", self.problem, trouble)
            self.trouble = trouble
            await asyncio.sleep(LOOK_SECONDS)

    # -- what nobody else has ---------------------------------------------------------------------------------------

    async def _keep_refused(self) -> None:
        """Write what no peer has to a file: since(all that the peers have). Raises OSError."""
        name = f"refused-{self.replica.actor.replace('/', '-')}"
        path, gone = self.engine.beside(f"{name}.jsonl"), self.engine.beside(f"{name}-deletions.jsonl")
        if path is None or gone is None:
            return
        living, dead = _Lines(path), _Lines(gone)
        try:
            for record in self._refused():
                if record.alive:
                    living.add(export_line(memory_of(record)))
                else:
                    dead.add(msgspec.json.encode({"id": record.id}))
                if (living.count + dead.count) % SYNC_PAGE_RECORDS_MAX == 0:
                    await asyncio.sleep(0)
        except BaseException:
            living.drop()
            dead.drop()
            raise
        for lines in (living, dead):
            lines.keep()
        log.error(
            "of %d memories this node alone has changes, which are refused now%s; it alone deleted %d%s",
            living.count, f"; {path} has them, for `spine import`" if living.count else "",
            dead.count, f"; {gone} has their ids" if dead.count else "",
        )  # fmt: skip

    def _refused(self) -> Iterator[Record]:
        """The records with a change that no peer has said to have. Those that make changes have their own newest."""
        alive = self.replication.peers.alive()
        newest = self.replica.actors.newest
        makers = dict.fromkeys((newest[node] for node in alive if node in newest), _FOREVER)
        for number in self.replica.partitions:
            known: dict[str, int] = {}
            for node in alive:
                join_into(known, self.replication.peers[node].announcement.vectors.get(number, {}))
            join_into(known, makers)
            after: str | None = None
            while page := self.store.changed(number, known, after, SYNC_PAGE_RECORDS_MAX):
                yield from page
                after = page[-1].id


class _Lines:
    """A file that is there once it is whole; no file for no lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._bytes = 0
        self._part = path.with_name(path.name + ".part")
        self._file: IO[Any] | None = None

    def add(self, line: bytes) -> None:
        """Raises OSError, also when the file would become too large."""
        if self._file is None:
            self._file = self._part.open("wb")
        self._bytes += len(line) + 1
        if self._bytes > REFUSED_BYTES_MAX:
            raise OSError(f"{self.path} would be larger than {REFUSED_BYTES_MAX} bytes; move the data folder away")
        self._file.write(line + b"\n")
        self.count += 1

    def keep(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self.path)

    def drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)
