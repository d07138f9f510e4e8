"""Live Yjs documents of the records that are edited or read now, so that the next edit costs what it changes.

Loading a document of twenty thousand edits takes ten milliseconds, one more edit a tenth of one. What is asked for is a
function of the record that it is asked of: this only remembers how far each live document is. For one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from crdt_spine.core.causality import Vector, within
from crdt_spine.core.document import Document, Key, advance, key_of, opened, text_in, updates_of
from crdt_spine.core.record import Record
from crdt_spine.limits import OPEN_DOCUMENTS_BYTES_MAX, OPEN_DOCUMENTS_MAX

if TYPE_CHECKING:
    import pycrdt


class _Open(msgspec.Struct):
    key: Key
    reached: Vector  # the edits that the live document has
    live: pycrdt.Doc[pycrdt.Text]
    size: int


class OpenDocuments:
    """`text` and `live` of a record; the documents asked for last are kept."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    def text(self, record: Record) -> str:
        """What the memory's content reads as."""
        return record.text if record.document is None else text_in(self.live(record))

    def live(self, record: Record) -> pycrdt.Doc[pycrdt.Text]:
        """The record's document. Who applies an update to it says so with `applied`, or with `forget`."""
        document = record.document or Document({}, b"", ())
        found = self._open.get(record.id)
        reached = document.reached
        if (
            found is None
            or found.key != key_of(record.content)
            or not within(document.seen, found.reached)
            or not within(found.reached, reached)
        ):
            self.forget(record.id)
            live = opened(updates_of(record.content, document))
            content = 0 if document.base or record.content is None else len(record.content.value or "")
            found = _Open(key_of(record.content), reached, live, content + document.size)
            self._bytes += found.size
            self._open[record.id] = found
            while len(self._open) > 1 and (
                len(self._open) > OPEN_DOCUMENTS_MAX or self._bytes > OPEN_DOCUMENTS_BYTES_MAX
            ):
                self.forget(next(iter(self._open)))
            return live
        self._open.move_to_end(record.id)
        for actor, n, update in document.tail:
            if n > found.reached.get(actor, 0):
                advance(found.live, update)
                self._grow(found, len(update))
        found.reached = reached
        return found.live

    def applied(self, id: str, actor: str, n: int, size: int) -> None:
        """The live document has got the edit with this dot."""
        found = self._open.get(id)
        if found is not None:
            found.reached[actor] = n
            self._grow(found, size)

    def forget(self, id: str) -> None:
        """This memory's live document is not to be used again."""
        found = self._open.pop(id, None)
        if found is not None:
            self._bytes -= found.size

    def _grow(self, found: _Open, size: int) -> None:
        found.size += size
        self._bytes += size
