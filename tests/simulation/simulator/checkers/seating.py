"""While who holds what changes, the register never says anything that loses a write: enough replicas count for every
partition, at most one seat of it changes at a time, an acknowledged write is on as many disks of those who hold it as
were promised, and any majority of those who count has what a majority ever had.

The last is what strong reads stand on: Gifford, "Weighted voting for replicated data" (1979); Ongaro (2014), 4.1.
"""

from __future__ import annotations

from collections import defaultdict

from simulator.disk_vectors import DiskVectors


class Seating(DiskVectors):
    """Keeps what every disk has, and which writes had their quorum."""

    def __init__(self) -> None:
        super().__init__()
        # By partition: dot, whether a majority has it, and which nodes were known to be dead, or are made up for.
        self.promised: defaultdict[int, list[tuple[str, int, bool, set[str]]]] = defaultdict(list)
        self.dead: set[str] = set()
        self.mourned: set[str] = set()  # those of them whose place nobody has taken yet
        self.standing: dict[int, int] = {}  # by partition, how many had a seat when no change was under way
        self.rolled = False

    def rolled_back(self, node) -> None:  # type: ignore[no-untyped-def]
        self.rolled = True  # a disk less, whatever the register says

    def given_up(self, node) -> None:  # type: ignore[no-untyped-def]
        self.dead.add(node.name)
        self.mourned.add(node.name)

    def confirmed(self, node, partition, waiting, steady) -> None:  # type: ignore[no-untyped-def]
        if waiting.needed >= self.cluster.write_quorum:
            majority = steady and waiting.needed > node.replica.counting[partition] // 2
            known = {*node.seen.dead} if steady else set()
            self.promised[partition].append((waiting.actor, waiting.n, majority, known))

    def moved(self, before, after) -> None:  # type: ignore[no-untyped-def]
        if after.epoch != before.epoch + 1:
            self.fail(f"after epoch {before.epoch} comes {after.epoch}")
        if before.change is None:
            self.standing = {number: len(seats) for number, seats in before.seats.items()}
        now, then = after.replicas(), before.replicas()
        for number, seats in after.seats.items():
            moving = [name for name, seat in seats.items() if seat.stage != "member" and name not in after.dead]
            if len(moving) > 1:
                self.fail(f"{moving} change their seats in partition {number} at once")
            lost = set(then[number]) - set(now[number])
            dead = seats.keys() & {*after.dead}  # an operator left it there, when something else was more urgent
            enough = min(after.settings.factor, self.standing[number])
            if lost - {*after.dead} and len(now[number]) + len(dead) < enough:
                self.fail(f"partition {number} is on {now[number]} alone, without {lost}: {after}")
            if lost <= {*after.dead} and not now[number]:
                self.fail(f"nobody holds partition {number}")
            if not self.rolled and len(self.mourned | {*after.dead} - self.dead) <= 1:
                self._look(number, seats, [name for name in now[number] if name not in after.dead], after.epoch)
        if after.change is None and not {*after.dead} & after.nodes:
            self.mourned.clear()
            for _, _, _, known in (one for promised in self.promised.values() for one in promised):
                known.update(self.dead)

    def _look(self, number, seats, counting, epoch) -> None:  # type: ignore[no-untyped-def]
        disks = {name: self.disks[name, number] for name in seats}
        for actor, n, majority, known in self.promised[number]:
            having = {name for name, vector in disks.items() if vector.get(actor, 0) >= n}
            if len(having - self.dead) < self.cluster.write_quorum - len(self.dead - known):
                self.fail(f"epoch {epoch}: ({actor}, {n}) of partition {number} is on {sorted(having)} alone")
            without = [name for name in counting if name not in having]
            if majority and len(without) > len(counting) // 2:
                self.fail(f"epoch {epoch}: {without} are a majority in {number} and have not seen ({actor}, {n})")
