"""How far a long transfer is: a bar in a terminal, a plain line now and then elsewhere; always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import click

BAR_SECONDS: Final = 0.1  # between two looks of a bar
LINE_SECONDS: Final = 5.0  # between two lines

#: What is done so far, and how many bytes that were.
Reached = Callable[[], tuple[int, int]]


class Progress:
    """Use as `with`, then `follow`. `total` in bytes, None: unknown; `quiet` says only what `say` is told."""

    def __init__(self, what: str, total: int | None, *, quiet: bool) -> None:
        self._what = what
        self._total = total
        self._quiet = quiet
        self._reached: Reached = lambda: (0, 0)
        self._began = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, reached: Reached) -> None:
        """Begin to show what `reached` says; it is called in a thread of its own."""
        self._reached = reached
        self._began = time.monotonic()
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._bar, self._task = _bar(self._what, self._total)
            self._bar.start()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is None:
            click.echo(line, err=True)
        else:
            from rich.text import Text

            self._bar.console.print(Text.from_ansi(line), soft_wrap=True)

    def end(self) -> None:
        """Show the last state and leave the terminal as it was. May be called again."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._bar is not None:
            self._draw()
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _tick(self) -> None:
        while not self._ended.wait(LINE_SECONDS if self._bar is None else BAR_SECONDS):
            self._draw()

    def _draw(self) -> None:
        done, size = self._reached()
        rate = done / max(0.001, time.monotonic() - self._began)
        if self._bar is None:
            part = "" if self._total is None else f" ({size / self._total:.0%})"
            click.echo(f"{done:,} {self._what}{part}, {rate:,.0f}/s", err=True)
        else:
            self._bar.update(self._task, completed=size, done=f"{done:,} {self._what}", rate=f"{rate:,.0f}/s")


def _bar(what: str, total: int | None) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    known = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(compact=True)) if total is not None else ()
    bar = Bar(
        TextColumn("{task.fields[done]}"),
        TextColumn("{task.fields[rate]}", style="cyan"),
        *known,
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    return bar, bar.add_task(what, total=total, done=f"0 {what}", rate="")
