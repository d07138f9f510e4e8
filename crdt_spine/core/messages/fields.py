"""What the fields of messages hold, and what all messages have in common."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from crdt_spine import limits

# Times, counters and partitions: what the tables' integers hold.
Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

# What an agent may send; its session has checked it already, byte by byte. A node does not rely on that.
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.ID_BYTES_MAX)]
Agent = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.AGENT_BYTES_MAX)]
Content = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.CONTENT_BYTES_MAX)]
Thread = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.THREAD_BYTES_MAX)]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.TAG_BYTES_MAX)]
Tags = Annotated[tuple[Tag, ...], msgspec.Meta(max_length=limits.TAGS_MAX)]
KeyHashes = Annotated[  # placement_hash of agents or tags
    tuple[Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)], ...], msgspec.Meta(max_length=limits.TAGS_MAX)
]
Metadata = Annotated[dict[str, Any], msgspec.Meta(max_length=limits.METADATA_KEYS_MAX)]
Importance = Annotated[float, msgspec.Meta(ge=0, le=1)]
Acks = Annotated[int, msgspec.Meta(ge=1, le=1_000)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=limits.QUERY_LIMIT_MAX)]

NOTHING: Final = msgspec.Raw()  # left out of a message

#: What decoding raises for bytes that are no such message: refused and counted.
Unreadable: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

Vector = dict[str, Whole]
Vectors = dict[int, Vector]  # partition -> vector

# The causal past of a thread's entry (core/thread.py): agent -> how many of its events; partition -> dots elsewhere.
Clock = Annotated[dict[Agent, Whole], msgspec.Meta(max_length=limits.THREAD_AGENTS_MAX)]
Dots = Annotated[Vector, msgspec.Meta(max_length=limits.THREAD_ACTORS_MAX)]
After = Annotated[dict[int, Dots], msgspec.Meta(max_length=limits.PARTITIONS_MAX)]

# What gossip says of a node.
NodeId = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
Beat = Annotated[int, msgspec.Meta(ge=0, le=limits.BEAT_MAX)]
Small = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]

Role = Literal["primary", "replica"]
NodeState = Literal["starting", "up", "full", "stopping"]
Level = Literal["eventual", "read-your-writes", "causal", "strong"]

#: A term of a partition: (counter, node), ordered; (0, "") is before every term (core/terms.py).
Term = tuple[Whole, Annotated[str, msgspec.Meta(max_length=63)]]


class WireMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Frozen, and without gc: messages hold data only, never each other in a cycle."""


_encoder = msgspec.json.Encoder()
encode = _encoder.encode
