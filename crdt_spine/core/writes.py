"""From an agent's operation to a change: what the coordinator decides, looking at the record it has.

The coordinator's stamp is above everything it holds (rule 11), so the change it makes is what its agent expects. A
change says what it takes away by dots, never "whatever there is": what this coordinator has not seen survives.
"""

from __future__ import annotations

import msgspec

from crdt_spine.core.causality import version_text
from crdt_spine.core.messages import Change, Delete, Edit, Store
from crdt_spine.core.record import Record
from crdt_spine.limits import METADATA_KEYS_MAX, METADATA_KEYS_REMEMBERED_MAX, TAGS_MAX


class Refused(Exception):
    """The operation can't be done on this record: `error` is the name of a class in errors.py."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def store(operation: Store, record: Record | None, time: int, agent: str, operation_id: str) -> Change:
    """The change that makes the memory exactly this. A memory that is replaced keeps its creation time."""
    created = operation.created
    if not created and record is not None and record.alive and not record.expired(time):
        created = record.life.value.created
    return Change(
        id=operation.id,
        time=time,
        agent=agent,
        operation=operation_id,
        alive=True,
        content=operation.content,
        importance=operation.importance,
        expires=msgspec.UNSET if operation.expires is None else operation.expires,
        metadata=operation.metadata,
        add=operation.tags,
        thread=operation.thread,
        created=created,
    )


def edit(operation: Edit, record: Record | None, time: int, agent: str, operation_id: str) -> Change:
    """The change that edits a living memory. Raises Refused: NotFound, VersionConflict, InvalidInput."""
    if record is None or not record.alive or record.expired(time):
        raise Refused("NotFound", f"there is no memory {operation.id!r}")
    if operation.if_version is not None and operation.if_version != version_text(record.version):
        raise Refused(
            "VersionConflict",
            f"memory {operation.id!r} is at version {version_text(record.version)!r}, not {operation.if_version!r}",
        )
    tags = (record.tags.keys() - set(operation.remove)) | set(operation.add)
    if len(tags) > TAGS_MAX:
        raise Refused("InvalidInput", f"memory {operation.id!r} would have {len(tags)} tags; at most {TAGS_MAX}")
    keys = {key for key, value in operation.metadata.items() if value is not None}
    keys |= {key for key in record.metadata_values() if key not in operation.metadata}
    if len(keys) > METADATA_KEYS_MAX:
        raise Refused(
            "InvalidInput",
            f"memory {operation.id!r} would have {len(keys)} metadata keys; at most {METADATA_KEYS_MAX}",
        )
    # A key that is not here needs no removing: it would leave a trace of nothing.
    metadata = {key: value for key, value in operation.metadata.items() if value is not None or key in record.metadata}
    if len(record.metadata.keys() | metadata.keys()) > METADATA_KEYS_REMEMBERED_MAX:
        raise Refused(
            "InvalidInput",
            f"memory {operation.id!r} remembers {METADATA_KEYS_REMEMBERED_MAX} metadata keys that were removed; "
            "store it anew to use further ones",
        )
    # An added tag supersedes its earlier adds, so that flipping a tag for years leaves one dot behind.
    touched = (*operation.remove, *operation.add)
    return Change(
        id=operation.id,
        time=time,
        agent=agent,
        operation=operation_id,
        content=operation.content,
        importance=operation.importance,
        expires=operation.expires,
        metadata=metadata,
        add=operation.add,
        remove={tag: tuple((o.actor, o.n) for o in record.tags[tag]) for tag in touched if tag in record.tags},
    )


def delete(
    operation: Delete, record: Record | None, time: int, agent: str, operation_id: str, *, expired_too: bool = False
) -> Change:
    """The change that deletes a living memory. Raises Refused: NotFound."""
    if record is None or not record.alive or (record.expired(time) and not expired_too):
        raise Refused("NotFound", f"there is no memory {operation.id!r}")
    life = record.life.value
    return Change(
        id=operation.id,
        time=time,
        agent=agent,
        operation=operation_id,
        alive=False,
        thread=life.thread,
        created=life.created,
        life_agent=life.agent,
        last_tags=tuple(sorted(record.tags)),
    )
