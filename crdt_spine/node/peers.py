"""The other nodes of the cluster, by what they announced last: who is there, and what each says to have."""

from __future__ import annotations

import time
from collections.abc import Collection

import msgspec

from crdt_spine.core.actors import node_of
from crdt_spine.core.messages import Announcement, Vectors
from crdt_spine.limits import PEER_SILENT_SECONDS_MAX

STEADY_SECONDS = 2.5  # a node that is back says after a moment only how far behind it is
LAST_WORDS_SECONDS = 0.5  # after a node has another name: what it sent under the old one is on its peers' disks


class Peer(msgspec.Struct):
    """What is known of another node of the cluster."""

    heard: float  # monotonic seconds
    announcement: Announcement
    ahead: int = 0  # milliseconds by which its last announcement was from the future


class Peers(dict[str, Peer]):
    """By id, those that were heard since this node began (replication.py hears them)."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._steady: dict[str, float] = {}  # since when a peer keeps pace, monotonic seconds
        self._named: dict[str, float] = {}  # when a peer was first heard under its name of now, monotonic seconds

    def hear(self, announcement: Announcement, ahead: int) -> None:
        """A peer's newest announcement."""
        now, known = time.monotonic(), self.get(announcement.node)
        if known is None or known.announcement.actor != announcement.actor:
            self._named[announcement.node] = now
        if announcement.state != "up" or announcement.behind or known is None or not self.hears(known):
            self._steady[announcement.node] = now
        self[announcement.node] = Peer(now, announcement, ahead)

    def keep(self, nodes: Collection[str]) -> None:
        """The cluster has no others any more."""
        for node in self.keys() - set(nodes):
            del self[node]

    def alive(self) -> set[str]:
        """The peers heard of lately."""
        return {node for node, peer in self.items() if self.hears(peer) and peer.announcement.state != "stopping"}

    def steady(self) -> set[str]:
        """The peers that a change has reached and that have it durably at once, for some time now."""
        now = time.monotonic()
        return {node for node in self.alive() if now - self._steady.get(node, now) >= STEADY_SECONDS}

    def reachable(self) -> set[str]:
        """The peers that can take a change now."""
        return {node for node in self.alive() if self[node].announcement.state != "full"}

    def hears(self, peer: Peer) -> bool:
        """Was it heard of lately?"""
        return time.monotonic() - peer.heard < PEER_SILENT_SECONDS_MAX

    def starts(self, node: str) -> bool:
        """Is it not known yet whether that node's disk can be believed? It will announce when it is."""
        return node in self and self[node].announcement.state == "starting"

    def said_since(self, actor: str) -> dict[str, Vectors]:
        """What the peers said to have since they can get nothing more from an actor that its node has given up: what
        that had sent is in their vectors by then, or never will be."""
        ended = self._named.get(node_of(actor)[1], self._began) + LAST_WORDS_SECONDS
        peers = {node: peer for node, peer in self.items() if peer.heard > ended and self.hears(peer)}
        return {node: peer.announcement.vectors for node, peer in peers.items()}

    def silence(self) -> dict[str, float]:
        """For how many seconds each peer was not heard of that was heard of since this node began."""
        now = time.monotonic()
        return {node: now - peer.heard for node, peer in self.items()}
