"""Tags are an OR-set: what is there was added, and no remove that had seen that add is known.

From outside nobody knows which adds a remove had seen, only which it surely had and which it may have. An OR-set grows
with every add and shrinks with every remove and every add that one has seen, so two extreme worlds bound what can be:
in the *least* the known adds are there and everything was removed that may have been, in the *greatest* all adds are
there and only what surely was removed is gone. What both hold is computed by the simulator's specification of a memory
(tests/simulation/simulator/history.py, `value`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator

from simulator.history import Made, value

from chaos.history import History, Op
from chaos.writes import promised, told
from crdt_spine.core.messages import Change

Dot = tuple[str, int]


class _Memory:
    """One memory's adds and removes, and what each remove's agent knew."""

    def __init__(self) -> None:
        self.changes: list[Op] = []
        self.surely: dict[int, set[int]] = {}  # a remove's place -> places of the adds that it surely had seen

    def add(self, op: Op, adds_known: set[int]) -> None:
        place = len(self.changes)
        self.changes.append(op)
        if op.remove:
            self.surely[place] = {
                one for one in adds_known if op.with_token and self.changes[one].tries == 1
            }  # what was sent twice may have two dots

    def tags(
        self, adds: Callable[[int], bool], removes: Callable[[int], bool], saw: Callable[[int, int], bool]
    ) -> set[str]:
        """What the specification makes of these adds, these removes, and what each of those had seen."""
        made = [Made(0, "birth", 1, Change(id="t", time=0, agent="a", alive=True, content="x"))]
        chosen = [place for place, op in enumerate(self.changes) if op.add and adds(place)]
        for place, op in enumerate(self.changes):
            if op.add and adds(place):
                made.append(Made(place + 1, *_dot(place), Change(id="t", time=place + 1, agent="a", add=op.add)))
            if op.remove and removes(place):
                seen = tuple(_dot(one) for one in chosen if saw(place, one))
                change = Change(id="t", time=place + 1, agent="a", remove=dict.fromkeys(op.remove, seen))
                made.append(Made(place + 1, "remove", place + 1, change))
        found = value(tuple(made))
        assert found is not None, "it was born"
        return set(found.tags)

    def may_have_seen(self, remove: int, add: int) -> bool:
        return self.changes[add].call < _latest(self.changes[remove])


def tags(history: History) -> Iterator[str]:
    """Looks at every tagged memory as sessions are shown it with their token, and in the end."""
    memories: defaultdict[str, _Memory] = defaultdict(_Memory)
    known: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # (session, id) -> places of adds
    removed: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # ... of its own removes
    looks: list[tuple[Op, set[int], set[int]]] = []
    for op in history.ops:
        if op.kind != "tagged":
            continue
        memory, key = memories[op.id], (op.session, op.id)
        if op.do == "update" and op.outcome != "not applied":
            memory.add(op, known[key])
            place = len(memory.changes) - 1
            if op.outcome == "ok" and op.add:
                known[key].add(place)
            if op.outcome == "ok" and op.remove:
                removed[key].add(place)
        if op.outcome != "ok" or not op.found:
            continue
        for tag in op.seen_tags:
            adders = [place for place, one in enumerate(memory.changes) if tag in one.add]
            if len(adders) == 1:
                known[key].add(adders[0])
        if op.do == "get" and op.with_token:
            looks.append((op, set(known[key]), set(removed[key])))
    for op, adds, removes in looks:
        memory = memories[op.id]
        least, greatest = _bounds(
            memory, adds.__contains__, removes.__contains__, lambda place, op=op, memory=memory:
            memory.changes[place].call < op.back,
        )  # fmt: skip
        yield from _judge(told(op), set(op.seen_tags), least, greatest)
    final = history.final()
    for id, memory in memories.items():
        done = [promised(op, history) for op in memory.changes]
        least, greatest = _bounds(memory, done.__getitem__, done.__getitem__, lambda place: True)
        if id in final:
            yield from _judge(f"in the end {id}", set(final[id].tags), least, greatest)


def _bounds(
    memory: _Memory, added: Callable[[int], bool], removed: Callable[[int], bool], begun: Callable[[int], bool]
) -> tuple[set[str], set[str]]:
    """Least and greatest: who asks surely has the adds `added` and the removes `removed`, and may have `begun`."""
    least = memory.tags(added, begun, memory.may_have_seen)
    greatest = memory.tags(begun, removed, lambda remove, add: add in memory.surely[remove])
    return least, greatest


def _judge(where: str, seen: set[str], least: set[str], greatest: set[str]) -> Iterator[str]:
    mine = {tag for tag in seen if tag.startswith("x-")}
    if missing := least - mine:
        yield f"{where} lacks {sorted(missing)}, which was added and which no remove had seen"
    if more := mine - greatest:
        yield f"{where} has {sorted(more)}, which was removed by who had seen it"


def _dot(place: int) -> Dot:
    return ("add", place + 1)


def _latest(op: Op) -> float:
    """When it was applied at the latest."""
    return op.back if op.outcome == "ok" else math.inf
