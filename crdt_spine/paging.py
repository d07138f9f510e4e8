"""One page out of the pages of several nodes, and the cursor to the next one."""

from __future__ import annotations

from typing import Literal

import msgspec

from crdt_spine.core.messages import Hit, Result
from crdt_spine.core.token import Cursor, cursor_text
from crdt_spine.limits import RELEVANCE_RESULTS_MAX
from crdt_spine.memory import Memory, Page

Order = Literal["newest", "oldest", "relevance"]

_decode_memory = msgspec.json.Decoder(Memory).decode


def page_of(results: list[Result], order: Order, limit: int, place: Cursor) -> Page:
    """One page out of each node's, and where it ends."""
    if order == "relevance":
        hits = {hit.id: hit for result in results for hit in result.hits or ()}
        ranked = sorted(hits.values(), key=lambda hit: (hit.score, hit.id))[:limit]
        shown = (*place.shown, *[hit.id for hit in ranked])
        more = (len(hits) > limit or any(result.more for result in results)) and len(shown) < RELEVANCE_RESULTS_MAX
        cursor = cursor_text(Cursor(place.query, None, shown)) if more and ranked else None
        return Page([_decode_memory(hit.memory) for hit in ranked], cursor)
    ordered, more = merged_hits(results, limit, newest=order == "newest")
    cursor = cursor_text(Cursor(place.query, place_of(ordered[-1]), ())) if more and ordered else None
    return Page([_decode_memory(hit.memory) for hit in ordered], cursor)


def merged_hits(results: list[Result], limit: int, *, newest: bool = False) -> tuple[list[Hit], bool]:
    """One page out of each node's in the order of time, and whether there is more."""
    hits: dict[str, Hit] = {}
    horizon: list[tuple[int, str]] = []  # where a node's answer ends although it has more: nothing beyond may be shown
    for result in results:
        for hit in result.hits or ():
            hits.setdefault(hit.id, hit)
        if result.more and result.hits:
            horizon.append(place_of(result.hits[-1]))
    ordered = sorted(hits.values(), key=place_of, reverse=newest)
    if horizon:
        edge = max(horizon) if newest else min(horizon)
        ordered = [hit for hit in ordered if (place_of(hit) >= edge if newest else place_of(hit) <= edge)]
    return ordered[:limit], bool(horizon) or len(ordered) > limit


def place_of(hit: Hit) -> tuple[int, str]:
    """Where a hit stands in the order of time."""
    return hit.created, hit.id
