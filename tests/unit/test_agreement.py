"""A configuration that contradicts the running cluster is told all of it: key, value, what runs, what to do."""

from __future__ import annotations

import msgspec
import pytest

from crdt_spine.config import ClusterConfig, NodeConfig, ReplicationConfig
from crdt_spine.core.membership import Member, Membership, Settings, founded
from crdt_spine.core.membership_changes import proposed
from crdt_spine.errors import ConfigError
from crdt_spine.node.agreement import agree, belongs, contradictions

NODES = tuple(NodeConfig(id=f"n{k}", host=f"10.0.0.{k}", port=8788, zone=f"z{k}") for k in (1, 2, 3))
CONFIG = ClusterConfig(name="c", nodes=NODES, region="eu", partitions=4)


def running() -> Membership:
    members = {node.id: Member(host=node.host, port=node.port, zone=node.zone) for node in NODES}
    settings = Settings(
        cluster="c", region="eu", partitions=4, factor=3, write_quorum=2, read_quorum=1, placement="hash"
    )
    return founded(dict.fromkeys(range(4), ("n1", "n2", "n3")), members, settings)


def test_what_the_cluster_was_founded_with_agrees() -> None:
    assert contradictions(CONFIG, running()) == []
    agree(CONFIG, running())


@pytest.mark.parametrize(
    ("changed", "key", "here"),
    [
        ({"name": "d"}, "cluster.name", "'c'"),
        ({"region": "us"}, "cluster.region", "'eu'"),
        ({"partitions": 8}, "cluster.partitions", "4"),
        ({"placement": "agent"}, "cluster.placement", "'hash'"),
        ({"replication": ReplicationConfig(factor=2, write_quorum=2)}, "cluster.replication.factor", "3"),
        ({"replication": ReplicationConfig(write_quorum=3)}, "cluster.replication.write_quorum", "2"),
        ({"replication": ReplicationConfig(read_quorum=2)}, "cluster.replication.read_quorum", "1"),
    ],
)
def test_each_setting_that_differs_is_named_with_both_values(changed: dict[str, object], key: str, here: str) -> None:
    (told,) = contradictions(msgspec.structs.replace(CONFIG, **changed), running(), "my.yaml")
    assert told.startswith(f"my.yaml: {key}: found ")
    assert f"the running cluster has {here}; " in told


def test_a_folder_of_another_cluster_is_told_all_of_it_with_file_and_key() -> None:
    """It was the first difference alone, without file and key: one more at each start."""
    belongs(CONFIG, running())
    belongs(msgspec.structs.replace(CONFIG, placement="agent"), running())  # the running cluster says that
    config = msgspec.structs.replace(CONFIG, partitions=8, region="us", placement="agent")
    with pytest.raises(ConfigError) as told:
        belongs(config, running(), "my.yaml")
    region, partitions, placement = str(told.value).splitlines()
    assert region.startswith(
        "my.yaml: cluster.region: found 'us'; the cluster of this data folder has 'eu'; it is fixed"
    )
    assert partitions.startswith("my.yaml: cluster.partitions: found 8; the cluster of this data folder has 4; ")
    assert placement.startswith("my.yaml: cluster.placement: found 'agent'; ")


def test_what_the_file_leaves_out_of_replication_is_the_clusters() -> None:
    small = msgspec.structs.replace(
        CONFIG, nodes=NODES[:2], replication=ReplicationConfig(factor=2, write_quorum=2, read_quorum=1),
        implied=("factor", "read_quorum"),
    )  # fmt: skip
    assert contradictions(small, running()) == []
    all_said = msgspec.structs.replace(small, implied=())
    assert ["replication.factor" in told for told in contradictions(all_said, running())] == [True]


def test_all_of_it_is_in_one_error() -> None:
    config = msgspec.structs.replace(CONFIG, partitions=8, region="us")
    with pytest.raises(ConfigError) as caught:
        agree(config, running(), "my.yaml")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["cluster.region", "cluster.partitions"]


def test_a_node_may_have_moved_to_another_address_and_the_file_may_lack_or_have_more_nodes() -> None:
    moved = msgspec.structs.replace(NODES[0], host="10.9.9.9", port=1)
    more = NodeConfig(id="n4", host="10.0.0.4", port=8788)
    for nodes in ((moved, *NODES[1:]), NODES[:2], (*NODES, more)):
        assert contradictions(msgspec.structs.replace(CONFIG, nodes=nodes), running()) == []


@pytest.mark.parametrize("zone", ["elsewhere", None])
def test_a_node_does_not_change_its_zone_and_is_told_how_it_can(zone: str | None) -> None:
    nodes = (NODES[0], msgspec.structs.replace(NODES[1], zone=zone), NODES[2])
    (told,) = contradictions(msgspec.structs.replace(CONFIG, nodes=nodes), running())
    assert "cluster.nodes[1].zone" in told
    assert "zone 'z2'" in told
    assert "spine cluster remove n2" in told


def test_a_newcomer_with_another_zone_than_its_add_was_told_to_remove_itself_which_is_refused() -> None:
    joining = proposed(running(), "add", "n4", Member(host="10.0.0.4", port=8788, zone="z4"))
    node = NodeConfig(id="n4", host="10.0.0.4", port=8788, zone="z1")
    (told,) = contradictions(msgspec.structs.replace(CONFIG, nodes=(*NODES, node)), joining)
    assert "`spine cluster cancel --dead`, then add it under a new id" in told
    assert "cluster remove" not in told
