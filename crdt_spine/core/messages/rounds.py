"""The rounds of strong operations (core/strong.py), and what of them is journaled."""

from __future__ import annotations

from typing import Annotated

import msgspec

from crdt_spine import limits
from crdt_spine.core.fences import Fence
from crdt_spine.core.messages.fields import Id, NodeId, Term, Vector, Whole, WireMessage


class Round(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="round/1"):
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


class Standing(WireMessage, frozen=True, kw_only=True):
    """A replica's part in a partition: the highest term that it promised, the highest bound it was told (milliseconds),
    what it durably has, and whether it takes part in rounds (`ready`, core/terms.py)."""

    term: Term = (0, "")
    bound: Whole = 0
    ready: bool = False
    vector: Vector = {}


class Rounded(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="rounded/1"):
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
