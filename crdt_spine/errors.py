"""What can go wrong, as the caller sees it.

Three kinds of wrong are kept apart: a caller's mistake raises one of the errors here and says what to do; a peer's
mistake (garbage on a subject, a foreign version) is refused and counted, and changes nothing; a broken invariant of
our own raises AssertionError and stops the process.
"""

from __future__ import annotations

from typing import Literal

Outcome = Literal["not applied", "unknown"]


class SpineError(Exception):
    """The base of every error that crdt_spine raises for its callers."""


class NotFound(SpineError):
    """There is no living memory with this id."""


class VersionConflict(SpineError):
    """`if_version` is not the memory's version any more: read it again and decide anew."""


class InvalidInput(SpineError, ValueError):
    """A value is outside what is allowed; the message names the value, the limit and what to do."""


class ConfigError(SpineError):
    """A configuration can't be used; the message names file, key and reason."""


class ConnectionFailed(SpineError, ConnectionError):
    """No broker, or no node behind it, could be reached within the timeout. The address is in the message."""


class QuorumFailed(SpineError):
    """Fewer replicas answered than the operation needs.

    `outcome` is "not applied" when the write certainly is on no replica, "unknown" when it may be; `acks` is how many
    replicas confirmed (where the last node asked did not take the write: how many it reached), `needed` how many were
    required, `missing` names those that did not, as far as it is known.
    """

    def __init__(
        self, message: str, *, outcome: Outcome = "unknown", acks: int = 0, needed: int = 0,
        missing: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.outcome: Outcome = outcome
        self.acks = acks
        self.needed = needed
        self.missing = missing


class StaleToken(SpineError):
    """No replica could reach the token in time; the message says why. `gone`: where it is known that no replica ever
    will, the actors concerned, by partition, each with the number of its changes that there are."""

    def __init__(self, message: str, gone: dict[int, dict[str, int]] | None = None) -> None:
        super().__init__(message)
        self.gone = gone or {}


class LockTimeout(SpineError, TimeoutError):
    """The lock was not granted within `wait` seconds."""


class FenceRejected(SpineError):
    """A later lease of this lock has been seen: the write was refused."""


class LeaseLost(FenceRejected):
    """The lease is over, by its holder's own reckoning or the lock service's word: nothing was sent under it."""
