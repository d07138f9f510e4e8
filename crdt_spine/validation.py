"""What an agent may pass: every value is checked here, before anything leaves the process.

Each check returns the value in the form that messages carry, or raises InvalidInput naming the argument, what was
wrong with it and what is allowed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from crdt_spine import limits
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.core.messages import Level
from crdt_spine.errors import InvalidInput
from crdt_spine.memory import Consistency

_encode = msgspec.json.Encoder().encode


def text(name: str, value: object, bytes_max: int, *, empty: bool = False) -> str:
    """A string of at most that many bytes in UTF-8, without NUL and lone surrogates.

    What is a str only by its class (an enum's member, say) becomes one: the encoder takes nothing else.
    """
    if type(value) is not str:
        if not isinstance(value, str):
            raise InvalidInput(f"{name} must be a string, not {_kind(value)}")
        value = str.__str__(value)
    if not value and not empty:
        raise InvalidInput(f"{name} must not be empty")
    if value.isascii():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"{name} has a lone surrogate at position {error.start}: it is no valid text; encode it anew"
            ) from None
    if size > bytes_max:
        raise InvalidInput(f"{name} is {size:,} bytes long in UTF-8; at most {bytes_max:,} are allowed")
    if "\0" in value:
        raise InvalidInput(f"{name} has a NUL character at position {value.index(chr(0))}; leave it out")
    return value


def content(value: object) -> str:
    """A memory's content."""
    return text("content", value, limits.CONTENT_BYTES_MAX)


def id(value: object) -> str:
    """A caller's own id."""
    return text("id", value, limits.ID_BYTES_MAX)


def agent(value: object) -> str:
    """An agent's name."""
    return text("agent", value, limits.AGENT_BYTES_MAX)


def thread(value: object) -> str | None:
    """A thread's id, or None."""
    return None if value is None else text("thread", value, limits.THREAD_BYTES_MAX)


def tags(name: str, value: object) -> tuple[str, ...]:
    """Tags, each once, in the order given."""
    if type(value) is tuple and not value:
        return ()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidInput(f"{name} must be a list, tuple or set of strings, not {_kind(value)}")
    distinct = tuple(dict.fromkeys([text(f"a tag in {name}", tag, limits.TAG_BYTES_MAX) for tag in value]))
    if len(distinct) > limits.TAGS_MAX:
        raise InvalidInput(f"{name} has {len(distinct)} tags; at most {limits.TAGS_MAX} are allowed")
    return distinct


def metadata(value: object, *, removals: bool = False) -> dict[str, Any]:
    """Metadata: keys to JSON values. With `removals`, a value of None removes its key."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"metadata must be a mapping of strings to JSON values, not {_kind(value)}")
    if len(value) > limits.METADATA_KEYS_MAX:
        raise InvalidInput(f"metadata has {len(value)} keys; at most {limits.METADATA_KEYS_MAX} are allowed")
    checked: dict[str, Any] = {}
    for key, item in value.items():
        key = text("a key of metadata", key, limits.METADATA_KEY_BYTES_MAX)  # noqa: PLW2901
        if item is None and not removals:
            raise InvalidInput(f"metadata[{key!r}] is None; leave the key out (in update, None removes it)")
        checked[key] = _json_value(f"metadata[{key!r}]", item, 0)
    size = len(_encode(checked)) if checked else 0
    if size > limits.METADATA_BYTES_MAX:
        raise InvalidInput(f"metadata is {size:,} bytes as JSON; at most {limits.METADATA_BYTES_MAX:,} are allowed")
    return checked


def importance(value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidInput(f"importance must be a number from 0 to 1, not {shown(value)}")
    return float(value)


def ttl_milliseconds(value: object) -> int | None:
    """A time to live in seconds, as milliseconds; None: for ever."""
    if value is None:
        return None
    # Compared as it is: as a float, an int may be too large; NaN and infinity are not between any two numbers.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= limits.TTL_SECONDS_MAX:
        raise InvalidInput(
            f"ttl must be a number of seconds above 0 and up to {limits.TTL_SECONDS_MAX:,}, not {shown(value)}"
        )
    return max(1, int(value * 1000))


def time(name: str, value: object) -> int | None:
    """An aware datetime, or an ISO 8601 string with a zone, as a hybrid time; None: open."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidInput(
                f"{name} must be an ISO 8601 time such as 2026-01-31T12:00:00Z, not {shown(value)}"
            ) from None
    if not isinstance(value, datetime):
        raise InvalidInput(f"{name} must be a datetime, not {_kind(value)}")
    if value.tzinfo is None:
        raise InvalidInput(f"{name} must say its time zone; for UTC: {name}.replace(tzinfo=datetime.UTC)")
    milliseconds = (value - _EPOCH).total_seconds() * 1000
    if not 0 <= milliseconds < 1 << 47:
        raise InvalidInput(f"{name} must lie between the years 1970 and 6000, not {value.isoformat()}")
    return at_milliseconds(round(milliseconds))


def optional(name: str, value: object, bytes_max: int) -> str | None:
    """A string, or None."""
    return None if value is None else text(name, value, bytes_max)


def path(value: object) -> str:
    """Where a node of one's own keeps its data."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidInput(f"path must be a string or a path, not {_kind(value)}")
    return text("path", os.fspath(value), limits.PATH_BYTES_MAX)


def token(value: object) -> str | None:
    """A token's text; what is in it, its cluster checks."""
    return optional("token", value, limits.TOKEN_BYTES_MAX)


def token_secret(value: object) -> bytes:
    """What signs tokens: given, or SPINE_TOKEN_SECRET; empty where there is none. It is never in a message."""
    name = "token_secret"
    if value is None:
        name, value = "SPINE_TOKEN_SECRET", os.environ.get("SPINE_TOKEN_SECRET", "").strip() or None
    if value is None:
        return b""
    if not isinstance(value, str | bytes):
        raise InvalidInput(f"{name} must be a string or bytes, not {_kind(value)}")
    try:
        secret = value.encode() if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise InvalidInput(f"{name} has a lone surrogate: it is no valid text") from None
    if not limits.TOKEN_SECRET_BYTES_MIN <= len(secret) <= limits.TOKEN_SECRET_BYTES_MAX:
        raise InvalidInput(
            f"{name} is {len(secret):,} bytes long; {limits.TOKEN_SECRET_BYTES_MIN} to "
            f"{limits.TOKEN_SECRET_BYTES_MAX:,} are allowed: take one from `openssl rand -base64 32`"
        )
    return secret


def consistency(value: object) -> Consistency | None:
    """A level, also by its name; None: the default."""
    if value is None:
        return None
    try:
        return Consistency(value)  # type: ignore[arg-type]
    except ValueError:
        levels = ", ".join(level.value for level in Consistency)
        raise InvalidInput(f"consistency must be one of {levels}; not {shown(value)}") from None


def overrides(value: object) -> dict[str, Level]:
    """Tags and the levels that they demand."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"overrides must be a mapping of tags to levels, not {_kind(value)}")
    levels: dict[str, Level] = {}
    for tag, level in value.items():
        demanded = consistency(level)
        if demanded is None:
            raise InvalidInput(f"overrides[{shown(tag)}] must be a level; leave the tag out")
        levels[text("a tag in overrides", tag, limits.TAG_BYTES_MAX)] = demanded.value
    return levels


def limit(value: object) -> int:
    """How many memories a page may have."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limits.QUERY_LIMIT_MAX:
        raise InvalidInput(f"limit must be a whole number from 1 to {limits.QUERY_LIMIT_MAX:,}, not {shown(value)}")
    return int(value)  # of a subclass, too: the encoder takes nothing else


def seconds(name: str, value: object) -> float:
    """A time to wait."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 86_400:
        raise InvalidInput(f"{name} must be a number of seconds above 0 and below 86,400, not {shown(value)}")
    return float(value)


def lock(name: object) -> str:
    """A lock's name."""
    return text("lock", name, limits.LOCK_NAME_BYTES_MAX)


def lease_seconds(value: object, most: float) -> float:
    """For how long a lease holds; a cluster allows so much at `most`."""
    least = limits.LEASE_SECONDS_MIN
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidInput(
            f"ttl must be a number of seconds from {least:g} to {most:,g}, not {shown(value)}; a lease is renewed by "
            "itself while it is held, so a short one is enough (locks.ttl_seconds_max in cluster.yaml bounds it)"
        )
    return float(value)


def wait(value: object) -> float | None:
    """For how long to wait for a lock; None: as long as it takes."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limits.LEASE_SECONDS_MAX:
        raise InvalidInput(
            f"wait must be None, or a number of seconds from 0 to {limits.LEASE_SECONDS_MAX:,g}, not {shown(value)}"
        )
    return float(value)


def shown(value: object) -> str:
    """A value in an error's message: recognisable, and short however large it is."""
    try:
        text = repr(value)
    except Exception:  # an int of too many digits, or a class whose repr fails
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[: _SHOWN_CHARACTERS_MAX - 1]}…"


_SHOWN_CHARACTERS_MAX = 80
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _json_value(name: str, value: object, depth: int) -> Any:
    """A value that JSON can carry there and back; a copy, so that a later change of the caller's has no effect."""
    if depth > 16:
        raise InvalidInput(f"{name} is nested deeper than 16 levels")
    match value:
        case bool() | None:
            return value
        case str():
            return text(name, value, limits.METADATA_BYTES_MAX, empty=True)
        case int():
            if not -(1 << 63) <= value < 1 << 63:
                raise InvalidInput(f"{name} is {shown(value)}; whole numbers must fit 64 bits")
            return int(value)
        case float():
            if not math.isfinite(value):
                raise InvalidInput(f"{name} is {value}, which JSON does not have")
            return float(value)
        case list() | tuple():
            return [_json_value(name, item, depth + 1) for item in value]
        case dict():
            return {
                text(f"a key in {name}", key, limits.METADATA_KEY_BYTES_MAX, empty=True): _json_value(
                    f"{name}[{key!r}]", item, depth + 1
                )
                for key, item in value.items()
            }
        case _:
            raise InvalidInput(f"{name} must be a JSON value (text, number, bool, list, dict), not {_kind(value)}")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
