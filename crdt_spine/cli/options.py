"""The options that every command has: where the memories are, who asks, how fresh and how long.

They may stand behind the command or in front of it (`spine --server … status`); behind it wins, then in front of it,
then the environment. Which memories are meant (`--tag`, `--thread`, …) is the same everywhere too; where a command
selects, `--agent` is the author of what is selected, and who asks comes from in front or from SPINE_AGENT.
"""

from __future__ import annotations

import functools
import getpass
import os
from collections.abc import Callable
from typing import Any, Final

import click
import msgspec
from click.core import ParameterSource

from crdt_spine.cli.values import Place, duration_of, metadata_of, moment_of
from crdt_spine.limits import OPERATION_SECONDS_MAX
from crdt_spine.memory import Consistency

SERVER: Final = "nats://127.0.0.1:4222"

Command = Callable[..., Any]


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """The shared options' values. `path` is an embedded database used instead of `server`; `timeout` in seconds."""

    server: str
    path: str | None
    cluster: str | None
    agent: str
    timeout: float
    consistency: str | None
    session: str | None
    as_json: bool


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document, or JSON lines where it streams.")

server_option = click.option(
    "--server", metavar="URL", envvar="SPINE_SERVER", default=SERVER, show_default=True, show_envvar=True,
    help="The cluster's NATS broker.",
)  # fmt: skip

_agent_option = click.option("--agent", metavar="NAME", help="Who asks. [env: SPINE_AGENT; default: the user's name]")

_CONNECTION: Final = (
    server_option,
    click.option("--path", metavar="FILE", help="An embedded database in this file or folder, instead of a server."),
    click.option("--cluster", metavar="NAME", help="Which one, where the broker carries several."),
    click.option("--timeout", default=f"{OPERATION_SECONDS_MAX:g}", show_default=True, metavar="SECONDS",
                 callback=duration_of, help="For each operation, retries included."),
    click.option("--consistency", type=click.Choice([level.value for level in Consistency]),
                 help="How fresh; else the cluster's default."),
    click.option("--session", type=Place(), metavar="FILE", envvar="SPINE_SESSION", show_envvar=True,
                 help="Carries what was written and read from one command to the next: this one sees at least that."),
    json_option,
)  # fmt: skip


def connected(*, identity: bool = True) -> Callable[[Command], Command]:
    """The shared options; the command gets them as its first argument, a `Common`. Without `identity` it has no
    `--agent` of this meaning."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_common(**values: Any) -> Any:
            context = click.get_current_context()
            common = {name: inherited(context, name, values.pop(name, None)) for name in Common.__struct_fields__}
            common["agent"] = common["agent"] or os.environ.get("SPINE_AGENT") or _user()
            if common["path"] is not None and _given(context, "server"):
                raise click.UsageError("--path and --server exclude each other", context)
            return command(Common(**common), **values)

        return shared_options(identity=identity)(with_common)

    return decorate


def shared_options(*, identity: bool = True) -> Callable[[Command], Command]:
    """The shared options alone."""

    def decorate(command: Command) -> Command:
        for option in reversed((*_CONNECTION, _agent_option) if identity else _CONNECTION):
            command = option(command)
        return command

    return decorate


def given_in_front(context: click.Context) -> dict[str, Any]:
    """What was said in front of the command, for `inherited`."""
    return {name: value for name, value in context.params.items() if _given(context, name)}


def inherited(context: click.Context, name: str, value: Any) -> Any:
    """An option's value: the command's own where it was given, else what was said in front of the command."""
    in_front: dict[str, Any] = context.find_root().obj or {}
    return in_front[name] if name in in_front and not _given(context, name) else value


def selection_options(command: Command) -> Command:
    """Which memories are meant, by tags, author and thread."""
    for option in reversed(
        (
            click.option("--tag", "tags", multiple=True, help="Has this tag. Repeatable: has all of them."),
            click.option("--any-tag", "any_tags", multiple=True, help="Repeatable: has one of them."),
            click.option("--agent", "author", metavar="NAME", help="Stored by this agent."),
            click.option("--thread", help="Belongs to this thread."),
        )
    ):
        command = option(command)
    return command


def query_options(command: Command) -> Command:
    """Which memories are meant, with the conditions that only a query has."""
    for option in reversed(
        (
            click.option("--not-tag", "not_tags", multiple=True, help="Does not have this tag. Repeatable."),
            click.option("--since", metavar="TIME", callback=moment_of,
                         help="Created then or later: ISO 8601, or 2h, 7d (ago)."),
            click.option("--until", metavar="TIME", callback=moment_of, help="Created before then."),
            click.option("--meta", "metadata", multiple=True, metavar="KEY=VALUE", callback=metadata_of,
                         help="Has this metadata; the value is JSON if it parses, else text. Repeatable."),
        )
    ):  # fmt: skip
        command = option(command)
    return selection_options(command)


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "cli"
