"""What a node takes up from its disk when it starts: the tables' checkpoint, then the journal's rows behind it.

node.py writes the checkpoint. Whether the disk may be believed at all is identity.py's question.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from crdt_spine.core.messages import Hello
from crdt_spine.core.replica import Entry, Replica
from crdt_spine.errors import ConfigError
from crdt_spine.node.committer import Committer
from crdt_spine.storage.engine import Checkpoint, Engine

log = logging.getLogger(__name__)

_decode_entry = msgspec.json.Decoder(Entry).decode


def check_folder(extra: Mapping[str, Any], hello: Hello, node: str) -> None:
    """Raises ConfigError where a checkpoint's `extra` is another cluster's, or another node's."""
    here = {"cluster": hello.cluster, "region": hello.region, "node": node, "partitions": hello.partitions}
    for key, value in here.items():
        if extra.get(key, value) != value:
            raise ConfigError(
                f"this data folder belongs to {key} {extra[key]!r}, the configuration says {value!r}; "
                "give the node its own folder, or the folder its own configuration"
            )


def restore(replica: Replica, checkpoint: Checkpoint) -> None:
    """Make a new replica what it was when the tables were written."""
    for number, summary in checkpoint.partitions.items():
        partition = replica.partitions.get(number)
        if partition is not None:
            partition.vector = dict(summary.vector)
            partition.memories, partition.tombstones = summary.memories, summary.tombstones
            partition.forgotten = dict(summary.forgotten)
            known = summary.forgotten_time
            partition.forgotten_time = replica.clock.highest if known is None else known
    replica.fences.restore(checkpoint.extra)
    replica.promises.restore(checkpoint.extra, replica.partitions)


def replay(replica: Replica, committer: Committer, engine: Engine) -> None:
    """Replay what the journal has and the tables have not; remember the operations of the rows before that."""
    through = engine.checkpoint.through
    rows = 0
    for sequence, row in engine.journal_rows(0):
        entries = row.split(b"\n")
        committer.rows.append((sequence, row.count(b'"operation"')))
        if sequence <= through:
            replica.remember(entries, _decode_entry)
        else:
            replica.replay(entries, _decode_entry)
            rows += 1
        committer.through = max(committer.through, sequence)
    replica.recovered()
    if rows:
        log.info("replayed %d journal rows", rows)
