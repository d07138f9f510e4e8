"""Configuration files: config check."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from crdt_spine.cli import outcome
from crdt_spine.cli.options import inherited, json_option
from crdt_spine.cli.output import emit


@click.group()
def config() -> None:
    """Configuration files."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> int:
    """Validate the cluster.yaml in FILE: every problem with its line, key and reason."""
    from crdt_spine.config import load, problems

    found = problems(file)
    if inherited(click.get_current_context(), "as_json", as_json):
        emit({"file": str(file), "valid": not found, "problems": [msgspec.structs.asdict(one) for one in found]})
    elif found:
        for one in found:
            click.echo(str(one), err=True)
        click.echo(f"error: {file} has {len(found)} problem{'s' if len(found) > 1 else ''}", err=True)
    else:
        cluster = load(file)
        click.echo(f"{file} is valid: cluster {cluster.name}, {len(cluster.nodes)} nodes")
    return outcome.FAILED if found else outcome.DONE
