"""Even shares: things lie on nodes, some can lie on some other nodes as well, and no node is to have more than others.

A thing that goes from the fullest node to one with at least two fewer makes the shares more even. Where none can go
there directly a chain of them can: from the fullest to another node, from that one to a third. When there is no such
chain any more, no other choice is more even; and as the shortest chain is taken each time, little moves.
Harvey, Ladner, Lovász, Tamir, "Semi-matchings for bipartite graphs and load balancing" (2006), theorem 3.1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping

Find = Callable[[str, str, Collection[int]], int | None]
Shift = Callable[[int, str, str], None]


def even_out(load: Mapping[str, int], find: Find, shift: Shift) -> None:
    """Until the shares are as even as can be: `find` says which thing may go from one node to another, but for those
    given (None: there is no such thing), `shift` moves it, and changes `load`, the number of things by node."""
    moved = True
    while moved:  # what moved may have made room for one that was stuck
        moved = False
        stuck: set[str] = set()
        while len(stuck) < len(load) and max(load.values()) - min(load.values()) > 1:
            fullest = max((node for node in load if node not in stuck), key=lambda node: (load[node], node))
            chain = _chain(fullest, load, find)
            for thing, frm, to in chain:
                shift(thing, frm, to)
            if chain:
                moved = True
            else:
                stuck.add(fullest)


def _chain(source: str, load: Mapping[str, int], find: Find) -> list[tuple[int, str, str]]:
    """The shortest chain of moves from a node to one that has at least two things fewer; none: []."""
    came: dict[str, list[tuple[int, str, str]]] = {source: []}
    reached = deque([source])
    while reached:
        frm = reached.popleft()
        used = {thing for thing, _, _ in came[frm]}
        for to in sorted(load, key=lambda node: (load[node], node)):
            thing = None if to in came else find(frm, to, used)
            if thing is None:
                continue
            came[to] = [(thing, frm, to), *came[frm]]  # the last move is made first: it makes room
            if load[to] <= load[source] - 2:
                return came[to]
            reached.append(to)
    return []
