"""Amounts for people: bytes, rates, durations, bars. One unit is enough."""

from __future__ import annotations

from typing import Final

BAR_CELLS: Final = 8


def bytes_text(count: float) -> str:
    """`1.2 MB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size * 0.9995:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def count_text(count: float) -> str:
    """`950`, `12.3 k`, `1.2 M`: for narrow columns."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.9995:
            return f"{count / size:.1f} {unit}" if count < size * 999.5 or unit == "G" else f"{count / size:.0f} {unit}"
    return f"{count:.0f}"


def duration_text(seconds: float) -> str:
    """`3.2 h`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def bar(value: float, most: float, cells: int = BAR_CELLS) -> str:
    """A bar of eighths of a cell: `most` fills it, and what is more than nothing shows."""
    eighths = 0 if not most or value <= 0 else max(1, round(value / most * cells * 8))
    whole, part = divmod(eighths, 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[part] if part else "")
