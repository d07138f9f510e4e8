"""What an agent asks a node, in batches, and what it is answered."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from crdt_spine import limits
from crdt_spine.core.fences import Fence
from crdt_spine.core.messages.fields import (
    NOTHING,
    Acks,
    After,
    Agent,
    Clock,
    Content,
    Id,
    Importance,
    KeyHashes,
    Level,
    Limit,
    Metadata,
    Tags,
    Thread,
    Vector,
    Vectors,
    Whole,
    WireMessage,
)
from crdt_spine.core.messages.nodes import NodeInfo
from crdt_spine.core.selection import Selection


class Get(WireMessage, frozen=True, kw_only=True, tag="get", tag_field="do"):
    """Read one memory. `reads` is how many replicas must have answered; None: the cluster's read quorum.

    This and the writes have a `level` where the cluster's overrides may demand another one (core/levels.py): the one
    that the operation is sent at, with `default`, the one where no override applies. Else it is the caller's word."""

    i: int
    id: Id
    reads: Acks | None = None
    level: Level | None = None
    default: Level = "read-your-writes"
    strong: bool = False  # linearizable: by the partition's primary (core/strong.py)


class Store(WireMessage, frozen=True, kw_only=True, tag="store", tag_field="do"):
    """Store one memory whole. `acks` is how many replicas must have it durably; `agent` where not the request's. An
    append to a thread has its `clock`, and in `after` the thread's entries of other partitions that it comes after.
    `fence` is the lease under which a write is made (core/fences.py)."""

    i: int
    id: Id
    content: Content
    tags: Tags = ()
    metadata: Metadata = {}
    thread: Thread | None = None
    importance: Importance = 0.5
    expires: Whole | None = None
    created: Whole = 0
    clock: Clock = {}
    after: After = {}
    acks: Acks | None = None
    agent: Agent | None = None
    fence: Fence | None = None
    level: Level | None = None
    default: Level = "read-your-writes"
    strong: bool = False


class Edit(WireMessage, frozen=True, kw_only=True, tag="update", tag_field="do"):
    """Change parts of one memory."""

    i: int
    id: Id
    content: Content | None = None
    importance: Importance | None = None
    expires: Whole | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Metadata = {}
    add: Tags = ()
    remove: Tags = ()
    if_version: str | None = None
    acks: Acks | None = None
    agent: Agent | None = None
    fence: Fence | None = None
    level: Level | None = None
    default: Level = "read-your-writes"
    strong: bool = False


class Delete(WireMessage, frozen=True, kw_only=True, tag="delete", tag_field="do"):
    """Delete one memory."""

    i: int
    id: Id
    acks: Acks | None = None
    agent: Agent | None = None
    fence: Fence | None = None
    level: Level | None = None
    default: Level = "read-your-writes"
    strong: bool = False


class GetDocument(WireMessage, frozen=True, kw_only=True, tag="document", tag_field="do"):
    """Read one memory's document: of the one that belongs to the content `base`, only what is not within `have`."""

    i: int
    id: Id
    base: tuple[Whole, str] | None = None
    have: Vector = {}
    level: Level | None = None  # as in `Get`; at "strong" there are no documents, and the answer says what demands it
    default: Level = "read-your-writes"


class EditDocument(WireMessage, frozen=True, kw_only=True, tag="edit-document", tag_field="do"):
    """Merge a Yjs update into the document of the content `base`; without one, begin a memory with it. `client` is the
    Yjs client id that made it, `clock` how far that had come in the document it was made on."""

    i: int
    id: Id
    update: Annotated[bytes, msgspec.Meta(min_length=1, max_length=limits.DOCUMENT_EDIT_BYTES_MAX)]
    client: Whole
    clock: Whole = 0
    base: tuple[Whole, str] | None = None
    acks: Acks | None = None
    agent: Agent | None = None
    level: Level | None = None
    default: Level = "read-your-writes"


class Query(WireMessage, frozen=True, kw_only=True, tag="query", tag_field="do"):
    """A page of a selection from these partitions; None: from all there are. `after` is (created, id) of the last
    memory shown; by relevance, `shown` lists the ids that earlier pages had. `causal`: say of each hit what its order
    in a thread needs, and of the page what it is a picture of. `keys`: these are the home partitions of placement
    keys; in which others may there be memories with one of them? `strays` is what the asker was shown of those
    (core/strays.py)."""

    i: int
    selection: Selection
    order: Literal["newest", "oldest", "relevance"] = "newest"
    limit: Limit = 50
    text: str | None = None
    after: tuple[Whole, str] | None = None
    shown: tuple[str, ...] = ()
    partitions: tuple[int, ...] | None = None
    causal: bool = False
    keys: KeyHashes = ()
    strays: Vectors = {}
    strong: bool = False  # show all that a majority of each partition has when it is asked


class History(WireMessage, frozen=True, kw_only=True, tag="history", tag_field="do"):
    """What a memory is and was, newest first: `hits` with the time and the version of each. `after` is (time, version)
    of the last one of the page before."""

    i: int
    id: Id
    after: tuple[Whole, str] | None = None


class Conflicts(WireMessage, frozen=True, kw_only=True, tag="conflicts", tag_field="do"):
    """Values lost to concurrent writes, of one memory or of all, newest first. `after` is the place of the last one of
    the page before: (time, id, field, actor, n)."""

    i: int
    id: Id | None = None
    limit: Limit = 200
    after: tuple[Whole, str, str, str, Whole] | None = None


class Reach(WireMessage, frozen=True, kw_only=True, tag="reach", tag_field="do"):
    """Answer once the request's token is reached."""

    i: int


class Status(WireMessage, frozen=True, kw_only=True, tag="status", tag_field="do"):
    """How the node fares."""

    i: int


class Reshape(WireMessage, frozen=True, kw_only=True, tag="reshape", tag_field="do"):
    """An operator's word: `node` is to join the cluster, to take the place of `goes`, or `goes` is to leave it; or what
    is under way is to be turned back. `dead`: `goes` will not come back, and nobody waits for it."""

    i: int
    kind: Literal["add", "remove", "replace", "cancel"]
    node: NodeInfo | None = None
    goes: str = ""
    dead: bool = False


Operation = (
    Get | Store | Edit | Delete | GetDocument | EditDocument | Query | History | Conflicts | Reach | Status | Reshape
)
Write = Store | Edit | Delete | EditDocument


class Request(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="request/1"):
    """A batch of one session's operations. Operation ids are `<session>-<i>`; a `retry` may have been applied before.

    `token` has the vectors, for the partitions read here, that the answer must not be behind. `by`: a write is not
    taken once the node's wall clock shows more milliseconds than this (lateness.py); 0: it does not matter.
    """

    session: str
    agent: Agent
    operations: list[Operation]
    token: Vectors = {}
    retry: bool = False
    by: Whole = 0


class Hit(WireMessage, frozen=True, kw_only=True):
    """One memory of a page; `score` (relevance: smaller is better) or (created, id) puts pages of several nodes in
    order. Of a causal query, `born` is the dot of its last store, with what that came `after`, and `changes` its
    version where that is more than `born`; of another one, where a sync has brought it ahead of its node's vector."""

    created: int
    memory: msgspec.Raw
    id: str
    score: float = 0.0
    born: tuple[str, Whole] | None = None
    after: Vectors = {}
    changes: Vector = {}
    replaced: bool = False  # it is younger than its creation time says


class DocumentPart(WireMessage, frozen=True, kw_only=True):
    """A document, or what its reader misses of it: `core.document.Document`, and the content that it began with; None
    where the reader has that or does not need it."""

    key: tuple[Whole, str]
    content: str | None = None
    seen: Vector = {}
    base: bytes | None = b""
    tail: list[tuple[str, Whole, bytes]] = []


class Result(WireMessage, frozen=True, kw_only=True):
    """What came of one operation. Which fields are there follows from the operation and from `error`."""

    i: int
    memory: msgspec.Raw = NOTHING  # get, update: a `Memory`; empty where there is none
    created: int = 0  # store: hybrid times and version of the memory
    updated: int = 0
    version: str | None = None  # history: of the living memory
    born: tuple[str, Whole] | None = None  # store with a clock: its dot
    existed: bool | None = None  # delete
    hits: list[Hit] | None = None  # query, history
    receipts: list[msgspec.Raw] | None = None  # conflicts: `conflicts.Receipt`
    more: bool = False
    elsewhere: tuple[int, ...] = ()  # query with keys: the other partitions that must be asked
    cut: Vectors = {}  # causal query: all within it that lives, and belongs on this page, is on it
    status: msgspec.Raw = NOTHING
    document: DocumentPart | None = None  # document: None where there is no memory
    error: str | None = None  # the name of an error class, or "Behind", "Busy", "Late", "NotHere": try another replica
    primary: str = ""  # with error "Elsewhere": the node that does the partition's strong operations, if that is known
    message: str | None = None
    outcome: Literal["not applied", "unknown"] | None = None
    final: bool = False  # of a refusal: no other attempt of the operation will be done; else it is of this one only
    acks_seen: int = 0
    acks_needed: int = 0
    missing: tuple[str, ...] = ()  # QuorumFailed: the replicas that did not acknowledge
    level: Level | None = None  # the one that an override demanded; with error "Level" it is to be asked at that one
    because: str = ""  # the tag that did
    gone: Vectors = {}  # StaleToken: actors of which no replica will ever have what the token has; what is here of them


class Response(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="response/1"):
    """Answers to operations of one request, as they become ready; `seen` is what they reflect, for the token.

    `epoch` is that of the node's membership: a session with an older one asks anew who holds what. `down`: the nodes
    that this one believes to be down, or suspects to be.
    `strays` says up to where strays were established in the partitions of `seen` (core/strays.py). `now`: the node's
    wall clock, milliseconds.
    """

    node: str
    results: list[Result]
    seen: Vectors = {}
    strays: Vectors = {}
    epoch: Whole = 0
    down: tuple[str, ...] = ()
    now: Whole = 0
