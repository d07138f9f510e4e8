"""Memories as JSON lines: what `spine import` reads and `spine export` writes.

A line is one object. Which of its fields is which argument of `Spine.store` is said by a mapping, target from source
(`content=text`); a field that is named like a target needs none. Every other field is kept as metadata under its own
name, so that an import loses nothing unless it is told to. Nothing here reads a clock or a file: the caller has both,
and adds the line's number to what is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from crdt_spine import validation
from crdt_spine.errors import InvalidInput
from crdt_spine.memory import Memory

#: What a field can become. `agent` is who stores it, `expires_at` becomes a `ttl`; the others are `store`'s arguments.
TARGETS: Final = (
    "content", "id", "tags", "metadata", "agent", "thread", "importance", "ttl", "created_at", "expires_at",
)  # fmt: skip

_EPOCH_SECONDS_MAX: Final = 100_000_000_000  # the year 5138; above it, somebody has milliseconds

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class FieldMap:
    """Which source field each target is taken from. `only_mapped`: other fields are dropped instead of kept."""

    def __init__(self, sources: Mapping[str, str] | None = None, *, only_mapped: bool = False) -> None:
        """Raises InvalidInput naming all targets that there are not."""
        named = dict(sources or {})
        if unknown := [target for target in named if target not in TARGETS]:
            what = "is no target" if len(unknown) == 1 else "are no targets"
            raise InvalidInput(f"{', '.join(unknown)} {what} of a map; there are {', '.join(TARGETS)}")
        # A field named like a target is that target, unless the target is taken from elsewhere or the field is used.
        used = set(named.values())
        implied = {target: target for target in TARGETS if target not in named and target not in used}
        self.sources: dict[str, str] = {**implied, **named}
        self.only_mapped = only_mapped
        self._fields = frozenset(self.sources.values())

    @classmethod
    def parse(cls, maps: Iterable[str], *, only_mapped: bool = False) -> FieldMap:
        """From texts such as `content=text`. Raises InvalidInput naming every text that is no map."""
        sources: dict[str, str] = {}
        wrong: list[str] = []
        for text in maps:
            target, equals, source = text.partition("=")
            if not (target and equals and source):
                wrong.append(f"{text!r} is no map; it looks like content=text (target=field)")
            elif sources.setdefault(target, source) != source:
                wrong.append(f"{target} is mapped to {sources[target]!r} and to {source!r}; choose one")
        if wrong:
            raise InvalidInput("; ".join(wrong))
        return cls(sources, only_mapped=only_mapped)

    def arguments(self, line: str | bytes, now: datetime) -> dict[str, Any] | None:
        """The arguments of `Spine.store` for one line, and `agent`, where the line names one; only what it has.

        None: the memory has expired before `now` (aware). Raises InvalidInput: no JSON, no object, no content, a
        value of a wrong type or beyond its limit.
        """
        record = _object(line)
        values = {target: record[source] for target, source in self.sources.items() if record.get(source) is not None}
        if "content" not in values:
            raise InvalidInput(self._no_content(record))
        arguments: dict[str, Any] = {"content": validation.content(values["content"])}
        for name, check in (("id", validation.id), ("agent", validation.agent), ("thread", validation.thread)):
            if name in values:
                arguments[name] = check(_name(values[name]))
        if "tags" in values:
            arguments["tags"] = _tags(values["tags"])
        if metadata := self._metadata(values.get("metadata"), record):
            arguments["metadata"] = metadata
        if "importance" in values:
            arguments["importance"] = validation.importance(values["importance"])
        if "created_at" in values:
            arguments["created_at"] = _time("created_at", values["created_at"])
        if "ttl" in values and "expires_at" in values:
            raise InvalidInput("there are both ttl and expires_at; keep one of them")
        if "ttl" in values:
            validation.ttl_milliseconds(values["ttl"])
            arguments["ttl"] = values["ttl"]
        if "expires_at" in values:
            left = (_time("expires_at", values["expires_at"]) - now).total_seconds()
            if left <= 0:
                return None
            validation.ttl_milliseconds(left)
            arguments["ttl"] = left
        return arguments

    def _metadata(self, own: object, record: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata field's keys and the fields that are nothing else. A null is nothing."""
        if own is not None and not isinstance(own, dict):
            raise InvalidInput(f"metadata must be an object, not {_kind(own)}")
        metadata = {key: value for key, value in (own or {}).items() if value is not None}
        if not self.only_mapped:
            for field, value in record.items():
                if field in self._fields or value is None:
                    continue
                if field in metadata:
                    raise InvalidInput(
                        f"the field {validation.shown(field)} is also a key of metadata; map one of them, or keep only "
                        "what is mapped"
                    )
                metadata[field] = value
        return validation.metadata(metadata)

    def _no_content(self, record: Mapping[str, Any]) -> str:
        source = self.sources.get("content", "content")
        if source in record:
            return f"the content, field {source!r}, is null"
        fields = ", ".join(field if len(field) <= 80 else f"{field[:79]}…" for field in list(record)[:20]) or "none"
        return f"there is no content: no field {source!r}; the fields are {fields} (map one: content=FIELD)"


def export_line(memory: Memory) -> bytes:
    """The memory as one line, without its newline. Read by a plain `FieldMap`, it is stored as the same memory.

    What a cluster itself decides is not in it: the version, the time of the last change, a thread's clock.
    """
    record: dict[str, Any] = {"id": memory.id, "content": memory.content, "agent": memory.agent}
    if memory.thread is not None:
        record["thread"] = memory.thread
    record["tags"] = sorted(memory.tags)
    record["metadata"] = dict(memory.metadata)
    record["importance"] = memory.importance
    record["created_at"] = memory.created_at
    if memory.expires_at is not None:
        record["expires_at"] = memory.expires_at
    return _encode(record)


def _object(line: str | bytes) -> dict[str, Any]:
    text = line.removeprefix("\ufeff") if isinstance(line, str) else line.removeprefix(b"\xef\xbb\xbf")
    if not text.strip():
        raise InvalidInput("the line is empty")
    try:
        record = _decode(text)
    except RecursionError:
        raise InvalidInput("the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidInput(f"the line is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidInput(f"the line must be a JSON object, not {_kind(record)}")
    return record


def _name(value: object) -> object:
    """Ids, agents and threads are often numbers elsewhere; they are texts here."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _tags(value: object) -> tuple[str, ...]:
    """A list, or one tag alone."""
    if isinstance(value, dict):
        raise InvalidInput("tags must be a list of texts, not an object")
    return validation.tags("tags", [_name(tag) for tag in value] if isinstance(value, list) else [_name(value)])


def _time(name: str, value: object) -> datetime:
    """ISO 8601, in UTC where it says no zone, or seconds since 1970."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidInput(
                f"{name} must be an ISO 8601 time such as 2026-01-31T12:00:00Z or seconds since 1970, "
                f"not {validation.shown(value)}"
            ) from None
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= _EPOCH_SECONDS_MAX:
            hint = "; it looks like milliseconds" if value > _EPOCH_SECONDS_MAX else ""
            raise InvalidInput(f"{name} must be seconds since 1970, not {validation.shown(value)}{hint}")
        moment = datetime.fromtimestamp(value, UTC)
    else:
        raise InvalidInput(f"{name} must be an ISO 8601 time or seconds since 1970, not {_kind(value)}")
    validation.time(name, moment)
    return moment


def _kind(value: object) -> str:
    names: dict[type, str] = {
        str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object",
    }  # fmt: skip
    return names.get(type(value), "null")
