"""What replicas have, and what one asks another one for: announcements, pages of a sync, strays, single records."""

from __future__ import annotations

from typing import Annotated

import msgspec

from crdt_spine import limits
from crdt_spine.core.messages.fields import Id, NodeState, Vector, Vectors, Whole, WireMessage


class Announcement(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="announcement/1"):
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
    no write should have to wait for it. `unready`: the partitions in which it counts, and does not know yet what was
    promised (core/rounds.py).
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
    unready: tuple[Whole, ...] = ()


class SyncRequest(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="sync/1"):
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


class SyncPage(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="page/1"):
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


class StraysRequest(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="strays/1"):
    """Of which placement keys are there strays in these partitions (core/strays.py)?"""

    partitions: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=limits.STRAYS_AT_ONCE_MAX)]


class StraysAnswer(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="stray-keys/1"):
    """By partition, the replica's vector and the keys of all strays within it, as `strays.Keys.packed`."""

    keys: Annotated[dict[int, tuple[Vector, bytes]], msgspec.Meta(max_length=limits.STRAYS_AT_ONCE_MAX)]


class RecordsRequest(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="record/1"):
    """since(version) of single memories: the asker has this much of each (core/record.py), and wants what another
    replica has more."""

    have: Annotated[list[tuple[Id, Vector]], msgspec.Meta(min_length=1, max_length=limits.BATCH_OPERATIONS_MAX)]


class RecordsAnswer(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="states/1"):
    """About the first `through` memories that were asked for: of those that have news for the asker their index and
    state, as sync pages have it, and the indexes of those of which there is no replica here."""

    through: Whole
    states: list[tuple[Whole, msgspec.Raw]] = []
    absent: tuple[Whole, ...] = ()
