"""What a node remembers of replaced versions and lost values until a flush has brought it into the tables.

On the way of every write, so only references are kept here: what a version looks like, and whether it differs from the
next one, is seen to when it is flushed, or asked for. Findings are kept as they came, by memory: which receipts a
withdrawal means depends on those in the tables as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from crdt_spine.core.conflicts import Finding, Receipt
from crdt_spine.core.record import Record, same_memory
from crdt_spine.limits import HISTORY_VERSIONS_MAX
from crdt_spine.storage.engine import Former

VERSION_OVERHEAD_BYTES = 1_400  # of a replaced record besides its text (measured, rounded up)
FINDING_BYTES = 800

Key = tuple[str, str, int]
Replaced = tuple[Record, Record]  # a version, and the one that came next


class Recent:
    """Used from the event loop; handed over to a flush as a whole."""

    def __init__(self) -> None:
        self.replaced: dict[str, list[Replaced]] = {}  # by memory, oldest first
        self.findings: dict[str, list[Finding]] = {}
        self.weight = 0  # bytes, estimated

    def __bool__(self) -> bool:
        return bool(self.replaced or self.findings)

    def replace(self, before: Record, after: Record) -> None:
        """A record has a successor. A dead one is no version."""
        if not before.alive:
            return
        known = self.replaced.get(before.id)
        if known is None:
            known = self.replaced[before.id] = []
        known.append((before, after))
        self.weight += _weight(before)
        if len(known) > HISTORY_VERSIONS_MAX:
            self.weight -= _weight(known.pop(0)[0])

    def find(self, findings: Iterable[Finding]) -> None:
        """Something was found about values lost to concurrent writes."""
        for finding in findings:
            self.findings.setdefault(finding.id, []).append(finding)
            self.weight += FINDING_BYTES
            if isinstance(finding, Receipt):
                self.weight += sum(len(value) for value in (finding.lost, finding.kept) if isinstance(value, str))

    def forget(self, belongs: Callable[[str], bool]) -> None:
        """Know nothing any more of these memories."""
        for id in [id for id in self.replaced if belongs(id)]:
            self.weight -= sum(_weight(before) for before, _ in self.replaced.pop(id))
        for id in [id for id in self.findings if belongs(id)]:
            self.weight -= FINDING_BYTES * len(self.findings.pop(id))

    def followed_by(self, later: Recent) -> Recent:
        """This, and what came after it; neither is to be used any more."""
        for id, records in later.replaced.items():
            self.replaced[id] = (self.replaced.get(id, []) + records)[-HISTORY_VERSIONS_MAX:]
        for id, findings in later.findings.items():
            self.findings.setdefault(id, []).extend(findings)
        self.weight += later.weight
        return self


def versions_of(replaced: Iterable[Replaced]) -> list[tuple[Record, int]]:
    """The versions that a reader would tell from what came next, each with the time when it was replaced."""
    return [
        (before, after.updated)
        for before, after in replaced
        if not same_memory(before, after) and before.etag != after.etag
    ]


def former_of(record: Record) -> Former:
    """A living record as its readers see it."""
    life = record.life.value
    return Former(
        record.etag, record.shown_updated, life.created, life.agent, record.text,
        0.5 if record.importance is None else record.importance.value, tuple(record.tags), record.metadata_values(),
        life.thread, life.clock, None if record.expires is None else record.expires.value,
    )  # fmt: skip


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
