"""The answering side of a partition's strong operations: what a replica says in a round, and how one that may have
forgotten its promises comes to take part again.

A replica takes part in a partition (else it is *absent* from the answer) where it counts for a quorum, has its promises
(`Promises.ready`), and belongs to the same membership as the asker, or to the one next to it: majorities of two such
sets meet, and no third one comes before all have confirmed the second (core/membership.py). The asker must count, too,
by what the answerer knows: so a node that was given up as dead is nobody's primary any more.

What an answer grants, it grants as of the moment in which the question is taken: the answer may leave later, once what
it says is durable. A later question of a higher term finds then what this one had found here, or more.

Inheriting: of `n` replicas that count, any majority of m has one of n - m + 1 others. Who has heard that many others
that are ready, or all others, knows the highest term that a majority can have promised while it was away, and a bound
above all stamps. Once it also has all that those had, it counts for what they counted for.
"""

from __future__ import annotations

from collections.abc import Iterable

from crdt_spine.core.actors import node_of
from crdt_spine.core.causality import Vector, within
from crdt_spine.core.fences import refused
from crdt_spine.core.messages import Round, Rounded, Standing, Term
from crdt_spine.core.placement import partition_of
from crdt_spine.core.replica import Replica
from crdt_spine.core.terms import NEVER

BOUND_AHEAD_MILLISECONDS_MAX = 1_500  # of a bound that is told, before the own clock: drift, and what clocks had heard


def majority(count: int) -> int:
    """The least number of `count` replicas of which any two sets meet."""
    return count // 2 + 1


def takes_part(replica: Replica, number: int) -> bool:
    """Does this node count in a partition, with all that it has promised?"""
    return (
        number in replica.promises.ready
        and number in replica.partitions
        and replica.node not in replica.quorums[number].muted
    )


def answer(replica: Replica, partitions: int, asked: Round, epoch: int, now: int) -> tuple[Rounded, bool]:
    """What this replica, at a membership's `epoch`, says in a round at the wall clock `now` (milliseconds); and whether
    it may leave at once, or only once the replica's open turn, and those before it, are durable. What was promised
    anew is in the open turn (`Replica.keep_promises`)."""
    promises = replica.promises
    refusals: dict[int, Term] = {}
    absent: list[int] = []
    bounds: dict[int, int] = {}
    later = False
    adjacent = abs(asked.epoch - epoch) <= 1
    for number, (counter, bound) in asked.terms.items():
        term = (counter, asked.node)
        if not (adjacent and takes_part(replica, number) and asked.node in replica.counting_peers(number)):
            absent.append(number)
        elif term < promises.term(number):
            refusals[number] = promises.term(number)
        elif bound > now + BOUND_AHEAD_MILLISECONDS_MAX:
            absent.append(number)
        else:
            if not bound:
                bounds[number] = promises.bound(number)
            if term > promises.term(number):
                promises.promise(number, term)
            if bound:
                promises.tell(number, bound)
            later = later or promises.durable.get(number) != term
    for fence in asked.fences:
        replica.keep_fence(fence)
    later = replica.keep_promises() or later or bool(asked.standings) or bool(asked.fences)
    news: list[tuple[int, Vector]] = []
    lacking: list[int] = []
    for index, (id, version) in enumerate(asked.have):
        number = partition_of(id, partitions)
        if number in refusals or number in absent or number not in replica.partitions:
            continue
        record = replica.records.get(id)
        if record is not None and record.version != version and not within(record.version, version):
            news.append((index, record.version))
            later = later or not replica.settled(id)
        if not within(version, replica.durable[number]):
            if within(version, replica.partitions[number].vector):
                later = True
            else:
                lacking.append(index)
    standings = {
        number: Standing(
            term=promises.term(number), bound=promises.bound(number), ready=number in promises.ready,
            vector=dict(replica.partitions[number].vector),
        )
        for number in asked.standings
        if adjacent and number in replica.partitions
    }  # fmt: skip
    said = Rounded(
        node=replica.node, epoch=epoch, refused=refusals, absent=tuple(absent), bounds=bounds, news=news,
        lacking=tuple(lacking), standings=standings, fences=refused(replica.fences, asked.fences),
    )  # fmt: skip
    return said, not later


def vouched(replica: Replica, actor: str, reached: Iterable[int]) -> dict[int, Term]:
    """What an acknowledgement says of terms (`Ack.terms`), of these partitions: by those an actor's node may know that
    it was still their primary when its changes came to be durable here."""
    node = node_of(actor)[1]
    terms = replica.promises.terms
    return {
        number: terms[number]
        for number in reached
        if number in terms and takes_part(replica, number) and node in replica.counting_peers(number)
    }


def unready(replica: Replica) -> list[int]:
    """The partitions in which this node counts, and does not know yet what was promised."""
    return [
        number
        for number in replica.partitions
        if number not in replica.promises.ready and replica.node not in replica.quorums[number].muted
    ]


class Inheritance:
    """What a replica has heard from others about the partitions in which it is not ready."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._heard: dict[int, dict[str, Standing]] = {}

    @property
    def wanted(self) -> list[int]:
        """The partitions of which others are to be asked for their standing."""
        return unready(self.replica)

    def hear(self, answer: Rounded) -> None:
        """Another replica's standings."""
        for number, standing in answer.standings.items():
            if number not in self.replica.promises.ready:
                self._heard.setdefault(number, {})[answer.node] = standing

    def settle(self) -> bool:
        """Be ready where enough was heard and all of it is here; did that change anything? Then the promises are in the
        open turn, and count once it is durable."""
        changed = False
        for number in self.wanted:
            others = self.replica.counting_peers(number)
            known = self._heard.get(number, {})
            heard = {node: known[node] for node in others if node in known}
            needed = len(others) + 2 - majority(len(others) + 1)
            ready = sum(standing.ready for standing in heard.values())
            if len(heard) < len(others) and ready < needed:
                continue
            have = self.replica.durable[number]
            if not all(within(standing.vector, have) for standing in heard.values()):
                continue
            self.replica.promises.inherit(
                number,
                max((standing.term for standing in heard.values()), default=NEVER),
                max((standing.bound for standing in heard.values()), default=0),
            )
            self._heard.pop(number, None)
            changed = True
        if changed:
            self.replica.keep_promises()
        return changed

    def void(self) -> None:
        """This disk may be an old copy of itself: nothing that was heard before counts, or was promised."""
        self._heard.clear()
        self.replica.promises.void()


__all__ = ["Inheritance", "answer", "majority", "takes_part", "unready", "vouched"]
