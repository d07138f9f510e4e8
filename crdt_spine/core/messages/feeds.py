"""Feeds: what a subscriber says to a node, and the updates that it is sent (node/feeds.py)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from crdt_spine.core.messages.fields import Vector, Vectors, Whole, WireMessage
from crdt_spine.core.selection import Selection


class FeedOpen(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="feed-open/1"):
    """Send updates of a selection to `inbox`, after `token` (None: from now on, but nothing within `floor`, which is
    what the subscriber knew already). `credit` updates may be under way."""

    feed: Annotated[str, msgspec.Meta(max_length=128)]
    inbox: Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[^\s*>]+$")]  # a broker closes who sends elsewhere
    selection: Selection
    partitions: tuple[int, ...]
    credit: Annotated[int, msgspec.Meta(ge=1)]
    token: Vectors | None = None
    floor: Vectors = {}


class FeedCredit(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="feed-credit/1"):
    """The subscriber has taken `taken` updates since the feed was opened, and is alive."""

    feed: str
    taken: Whole


class FeedClose(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="feed-close/1"):
    """The subscriber is gone."""

    feed: str


FeedCommand = FeedOpen | FeedCredit | FeedClose


class FeedUpdate(WireMessage, frozen=True, kw_only=True):
    """One update; `dot` is the change's (live), `version` the record's (repeats after a change of node)."""

    partition: int
    kind: Literal["stored", "updated", "deleted"]
    memory: msgspec.Raw
    id: str
    version: Vector
    position: Vector  # the partition's position right after this update


class FeedBatch(WireMessage, frozen=True, kw_only=True, tag_field="type", tag="feed-batch/1"):
    """Updates in order, then `positions`: everything up to these vectors has been sent. Empty: the feed lives."""

    feed: str
    number: int  # 0, 1, 2 … : a gap means a lost message, and the subscriber opens the feed anew
    updates: list[FeedUpdate] = []
    positions: Vectors = {}
    error: str | None = None
