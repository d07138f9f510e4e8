"""cluster.yaml: which nodes a cluster has, how many of them keep a memory, and how fresh answers are by default.

Everything is under the one key `cluster`; examples/cluster.yaml shows every key. What is optional has its default
in the structs below. A file is taken whole or not at all: `load` raises ConfigError with every problem there is, one a
line, and `problems` gives them one by one.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import msgspec
import yaml

from crdt_spine.core.membership import one_host
from crdt_spine.core.messages import Level, Role
from crdt_spine.limits import (
    CACHE_BYTES_MAX,
    CLOCK_DRIFT_MILLISECONDS_MAX,
    CONFIG_BYTES_MAX,
    LEASE_SECONDS,
    LEASE_SECONDS_ALLOWED,
    LEASE_SECONDS_MAX,
    PARTITIONS_MAX,
    REPLICA_RETIREMENT_SECONDS,
    REPLICA_RETIREMENT_SECONDS_MIN,
    TAG_BYTES_MAX,
    TOMBSTONE_SECONDS_MIN,
    TTL_SECONDS_MAX,
)
from crdt_spine.memory import Consistency
from crdt_spine.yaml_document import Document, Problem, Section, config_error, write_whole

Placement = Literal["hash", "agent", "tag"]

ROLES = ("primary", "replica")
PLACEMENTS = ("hash", "agent", "tag")
LEVELS = tuple(level.value for level in Consistency)


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A node. `host:port` is its HTTP listener. A `role` of replica is asked to coordinate where no primary is."""

    id: str
    host: str
    port: int
    role: Role = "primary"
    zone: str | None = None


class ReplicationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas of each partition, and how many must have a write, or answer a read, by default."""

    factor: int = 3
    write_quorum: int = 2
    read_quorum: int = 1


class OverrideConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A memory with one of these tags is written and read at this level, unless a call names one (core/levels.py)."""

    tags: tuple[str, ...]
    model: Level


class ConsistencyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The level of an operation that names none."""

    default: Level = "read-your-writes"
    overrides: tuple[OverrideConfig, ...] = ()


class NatsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the brokers are, for nodes to which nobody says it otherwise."""

    urls: tuple[str, ...] = ()


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A node's limits that a cluster may set; the reasons are in limits.py. `replica_retirement` is in seconds."""

    clock_drift_milliseconds: int = CLOCK_DRIFT_MILLISECONDS_MAX
    cache_bytes: int = CACHE_BYTES_MAX
    replica_retirement: float = REPLICA_RETIREMENT_SECONDS
    tombstone_seconds: float = TOMBSTONE_SECONDS_MIN


class LocksConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The lease of a lock whose holder names none, the longest that one may name, and how many brokers keep leases and
    who belongs to the cluster. `replicas` None: leases three of a cluster of brokers, else one; who belongs to it one.
    """

    ttl_seconds: float = LEASE_SECONDS
    ttl_seconds_max: float = LEASE_SECONDS_ALLOWED
    replicas: int | None = None


class TelemetryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Checked, and without effect until there are traces: where they go (an OTLP endpoint; None: nowhere), and which
    share of operations is traced."""

    endpoint: str | None = None
    sample_ratio: float = 0.01


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One cluster, checked. `implied` are the keys of `replication` that the file leaves out: they follow from the
    number of nodes when the cluster begins, and are the cluster's then."""

    name: str
    nodes: tuple[NodeConfig, ...]
    region: str = "local"
    partitions: int = 64
    placement: Placement = "hash"
    replication: ReplicationConfig = ReplicationConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    nats: NatsConfig = NatsConfig()
    limits: LimitsConfig = LimitsConfig()
    locks: LocksConfig = LocksConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    implied: tuple[str, ...] = ()

    def to_yaml(self) -> str:
        """The text of a cluster.yaml that loads as this. Optional sections are left out where they are the default."""
        document = msgspec.to_builtins(self)
        for key in document.pop("implied"):
            del document["replication"][key]
        for field in msgspec.structs.fields(ClusterConfig)[2:]:
            kept = field.name in ("implied", "replication", "consistency")
            if getattr(self, field.name) == field.default and not kept:
                del document[field.name]
        if self.locks.replicas is None and "locks" in document:
            del document["locks"]["replicas"]
        for node in document["nodes"]:
            if node["zone"] is None:
                del node["zone"]
        return yaml.safe_dump({"cluster": document}, sort_keys=False, allow_unicode=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, all of it or nothing, also when the power fails. Raises ConfigError."""
        write_whole(Path(path), self.to_yaml())


KEYS = tuple(name for name in ClusterConfig.__struct_fields__ if name != "implied")


def load(path: str | os.PathLike[str]) -> ClusterConfig:
    """The configuration in a file. Raises ConfigError with every problem, one a line."""
    config, found = _read(path)
    if config is None:
        raise config_error(found)
    return config


def problems(path: str | os.PathLike[str]) -> list[Problem]:
    """Everything wrong with a file, in its order; empty where it can be used. Raises nothing."""
    return _read(path)[1]


def parse(text: str | bytes, file: str = "cluster.yaml") -> ClusterConfig:
    """The configuration in a text; `file` is what problems call it. Raises ConfigError with every problem."""
    config, found = _parse(file, text)
    if config is None:
        raise config_error(found)
    return config


def hints(config: ClusterConfig) -> list[str]:
    """What is worth knowing about a configuration that is right."""
    replication, placement = config.replication, config.placement
    factor, write, read = replication.factor, replication.write_quorum, replication.read_quorum
    found: list[str] = []
    if read + write <= factor and factor > 1:
        found.append(
            f"write_quorum {write} + read_quorum {read} is not more than factor {factor}: an agent sees its own writes "
            "at once, those of others with their token or a moment later"
        )
    if read > 1:
        found.append(
            f"read_quorum {read}: a get waits for {read} replicas and fails where fewer are there; queries, "
            "subscriptions and eventual reads ask one"
        )
    if write == factor > 1:
        found.append(f"write_quorum {write} is the factor: while a node is away, nothing is written to its partitions")
    if placement != "hash":
        found.append(f"placement {placement}: a busy {placement} makes a busy partition; see docs/placement.md")
    if config.telemetry != TelemetryConfig():
        found.append("telemetry is checked and has no effect: nodes send no traces yet")
    return found


def new_cluster(nodes: Sequence[NodeConfig], *, name: str = "spine", region: str = "local") -> ClusterConfig:
    """A cluster of these nodes, with defaults that fit their number. Raises ConfigError."""
    count = len(nodes)
    replication = ReplicationConfig(factor=min(3, count), write_quorum=min(2, count))
    config = ClusterConfig(name=name, region=region, nodes=tuple(nodes), replication=replication)
    return parse(config.to_yaml(), "the new cluster")


def node_problems(node: NodeConfig) -> dict[str, str]:
    """What is wrong with a node that no file describes: key -> what it must be. Empty: it could be in one."""
    checks = {"id": _name(node.id), "host": _host(node.host), "zone": None if node.zone is None else _zone(node.zone)}
    wrong = {key: reason for key, reason in checks.items() if reason is not None}
    wrong |= {key: "must not be empty" for key in ("id", "host", "zone") if getattr(node, key) == ""}
    if not 1 <= node.port <= 65_535:
        wrong["port"] = "must be from 1 to 65,535"
    return wrong


def _read(path: str | os.PathLike[str]) -> tuple[ClusterConfig | None, list[Problem]]:
    file = os.fspath(path)
    try:
        text = _bytes_of(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return None, [Problem(file, 0, "", None, f"can't be read: {reason}")]
    return _parse(file, text)


def _bytes_of(file: str) -> bytes:
    """No more than is needed to see that it is too much. Raises OSError, ValueError."""
    path = Path(file)
    if stat.S_ISFIFO(path.stat().st_mode) and not file.startswith(("/dev/", "/proc/")):
        raise ValueError("it is a pipe, to which nobody may ever write; write it into a file")
    with path.open("rb") as opened:
        return opened.read(CONFIG_BYTES_MAX + 1)


def _parse(file: str, text: str | bytes) -> tuple[ClusterConfig | None, list[Problem]]:
    document = Document(file, text)
    config: ClusterConfig | None = None
    root = document.root(("cluster",))
    if root is not None and not root.given("cluster"):
        root.problem("cluster", "is missing; it must be a mapping with the keys name and nodes")
    elif root is not None:
        cluster = root.section("cluster", KEYS)
        if root.sound("cluster"):
            config = _cluster(cluster)
    found = sorted(document.problems, key=lambda problem: problem.line)
    return (None if found else config), found


def _cluster(cluster: Section) -> ClusterConfig:
    replication, implied = _replication(cluster)
    return ClusterConfig(
        name=cluster.text("name", check=_name),
        nodes=_nodes(cluster),
        region=cluster.text("region", "local", check=_name),
        partitions=cluster.whole("partitions", 1, PARTITIONS_MAX, 64),
        placement=cast(Placement, cluster.one_of("placement", PLACEMENTS, "hash")),
        replication=replication,
        implied=implied,
        consistency=_consistency(cluster),
        nats=_nats(cluster),
        limits=_limits(cluster),
        locks=_locks(cluster),
        telemetry=_telemetry(cluster),
    )


def _nodes(cluster: Section) -> tuple[NodeConfig, ...]:
    nodes: list[NodeConfig] = []
    taken: dict[object, str] = {}  # an id, or a host and port -> whose it is
    for section in cluster.sections("nodes", NodeConfig.__struct_fields__):
        node = NodeConfig(
            id=section.text("id", check=_name),
            host=section.text("host", check=_host),
            port=section.whole("port", 1, 65_535),
            role=cast(Role, section.one_of("role", ROLES, "primary")),
            zone=section.text_or_none("zone", check=_zone),
        )
        where = f"cluster.nodes[{len(nodes)}]"
        if section.sound("id") and taken.setdefault(node.id, where) != where:
            section.problem("id", f"is also the id of {taken[node.id]}; ids must differ")
        address = (one_host(node.host), node.port)
        if section.sound("host", "port") and taken.setdefault(address, where) != where:
            section.problem("port", f"is on {node.host} also the port of {taken[address]}; host and port must differ")
        nodes.append(node)
    return tuple(nodes)


def _replication(cluster: Section) -> tuple[ReplicationConfig, tuple[str, ...]]:
    """What is left out fits the number of nodes; and which keys those are."""
    section = cluster.section("replication", ReplicationConfig.__struct_fields__)
    nodes = cluster.data.get("nodes")
    high, high_is = (len(nodes), "the number of nodes") if isinstance(nodes, list) and nodes else (1_000, "")
    factor = section.whole("factor", 1, high, min(3, high), high_is=high_is)
    if section.sound("factor"):
        high, high_is = factor, "the replication factor"
    replication = ReplicationConfig(
        factor=factor,
        write_quorum=section.whole("write_quorum", 1, high, min(2, high), high_is=high_is),
        read_quorum=section.whole("read_quorum", 1, high, 1, high_is=high_is),
    )
    return replication, tuple(key for key in ReplicationConfig.__struct_fields__ if not section.given(key))


def _consistency(cluster: Section) -> ConsistencyConfig:
    section = cluster.section("consistency", ConsistencyConfig.__struct_fields__)
    overrides: list[OverrideConfig] = []
    models: Counter[str] = Counter()
    for one in section.sections("overrides", OverrideConfig.__struct_fields__, needed=False):
        tags = one.texts("tags", check=_tag)
        if not one.given("model"):
            one.problem("model", f"is missing; it must be one of {', '.join(LEVELS)}")
        model = one.one_of("model", LEVELS, LEVELS[0])
        models.update(set(tags))
        if again := sorted(tag for tag in set(tags) if models[tag] > 1):
            one.problem("tags", f"{again[0]!r} is in an earlier override too; a tag has one model")
        overrides.append(OverrideConfig(tags=tags, model=cast(Level, model)))
    default = section.one_of("default", LEVELS, "read-your-writes")
    return ConsistencyConfig(default=cast(Level, default), overrides=tuple(overrides))


def _nats(cluster: Section) -> NatsConfig:
    """`url` for one broker, or `urls`."""
    section = cluster.section("nats", ("url", "urls"))
    if section.given("url") and section.given("urls"):
        section.problem("url", "there is urls as well; give one of the two")
    if section.given("url"):
        return NatsConfig(urls=(section.text("url", check=_url),))
    return NatsConfig(urls=section.texts("urls", check=_url) if section.given("urls") else ())


def _limits(cluster: Section) -> LimitsConfig:
    section = cluster.section("limits", LimitsConfig.__struct_fields__)
    return LimitsConfig(
        clock_drift_milliseconds=section.whole("clock_drift_milliseconds", 10, 60_000, CLOCK_DRIFT_MILLISECONDS_MAX),
        cache_bytes=section.whole("cache_bytes", 0, 1 << 40, CACHE_BYTES_MAX),
        replica_retirement=section.number(
            "replica_retirement", REPLICA_RETIREMENT_SECONDS_MIN, TTL_SECONDS_MAX, REPLICA_RETIREMENT_SECONDS
        ),
        tombstone_seconds=section.number("tombstone_seconds", 0, TTL_SECONDS_MAX, TOMBSTONE_SECONDS_MIN),
    )


def _locks(cluster: Section) -> LocksConfig:
    section = cluster.section("locks", LocksConfig.__struct_fields__)
    replicas = section.whole("replicas", 1, 5, 1)
    if section.sound("replicas") and replicas % 2 == 0:
        section.problem("replicas", "must be 1, 3 or 5: an even number survives no more failures than one less")
    ttl = section.number("ttl_seconds", 1, LEASE_SECONDS_MAX, LEASE_SECONDS)
    implied = max(LEASE_SECONDS_ALLOWED, ttl)
    most = section.number("ttl_seconds_max", 1, LEASE_SECONDS_MAX, implied)
    if section.sound("ttl_seconds", "ttl_seconds_max") and most < ttl:
        section.problem("ttl_seconds_max", f"must not be less than ttl_seconds, {ttl:g}")
    return LocksConfig(ttl_seconds=ttl, ttl_seconds_max=most, replicas=replicas if section.given("replicas") else None)


def _telemetry(cluster: Section) -> TelemetryConfig:
    section = cluster.section("telemetry", TelemetryConfig.__struct_fields__)
    return TelemetryConfig(
        endpoint=section.text_or_none("endpoint", check=_endpoint),
        sample_ratio=section.number("sample_ratio", 0, 1, 0.01),
    )


# -- what is wrong with a value, or None ----------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")


def _name(value: str) -> str | None:
    """A part of subjects, of actors and of paths."""
    return None if _NAME.fullmatch(value) else "must be letters, digits, - and _, at most 63, the first no - or _"


def _host(value: str) -> str | None:
    usable = _is_ip(value, IPv6Address) if ":" in value else _is_host_name(value)
    return None if usable else "must be a host name or an IP address, without a scheme or a port"


def _is_host_name(value: str) -> bool:
    labels = value.removesuffix(".").split(".")
    if len(labels) > 1 and all(label.isdecimal() for label in labels):
        return _is_ip(value, IPv4Address)
    return bool(_HOST_NAME.fullmatch(value)) and all(1 <= len(label) <= 63 for label in labels)


def _is_ip(value: str, kind: type[IPv4Address | IPv6Address]) -> bool:
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _zone(value: str) -> str | None:
    return None if len(value) <= 63 and value.isprintable() else "must be at most 63 printable characters"


def _tag(value: str) -> str | None:
    usable = value.isprintable() and len(value.encode()) <= TAG_BYTES_MAX
    return None if usable else f"must be printable, at most {TAG_BYTES_MAX} bytes"


def _url(value: str) -> str | None:
    return _address(value, ("nats", "tls", "ws", "wss"), "nats://127.0.0.1:4222")


def _endpoint(value: str) -> str | None:
    return _address(value, ("http", "https", "grpc"), "http://127.0.0.1:4318")


def _address(value: str, schemes: Sequence[str], example: str) -> str | None:
    try:
        parts: Any = urlsplit(value)
        usable = parts.scheme in schemes and parts.port != 0 and _host(parts.hostname or "") is None
    except ValueError:
        usable = False
    return None if usable else f"must be an address such as {example} ({', '.join(schemes)})"
