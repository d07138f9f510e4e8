"""Who was away for too long: what it has counts no more, and nobody waits for it (rule 9).

A replica that is away keeps all tombstones since it left. So one that was silent for `replica_retirement` is retired:
by name, for ever, and its *disk* rather than its node. A disk is named by the actor under which it began with nothing;
it keeps that name whatever names its node takes later on it (a node that starts and reaches nobody takes a new one and
has all the old data). The node is welcome again with a disk that began anew.

**When.** A node retires another once a majority of the cluster's nodes, itself among them, each say that they have not
heard of it for that long, in announcements that are new. Who is isolated has only its own word; who lost one link has
only two, the link's ends; a cluster of two nodes never retires anybody. What a retired node says does not count. All
others hear of it in announcements, and act on it from then on.

**One after the other.** Only the word of a node that serves counts: who began anew may have nothing yet, and were its
word enough to retire the next node, and that one's to retire the last, all would be gone. So whoever decides knows a
majority that serves, and stays. And nobody adopts a retirement unless a majority serves without that disk, as far as it
knows: two nodes may have retired different ones before they heard of each other. It hears of it again with the next
announcement. A disk that its node has replaced is nobody's support: that is adopted at once, as is one's own.

**How long.** Silence is counted by the own monotonic clock, tick by tick, each tick up to TICK_SECONDS_MAX: neither a
wall clock that jumps nor a process that was stopped makes anybody look silent. It is saved, so a restart does not
forget it; time in which this node was down counts for nothing, which can only put a retirement off.

**Why it is safe.** Let T be a tombstone that X has dropped without waiting for the retired disk A. Every replica that X
did wait for had T. What is on A may say that the memory lives, and comes back on one of these roads:

1. From A to X, or to anybody who knows of the retirement: refused (`refuses`).
2. From A to D, who does not know of it yet, and from D on. D has T: X waited for it, and D drops T without A only once
   it knows of the retirement. There A's change meets T, and what D hands on is the result.
3. From A to M, who does not know of it and does not have T, since its disk is new: X had waited for the one before it.
   Or A asks X itself before it hears that it is retired. No since() would tell either of T. But X knows how far it has
   forgotten (`Partition.forgotten`: the join of the versions of such tombstones, handed on with every sync); all that X
   waited for have that much. It takes no delta and no page whose source did not have it (`Replica.judge`). And who asks
   X without having it learns so from the page: with nothing of others on its disk, it asks for the whole; else its disk
   is of no use, and it retires that itself.

What lives on such a disk can't enter elsewhere either: where the store that gave a record its life was seen, and there
is no record, it was deleted (`Partition.merge_records`, `Partition.drop_absent`).

What A alone has is refused everywhere, so its node writes it to a file before it begins anew (node/reseeding.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from crdt_spine.limits import PEER_SILENT_SECONDS_MAX

TICK_SECONDS_MAX: Final = PEER_SILENT_SECONDS_MAX  # more than passes between two ticks of a node that runs


def disk_node(disk: str) -> tuple[str, str]:
    """(region, node) of a disk's name `region/node@incarnation`."""
    region, _, rest = disk.partition("/")
    return region, rest.rpartition("@")[0]


class Retirement:
    """What one node knows of the others' silence and disks. `nodes` are all nodes of the cluster, this one included;
    `seconds` is `replica_retirement`; `disk` is this node's own. `serves`: does this node serve? Its owner says so
    before it hears or judges."""

    def __init__(self, node: str, nodes: Collection[str], disk: str, seconds: float) -> None:
        self.node = node
        self.region = disk_node(disk)[0]
        self.disk = disk
        self.seconds = seconds
        self.others = tuple(sorted(set(nodes) - {node}))
        self.majority = (1 + len(self.others)) // 2 + 1
        self.serves = False
        self.retired: set[str] = set()
        self.disks: dict[str, str] = {}  # other nodes' newest disks
        self.silent: dict[str, float] = dict.fromkeys(self.others, 0.0)  # for how many seconds, by the own clock
        self.refused: Counter[str] = Counter()  # what came from retired disks, by disk
        self.serving: set[str] = set()  # other nodes that served when they were last heard
        self._said: dict[str, Mapping[str, int]] = {}  # node -> of whom it has not heard for how many seconds

    def change_nodes(self, nodes: Collection[str]) -> None:
        """The cluster has these nodes from now on. Of who left nobody waits for a word any more."""
        self.others = tuple(sorted(set(nodes) - {self.node}))
        self.majority = (1 + len(self.others)) // 2 + 1
        self.silent = {node: self.silent.get(node, 0.0) for node in self.others}
        self.disks = {node: disk for node, disk in self.disks.items() if node in self.silent}
        self.serving &= self.silent.keys()
        self._said = {node: said for node, said in self._said.items() if node in self.silent}

    # -- hearing ----------------------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """So much time has passed, by the monotonic clock, since the last tick."""
        counted = min(max(0.0, seconds), TICK_SECONDS_MAX)
        for node in self.silent:
            self.silent[node] += counted

    def hear(
        self, node: str, disk: str, silent: Mapping[str, int], retired: Iterable[str], *, serves: bool
    ) -> list[str]:
        """A node announces its disk, who is `silent` to it for how many seconds, who is retired, and whether it serves;
        the retirements that are new here. What a retired node says of others does not count."""
        if node not in self.silent:
            return []
        if disk_node(disk) == (self.region, node):
            self.disks[node] = disk
        if self.is_away(node):
            self.refused[disk] += 1
            return []
        self.silent[node] = 0.0
        self._said[node] = dict(silent)
        if serves:
            self.serving.add(node)
        else:
            self.serving.discard(node)
        return self.adopt(retired)

    # -- judging ----------------------------------------------------------------------------------------------------

    def due(self) -> list[str]:
        """The disks that are to be retired now, by the word of this node and of those that it hears."""
        return [
            disk
            for node, disk in sorted(self.disks.items())
            if disk not in self.retired and self.silent[node] >= self.seconds and self._agreed(node)
        ]

    def adopt(self, disks: Iterable[str]) -> list[str]:
        """Retire these disks; those that were not yet. Another's stays while less than a majority serves without it."""
        new: list[str] = []
        for disk in sorted(set(disks) - self.retired):
            region, node = disk_node(disk)
            if region != self.region:
                continue
            replaced = self.disks.get(node, disk) != disk
            if node == self.node or replaced or self._serving_without(node) >= self.majority:
                self.retired.add(disk)
                new.append(disk)
        return new

    @property
    def expelled(self) -> bool:
        """Is this node's own disk retired?"""
        return self.disk in self.retired

    @property
    def knows_another_disk(self) -> bool:
        """Was an earlier disk of this node retired?"""
        own = disk_node(self.disk)
        return any(disk_node(disk) == own for disk in self.retired if disk != self.disk)

    def is_away(self, node: str) -> bool:
        """Is the newest known disk of another node retired? Then nobody waits for it, and nothing it has counts."""
        return self.disks.get(node) in self.retired

    def refuses(self, actor: str) -> bool:
        """Does a change of this actor come from a retired disk, as far as is known? Counted."""
        if not self.retired:
            return False
        region, node = disk_node(actor)
        if region != self.region or not self.is_away(node):
            return False
        self.refused[self.disks[node]] += 1
        return True

    def said(self) -> dict[str, int]:
        """Of whom this node has not heard lately: node -> whole seconds. For the announcement."""
        return {node: int(seconds) for node, seconds in self.silent.items() if seconds > PEER_SILENT_SECONDS_MAX}

    def _agreed(self, node: str) -> bool:
        sure = sum(
            self._said[other].get(node, 0) >= self.seconds
            for other in self.serving
            if self.silent[other] <= PEER_SILENT_SECONDS_MAX and not self.is_away(other)
        )
        return self.serves and 1 + sure >= self.majority

    def _serving_without(self, node: str) -> int:
        return self.serves + sum(not self.is_away(other) for other in self.serving - {node})

    # -- a restart --------------------------------------------------------------------------------------------------

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint must have of it."""
        silent = {node: round(seconds, 1) for node, seconds in self.silent.items() if seconds >= 1.0}
        return {"retired": sorted(self.retired), "disks": dict(self.disks), "silent": silent}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint has."""
        self.retired = set(saved.get("retired", ()))
        self.disks = {node: disk for node, disk in saved.get("disks", {}).items() if node in self.silent}
        self.silent.update({node: float(s) for node, s in saved.get("silent", {}).items() if node in self.silent})
