"""Operations that can't be done yet: their token is ahead of this replica, or what they would show is not durable.

They wait here, and are looked at again when more is durable, for `READ_WAIT_SECONDS_MAX` at most; then another replica
is to answer ("Behind"). Which is said at once where this one would take long: it gets what is missing page by page. And
where no replica will ever have it, the agent is told so ("StaleToken").
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from crdt_spine import wall_clock
from crdt_spine.core.messages import Operation, Request, Result, Vectors
from crdt_spine.core.placement import partition_of
from crdt_spine.core.replica import Replica
from crdt_spine.limits import READ_WAIT_SECONDS_MAX
from crdt_spine.node.answers import Answers
from crdt_spine.node.committer import Committer
from crdt_spine.node.load import Load
from crdt_spine.node.replication import Replication

UNREACHABLE_SECONDS_MAX = 1.5  # beyond READ_WAIT_SECONDS_MAX: for all peers to say that they have it not, either


class Parked(msgspec.Struct, eq=False):
    """An operation that waits for its token, or for what it would show to be durable; a write with its request."""

    inbox: str
    operation: Operation
    token: Vectors
    request: Request | None
    deadline: float


class Parking:
    """Keeps them. `attempt` does an operation, or says False: not yet (service.py)."""

    def __init__(
        self, partitions: int, replica: Replica, committer: Committer, replication: Replication, answers: Answers,
        load: Load, attempt: Callable[[str, Operation, Vectors, Request | None, int], bool],
    ) -> None:  # fmt: skip
        self.partition_count = partitions
        self.replica = replica
        self.committer = committer
        self.replication = replication
        self.answers = answers
        self.load = load
        self.attempt = attempt
        self._parked: list[Parked] = []

    @property
    def occupied(self) -> bool:
        """Does an operation wait for more to be durable here?"""
        return bool(self._parked)

    def park(self, inbox: str, operation: Operation, token: Vectors, request: Request | None = None) -> None:
        """This one was attempted, and can't be done yet."""
        if self._sent_elsewhere(inbox, operation, token):
            return
        parked = Parked(inbox, operation, token, request, time.monotonic() + READ_WAIT_SECONDS_MAX)
        lost, _ = self._unreachable(parked)
        if lost is not None:
            self.answers.add(inbox, lost)
            return
        self._parked.append(parked)
        self.committer.touch()

    def look_again(self) -> None:
        """More is durable, or time has passed."""
        if not self._parked:
            return
        now, wall = time.monotonic(), wall_clock.now()
        parked, self._parked = self._parked, []
        for one in parked:
            operation = one.operation
            if self.attempt(one.inbox, operation, one.token, one.request, wall):
                continue
            lost, undecided = self._unreachable(one)
            if lost is not None:
                self.answers.add(one.inbox, lost)
            elif one.deadline <= now and not (undecided and now < one.deadline + UNREACHABLE_SECONDS_MAX):
                message = f"node {self.replica.node} has not reached the token within {READ_WAIT_SECONDS_MAX:g} s"
                if self.committer.full:
                    message = f"the disk of node {self.replica.node} is full, and what is asked for is not on it yet"
                self.answers.add(one.inbox, _behind(operation, message))
            elif not self._sent_elsewhere(one.inbox, operation, one.token):
                self._parked.append(one)

    def _unreachable(self, parked: Parked) -> tuple[Result | None, bool]:
        """Will no replica ever have some of what an operation waits for? Then it is told so, of all that is lost at
        once. And: is that about to be known?"""
        i, id, undecided = parked.operation.i, getattr(parked.operation, "id", None), False
        gone: Vectors = {}
        message = ""
        for number, wanted in parked.token.items():
            mine = id is None or number == partition_of(id, self.partition_count)
            if not mine or number not in self.replica.partitions or not self.replica.may_be_unreachable(number, wanted):
                continue
            left = dict(wanted)
            while found := self.replica.unreachable(number, left, self.replication.peers.said_since):
                actor, why = found
                n = left.pop(actor)
                if actor == self.replica.actor and parked.deadline > time.monotonic():
                    undecided = True
                    continue
                gone.setdefault(number, {})[actor] = self.replica.durable[number].get(actor, 0)
                message = message or (
                    f"the token has change {n} of {actor} in partition {number}, which no replica has, nor will have: "
                    f"{why}. The session goes on without it: read again what you rely on"
                )
            undecided = undecided or self.replica.may_be_unreachable(number, left)
        if not gone:
            return None, undecided
        self.load.totals["stale_tokens"] += 1
        return Result(i=i, error="StaleToken", message=message, gone=gone, outcome="not applied"), False

    def _sent_elsewhere(self, inbox: str, operation: Operation, token: Vectors) -> bool:
        """Does an operation wait for what comes page by page? Another replica has it already."""
        id = getattr(operation, "id", None)
        numbers = token if id is None else (partition_of(id, self.partition_count),)
        for number in numbers:
            here = number in token and number in self.replica.durable
            if here and self.replication.pulling.is_pulled(number) and self.replica.behind(number, token[number]):
                message = f"node {self.replica.node} catches up with partition {number}"
                self.answers.add(inbox, _behind(operation, message))
                return True
        return False


def _behind(operation: Operation, message: str) -> Result:
    return Result(i=operation.i, error="Behind", message=message, outcome="not applied")
