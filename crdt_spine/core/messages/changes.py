"""Changes on their way: a coordinator's deltas, and who has them durably."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from crdt_spine import limits
from crdt_spine.core.messages.fields import Term, Vector, Vectors, Whole, WireMessage
from crdt_spine.core.registers import Origin


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


class Change(WireMessage, frozen=True, kw_only=True):
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


class Delta(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="delta/1"):
    """Consecutive changes of one actor in one partition; `deps` must be in a replica's vector before they apply."""

    partition: Whole
    actor: str
    first: Whole
    deps: Vector
    changes: list[Change]


class Bundle(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="bundle/1"):
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


class Ack(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="ack/1"):
    """A replica says up to where it durably has an actor's changes, per partition; in `terms`, for partitions in which
    strong operations were done, the highest term that it has promised by now (core/terms.py)."""

    node: str
    actor: str
    reached: dict[int, Whole]
    terms: dict[int, Term] = {}
