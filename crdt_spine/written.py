"""The memory that a store has made: what was sent, and what its coordinator said."""

from __future__ import annotations

from crdt_spine.core.clock import moment
from crdt_spine.core.messages import Result, Store
from crdt_spine.memory import Memory


def stored_memory(operation: Store, result: Result, agent: str) -> Memory:
    """The memory as its agent gets it back."""
    assert result.version is not None
    return Memory(
        id=operation.id,
        content=operation.content,
        agent=operation.agent or agent,
        created_at=moment(result.created),
        updated_at=moment(result.updated),
        version=result.version,
        tags=frozenset(operation.tags),
        metadata=operation.metadata,
        thread=operation.thread,
        clock=operation.clock,
        importance=operation.importance,
        expires_at=None if operation.expires is None else moment(operation.expires),
    )
