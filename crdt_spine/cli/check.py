"""Configuration files: config check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from crdt_spine.cli import outcome
from crdt_spine.cli.options import inherited, json_option
from crdt_spine.cli.output import emit, representable
from crdt_spine.cli.values import Place


@click.group()
def config() -> None:
    """Configuration files."""


@config.command()
@click.argument("file", type=Place(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> int:
    """Validate the cluster.yaml in FILE: every problem with its line, key and reason."""
    from crdt_spine.config import hints, load, problems

    found = problems(file)
    advice = [] if found else hints(load(file))
    if inherited(click.get_current_context(), "as_json", as_json):
        listed = [{key: _in_json(value) for key, value in msgspec.structs.asdict(one).items()} for one in found]
        emit({"file": _in_json(str(file)), "valid": not found, "problems": listed, "hints": advice})
    elif found:
        for one in found:
            click.echo(str(one), err=True)
        click.echo(f"error: {file} has {len(found)} problem{'s' if len(found) > 1 else ''}", err=True)
    else:
        cluster = load(file)
        click.echo(f"{file} is valid: cluster {cluster.name}, {len(cluster.nodes)} nodes")
        for hint in advice:
            click.echo(f"hint: {hint}")
    return outcome.FAILED if found else outcome.DONE


def _in_json(value: Any) -> Any:
    return representable(value) if isinstance(value, str) else value
