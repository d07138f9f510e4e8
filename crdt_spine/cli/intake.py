"""Storing a stream of lines: many under way at once, in a bounded number, each failure with its line's number.

A line that can't be stored is reported and the rest goes on. A cluster that can't be reached, or has no quorum, ends
the import: each further line would wait for as long and fail for the same reason. Lines with the same id are stored
one after the other, so that the last one stays; all others overtake each other freely.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from crdt_spine.cli.lines import Line
from crdt_spine.cli.outcome import is_unavailable
from crdt_spine.errors import InvalidInput, SpineError
from crdt_spine.interchange import FieldMap
from crdt_spine.limits import IMPORT_IN_FLIGHT_MAX, IMPORT_LINE_BYTES_MAX
from crdt_spine.spine import Spine

AGENTS_REMEMBERED_MAX: Final = 1_024

#: Hears a line's number and why it was not stored.
Failed = Callable[[int, SpineError], None]


class Intake:
    """One import. `stored`, `failed`, and `expired` (its time was over before it was read) are lines counted."""

    def __init__(self, spine: Spine, fields: FieldMap, failed: Failed) -> None:
        self.stored = 0
        self.failed = 0
        self.expired = 0
        self.unavailable: SpineError | None = None  # what ended it early
        self._spine = spine
        self._fields = fields
        self._tell = failed
        self._agents: dict[str, Spine] = {}
        self._slots = asyncio.Semaphore(IMPORT_IN_FLIGHT_MAX)
        self._feeding: asyncio.Task[None] | None = None
        self._storing: set[asyncio.Task[None]] = set()
        self._by_id: dict[str, asyncio.Task[None]] = {}
        self._broken: BaseException | None = None  # an error that no line can cause

    async def run(self, batches: AsyncIterable[list[Line]]) -> None:
        """Store every line. Raises OSError where they can't be read; when cancelled, nothing goes on."""
        feeding = self._feeding = asyncio.get_running_loop().create_task(self._feed(batches))
        try:
            await asyncio.wait((feeding,))
            while self._storing:
                await asyncio.wait(self._storing)
            if self._broken is not None:
                raise self._broken
            if not feeding.cancelled():
                feeding.result()
        finally:
            for task in (feeding, *self._storing):
                task.cancel()

    async def _feed(self, batches: AsyncIterable[list[Line]]) -> None:
        async for batch in batches:
            for number, line in batch:
                if line is None or line.strip():
                    await self._take(number, line)

    async def _take(self, number: int, line: bytes | None) -> None:
        try:
            if line is None:
                raise InvalidInput(f"the line is longer than {IMPORT_LINE_BYTES_MAX:,} bytes; no memory is")
            arguments = self._fields.arguments(line, datetime.now(UTC))
            if arguments is None:
                self.expired += 1
                return
            spine = self._as(arguments.pop("agent", None))
        except InvalidInput as error:
            self._fail(number, error)
            return
        await self._slots.acquire()
        id = arguments.get("id")
        before = None if id is None else self._by_id.get(id)
        task = asyncio.get_running_loop().create_task(self._store(number, spine, arguments, before))
        self._storing.add(task)
        if id is not None:
            self._by_id[id] = task
        task.add_done_callback(lambda task: self._done(task, id))

    async def _store(
        self, number: int, spine: Spine, arguments: dict[str, Any], before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        try:
            await spine.store(**arguments)
            self.stored += 1
        except SpineError as error:
            self._fail(number, error)
            if is_unavailable(error) and self.unavailable is None:
                self.unavailable = error
                self._stop()

    def _done(self, task: asyncio.Task[None], id: str | None) -> None:
        self._slots.release()
        self._storing.discard(task)
        if id is not None and self._by_id.get(id) is task:
            del self._by_id[id]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error
            self._stop()

    def _stop(self) -> None:
        """Read no further, also where there is nothing to read at the moment."""
        if self._feeding is not None:
            self._feeding.cancel()

    def _fail(self, number: int, error: SpineError) -> None:
        self.failed += 1
        self._tell(number, error)

    def _as(self, agent: str | None) -> Spine:
        """The spine that stores in this agent's name."""
        if agent is None:
            return self._spine
        spine = self._agents.get(agent)
        if spine is None:
            if len(self._agents) >= AGENTS_REMEMBERED_MAX:
                self._agents.clear()
            spine = self._agents[agent] = self._spine.for_agent(agent)
        return spine
