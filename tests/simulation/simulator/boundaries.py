"""The points between two effects of a node, at which it may die.

`Node.boundary` names the one that it is at. A crash that was to come there comes there; the faults count it, and a test
asks that every one of them was hit.
"""

from __future__ import annotations

from typing import Final

DROPPED: Final = "after a partition is dropped"

#: What a node does one after the other; it can die before each of these.
BOUNDARIES: Final[tuple[str, ...]] = (
    "before its row",  # the turn is closed, nothing of it is on the disk
    "while its row is written",  # a torn row, found by its checksum and dropped
    "after its row",  # all of the turn is on the disk, nobody knows
    "before a delta",  # some replicas got it, some did not
    "before an acknowledgement",
    "before an answer",
    "after a turn",
    "before a checkpoint",  # its vectors and records are taken, nothing of it is on the disk
    "after a checkpoint",  # the rows that it covers are still there
    "after pruning",
    "before a name is written",
    "after a name is written",
    "before a page leaves",
    "after a page",  # it is durable, the next one was not asked for
)

#: And these, where the membership changes.
MEMBERSHIP_BOUNDARIES: Final[tuple[str, ...]] = (
    "before a membership is written",
    "before a membership is confirmed",
    DROPPED,
)

#: And these, where there are strong operations.
STRONG_BOUNDARIES: Final[tuple[str, ...]] = ("before a round", "before a round is answered")
