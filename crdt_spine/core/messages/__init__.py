"""Every message between processes (docs/ARCHITECTURE.md, "Messages"): JSON, one struct each, versioned.

Its `type` names the message and its version (`delta/1`). A message is refused as a whole when it is no JSON, misses a
field, has one of another type, or is of another version: a newer node may mean something by a field that this one
would lose. Unknown fields are refused for the same reason. What a peer sends wrong is counted by who receives it and
changes nothing.

One module for each conversation; names are imported from here.
"""

from __future__ import annotations

from crdt_spine.core.messages.changes import Ack, Bundle, Change, Delta, Strong, bundled, deltas_of
from crdt_spine.core.messages.feeds import FeedBatch, FeedClose, FeedCommand, FeedCredit, FeedOpen, FeedUpdate
from crdt_spine.core.messages.fields import (
    NOTHING,
    Acks,
    After,
    Agent,
    Beat,
    Clock,
    Content,
    Dots,
    Id,
    Importance,
    KeyHashes,
    Level,
    Limit,
    Metadata,
    NodeId,
    NodeState,
    Role,
    Small,
    Tag,
    Tags,
    Term,
    Thread,
    Unreadable,
    Vector,
    Vectors,
    Whole,
    encode,
)
from crdt_spine.core.messages.nodes import Claim, Hello, NodeInfo, Rumours, Vitals
from crdt_spine.core.messages.operations import (
    Conflicts,
    Delete,
    DocumentPart,
    Edit,
    EditDocument,
    Get,
    GetDocument,
    History,
    Hit,
    Operation,
    Query,
    Reach,
    Request,
    Reshape,
    Response,
    Result,
    Status,
    Store,
    Write,
)
from crdt_spine.core.messages.repair import (
    Announcement,
    RecordsAnswer,
    RecordsRequest,
    StraysAnswer,
    StraysRequest,
    SyncPage,
    SyncRequest,
)
from crdt_spine.core.messages.rounds import Promised, Round, Rounded, Standing

__all__ = [
    "NOTHING", "Ack", "Acks", "After", "Agent", "Announcement", "Beat", "Bundle", "Change", "Claim", "Clock",
    "Conflicts", "Content", "Delete", "Delta", "DocumentPart", "Dots", "Edit", "EditDocument", "FeedBatch",
    "FeedClose", "FeedCommand", "FeedCredit", "FeedOpen", "FeedUpdate", "Get", "GetDocument", "Hello", "History",
    "Hit", "Id", "Importance", "KeyHashes", "Level", "Limit", "Metadata", "NodeId", "NodeInfo", "NodeState",
    "Operation", "Promised", "Query", "Reach", "RecordsAnswer", "RecordsRequest", "Request", "Reshape",
    "Response", "Result", "Role", "Round", "Rounded", "Rumours", "Small", "Standing", "Status", "Store",
    "StraysAnswer", "StraysRequest", "Strong", "SyncPage", "SyncRequest", "Tag", "Tags", "Term", "Thread",
    "Unreadable", "Vector", "Vectors", "Vitals", "Whole", "Write", "bundled", "deltas_of", "encode",
]  # fmt: skip
