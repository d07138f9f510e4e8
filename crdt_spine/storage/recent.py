"""What a node remembers of replaced versions and lost values until a flush has brought it into the tables.

On the way of every write, so only references are kept here: what a version looks like, and whether it differs from the
next one, is seen to when it is flushed, or asked for. Findings are kept as they came, by memory: which receipts a
withdrawal means depends on those in the tables as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from zlib import crc32

import msgspec

from crdt_spine.core.causality import version_text
from crdt_spine.core.conflicts import Finding, Receipt
from crdt_spine.core.record import Record, same_memory
from crdt_spine.limits import HISTORY_VERSIONS_MAX
from crdt_spine.storage.engine import Former, Version

VERSION_OVERHEAD_BYTES = 1_400  # of a replaced record besides its text (measured, rounded up)
FINDING_BYTES = 800

Key = tuple[str, str, int]

_encode = msgspec.msgpack.Encoder().encode


class Recent:
    """Used from the event loop; handed over to a flush as a whole."""

    def __init__(self) -> None:
        self.replaced: dict[
            str, list[Record]
        ] = {}  # oldest first; the last one was replaced by the record as it is now
        self.findings: dict[str, list[Finding]] = {}
        self.weight = 0  # bytes, estimated

    def __bool__(self) -> bool:
        return bool(self.replaced or self.findings)

    def replace(self, before: Record) -> None:
        """A record has a successor. A dead one is no version, but says when the one before it ended."""
        known = self.replaced.get(before.id)
        if known is None:
            known = self.replaced[before.id] = []
        known.append(before)
        self.weight += _weight(before)
        if len(known) > HISTORY_VERSIONS_MAX:
            self.weight -= _weight(known.pop(0))

    def find(self, findings: Iterable[Finding]) -> None:
        """Something was found about values lost to concurrent writes."""
        for finding in findings:
            self.findings.setdefault(finding.id, []).append(finding)
            self.weight += FINDING_BYTES
            if isinstance(finding, Receipt):
                self.weight += sum(len(value) for value in (finding.lost, finding.kept) if isinstance(value, str))

    def followed_by(self, later: Recent) -> Recent:
        """This, and what came after it; neither is to be used any more."""
        for id, records in later.replaced.items():
            self.replaced[id] = (self.replaced.get(id, []) + records)[-HISTORY_VERSIONS_MAX:]
        for id, findings in later.findings.items():
            self.findings.setdefault(id, []).extend(findings)
        self.weight += later.weight
        return self


def versions_of(replaced: list[Record], now: Record | None) -> list[tuple[Record, int]]:
    """The versions that a reader would tell apart, oldest first, each with the time when it was replaced; `now` is what
    the record is after them."""
    chain = [*replaced] if now is None else [*replaced, now]
    return [(older, newer.updated) for older, newer in pairwise(chain) if older.alive and not same_memory(older, newer)]


from_bytes = msgspec.msgpack.Decoder(Former).decode


def former_of(record: Record) -> Former:
    """A living record as its readers see it."""
    life = record.life.value
    return Former(
        version_text(record.version), record.updated, life.created, life.agent, record.text,
        0.5 if record.importance is None else record.importance.value, tuple(record.tags), record.metadata_values(),
        life.thread, life.clock, None if record.expires is None else record.expires.value,
    )  # fmt: skip


def stored(record: Record, replaced: int) -> Version:
    """The version as bytes, for the tables."""
    former = former_of(record)
    return Version(record.id, replaced, crc32(former.version.encode()), _encode(former))


def fold(receipts: Iterable[Receipt], findings: Iterable[Finding]) -> dict[Key, Receipt]:
    """One memory's receipts after what was found, by key."""
    folded = {receipt.key: receipt for receipt in receipts}
    for finding in findings:
        if isinstance(finding, Receipt):
            folded[finding.key] = finding
        else:
            for receipt in finding.withdrawn(folded.values()):
                del folded[receipt.key]
    return folded


def _weight(record: Record) -> int:
    content = len(record.content.value) if record.content is not None and record.content.value else 0
    return VERSION_OVERHEAD_BYTES + content + (0 if record.document is None else record.document.size)
