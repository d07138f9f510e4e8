"""Who plays: each agent of the sample with its memories in order, and what it follows of the others.

An agent follows a tag and a thread in which others write, or another agent where the sample has neither. Two agents at
a time get the same tag, so that they come upon the same memories at the same time and edit them concurrently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from crdt_spine.demo.sample import Row
from crdt_spine.memory import Memory

PLAYERS_MAX: Final = 12  # agents with a connection of their own; the others' memories are written over these
ONLOOKER: Final = "onlooker"  # follows an agent that is alone in its sample


class Follow(msgspec.Struct, frozen=True):
    """What a subscription means: exactly one of the three."""

    tag: str | None = None
    thread: str | None = None
    agent: str | None = None

    def matches(self, memory: Memory) -> bool:
        """Does it belong to the subscription as it is?"""
        if self.tag is not None:
            return self.tag in memory.tags
        return memory.thread == self.thread if self.thread is not None else memory.agent == self.agent

    def __str__(self) -> str:
        if self.tag is not None:
            return f"#{self.tag}"
        return f"thread {self.thread}" if self.thread is not None else f"@{self.agent}"


class Player(msgspec.Struct, frozen=True):
    """An agent with its own connection. A row may name another agent, which then writes over this connection."""

    name: str
    rows: tuple[Row, ...]
    follows: tuple[Follow, ...]


def cast(rows: Sequence[Row]) -> list[Player]:
    """The players of a sample, those who write most first."""
    counts = Counter(row.agent for row in rows)
    names = [name for name, _ in counts.most_common(PLAYERS_MAX)]
    if len(names) == 1:
        names.append(ONLOOKER if names[0] != ONLOOKER else f"{ONLOOKER}-2")
    voice = {name: names[index % len(names)] for index, (name, _) in enumerate(counts.most_common())}
    parts: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows:
        parts[voice[row.agent]].append(row)
    return [
        Player(name, tuple(part), _follows(index, name, names, rows))
        for index, (name, part) in enumerate(parts.items())
    ]


def _follows(index: int, name: str, names: Sequence[str], rows: Sequence[Row]) -> tuple[Follow, ...]:
    others = [row for row in rows if row.agent != name]
    tags = _usual(tag for row in others for tag in row.arguments.get("tags", ()))
    threads = _usual(row.arguments["thread"] for row in others if "thread" in row.arguments)
    follows = []
    if tags:
        follows.append(Follow(tag=tags[index // 2 % len(tags)]))
    if threads:
        follows.append(Follow(thread=threads[index % len(threads)]))
    if not follows:
        follows.append(Follow(agent=names[(index + 1) % len(names)]))
    return tuple(follows)


def _usual(words: Iterable[str]) -> list[str]:
    """The most frequent ones."""
    return [word for word, _ in Counter(words).most_common(PLAYERS_MAX)]
