"""What must hold of a recorded history, one thing a file: a function from a history to what does not hold, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from chaos.checkers.convergence import convergence
from chaos.checkers.durability import durability
from chaos.checkers.monotonic import monotonic
from chaos.checkers.outcomes import outcomes
from chaos.checkers.resurrection import resurrection
from chaos.checkers.sessions import sessions
from chaos.checkers.subscriptions import subscriptions
from chaos.checkers.tags import tags
from chaos.checkers.threads import threads
from chaos.history import History

CHECKERS: Final[dict[str, Callable[[History], Iterator[str]]]] = {
    "durability": durability,
    "resurrection": resurrection,
    "outcomes": outcomes,
    "sessions": sessions,
    "monotonic": monotonic,
    "tags": tags,
    "threads": threads,
    "subscriptions": subscriptions,
    "convergence": convergence,
}


def check(history: History) -> list[str]:
    """Everything that does not hold, each with its checker's name before it."""
    return [f"{name}: {what}" for name, checker in CHECKERS.items() for what in checker(history)]
