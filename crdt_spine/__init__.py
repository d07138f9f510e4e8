"""Shared memory for fleets of AI agents: CRDT records replicated over NATS."""

from crdt_spine.errors import (
    ConfigError,
    ConnectionFailed,
    FenceRejected,
    InvalidInput,
    LeaseLost,
    LockTimeout,
    NotFound,
    QuorumFailed,
    SpineError,
    StaleToken,
    VersionConflict,
)
from crdt_spine.locks.client import Lease
from crdt_spine.memory import Conflict, Consistency, LevelInForce, Memory, Page, Update
from crdt_spine.spine import Spine

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Conflict",
    "ConnectionFailed",
    "Consistency",
    "FenceRejected",
    "InvalidInput",
    "Lease",
    "LeaseLost",
    "LevelInForce",
    "LockTimeout",
    "Memory",
    "NotFound",
    "Page",
    "QuorumFailed",
    "Spine",
    "SpineError",
    "StaleToken",
    "Update",
    "VersionConflict",
]
