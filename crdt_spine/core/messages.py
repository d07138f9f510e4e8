"""Every message between processes (docs/ARCHITECTURE.md, "Messages"): JSON, one struct each, versioned.

Its `type` names the message and its version (`delta/1`). A message is refused as a whole when it is no JSON, misses a
field, has one of another type, or is of another version: a newer node may mean something by a field that this one
would lose. Unknown fields are refused for the same reason. What a peer sends wrong is counted by who receives it and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from crdt_spine import limits
from crdt_spine.core.fences import Fence
from crdt_spine.core.registers import Origin
from crdt_spine.core.selection import Selection

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


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Frozen, and without gc: messages hold data only, never each other in a cycle."""


# -- what replicas exchange ----------------------------------------------------------------------------------------


class Strong(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a strong operation leaves in the memory that it writes whole (core/whole.py): the ids of the strong
    operations that were done on it lately, the last one last, and of those that were tried again and refused
    "-<error>:<id>"; "" as the first one says that earlier ones were left out.
    `edit`: it changed what was there, so it is no birth. A seal changed nothing: `sealed` are the version and the
    hybrid time of the last change that readers are shown in place of its own. `carried`: which fields are as they were,
    and where those values come from (core/conflicts.py)."""

    operations: tuple[str, ...] = ()
    edit: bool = False
    sealed: tuple[str, Whole] | None = None
    carried: tuple[tuple[Origin, tuple[str, ...]], ...] = ()


class Change(_Message, frozen=True, kw_only=True):
    """One agent operation on one record. Its dot is (the delta's actor, first + its index), its stamp (time, actor).

    `alive`: true for a store, false for a delete, absent for an update. A store carries what is fixed at birth
    (`thread`, `clock`, `after`, `created`), a delete what its tombstone keeps (`life_agent`, `thread`, `created`,
    `last_tags`).
    `remove` names, for each tag that the change takes away, the dots it saw, `operation` the agent's operation id,
    `unseen` the fields whose former value its agent had not seen (core/conflicts.py). A strong operation writes its
    memory whole, with `strong` (core/whole.py).
    `document` is a Yjs update of the content with the origin `base` (time, actor), or of the change's own content.
    """

    id: str
    time: Whole
    agent: str
    operation: str = ""
    alive: bool | None = None
    content: str | None = None
    importance: float | None = None
    expires: Whole | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, Any] = {}
    add: tuple[str, ...] = ()
    remove: dict[str, tuple[tuple[str, Whole], ...]] = {}
    thread: str | None = None
    clock: Vector = {}
    after: Vectors = {}
    created: Whole = 0
    life_agent: str = ""
    last_tags: tuple[str, ...] = ()
    document: bytes | None = None
    base: tuple[Whole, str] | None = None
    unseen: tuple[str, ...] = ()
    strong: Strong | None = None


class Delta(_Message, frozen=True, kw_only=True, tag_field="type", tag="delta/1"):
    """Consecutive changes of one actor in one partition; `deps` must be in a replica's vector before they apply."""

    partition: Whole
    actor: str
    first: Whole
    deps: Vector
    changes: list[Change]


class Bundle(_Message, frozen=True, kw_only=True, tag_field="type", tag="bundle/1"):
    """Deltas of one turn for partitions with the same replicas, on the first one's subject. Each is whole, as it would
    travel alone; `deltas_of` decodes them."""

    deltas: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=limits.BATCH_OPERATIONS_MAX)]


def bundled(deltas: Iterable[tuple[int, bytes]], peers: Mapping[int, tuple[str, ...]]) -> list[tuple[int, bytes]]:
    """A turn's deltas (partition, encoded) as messages, each with the partition on whose subject it goes. `peers` says
    who else holds a partition; a delta that nobody else needs goes nowhere."""
    bundles: list[tuple[int, list[bytes]]] = []
    growing: dict[tuple[str, ...], tuple[list[bytes], int]] = {}
    for number, raw in deltas:
        others = peers[number]
        if not others:
            continue
        bundle, size = growing.get(others, ([], 0))
        if not bundle or size + len(raw) > limits.BATCH_BYTES_TARGET or len(bundle) >= limits.BATCH_OPERATIONS_MAX:
            bundle, size = [], 0
            bundles.append((number, bundle))
        bundle.append(raw)
        growing[others] = bundle, size + len(raw)
    return [
        (number, bundle[0] if len(bundle) == 1 else b'{"type":"bundle/1","deltas":[%s]}' % b",".join(bundle))
        for number, bundle in bundles
    ]


_decode_delta = msgspec.json.Decoder(Delta).decode
_decode_deltas = msgspec.json.Decoder(Delta | Bundle).decode


def deltas_of(message: bytes) -> list[tuple[Delta, bytes]]:
    """The deltas of a message on a partition's subject, each with its own bytes. Raises one of Unreadable."""
    found = _decode_deltas(message)
    if isinstance(found, Delta):
        return [(found, message)]
    return [(_decode_delta(raw), bytes(raw)) for raw in found.deltas]


#: A term of a partition: (counter, node), ordered; (0, "") is before every term (core/terms.py).
Term = tuple[Whole, Annotated[str, msgspec.Meta(max_length=63)]]


class Ack(_Message, frozen=True, kw_only=True, tag_field="type", tag="ack/1"):
    """A replica says up to where it durably has an actor's changes, per partition; in `terms`, for partitions in which
    strong operations were done, the highest term that it has promised by now (core/terms.py)."""

    node: str
    actor: str
    reached: dict[int, Whole]
    terms: dict[int, Term] = {}


class Announcement(_Message, frozen=True, kw_only=True, tag_field="type", tag="announcement/1"):
    """A replica says what it durably has, who it is and how it fares. `now`: its wall clock, milliseconds.

    In answer to a node that starts, `known` is what `known_of` had said to have: has it less now, its disk is an old
    one. `ahead` has the nodes whose last announcement was from the future, by how many milliseconds: their clocks are
    ahead of this one's at least as far.

    `disk` names the disk by the actor under which it began, empty where that is `actor`. `retired` are the disks that
    count no more, `silent` the nodes that were not heard of lately, for how many seconds (core/retirement.py). `epoch`
    is that of the membership which the node has adopted (core/membership.py).
    `strays` says up to where strays were established in the partitions that have some (core/strays.py). `abstains`: as
    its clock is wrong, it is nobody's primary (core/strong.py). `stranded`: by partition, the fingerprint of what a
    sync brought of actors that have ended (core/stranded.py). `behind`: it pulls what it misses, or its disk is slow:
    no write should have to wait for it.
    """

    node: str
    actor: str
    state: NodeState
    now: int
    vectors: Vectors
    zone: str | None = None
    known_of: str = ""
    known: Vectors = {}
    ahead: dict[str, Whole] = {}
    disk: str = ""
    retired: tuple[str, ...] = ()
    silent: dict[str, Whole] = {}
    epoch: Whole = 0
    strays: Vectors = {}
    abstains: bool = False
    stranded: dict[int, Whole] = {}
    behind: bool = False


class Claim(_Message, frozen=True, kw_only=True, tag_field="type", tag="claim/1"):
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


class Rumours(_Message, frozen=True, kw_only=True, tag_field="type", tag="gossip/1"):
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


class SyncRequest(_Message, frozen=True, kw_only=True, tag_field="type", tag="sync/1"):
    """since(have), one page of it: the records with a change that is not within `have`, behind the id `after`.

    The first page's request has no `upto`: the answer fixes it (rule 6). With `whole` (and an empty `have`) the asker
    wants to know what is not there, too. `disk` is the asker's (`Announcement.disk`): a retired one gets no answer.
    """

    partition: int
    have: Vector
    upto: Vector | None = None
    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] = 512
    whole: bool = False
    disk: str = ""


class SyncPage(_Message, frozen=True, kw_only=True, tag_field="type", tag="page/1"):
    """Records of a partition as `codec.Stored`; `next` is None on the last page, after which `upto` may be joined.

    `operations` are the operation ids that the source knows for changes the asker misses: operation -> dot. `clock` is
    the greatest hybrid time of the tombstones that were dropped at the source: who takes the page must stamp above it.
    With `whole` the records are all there are behind the id `after`, through `next`. Of what is within `forgotten`,
    tombstones may be missing here that not every replica had: who does not have that much must ask for the whole
    (core/retirement.py).
    The last page has the source's `strays`, where it has some (core/strays.py).
    """

    partition: int
    records: list[tuple[str, msgspec.Raw]]
    upto: Vector
    next: str | None = None
    operations: dict[str, tuple[str, Whole]] = {}
    clock: Annotated[int, msgspec.Meta(ge=0)] = 0
    after: str | None = None
    whole: bool = False
    forgotten: Vector = {}
    strays: tuple[Annotated[bytes, msgspec.Meta(max_length=16_384)], Vector] | None = None


class StraysRequest(_Message, frozen=True, kw_only=True, tag_field="type", tag="strays/1"):
    """Of which placement keys are there strays in these partitions (core/strays.py)?"""

    partitions: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=limits.STRAYS_AT_ONCE_MAX)]


class StraysAnswer(_Message, frozen=True, kw_only=True, tag_field="type", tag="stray-keys/1"):
    """By partition, the replica's vector and the keys of all strays within it, as `strays.Keys.packed`."""

    keys: Annotated[dict[int, tuple[Vector, bytes]], msgspec.Meta(max_length=limits.STRAYS_AT_ONCE_MAX)]


class RecordsRequest(_Message, frozen=True, kw_only=True, tag_field="type", tag="record/1"):
    """since(version) of single memories: the asker has this much of each (core/record.py), and wants what another
    replica has more."""

    have: Annotated[list[tuple[Id, Vector]], msgspec.Meta(min_length=1, max_length=limits.BATCH_OPERATIONS_MAX)]


class RecordsAnswer(_Message, frozen=True, kw_only=True, tag_field="type", tag="states/1"):
    """About the first `through` memories that were asked for: of those that have news for the asker their index and
    state, as sync pages have it, and the indexes of those of which there is no replica here."""

    through: Whole
    states: list[tuple[Whole, msgspec.Raw]] = []
    absent: tuple[Whole, ...] = ()


class Round(_Message, frozen=True, kw_only=True, tag_field="type", tag="round/1"):
    """A question of a partition's primary (or of who wants to be it) to another replica, for all strong operations of
    one loop turn at once (core/strong.py). The answer is a `Rounded`.

    `terms`: partition -> (counter, bound): do you still promise me the term (counter, node)? A higher one than promised
    so far is promised durably. No stamp of mine in this term is above `bound` (milliseconds), unless I ask again; 0
    where nothing is written. `have`: of each of these memories I have this version; what is new to me, and have you all
    of it durably? Those of which this replica takes no part in the partition are left out of the answer's lists.
    `standings`: what have you promised in these partitions, and what have you durably? `fences`: the leases under which
    memories are to be written (core/fences.py); they are kept durably.
    """

    node: NodeId
    epoch: Whole = 0
    terms: dict[int, tuple[Whole, Whole]] = {}
    have: Annotated[list[tuple[Id, Vector]], msgspec.Meta(max_length=limits.BATCH_OPERATIONS_MAX)] = []
    standings: tuple[int, ...] = ()
    fences: Annotated[list[Fence], msgspec.Meta(max_length=limits.BATCH_OPERATIONS_MAX)] = []


class Standing(_Message, frozen=True, kw_only=True):
    """A replica's part in a partition: the highest term that it promised, the highest bound it was told (milliseconds),
    what it durably has, and whether it takes part in rounds (`ready`, core/terms.py)."""

    term: Term = (0, "")
    bound: Whole = 0
    ready: bool = False
    vector: Vector = {}


class Rounded(_Message, frozen=True, kw_only=True, tag_field="type", tag="rounded/1"):
    """A replica's answer to a round. It leaves once everything in it is durable. What is in none of `refused` and
    `absent` is granted.

    `refused`: a higher term is promised there, this one. `absent`: this replica takes no part in these, for now.
    `bounds`: where a higher term than before was promised, the highest bound that it was told until then. `news`: what
    this replica has of the memory with this index in `have` and the asker has not, its version. `lacking`: the
    indexes of those of which it does not durably have all that the asker has. `fences`: of the leases that were told
    and are not the newest, what is newer.
    """

    node: NodeId
    epoch: Whole = 0
    refused: dict[int, Term] = {}
    absent: tuple[int, ...] = ()
    bounds: dict[int, Whole] = {}
    news: list[tuple[Whole, Vector]] = []
    lacking: tuple[Whole, ...] = ()
    standings: dict[int, Standing] = {}
    fences: list[Fence] = []


class Promised(msgspec.Struct, frozen=True, tag_field="type", tag="promised/1", forbid_unknown_fields=True, gc=False):
    """An entry of a node's journal: the terms that it has promised since, the partitions in which it takes part in
    rounds since, and the greatest bound (milliseconds) that it may have been told (core/terms.py)."""

    terms: dict[int, Term]
    ready: tuple[int, ...] = ()
    ceiling: Whole = 0


# -- what an agent asks a node ---------------------------------------------------------------------------------------


class Get(_Message, frozen=True, kw_only=True, tag="get", tag_field="do"):
    """Read one memory. `reads` is how many replicas must have answered; None: the cluster's read quorum.

    This and the writes have a `level` where the cluster's overrides may demand another one (core/levels.py): the one
    that the operation is sent at, with `default`, the one where no override applies. Else it is the caller's word."""

    i: int
    id: Id
    reads: Acks | None = None
    level: Level | None = None
    default: Level = "read-your-writes"
    strong: bool = False  # linearizable: by the partition's primary (core/strong.py)


class Store(_Message, frozen=True, kw_only=True, tag="store", tag_field="do"):
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


class Edit(_Message, frozen=True, kw_only=True, tag="update", tag_field="do"):
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


class Delete(_Message, frozen=True, kw_only=True, tag="delete", tag_field="do"):
    """Delete one memory."""

    i: int
    id: Id
    acks: Acks | None = None
    agent: Agent | None = None
    fence: Fence | None = None
    level: Level | None = None
    default: Level = "read-your-writes"
    strong: bool = False


class GetDocument(_Message, frozen=True, kw_only=True, tag="document", tag_field="do"):
    """Read one memory's document: of the one that belongs to the content `base`, only what is not within `have`."""

    i: int
    id: Id
    base: tuple[Whole, str] | None = None
    have: Vector = {}
    level: Level | None = None  # as in `Get`; at "strong" there are no documents, and the answer says what demands it
    default: Level = "read-your-writes"


class EditDocument(_Message, frozen=True, kw_only=True, tag="edit-document", tag_field="do"):
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


class Query(_Message, frozen=True, kw_only=True, tag="query", tag_field="do"):
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


class History(_Message, frozen=True, kw_only=True, tag="history", tag_field="do"):
    """What a memory is and was, newest first: `hits` with the time and the version of each. `after` is (time, version)
    of the last one of the page before."""

    i: int
    id: Id
    after: tuple[Whole, str] | None = None


class Conflicts(_Message, frozen=True, kw_only=True, tag="conflicts", tag_field="do"):
    """Values lost to concurrent writes, of one memory or of all, newest first. `after` is the place of the last one of
    the page before: (time, id, field, actor, n)."""

    i: int
    id: Id | None = None
    limit: Limit = 200
    after: tuple[Whole, str, str, str, Whole] | None = None


class Reach(_Message, frozen=True, kw_only=True, tag="reach", tag_field="do"):
    """Answer once the request's token is reached."""

    i: int


class Status(_Message, frozen=True, kw_only=True, tag="status", tag_field="do"):
    """How the node fares."""

    i: int


class NodeInfo(_Message, frozen=True, kw_only=True):
    """One node of the cluster; `host:port` is its HTTP listener. A `role` of replica coordinates where no primary
    does."""

    id: str
    zone: str | None = None
    host: str = ""
    port: Whole = 0
    role: Role = "primary"


class Reshape(_Message, frozen=True, kw_only=True, tag="reshape", tag_field="do"):
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


class Request(_Message, frozen=True, kw_only=True, tag_field="type", tag="request/1"):
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


class Hit(_Message, frozen=True, kw_only=True):
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


class DocumentPart(_Message, frozen=True, kw_only=True):
    """A document, or what its reader misses of it: `core.document.Document`, and the content that it began with; None
    where the reader has that or does not need it."""

    key: tuple[Whole, str]
    content: str | None = None
    seen: Vector = {}
    base: bytes | None = b""
    tail: list[tuple[str, Whole, bytes]] = []


class Result(_Message, frozen=True, kw_only=True):
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


class Response(_Message, frozen=True, kw_only=True, tag_field="type", tag="response/1"):
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


# -- feeds ----------------------------------------------------------------------------------------------------------


class FeedOpen(_Message, frozen=True, kw_only=True, tag_field="type", tag="feed-open/1"):
    """Send updates of a selection to `inbox`, after `token` (None: from now on, but nothing within `floor`, which is
    what the subscriber knew already). `credit` updates may be under way."""

    feed: Annotated[str, msgspec.Meta(max_length=128)]
    inbox: Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[^\s*>]+$")]  # a broker closes who sends elsewhere
    selection: Selection
    partitions: tuple[int, ...]
    credit: Annotated[int, msgspec.Meta(ge=1)]
    token: Vectors | None = None
    floor: Vectors = {}


class FeedCredit(_Message, frozen=True, kw_only=True, tag_field="type", tag="feed-credit/1"):
    """The subscriber has taken `taken` updates since the feed was opened, and is alive."""

    feed: str
    taken: Whole


class FeedClose(_Message, frozen=True, kw_only=True, tag_field="type", tag="feed-close/1"):
    """The subscriber is gone."""

    feed: str


FeedCommand = FeedOpen | FeedCredit | FeedClose


class FeedUpdate(_Message, frozen=True, kw_only=True):
    """One update; `dot` is the change's (live), `version` the record's (repeats after a change of node)."""

    partition: int
    kind: Literal["stored", "updated", "deleted"]
    memory: msgspec.Raw
    id: str
    version: Vector
    position: Vector  # the partition's position right after this update


class FeedBatch(_Message, frozen=True, kw_only=True, tag_field="type", tag="feed-batch/1"):
    """Updates in order, then `positions`: everything up to these vectors has been sent. Empty: the feed lives."""

    feed: str
    number: int  # 0, 1, 2 … : a gap means a lost message, and the subscriber opens the feed anew
    updates: list[FeedUpdate] = []
    positions: Vectors = {}
    error: str | None = None


# -- discovery ------------------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True, tag_field="type", tag="hello/1"):
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


_encoder = msgspec.json.Encoder()
encode = _encoder.encode
