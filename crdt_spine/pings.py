"""How nodes do, asked in the background: pings, and answers that come when nobody waits for them any more.

A node in trouble is pinged with the session's token, to see when it is well again (health.py says whom and when). What
another node has answered in its place is still expected of the first one: when it comes, it says how slow that is.
"""

from __future__ import annotations

from collections.abc import Callable

from crdt_spine.call import Call
from crdt_spine.core.messages import Result, Vectors
from crdt_spine.health import PING, Health
from crdt_spine.requests import Requests
from crdt_spine.whereabouts import Whereabouts

EXPECTED_SECONDS_MAX = 5.0  # then an answer that comes late is nothing to learn from
ACTIVE_SECONDS = 2.0  # a session that asks for nothing does not ask how its nodes do


class Pings:
    """`number` gives a new operation's number; `vectors` is the session's token. Times are the loop's."""

    def __init__(
        self, requests: Requests, whereabouts: Whereabouts, health: Health, vectors: Vectors, number: Callable[[], int]
    ) -> None:
        #: Pings, and reads that others answered: operation -> the node that will answer, too, since when, and what that
        #: measures.
        self.expected: dict[int, tuple[str, float, int]] = {}
        self.active_at = 0.0  # when the session last sent something of its own
        self._requests = requests
        self._whereabouts = whereabouts
        self._health = health
        self._vectors = vectors
        self._number = number

    def expect(self, call: Call) -> None:
        """Another node has answered this; the one that was asked first is to measure by what it says, too."""
        self.expected[call.operation.i] = call.node, call.sent_at, call.kind

    def came(self, node: str, result: Result, now: float) -> None:
        """An answer that was expected: it says how the node does."""
        expected, since, kind = self.expected[result.i]
        if expected != node:
            return
        del self.expected[result.i]
        if kind == PING:
            self._health.ponged(node, None if result.error in ("Behind", "Busy") else now - since, now)
        elif result.error is None:
            self._health.measured(node, kind, now - since, now)

    def lost(self, node: str, now: float) -> None:
        """Nobody listens at this node: nothing is expected of it."""
        for number, (lost, _, kind) in list(self.expected.items()):
            if lost == node:
                del self.expected[number]
                if kind == PING:
                    self._health.ponged(node, None, now)

    def sweep(self, now: float, connected: bool) -> None:
        """Forget what is not to come any more; ping who is due, if the session is at work."""
        if self.expected:
            for number, (_, since, _) in list(self.expected.items()):
                if now - since > EXPECTED_SECONDS_MAX:
                    del self.expected[number]
        if connected and now - self.active_at < ACTIVE_SECONDS:
            for node in self._health.to_ping(now):
                self._ping(node, now)

    def _ping(self, node: str, now: float) -> None:
        """Does this node answer, and, of one in trouble, has it what this session has seen?"""
        for given_up in [i for i, (pinged, _, kind) in self.expected.items() if pinged == node and kind == PING]:
            del self.expected[given_up]
        number = self._number()
        token: Vectors = {}
        if node in self._health.trouble:
            held = self._whereabouts.routing.held.get(node, ())
            token = {n: self._vectors[n] for n in held if n in self._vectors}
        self.expected[number] = node, now, PING
        self._requests.ping(node, number, token)
