"""Does the configuration of a node that starts agree with the cluster that runs?

cluster.yaml is a cluster's beginning; what it said then is in the register (core/membership.py), which is the truth
from there on. Where a file says otherwise, every node would place and count in its own way: so such a node is not
started, and told everything that contradicts. Nodes that the file does not have yet, or has at another address, are no
contradiction: the cluster has grown since, or a node has moved. Nor is what the file leaves out of `replication`: that
would follow from the number of nodes in it, and is the cluster's now.
"""

from __future__ import annotations

from collections.abc import Iterator

from crdt_spine.config import ClusterConfig
from crdt_spine.core.membership import Membership
from crdt_spine.errors import ConfigError
from crdt_spine.yaml_document import Problem, shown

_ANOTHER = "give another cluster another broker or another name"
_FIXED = (
    "it is fixed from the beginning: write {here}, or begin a new cluster and bring the memories with `spine export`"
)
_KEPT = "write {here}"


def belongs(config: ClusterConfig, saved: Membership, file: str = "cluster.yaml") -> None:
    """Raises ConfigError where the data folder of a node is another cluster's by what that can never change, with
    everything in the file that contradicts what the folder has."""
    settings = saved.settings
    fixed = {
        (config.name, settings.cluster),
        (config.region, settings.region),
        (config.partitions, settings.partitions),
    }
    if any(found != here for found, here in fixed):
        found = [str(problem) for problem in _problems(config, saved, file, "the cluster of this data folder")]
        raise ConfigError("\n".join(found))


def agree(config: ClusterConfig, membership: Membership, file: str = "cluster.yaml") -> None:
    """Raises ConfigError with everything in the file that contradicts the running cluster, one a line."""
    found = contradictions(config, membership, file)
    if found:
        raise ConfigError("\n".join(found))


def contradictions(config: ClusterConfig, membership: Membership, file: str = "cluster.yaml") -> list[str]:
    """What the file says and the running cluster contradicts: file, key, value, what the cluster has, what to do."""
    return [str(problem) for problem in _problems(config, membership, file, "the running cluster")]


def _problems(config: ClusterConfig, membership: Membership, file: str, whose: str) -> Iterator[Problem]:
    settings, replication = membership.settings, config.replication
    for key, found, here, advice in (
        ("name", config.name, settings.cluster, _ANOTHER),
        ("region", config.region, settings.region, _FIXED),
        ("partitions", config.partitions, settings.partitions, _FIXED),
        ("placement", config.placement, settings.placement, _FIXED),
        ("replication.factor", replication.factor, settings.factor, _KEPT),
        ("replication.write_quorum", replication.write_quorum, settings.write_quorum, _KEPT),
        ("replication.read_quorum", replication.read_quorum, settings.read_quorum, _KEPT),
    ):
        if found != here and key.removeprefix("replication.") not in config.implied:
            reason = f"{whose} has {shown(here)}; {advice.format(here=shown(here))}"
            yield Problem(file, 0, f"cluster.{key}", shown(found), reason)
    for index, node in enumerate(config.nodes):
        member = membership.members.get(node.id)
        if member is not None and node.zone != member.zone:
            here = "no zone" if member.zone is None else f"zone {member.zone!r}"
            change = membership.change
            if change is not None and change.newcomer == node.id:  # nothing else can begin before that is over
                move = "turn its joining back with `spine cluster cancel --dead`, then add it under a new id"
            else:
                move = (
                    f"move the node: `spine cluster remove {node.id}`, then `spine cluster add` it with its new zone "
                    "and an empty folder"
                )
            reason = f"in {whose} node {node.id} has {here}, and its data is placed by that; write that, or {move}"
            yield Problem(file, 0, f"cluster.nodes[{index}].zone", shown(node.zone), reason)
