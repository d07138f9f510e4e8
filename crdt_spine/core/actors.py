"""Under which names nodes make their changes: an *actor* is a node in one incarnation of its disk.

A node takes a new name when it finds that it has lost something. Others hear of that at different times and out of
order, so of a name that is not the one heard last it must be told whether it is an old one or a new one.
"""

from __future__ import annotations


def actor_name(region: str, node: str, incarnation: str) -> str:
    """The actor of a node in one incarnation."""
    return f"{region}/{node}@{incarnation}"


def node_of(actor: str) -> tuple[str, str]:
    """(region, node) of an actor."""
    region, _, rest = actor.partition("/")
    return region, rest.rpartition("@")[0]


class Actors:
    """The names of the other nodes of a region, as they were heard."""

    def __init__(self) -> None:
        self.newest: dict[str, str] = {}  # node -> its name of now
        self._former: set[str] = set()  # names that were heard, and then another one
        self._heard: dict[str, int] = {}  # how often nodes were heard
        self._doubted: dict[str, int] = {}  # of names that were never heard, how often their node was by then

    def hear(self, node: str, actor: str) -> bool:
        """A node says who it is; has it gone on under another name?"""
        self._heard[node] = self._heard.get(node, 0) + 1
        before = self.newest.setdefault(node, actor)
        if before == actor:
            return False
        self._former.add(before)
        self.newest[node] = actor
        return True

    def has_gone_on(self, node: str, actor: str) -> bool:
        """Has a node another name than this by now? One that was never heard may be newer than what was heard last: it
        is a former one once the node was heard twice more under another. What it said before may come late, once."""
        if self.newest.get(node, actor) == actor:
            return False
        heard = self._heard[node]
        return actor in self._former or heard > self._doubted.setdefault(actor, heard) + 1


__all__ = ["Actors", "actor_name", "node_of"]
