"""What can be written on a command line: durations, moments, metadata. Each says what was wrong and what it takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import msgspec

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")


class Place(click.Path):
    """A path that is not empty: to the system "" is the folder that one happens to be in, and is mostly an unset
    variable."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if not os.fspath(value):
            self.fail("must not be empty; . is the folder you are in", param, ctx)
        return super().convert(value, param, ctx)


def duration_of(context: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A callback for options that are seconds, or a number with a unit: 90, 90s, 15m, 2h, 7d, 4w. In seconds."""
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is not None:
        return seconds
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no duration; write seconds, or 15m, 2h, 7d", context, param) from None


def moment_of(context: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A callback for options that are a time: ISO 8601, in local time where it says no zone, or so long ago: 2h, 7d."""
    if value is None:
        return None
    try:
        seconds = _seconds(value)
        if seconds is not None:
            return datetime.now(UTC) - timedelta(seconds=seconds)
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        message = f"{value!r} is no time; write 2026-01-31T12:00:00Z, 2026-01-31, or 2h, 7d (ago)"
        raise click.BadParameter(message, context, param) from None


def metadata_of(context: click.Context, param: click.Parameter, pairs: Iterable[str]) -> dict[str, Any]:
    """A callback for options of the form key=value. The value is JSON if it parses as such, else text."""
    metadata: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{pair!r} must look like key=value", context, param)
        if key in metadata:
            raise click.BadParameter(f"the key {key!r} is given twice", context, param)
        try:
            metadata[key] = msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            metadata[key] = text
    return metadata


def _seconds(text: str) -> float | None:
    """A number with a unit, in seconds."""
    found = _DURATION.fullmatch(text.strip().lower())
    return None if found is None else float(found[1]) * _SECONDS[found[2]]
