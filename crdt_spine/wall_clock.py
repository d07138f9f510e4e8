"""The wall clock, as messages and stamps have it. Whoever only waits takes a clock that is never set: the loop's."""

from __future__ import annotations

import time


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
