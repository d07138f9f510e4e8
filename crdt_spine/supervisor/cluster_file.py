"""The `cluster.yaml` of a data folder: written at its first start, what is there at every later one.

How many nodes a folder has, their ids and the region are part of the data (replicas are placed by them, dots carry
them), so they are read and not chosen anew. HTTP ports are not: they may change from start to start.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from crdt_spine.errors import ConfigError
from crdt_spine.http.address import url_of
from crdt_spine.limits import EMBEDDED_NODES_MAX
from crdt_spine.supervisor.ports import Ports

CLUSTER_FILE = "cluster.yaml"
CLUSTER_NAME = "spine"
REGION = "local"  # when none is named
HTTP_PORT = 8788
HOST = "127.0.0.1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # a part of subjects, of actors and of paths


class NodeAddress(msgspec.Struct, frozen=True):
    """A node of the file, and where its HTTP listener is."""

    id: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """What a browser is given."""
        return url_of(self.host, self.port)


class ClusterFile(msgspec.Struct, frozen=True):
    """What a supervisor needs to know of the file."""

    path: Path
    name: str
    region: str
    nodes: tuple[NodeAddress, ...]


def open_cluster_file(
    folder: Path, nodes: int | None, http_port: int | None, region: str | None, ports: Ports
) -> ClusterFile:
    """Read the folder's cluster.yaml, or write it: `nodes` (else 1) nodes in `region` (else "local").

    `http_port` is the first node's, the others' follow; None is what the file has (else 8788), 0 are free ones. `ports`
    then holds them. Raises ConfigError: a value is out of range; the file is unusable; it has another number of nodes
    or another region; a port is in use. Then nothing was written.
    """
    _check_arguments(nodes, http_port, region)
    path = folder / CLUSTER_FILE
    if not path.exists():
        wanted = _following([HOST] * (nodes or 1), HTTP_PORT if http_port is None else http_port)
        document = _new(ports.take(wanted), region or REGION)
        _write(path, document)
        return _understood(path, document)
    document = _read(path)
    found = _understood(path, document)
    if nodes is not None and nodes != len(found.nodes):
        ids = ", ".join(node.id for node in found.nodes)
        raise ConfigError(
            f"{folder} was created with --nodes {len(found.nodes)} ({ids}), not {nodes}: leave --nodes out, or give"
            f" {len(found.nodes)}, or choose another --data folder"
        )
    if region is not None and region != found.region:
        raise ConfigError(
            f"{folder} was created in the region {found.region}, not {region}: leave --region out, or choose another"
            " --data folder"
        )
    taken = _take(found, http_port, ports)
    if taken == [node.port for node in found.nodes]:
        return found
    for node, port in zip(document["cluster"]["nodes"], taken, strict=True):
        node["port"] = port
    _write(path, document)
    return _understood(path, document)


def _check_arguments(nodes: int | None, http_port: int | None, region: str | None) -> None:
    if nodes is not None and not 1 <= nodes <= EMBEDDED_NODES_MAX:
        raise ConfigError(f"--nodes {nodes} is not between 1 and {EMBEDDED_NODES_MAX}")
    if http_port is not None and not 0 <= http_port <= 65_535 - EMBEDDED_NODES_MAX:
        raise ConfigError(f"--http-port {http_port} is not between 0 and {65_535 - EMBEDDED_NODES_MAX}")
    if region is not None and not _NAME.fullmatch(region):
        raise ConfigError(f"--region {region!r} is not made of letters, digits, - and _ (63 at most)")


def _take(found: ClusterFile, http_port: int | None, ports: Ports) -> list[int]:
    """The ports of the file's nodes from now on: as they are, where that is wanted, or will do."""
    wanted = _following([node.host for node in found.nodes], http_port or 0)
    if http_port:
        return ports.take(wanted)
    try:
        return ports.take([(node.host, node.port) for node in found.nodes])
    except ConfigError:
        if http_port is None:
            raise
        return ports.take(wanted)


def _following(hosts: Sequence[str], first: int) -> list[tuple[str, int]]:
    return [(host, first + index if first else 0) for index, host in enumerate(hosts)]


def _new(ports: list[int], region: str) -> dict[str, Any]:
    count = len(ports)
    return {
        "cluster": {
            "name": CLUSTER_NAME,
            "region": region,
            "nodes": [
                {"id": f"spine-{number}", "host": HOST, "port": port, "role": "primary", "zone": f"zone-{number}"}
                for number, port in enumerate(ports, 1)
            ],
            "replication": {"factor": min(3, count), "write_quorum": min(2, count), "read_quorum": 1},
        }
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    """All of it or nothing, also when the power fails."""
    text = "# Written by `spine up`. The number and ids of the nodes and the region stay as they are.\n"
    text += yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    new = path.with_name(path.name + ".new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: it is not a mapping with the key cluster")
    return document


class _Node(msgspec.Struct):
    id: str
    host: str
    port: int


class _Cluster(msgspec.Struct):
    nodes: list[_Node]
    name: str = CLUSTER_NAME
    region: str = REGION


def _understood(path: Path, document: dict[str, Any]) -> ClusterFile:
    """The keys that matter here; the rest is the nodes' to check."""
    try:
        cluster = msgspec.convert(document.get("cluster"), _Cluster)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: cluster: {error}") from error
    if not cluster.nodes:
        raise ConfigError(f"{path}: cluster.nodes: there is no node")
    ids = [node.id for node in cluster.nodes]
    for id in ids:
        if not _NAME.fullmatch(id) or ids.count(id) > 1 or id in ("broker", "locks"):
            raise ConfigError(f"{path}: cluster.nodes: the id {id!r} is taken, or not letters, digits, - and _")
    return ClusterFile(
        path, cluster.name, cluster.region, tuple(NodeAddress(node.id, node.host, node.port) for node in cluster.nodes)
    )
