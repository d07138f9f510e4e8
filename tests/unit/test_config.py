"""cluster.yaml is taken whole or refused with everything that is wrong in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.config import (
    KEYS,
    ClusterConfig,
    ConsistencyConfig,
    LimitsConfig,
    LocksConfig,
    NatsConfig,
    NodeConfig,
    OverrideConfig,
    Placement,
    ReplicationConfig,
    TelemetryConfig,
    hints,
    load,
    new_cluster,
    parse,
    problems,
)
from crdt_spine.errors import ConfigError
from crdt_spine.node.process import hello_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster.yaml"
NODES = """
  nodes:
    - {id: spine-1, host: 10.0.1.10, port: 8788, zone: a}
    - {id: spine-2, host: 10.0.1.11, port: 8788, zone: b}
    - {id: spine-3, host: 10.0.1.12, port: 8788, zone: c}
"""


def cluster(more: str = "", nodes: str = NODES) -> str:
    return f"cluster:\n  name: test\n{nodes}\n{more}\n"


def refusal(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.yaml")
    return str(caught.value)


def test_the_example_loads_with_every_key_in_it() -> None:
    config = load(EXAMPLE)
    assert (config.name, config.region, config.partitions, config.placement) == (
        "production-memory", "local", 64, "hash",
    )  # fmt: skip
    assert config.nodes[0] == NodeConfig(id="spine-1", host="10.0.1.10", port=8788, role="primary", zone="us-east-1a")
    assert [node.zone for node in config.nodes] == ["us-east-1a", "us-east-1b", "us-west-2a"]
    assert config.replication == ReplicationConfig(factor=3, write_quorum=2, read_quorum=1)
    assert config.consistency == ConsistencyConfig(
        default="read-your-writes",
        overrides=(
            OverrideConfig(tags=("critical", "lock"), model="strong"),
            OverrideConfig(tags=("analytics", "metric"), model="eventual"),
        ),
    )
    assert len(config.nats.urls) == 3
    assert config.limits == LimitsConfig(clock_drift_milliseconds=500, cache_bytes=64 * 1024 * 1024)
    assert config.locks == LocksConfig(replicas=1)
    assert config.telemetry.endpoint == "http://10.0.4.10:4318"
    text = EXAMPLE.read_text()
    for struct in (NodeConfig, ReplicationConfig, OverrideConfig, NatsConfig, LimitsConfig, LocksConfig,
                   TelemetryConfig):  # fmt: skip
        assert all(f"{key}:" in text for key in struct.__struct_fields__)
    assert all(f"{key}:" in text for key in KEYS)
    assert problems(EXAMPLE) == []


def test_what_is_left_out_has_its_default() -> None:
    config = parse(cluster())
    implied = ("factor", "write_quorum", "read_quorum")
    assert config == ClusterConfig(name="test", nodes=config.nodes, implied=implied)


@pytest.mark.parametrize(
    ("more", "implied"),
    [
        ("", ("factor", "write_quorum", "read_quorum")),
        ("  replication: {}", ("factor", "write_quorum", "read_quorum")),
        ("  replication: {factor: 3}", ("write_quorum", "read_quorum")),
        ("  replication: {factor: 3, write_quorum: 2, read_quorum: 1}", ()),
    ],
)
def test_what_is_left_out_of_replication_is_known_and_not_written_out(more: str, implied: tuple[str, ...]) -> None:
    config = parse(cluster(more))
    assert config.implied == implied
    assert config.replication == ReplicationConfig(factor=3, write_quorum=2, read_quorum=1)
    assert parse(config.to_yaml()) == config
    assert "unknown key" in refusal(cluster("  implied: [factor]"))


@pytest.mark.parametrize(("count", "factor", "write_quorum"), [(1, 1, 1), (2, 2, 2), (3, 3, 2), (5, 3, 2)])
def test_replication_left_out_fits_the_number_of_nodes(count: int, factor: int, write_quorum: int) -> None:
    nodes = [NodeConfig(id=f"n{index}", host="127.0.0.1", port=9000 + index) for index in range(count)]
    expected = ReplicationConfig(factor=factor, write_quorum=write_quorum, read_quorum=1)
    assert new_cluster(nodes).replication == expected
    listed = "".join(f"\n    - {{id: {node.id}, host: {node.host}, port: {node.port}}}" for node in nodes)
    assert parse(cluster(nodes=f"  nodes:{listed}")).replication == expected


@pytest.mark.parametrize(
    ("factor", "write", "read", "placement", "words"),
    [
        (3, 2, 1, "hash", ["write_quorum 2 + read_quorum 1 is not more than factor 3"]),
        (3, 2, 2, "hash", ["read_quorum 2: a get waits for 2 replicas"]),
        (3, 3, 1, "hash", ["write_quorum 3 is the factor"]),
        (3, 1, 2, "tag", ["is not more than factor 3", "read_quorum 2", "placement tag: a busy tag"]),
        (1, 1, 1, "agent", ["placement agent: a busy agent makes a busy partition"]),
        (1, 1, 1, "hash", []),
    ],
)
def test_hints_say_what_follows_from_quorums_and_placement(
    factor: int, write: int, read: int, placement: Placement, words: list[str]
) -> None:
    nodes = [NodeConfig(id=f"n{index}", host="127.0.0.1", port=9000 + index) for index in range(3)]
    replication = ReplicationConfig(factor=factor, write_quorum=write, read_quorum=read)
    found = hints(ClusterConfig(name="c", nodes=tuple(nodes), replication=replication, placement=placement))
    assert len(found) == len(words)
    for hint, expected in zip(found, words, strict=True):
        assert expected in hint


def test_every_problem_is_named_with_its_file_line_key_value_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "cluster:\n"
        "  name: my cluster\n"
        "  regoin: eu\n"
        "  nodes:\n"
        "    - {id: a, host: x, port: 8788}\n"
        "    - {id: a, host: y, port: '8788'}\n"
        "  replication: {factor: 3, write_quorum: 4}\n"
        "  partitions: 0\n"
    )
    found = problems(path)
    assert [(problem.line, problem.key, problem.found) for problem in found] == [
        (2, "cluster.name", "'my cluster'"),
        (3, "cluster.regoin", "'eu'"),
        (6, "cluster.nodes[1].port", "'8788'"),
        (6, "cluster.nodes[1].id", "'a'"),
        (7, "cluster.replication.factor", "3"),
        (7, "cluster.replication.write_quorum", "4"),
        (8, "cluster.partitions", "0"),
    ]
    assert all(problem.file == str(path) for problem in found)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [str(problem) for problem in found]
    assert f"{path}:3: cluster.regoin: found 'eu'; unknown key; did you mean region?" in str(caught.value)
    assert f"{path}:8: cluster.partitions: found 0; must be from 1 to 1,024" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "key", "reason"),
    [
        ("  replication: {factor: 4}", "cluster.replication.factor", "from 1 to 3, the number of nodes"),
        ("  replication: {factor: 0}", "cluster.replication.factor", "from 1 to 3"),
        ("  replication: {factor: 2, write_quorum: 3}", "write_quorum", "from 1 to 2, the replication factor"),
        ("  replication: {write_quorum: 0}", "write_quorum", "from 1 to 3"),
        ("  replication: {read_quorum: 4}", "read_quorum", "from 1 to 3, the replication factor"),
        ("  replication: {factor: yes}", "factor", "the number of nodes, not true or false"),
        ("  replication: {factor: 2.0}", "factor", "the number of nodes, not a number"),
        ("  replication: 3", "cluster.replication", "must be a mapping with the keys factor"),
        ("  replication: {quorum: 3}", "cluster.replication.quorum", "known are factor, read_quorum, write_quorum"),
        ("  consistency: {default: stong}", "cluster.consistency.default", "did you mean strong?"),
        ("  consistency: {overrides: {tags: [a], model: strong}}", "overrides", "must be a list"),
        ("  consistency: {overrides: [{model: strong}]}", "overrides[0].tags", "is missing"),
        ("  consistency: {overrides: [{tags: [a]}]}", "overrides[0].model", "is missing; it must be one of eventual"),
        ("  consistency: {overrides: [{tags: [a, 1], model: strong}]}", "overrides[0].tags[1]", "put it in quotes"),
        (
            "  consistency: {overrides: [{tags: [a], model: strong}, {tags: [b, a], model: eventual}]}",
            "overrides[1].tags",
            "'a' is in an earlier override too",
        ),
        ("  partitions: 1025", "cluster.partitions", "from 1 to 1,024"),
        ("  placement: agents", "cluster.placement", "did you mean agent?"),
        ("  region: eu.west", "cluster.region", "letters, digits"),
        ("  region: '*'", "cluster.region", "letters, digits"),
        ("  nats: {url: 'http://10.0.0.1:4222'}", "cluster.nats.url", "nats://127.0.0.1:4222"),
        ("  nats: {urls: ['nats://10.0.0.1:99999']}", "cluster.nats.urls[0]", "nats://127.0.0.1:4222"),
        ("  nats: {url: 'nats://a:1', urls: ['nats://a:1']}", "cluster.nats.url", "one of the two"),
        ("  limits: {clock_drift_milliseconds: 1}", "clock_drift_milliseconds", "from 10 to 60,000"),
        ("  limits: {replica_retirement: 1}", "replica_retirement", "must be from 5"),
        ("  limits: {replica_retirement: 7d}", "replica_retirement", "must be a number"),
        ("  limits: {tombstone_seconds: -1}", "tombstone_seconds", "must be from 0"),
        ("  locks: {replicas: 2}", "cluster.locks.replicas", "must be 1, 3 or 5"),
        ("  locks: {ttl_seconds: 0}", "cluster.locks.ttl_seconds", "from 1 to 86,400"),
        ("  locks: {ttl_seconds: 60, ttl_seconds_max: 30}", "cluster.locks.ttl_seconds_max", "not be less than"),
        ("  telemetry: {sample_ratio: .nan}", "cluster.telemetry.sample_ratio", "from 0 to 1"),
        ("  telemetry: {endpoint: here}", "cluster.telemetry.endpoint", "an address such as"),
        ("  partitions: 64\n  partitions: 32", "cluster.partitions", "there twice, first in line"),
        ("replication: {factor: 3}", "replication", "unknown key; known are cluster"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(more: str, key: str, reason: str) -> None:
    said = refusal(cluster(more))
    assert len(said.splitlines()) == 1, said
    assert f"{key}:" in said
    assert reason in said
    assert said.startswith("c.yaml:")


@pytest.mark.parametrize("written", ["false", "0", '""', "{}", "{a: 1}", "text"])
def test_overrides_that_are_no_list_were_taken_for_none(written: str) -> None:
    said = refusal(cluster(f"  consistency: {{overrides: {written}}}"))
    assert "cluster.consistency.overrides:" in said
    assert "must be a list, each of it a mapping with the keys tags and model" in said
    for none in ("", "~", "[]"):
        assert parse(cluster(f"  consistency: {{overrides: {none}}}")).consistency.overrides == ()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("  placement: 3", "must be hash, agent or tag, not a whole number"),
        ("  consistency: {default: true}", "must be eventual, read-your-writes, causal or strong, not true or false"),
        ('  partitions: "64"', "must be a whole number from 1 to 1,024, not text"),
        ('  replication: {factor: "3"}', "must be a whole number from 1 to 3, the number of nodes, not text"),
        ("  telemetry: {sample_ratio: all}", "must be a number from 0 to 1, not text"),
        ("  nats: {url: 4222}", "must be text, not a whole number; it must be an address such as nats://127"),
        ("  region: [a]", "must be text, not a list; it must be letters, digits"),
        ("  region: 7", "must be text, not a whole number; put it in quotes"),
    ],
)
def test_a_value_of_the_wrong_type_hid_what_is_allowed(more: str, reason: str) -> None:
    said = refusal(cluster(more))
    assert reason in said
    assert said.endswith("put it in quotes") or "put it in quotes" not in said


@pytest.mark.parametrize(
    ("more", "near"),
    [
        ("  REPLICATION: {factor: 3}", "did you mean replication?"),
        ("  limits: {max_clock_drift: 500}", "the nearest known one is clock_drift_milliseconds; known are"),
        ("  telemetry: {enabled: true}", "the nearest known one is endpoint; known are"),
    ],
)
def test_an_unknown_key_little_like_any_known_one_was_told_no_nearest(more: str, near: str) -> None:
    assert f"unknown key; {near}" in refusal(cluster(more))


@pytest.mark.parametrize("host", ["10.0.1.999", "10.0.1", "a..b", "a" * 64, ".", "a b", "1.2.3.4.5"])
def test_hosts_that_can_not_be_were_taken(host: str) -> None:
    assert "host name or an IP address" in refusal(cluster(nodes=f"  nodes: [{{id: a, host: '{host}', port: 1}}]"))
    assert "an address such as" in refusal(cluster(f"  nats: {{url: 'nats://{host}:1'}}"))


def test_hosts_of_every_kind_are_taken() -> None:
    for host in ("a", "a.b", "a.b.", "3com.example", "my_host", "10.0.1.99", "::1", "fe80::1", "x-1.y-2", "7"):
        parse(cluster(nodes=f"  nodes: [{{id: a, host: '{host}', port: 1}}]"))
    parse(cluster("  nats: {urls: ['nats://me:p%20w@a.b:1', 'tls://[::1]:4222', 'nats://127.0.0.1']}"))


@pytest.mark.parametrize(
    ("nodes", "key", "reason"),
    [
        ("", "cluster.nodes", "is missing; it must be a list of mappings with the keys"),
        ("  nodes: []", "cluster.nodes", "must be a list of mappings with the keys"),
        ("  nodes: {id: a}", "cluster.nodes", "must be a list of mappings with the keys"),
        ("  nodes: [spine-1]", "cluster.nodes[0]", "must be a mapping with the keys id, host, port, role and zone"),
        ("  nodes: [{host: a, port: 1}]", "cluster.nodes[0].id", "is missing; it must be text"),
        ("  nodes: [{id: a, port: 1}]", "cluster.nodes[0].host", "is missing"),
        ("  nodes: [{id: a, host: b}]", "cluster.nodes[0].port", "is missing; it must be a whole number"),
        ("  nodes: [{id: a.b, host: b, port: 1}]", "cluster.nodes[0].id", "letters, digits"),
        ("  nodes: [{id: 7, host: b, port: 1}]", "cluster.nodes[0].id", "put it in quotes"),
        ("  nodes: [{id: a, host: 'b:1', port: 1}]", "cluster.nodes[0].host", "without a scheme or a port"),
        ("  nodes: [{id: a, host: b, port: 65536}]", "cluster.nodes[0].port", "from 1 to 65,535"),
        ("  nodes: [{id: a, host: b, port: 1, role: leader}]", "cluster.nodes[0].role", "primary or replica"),
        ("  nodes: [{id: a, host: b, port: 1, zones: z}]", "cluster.nodes[0].zones", "did you mean zone?"),
        ("  nodes: [{id: a, host: b, port: 1}, {id: a, host: c, port: 1}]", "nodes[1].id", "of cluster.nodes[0]"),
        ("  nodes: [{id: a, host: b, port: 1}, {id: c, host: B, port: 1}]", "nodes[1].port", "of cluster.nodes[0]"),
        ("  nodes: [{id: a, host: b, port: 1}, {id: c, host: b., port: 1}]", "nodes[1].port", "of cluster.nodes[0]"),
        (
            "  nodes: [{id: a, host: '::1', port: 1}, {id: c, host: '0:0::1', port: 1}]",
            "nodes[1].port",
            "also the port",
        ),
    ],
)
def test_a_wrong_node_is_named_with_what_is_allowed(nodes: str, key: str, reason: str) -> None:
    said = refusal(cluster(nodes=nodes))
    assert len(said.splitlines()) == 1, said
    assert f"{key}:" in said
    assert reason in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an empty file; the file must be a mapping with the key cluster"),
        ("- 1", "must be a mapping with the key cluster"),
        ("cluster:", "cluster: is missing"),
        ("cluster: 3", "must be a mapping with the keys name, nodes"),
        ("cluster: [", "c.yaml:1: is no YAML"),
        ("cluster:\n\tname: x", "c.yaml:2: is no YAML"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: !!python/object:os.system x", "is no YAML: could not determine a constructor"),
        ("a: 2026-99-99", "is no YAML"),
        ("? [a]\n: 1", "is no YAML"),
        (b"\xff\xfe\xff", "is no YAML"),
        ("[" * 5_000, "nested too deeply"),
        ("# " + "x" * (1024 * 1024), "at most 1,048,576 are read"),
        ("cluster: &x {name: a, nodes: [*x]}", "cluster.nodes[0]"),
        ('cluster: {"\\ud800": 1}', "unknown key"),
    ],
)
def test_what_is_no_configuration_is_refused_with_the_reason(text: str | bytes, reason: str) -> None:
    said = refusal(text)
    assert reason in said
    said.encode()


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_can_not_be_read_is_a_config_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "nothing.yaml" if kind == "missing" else tmp_path
    with pytest.raises(ConfigError, match="can't be read"):
        load(path)
    assert [problem.file for problem in problems(path)] == [str(path)]


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_no_text_makes_reading_crash(text: str | bytes) -> None:
    with pytest.raises(ConfigError):
        parse(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_no_value_anywhere_makes_reading_crash(data: st.DataObject) -> None:
    document = yaml.safe_load(EXAMPLE.read_text())["cluster"]
    spot = document
    while True:
        key = data.draw(st.sampled_from(sorted(spot) if isinstance(spot, dict) else list(range(len(spot)))))
        if isinstance(spot[key], dict | list) and spot[key] and data.draw(st.booleans()):
            spot = spot[key]
            continue
        spot[key] = data.draw(VALUES)
        break
    try:
        config = parse(yaml.safe_dump({"cluster": document}))
    except ConfigError as error:
        assert "cluster" in str(error)
    else:
        assert parse(config.to_yaml()) == config


def test_a_configuration_written_and_loaded_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    nodes = [
        NodeConfig(id="no", host="::1", port=1, zone="yes"),
        NodeConfig(id="1e3", host="a.example", port=2, role="replica"),
    ]
    config = ClusterConfig(
        name="on", nodes=tuple(nodes), region="null", partitions=100, placement="agent",
        replication=ReplicationConfig(factor=2, write_quorum=1, read_quorum=2),
        consistency=ConsistencyConfig(default="causal", overrides=(OverrideConfig(tags=("ü",), model="eventual"),)),
        nats=NatsConfig(urls=("nats://user:word@a:4222", "tls://[::1]:4222")),
        limits=LimitsConfig(clock_drift_milliseconds=100, cache_bytes=0, replica_retirement=60, tombstone_seconds=0.5),
        locks=LocksConfig(ttl_seconds=5, replicas=3), telemetry=TelemetryConfig(endpoint="http://a:1", sample_ratio=1),
    )  # fmt: skip
    config.save(path)
    assert load(path) == config
    new_cluster(nodes, name="other", region="eu").save(path)
    assert load(path) == new_cluster(nodes, name="other", region="eu")
    assert os.listdir(tmp_path) == ["cluster.yaml"]  # noqa: PTH208


def test_what_locks_says_is_what_nodes_tell(tmp_path: Path) -> None:
    nodes = "  nodes: [{id: a, host: 127.0.0.1, port: 1}]"
    hello = hello_of(parse(cluster("  locks: {ttl_seconds: 5, ttl_seconds_max: 9, replicas: 3}", nodes)), "a")
    assert (hello.lock_ttl_seconds, hello.lock_ttl_seconds_max, hello.lock_replicas) == (5, 9, 3)
    left_out = parse(cluster("  locks: {ttl_seconds: 5}", nodes))
    assert hello_of(left_out, "a").lock_replicas == 0, "as many as there may be"
    left_out.save(tmp_path / "cluster.yaml")
    assert load(tmp_path / "cluster.yaml") == left_out
    one = parse(cluster("  locks: {replicas: 1}", nodes))
    assert hello_of(one, "a").lock_replicas == 1


def test_saving_where_nothing_can_be_written_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be written"):
        load(EXAMPLE).save(tmp_path / "missing" / "cluster.yaml")


def test_a_new_cluster_is_checked_too() -> None:
    node = NodeConfig(id="a", host="127.0.0.1", port=8788)
    with pytest.raises(ConfigError, match=r"nodes\[1\].id: found 'a'; is also the id of"):
        new_cluster([node, node])
    with pytest.raises(ConfigError, match="nodes"):
        new_cluster([])
    with pytest.raises(ConfigError, match="name"):
        new_cluster([node], name="a b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"cluster: " + b"[" * 200_000, "nested too deeply"),
        (b"cluster: {name: x, partitions: " + b"9" * 5_000 + b"}", "thousands of digits"),
        (b"cluster: {name: !!binary aGVsbG8=}", "must be text, not binary data"),
        (b"cluster: {name: x, nodes: [null]}", "cluster.nodes[0]: found nothing; must be a mapping"),
        (b"cluster: &a {name: x, nodes: [*a]}", "cluster.nodes[0].id: is missing"),
        (b"cluster:\n\tname: x\n", "c.yaml:2: is no YAML"),
        (b"cluster: {name: \xff}", "is no YAML"),
    ],
)
@pytest.mark.timeout(10)
def test_odd_texts_are_refused_at_once_with_a_reason(text: bytes, reason: str) -> None:
    assert reason in refusal(text)


@pytest.mark.timeout(10)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, reason in ((tmp_path / "pipe", "it is a pipe"), (tmp_path, "directory"), ("/dev/zero", "too long")):
        (problem,) = problems(place)
        assert reason in str(problem)
