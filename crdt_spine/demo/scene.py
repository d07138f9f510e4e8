"""What can be seen at a moment: nodes, agents, counts, and what has happened. The stage changes it, a display shows it.

It knows nothing of terminals; `picture.py` draws it where there is one, `lines.py` tells it where there is none.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from crdt_spine.demo.cast import Player

MOMENTS_KEPT: Final = 100
EXCERPT_CHARACTERS: Final = 120


class NodeState(StrEnum):
    STARTING = "starting"
    UP = "up"
    CATCHING_UP = "catching up"
    KILLED = "killed"


class NodeView(msgspec.Struct):
    """A node as it was when it was asked last. `lag` is in changes, as far as anybody knows."""

    id: str
    state: NodeState = NodeState.STARTING
    pid: int | None = None
    memories: int = 0
    lag: int = 0
    feeds: int = 0


class AgentView(msgspec.Struct):
    """What an agent did so far, and the last thing that it wrote or read."""

    name: str
    follows: str
    planned: int
    stored: int = 0
    received: int = 0
    edited: int = 0
    last: str = ""


class Tone(StrEnum):
    """How a moment is to be heard."""

    PLAIN = "plain"
    GOOD = "good"
    BAD = "bad"


class Moment(msgspec.Struct, frozen=True):
    """Something that happened, in seconds since the beginning."""

    seconds: float
    text: str
    tone: Tone


class Scene:
    """The whole. `planned` is how many memories are to be stored."""

    def __init__(self, players: Iterable[Player]) -> None:
        self.began = time.monotonic()
        self.nodes: dict[str, NodeView] = {}
        self.agents: dict[str, AgentView] = {}
        for player in players:
            follows = ", ".join(map(str, player.follows))
            self.agents[player.name] = AgentView(excerpt(player.name), excerpt(follows), len(player.rows))
        self.planned = sum(agent.planned for agent in self.agents.values())
        self.act = "starting"
        self.moments: deque[Moment] = deque(maxlen=MOMENTS_KEPT)
        self.said = 0  # moments in all

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def stored(self) -> int:
        return sum(agent.stored for agent in self.agents.values())

    @property
    def received(self) -> int:
        return sum(agent.received for agent in self.agents.values())

    @property
    def edited(self) -> int:
        return sum(agent.edited for agent in self.agents.values())

    def say(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        """Something happened."""
        self.moments.append(Moment(self.seconds, text, tone))
        self.said += 1

    def since(self, said: int) -> list[Moment]:
        """The moments after the first `said` ones."""
        new = min(self.said - said, len(self.moments))
        return list(self.moments)[len(self.moments) - new :]


def excerpt(text: str) -> str:
    """The beginning of a text on one line, without characters that mean something to a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * EXCERPT_CHARACTERS]).split())
    return line if len(line) <= EXCERPT_CHARACTERS else line[: EXCERPT_CHARACTERS - 1] + "…"
