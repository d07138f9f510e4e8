"""What `spine up` runs: a broker and nodes as child processes, kept running, and gone with their parent."""

from crdt_spine.supervisor.events import ChildDied, ChildFailed, ChildReady, ChildStarted, Event, SpineReady
from crdt_spine.supervisor.keeper import ChildState, ChildStatus, RestartPolicy
from crdt_spine.supervisor.service import ServiceSpec, lock_service
from crdt_spine.supervisor.supervisor import Supervisor

__all__ = [
    "ChildDied",
    "ChildFailed",
    "ChildReady",
    "ChildStarted",
    "ChildState",
    "ChildStatus",
    "Event",
    "RestartPolicy",
    "ServiceSpec",
    "SpineReady",
    "Supervisor",
    "lock_service",
]
