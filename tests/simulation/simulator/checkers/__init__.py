"""What must hold in every run, one thing a file. A checker sees everything that happens and raises Violation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.world import Violation

if TYPE_CHECKING:
    from crdt_spine.core.causality import Vector
    from crdt_spine.core.membership import Membership
    from crdt_spine.core.messages import Change
    from crdt_spine.core.quorum import Waiting
    from crdt_spine.core.record import Record
    from crdt_spine.core.replica import Turn
    from simulator.agents import Agent
    from simulator.claimants import Claim
    from simulator.cluster import Cluster
    from simulator.disk import Checkpoint
    from simulator.history import Dot, Made
    from simulator.node import Node


class Checker:
    """Hears of everything; a checker overrides what concerns it."""

    cluster: Cluster

    def coordinated(self, node: Node, partition: int, dot: Dot, change: Change, past: Vector) -> None:
        """A change was given its dot, by a node that had this much: its vector and the record's version."""

    def persisted(self, node: Node, turn: Turn) -> None:
        """A turn's journal row is on the disk."""

    def settled(self, node: Node, turn: Turn) -> None:
        """The node has acted on a durable turn."""

    def checkpointed(self, node: Node, checkpoint: Checkpoint) -> None:
        """A checkpoint is on the disk."""

    def sent(self, node: Node, kind: str, vectors: dict[int, Vector]) -> None:
        """Something leaves the node that says: I have this much."""

    def rolled_back(self, node: Node) -> None:
        """A node's disk has become an older one."""

    def given_up(self, node: Node) -> None:
        """An operator says that a node is dead, which may be so."""

    def moved(self, before: Membership, after: Membership) -> None:
        """The register has another value."""

    def confirmed(self, node: Node, partition: int, waiting: Waiting, steady: bool) -> None:
        """A coordinator knows that enough replicas have a write; that the epoch is the one in which it was made."""

    def dropped(self, node: Node, partition: int) -> None:
        """A node forgets a partition: it does not hold it any more, or begins anew with it."""

    def restarted(self, node: Node, vectors: dict[int, Vector]) -> None:
        """A node came up with this much."""

    def acknowledged(self, agent: Agent, id: str, partition: int, dot: Dot, needed: int) -> None:
        """An agent was told that its write is done."""

    def asked(self, agent: Agent, id: str, attempt: tuple[int, int]) -> None:
        """An agent asks some node for a memory."""

    def read(
        self, agent: Agent, id: str, attempt: tuple[int, int], record: Record | None, vector: Vector, node: str
    ) -> None:
        """The answer: the memory, or that there is none, as a replica with this vector has it."""

    def looked(self, where: str, id: str, record: Record | None, changes: tuple[Made, ...]) -> None:
        """A memory as it is on a replica that has these changes of it, in the order of their stamps."""

    def appends(self, agent: Agent, thread: str, id: str) -> None:
        """An agent is about to append an entry to a thread."""

    def appended(self, agent: Agent, thread: str, id: str) -> None:
        """It was told that this is done."""

    def thread_read(self, agent: Agent, thread: str, order: list[str]) -> None:
        """An agent is shown a thread: its entries' ids."""

    def claimed(self, agent: Agent, claim: Claim, outcome: str, output: dict[str, Any]) -> None:
        """An agent was told what came of a strong operation, or has given it up as "unknown"."""

    def stale(self, agent: Agent) -> None:
        """An agent gives its token up: nobody reaches it."""

    def healed(self) -> None:
        """The end: all links work, all nodes run, everything had time to settle."""

    def fail(self, what: str) -> None:
        """Something does not hold."""
        raise Violation(f"{type(self).__name__.lower()}: {what}")
