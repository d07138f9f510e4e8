"""How far a change of the cluster is, on stderr: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Final

import click

from crdt_spine.cli.output import one_line
from crdt_spine.cli.sizes import bytes_text, duration_text
from crdt_spine.reshaping import Shape

LINE_SECONDS: Final = 5.0  # between two lines that say nothing new but numbers
NAMED_MAX: Final = 6  # nodes in one line


class Moving:
    """Use as `with`, then `show`. `start` is what a newcomer is started with; `quiet` shows nothing."""

    def __init__(self, start: str, *, quiet: bool) -> None:
        self._start = start
        self._quiet = quiet
        self._hinted: set[str] = set()
        self._said: tuple[str, float] = "", float("-inf")
        self._bar: Any = None
        self._task: Any = None

    def show(self, shape: Shape) -> None:
        """The state of things now."""
        change = shape.cluster["change"]
        if self._quiet or change is None:
            return
        self._hint(shape)
        counted, waiting = amount(change), waits(shape.cluster)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=change["done"], total=max(1, change["total"]), counted=counted, waiting=waiting
            )
            return
        news, (before, said) = ",".join(change["waits_for"]), self._said
        if news != before or time.monotonic() - said >= LINE_SECONDS:
            click.echo(f"{counted}{f'; {waiting}' if waiting else ''}", err=True)
            self._said = news, time.monotonic()

    def _hint(self, shape: Shape) -> None:
        """What an operator can do for those who are waited for and not heard of; once for each."""
        change, not_heard = shape.cluster["change"], shape.cluster.get("not_heard", {})
        absent = {node for node in change["waits_for"] if node in not_heard}
        self._hinted &= absent
        for node in sorted(absent - self._hinted):
            self._hinted.add(node)
            if node == change["comes"] and not_heard[node] is None:
                self._say(
                    f"node {one_line(node)} has not been heard of yet; start it, with a cluster.yaml that names it: "
                    f"{self._start}"
                )
            else:
                self._say(advice(node, not_heard[node]))

    def _say(self, line: str) -> None:
        if self._bar is None:
            click.echo(line, err=True)
        else:
            from rich.text import Text

            self._bar.console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> Moving:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                BarColumn(),
                TextColumn("{task.fields[counted]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[waiting]}", style="yellow", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=None, counted="", waiting="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def amount(change: dict[str, Any]) -> str:
    """`12 of 48 replicas moved, 3 under way, 1,204 records, 1.2 MB`."""
    said = [f"{change['done']:,} of {change['total']:,} replicas moved"]
    if change.get("moving"):
        said.append(f"{len(change['moving']):,} under way")
    if change.get("records"):
        said.append(f"{change['records']:,} records")
    if change.get("bytes"):
        said.append(bytes_text(change["bytes"]))
    return ", ".join(said)


def waits(cluster: dict[str, Any]) -> str:
    """Which nodes have not confirmed the last step of the change under way, and for how long those were not heard that
    are not; empty: none is waited for."""
    nodes, not_heard = cluster["change"].get("waits_for") or (), cluster.get("not_heard", {})
    if not nodes:
        return ""
    told = [
        f"{one_line(node)} (not heard {_since(not_heard[node])})" if node in not_heard else one_line(node)
        for node in nodes[:NAMED_MAX]
    ]
    return f"waits for {', '.join(told)}{' …' if len(nodes) > NAMED_MAX else ''}"


def advice(node: str, seconds: float | None) -> str:
    """What to do about a node that is waited for and was not heard for so long; None: never. Two lines."""
    return (
        f"{one_line(node)} has not been heard {_since(seconds)} and has to confirm: start it, or\n"
        f"    spine cluster cancel --dead {one_line(node)}    if it will not come back"
    )


def _since(seconds: float | None) -> str:
    return "yet" if seconds is None else f"for {duration_text(seconds)}"
