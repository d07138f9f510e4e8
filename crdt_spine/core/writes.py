"""From an agent's operation to a change: what the coordinator decides, looking at the record it has.

The coordinator's stamp is above everything it holds (rule 11), so the change it makes is what its agent expects. A
change says what it takes away by dots, never "whatever there is": what this coordinator has not seen survives.
"""

from __future__ import annotations

import msgspec

from crdt_spine.core.document import advance, complete, key_of, opened, state_vector, text_in
from crdt_spine.core.messages import Change, Delete, Edit, EditDocument, Store
from crdt_spine.core.open_documents import OpenDocuments
from crdt_spine.core.record import Record
from crdt_spine.core.version import conflict
from crdt_spine.limits import (
    CONTENT_BYTES_MAX,
    DOCUMENT_BYTES_MAX,
    METADATA_KEYS_MAX,
    METADATA_KEYS_REMEMBERED_MAX,
    TAGS_MAX,
)


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
        clock=operation.clock,
        after=operation.after,
        created=created,
    )


def edit(operation: Edit, record: Record | None, time: int, agent: str, operation_id: str) -> Change:
    """The change that edits a living memory. Raises Refused: NotFound, VersionConflict, InvalidInput."""
    if record is None or not record.alive or record.expired(time):
        raise Refused("NotFound", f"there is no memory {operation.id!r}")
    if operation.if_version is not None and operation.if_version != record.etag:
        raise Refused("VersionConflict", conflict(operation.id, record.etag, operation.if_version))
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


def edit_document(
    operation: EditDocument, record: Record | None, time: int, agent: str, operation_id: str, documents: OpenDocuments
) -> Change:
    """The change that merges a Yjs update into a memory's text, or begins a memory with it. Raises Refused: NotFound,
    VersionConflict (the content was written anew, or the Yjs client id is in use elsewhere), InvalidInput."""
    living = record is not None and record.alive and not record.expired(time)
    if operation.base is None:
        if living:
            raise Refused("VersionConflict", f"there is a memory {operation.id!r} now")
        _check_update(operation, None, documents)
        return Change(
            id=operation.id, time=time, agent=agent, operation=operation_id, alive=True, content="", importance=0.5,
            document=operation.update,
        )  # fmt: skip
    if record is None or not living:
        raise Refused("NotFound", f"there is no memory {operation.id!r}")
    if operation.base != key_of(record.content):
        raise Refused("VersionConflict", f"the content of memory {operation.id!r} was written anew")
    _check_update(operation, record, documents)
    return Change(
        id=operation.id, time=time, agent=agent, operation=operation_id, document=operation.update, base=operation.base
    )


def _check_update(operation: EditDocument, record: Record | None, documents: OpenDocuments) -> None:
    """Apply the update to the live document, or raise Refused. What no replica could apply would stay in the document
    for ever, and what it brings under a client id that somebody else goes on with would make replicas differ for ever.
    """
    live = opened(()) if record is None else documents.live(record)
    if state_vector(live.get_state()).get(operation.client, 0) != operation.clock:
        raise Refused("VersionConflict", f"the Yjs client id {operation.client} is not at {operation.clock} any more")
    document = None if record is None else record.document
    size = len(operation.update) + (0 if document is None else document.size)
    size += len(record.content.value) * 4 if record is not None and record.content is not None else 0
    before = len(text_in(live).encode()) if size > CONTENT_BYTES_MAX else 0
    problem = ""
    if not advance(live, operation.update):
        problem = "the update is no Yjs update"
    elif not complete(operation.update, live.get_state()):
        problem = "the update builds on edits that are not there"
    elif size > CONTENT_BYTES_MAX:
        after = len(text_in(live).encode())
        if after > CONTENT_BYTES_MAX and after > before:
            problem = f"the text would be {after:,} bytes long in UTF-8; at most {CONTENT_BYTES_MAX:,} are allowed"
        elif size > DOCUMENT_BYTES_MAX and (state := len(live.get_update())) > DOCUMENT_BYTES_MAX:
            problem = (
                f"the document with its past would be {state:,} bytes; at most {DOCUMENT_BYTES_MAX:,} are allowed: "
                "write its content anew with update(content=…)"
            )
    if problem:
        documents.forget(operation.id)
        raise Refused("InvalidInput", f"memory {operation.id!r}: {problem}")


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
