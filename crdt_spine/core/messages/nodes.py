"""Who is there: a node introduces itself and its cluster, claims its name, and gossips of the others."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from crdt_spine import limits
from crdt_spine.core.messages.fields import Beat, Level, NodeId, NodeState, Role, Small, Whole, WireMessage


class NodeInfo(WireMessage, frozen=True, kw_only=True):
    """One node of the cluster; `host:port` is its HTTP listener. A `role` of replica coordinates where no primary
    does."""

    id: str
    zone: str | None = None
    host: str = ""
    port: Whole = 0
    role: Role = "primary"


class Hello(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="hello/1"):
    """A node introduces its cluster to whoever asks on the discovery subject. `replicas` has, by partition, the nodes
    that answer for it at `epoch`; empty: where the ring puts them. `now`: its wall clock, milliseconds.
    `lock_replicas`: brokers that are to keep leases; 0: as many as there may be. `cluster_id` was made at random when
    the cluster was founded."""

    cluster: str
    region: str
    node: str
    state: NodeState
    nodes: list[NodeInfo]
    partitions: int
    factor: int
    write_quorum: int
    read_quorum: int = 1
    placement: str = "hash"
    epoch: Whole = 0
    replicas: dict[int, tuple[str, ...]] = {}
    down: tuple[str, ...] = ()
    now: Whole = 0
    default_level: Level = "read-your-writes"
    overrides: list[tuple[tuple[str, ...], Level]] = []
    lock_ttl_seconds: float = limits.LEASE_SECONDS
    lock_ttl_seconds_max: float = limits.LEASE_SECONDS_ALLOWED
    lock_replicas: Whole = 0
    cluster_id: str = ""

    @property
    def identity(self) -> str:
        """Which cluster this is, also among those that have the same name: `name@id`."""
        return f"{self.cluster}@{self.cluster_id}" if self.cluster_id else self.cluster


class Claim(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="claim/1"):
    """A process says which node it is. As a question, of one that starts: is there another one? `settled`: it has asked
    that before, and there was none. `process` is a name that no other process has."""

    node: str
    process: str
    pid: Whole
    host: str
    settled: bool = False


class Vitals(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a node says of itself, as an array, since there may be many: `generation` is when its process began, in
    milliseconds, `version` counts what it has said since. `load` is in operations a second, `waiting` are those that
    it has taken and not answered, `latency` is in milliseconds from a message to itself until it has it, `digest` is
    equal where the partitions' vectors are."""

    node: NodeId
    generation: Beat
    version: Small
    state: Literal["joining", "up", "leaving"]
    zone: Annotated[str, msgspec.Meta(max_length=63)] = ""
    load: Small = 0
    waiting: Small = 0
    latency: Small = 0
    epoch: Small = 0
    digest: Small = 0

    @property
    def age(self) -> tuple[int, int]:
        """Of two of a node, the greater one is newer."""
        return self.generation, self.version


class Rumours(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="gossip/1"):
    """A part of what a node knows of others (core/gossip.py): `beats` are their newest heartbeats by name, odd where
    they are suspected to be gone since, `table` those of all members by place, `roster` the digest of the members'
    names (core/roster.py), `vitals` what some said of themselves. `asks`: what the hearer knows better is to come
    back."""

    node: NodeId
    roster: Annotated[str, msgspec.Meta(max_length=16)] = ""
    asks: bool = False
    beats: Annotated[dict[NodeId, Beat], msgspec.Meta(max_length=limits.GOSSIP_BYTES_MAX // 4)] = {}
    table: Annotated[bytes, msgspec.Meta(max_length=limits.GOSSIP_BYTES_MAX)] = b""
    vitals: Annotated[tuple[Vitals, ...], msgspec.Meta(max_length=limits.GOSSIP_BYTES_MAX // 16)] = ()
