"""What a node serves now: of which partitions agents are answered, and why of none.

The node's seats and its identity decide it (seats.py, node.py); whoever does an agent's operation looks here first.
"""

from __future__ import annotations

from collections.abc import Iterable


class Serving:
    """`readable` are the partitions of which agents are answered, `writable` those of which writes are taken here."""

    __slots__ = ("closed", "epoch", "readable", "writable")

    def __init__(self, partitions: Iterable[int]) -> None:
        self.readable = frozenset(partitions)
        self.writable = self.readable
        self.closed = ""  # why agents are to go elsewhere with everything but questions about the node itself
        self.epoch = 0  # of the membership that this is by
