"""The `spine` command: its commands by name, and the one place where errors become exit codes.

What a command needs is imported when it runs: `spine --help` and `spine get` shall answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from crdt_spine.cli import (
    check,
    cluster,
    locks,
    memories,
    options,
    outcome,
    past,
    query,
    serve,
    status,
    transfer,
    watch,
)
from crdt_spine.errors import SpineError


class Commands(click.Group):
    """The commands in the order in which one meets them, not in that of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        # click itself would print for an interrupt and exit for a closed pipe; both are for main to say.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(outcome.INTERRUPTED) from None
        except BrokenPipeError:
            raise outcome.PipeClosed from None


class Elsewhere(click.Command):
    """A command that is defined with what it runs, and imported only when it is called: "module:attribute"."""

    def __init__(self, name: str, place: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self._place = place

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        module, _, attribute = self._place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        in_front = parent.find_root().obj if parent is not None else None
        return command.make_context(info_name, args, parent, **{"default_map": in_front, **extra})


@click.group(cls=Commands, invoke_without_command=True, context_settings={"max_content_width": 100})
@click.option("--version", is_flag=True, help="Show the version.")
@options.shared_options()
@click.pass_context
def spine(context: click.Context, /, version: bool, **shared: Any) -> None:
    """Shared memory for fleets of AI agents.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 unavailable (no quorum, timeout, no server).
    """
    context.obj = options.given_in_front(context)
    if version:
        from crdt_spine import __version__

        click.echo(f"spine {__version__}")
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(outcome.USAGE)


_BENCH: Final = Elsewhere(
    "bench", "crdt_spine.bench.command:bench", "Measure throughput, latency and CPU per operation."
)

for _command in (
    serve.up, memories.store, memories.get, memories.update, memories.delete, query.query, watch.watch,
    past.history, past.conflicts, transfer.import_, transfer.export, status.status, cluster.cluster,
    check.config, serve.node, locks.locks, locks.lock, _BENCH,
):  # fmt: skip
    spine.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = outcome.wants_json(words)
    try:
        code = spine.main(words, "spine", standalone_mode=False)
        sys.stdout.flush()
    except outcome.PipeClosed:
        outcome.discard_output()
        return outcome.PIPE_CLOSED
    except BrokenPipeError:
        outcome.discard_output()
        return outcome.PIPE_CLOSED
    except (KeyboardInterrupt, click.Abort):
        return outcome.INTERRUPTED
    except (SpineError, click.ClickException, OSError) as error:
        return outcome.report(error, as_json=as_json)
    return code or outcome.DONE


if __name__ == "__main__":
    sys.exit(main())
