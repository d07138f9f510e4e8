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
    hits: dict[str, Hit] = {}
    horizon: list[tuple[int, str]] = []  # where a node's answer ends although it has more: nothing beyond may be shown
    newest = order == "newest"
    for result in results:
        for hit in result.hits or ():
            hits.setdefault(hit.id, hit)
        if result.more and result.hits:
            horizon.append((result.hits[-1].created, result.hits[-1].id))
    if order == "relevance":
        ranked = sorted(hits.values(), key=lambda hit: (hit.score, hit.id))[:limit]
        shown = (*place.shown, *[hit.id for hit in ranked])
        more = (len(hits) > limit or any(result.more for result in results)) and len(shown) < RELEVANCE_RESULTS_MAX
        cursor = cursor_text(Cursor(place.query, None, shown)) if more and ranked else None
        return Page([_decode_memory(hit.memory) for hit in ranked], cursor)
    ordered = sorted(hits.values(), key=lambda hit: (hit.created, hit.id), reverse=newest)
    if horizon:
        edge = max(horizon) if newest else min(horizon)
        ordered = [h for h in ordered if ((h.created, h.id) >= edge if newest else (h.created, h.id) <= edge)]
    more = bool(horizon) or len(ordered) > limit
    ordered = ordered[:limit]
    cursor = None
    if more and ordered:
        cursor = cursor_text(Cursor(place.query, (ordered[-1].created, ordered[-1].id), ()))
    return Page([_decode_memory(hit.memory) for hit in ordered], cursor)
