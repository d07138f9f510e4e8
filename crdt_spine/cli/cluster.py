"""Which nodes a cluster has: cluster add, remove, cancel, show. Nodes do the work; a command proposes and watches."""

from __future__ import annotations

import asyncio
import shlex
import time
from typing import TYPE_CHECKING, Any, Final

import click

from crdt_spine.cli import outcome
from crdt_spine.cli.options import Common, connected
from crdt_spine.cli.output import emit, one_line
from crdt_spine.errors import InvalidInput, SpineError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from crdt_spine.reshaping import Aim, Shape

HTTP_PORT: Final = 8788
PORT_MAX: Final = 65_535
BEGIN_SECONDS_MAX: Final = 10.0  # for the node that is asked to have heard of a change that another one has taken

_no_wait = click.option("--no-wait", is_flag=True, help="Do not watch until the data has moved.")


@click.group()
def cluster() -> None:
    """Which nodes the cluster has; grow and shrink it."""


@cluster.command(short_help="Have a node join, and watch until it has its share of the data.")
@click.option("--id", "id", required=True, help="The new node's id.")
@click.option("--host", required=True, help="Where its HTTP listener is.")
@click.option("--port", type=click.IntRange(1, PORT_MAX), default=HTTP_PORT, show_default=True)
@click.option("--zone", metavar="NAME", help="Replicas are spread over zones.")
@click.option(
    "--replica", is_flag=True, help="It coordinates nothing that a primary could; see `role` in cluster.yaml."
)
@click.option("--replace", metavar="OLD", help="Take over the data of this node, which leaves.")
@click.option("--dead", is_flag=True, help="The replaced node will not come back; its data comes from the others.")
@_no_wait
@connected()
def add(
    common: Common, id: str, host: str, port: int, zone: str | None, replica: bool, replace: str | None, dead: bool,
    no_wait: bool,
) -> int:  # fmt: skip
    """Have a node join the cluster, or take another one's place.

    Its data moves while agents go on. The node itself is started with `spine node`, before this or after it;
    with --replace after it, as a node that is started first asks to join beside the others by itself. Ctrl-C only stops
    watching; the same command once more watches on.
    """
    from crdt_spine.config import NodeConfig, node_problems
    from crdt_spine.core.messages import NodeInfo
    from crdt_spine.reshaping import Aim

    context = click.get_current_context()
    for key, reason in node_problems(NodeConfig(id=id, host=host, port=port, zone=zone)).items():
        raise click.BadParameter(reason, context, param_hint=f"'--{key}'")
    if dead and replace is None:
        raise click.UsageError("--dead goes with --replace OLD: it is the replaced node that is dead", context)
    comes = NodeInfo(id=id, zone=zone, host=host, port=port, role="replica" if replica else "primary")
    if replace is None:
        return _change(common, Aim(kind="add", comes=comes), no_wait)
    return _change(common, Aim(kind="replace", comes=comes, goes=_id(replace, "'--replace'"), dead=dead), no_wait)


@cluster.command(short_help="Have a node leave, and watch until others have its data.")
@click.argument("id")
@click.option("--dead", is_flag=True, help="It will not come back; its data comes from the others.")
@_no_wait
@connected()
def remove(common: Common, id: str, dead: bool, no_wait: bool) -> int:
    """Have a node leave the cluster. Its process ends once others have all that it had.

    Refused where fewer nodes than the replication factor would be left. Ctrl-C only stops watching; the same command
    once more watches on.
    """
    from crdt_spine.reshaping import Aim

    return _change(common, Aim(kind="remove", goes=_id(id, "'ID'"), dead=dead), no_wait)


@cluster.command(short_help="Turn the change under way back, or end it without a node that died.")
@click.argument("id", required=False)
@click.option("--dead", is_flag=True, help="The node ID will not come back; without ID: the one that was joining.")
@_no_wait
@connected()
def cancel(common: Common, id: str | None, dead: bool, no_wait: bool) -> int:
    """Turn the change under way back: what has moved returns to where it was.

    With --dead nobody waits for the node ID any more, whichever part it has in the change; it is given up for ever.
    That goes for a change that is being turned back, too. After that, `spine cluster remove ID --dead` shares out what
    it had, and `spine cluster add … --replace ID --dead` gives it to a new node.
    """
    from crdt_spine.reshaping import Aim

    if id is not None and not dead:
        context = click.get_current_context()
        raise click.UsageError("ID names a node that will not come back: give --dead with it", context)
    return _change(common, Aim(kind="cancel", goes="" if id is None else _id(id, "'ID'"), dead=dead), no_wait)


@cluster.command()
@connected()
def show(common: Common) -> None:
    """Show the nodes that belong to the cluster, and the change under way."""
    from crdt_spine.cli.opening import opened, run
    from crdt_spine.reshaping import look, moved

    async def main() -> Shape:
        async with opened(common) as spine:
            return await moved(spine.session, await look(spine.session))

    shape = run(main())
    if common.as_json:
        emit(shape.cluster)
    else:
        from crdt_spine.cli.show import show

        show(shape_view(shape))


def shape_view(shape: Shape) -> RenderableType:
    """The cluster's nodes for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from crdt_spine.cli.moving import advice, amount, waits

    cluster = shape.cluster
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("node", "", "zone", "address", "partitions", "coordinates"):
        right = name in ("partitions", "coordinates")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for id, member in sorted(cluster["members"].items()):
        if id in cluster["dead"]:
            state = Text("● dead", style="bold red")
        else:
            state = Text("● heard", style="green") if id in shape.heard else Text("● not heard", style="bold red")
        table.add_row(
            one_line(id),
            state,
            one_line(member.get("zone") or "–"),
            one_line(f"{member.get('host') or '–'}:{member.get('port') or '–'}"),
            str(member.get("partitions", "–")),
            str(member.get("coordinates", "–")),
        )
    lines: list[Text] = []
    change, not_heard = cluster["change"], cluster.get("not_heard", {})
    if change is None:
        lines.append(Text("nothing is under way", style="dim"))
        lines += [Text(_left(node), style="yellow") for node in cluster["dead"]]
    else:
        waiting = waits(cluster)
        line = f"{one_line(change['what'])}: {amount(change)}{f'; {waiting}' if waiting else ''}"
        absent = [node for node in change["waits_for"] if not_heard.get(node) is not None]
        lines += [Text(line, style="yellow"), *(Text(advice(node, not_heard[node])) for node in absent)]
    return Group(Text.assemble(("epoch ", "dim"), str(shape.epoch)), table, *lines)


def _left(node: str) -> str:
    """What is to be done about a member that was given up."""
    node = one_line(node)
    return (
        f"{node} is given up as dead, and a member until another node has what it had: `spine cluster remove {node} "
        f"--dead`, or `spine cluster add … --replace {node} --dead`"
    )


def _change(common: Common, aim: Aim, no_wait: bool) -> int:
    """Propose, then watch; the exit code."""
    from crdt_spine.cli.moving import Moving
    from crdt_spine.cli.opening import opened, run
    from crdt_spine.reshaping import follow, look, propose

    began = time.monotonic()
    proposed = False

    async def main() -> Shape:
        nonlocal proposed
        async with opened(common) as spine:
            epoch = await propose(spine.session, aim)  # from it on, a node may have heard of it
            proposed = True
            if no_wait:
                return await look(spine.session)
            with Moving(_start_of(aim, common), quiet=common.as_json) as moving:
                while True:
                    seen = False
                    async for shape in follow(spine.session, epoch):
                        moving.show(shape)
                        seen = seen or shape.cluster["change"] is not None
                    # A node that has not heard of it yet knows of nothing under way either.
                    if seen or aim.is_reached(shape.cluster) or time.monotonic() - began > BEGIN_SECONDS_MAX:
                        return shape
                    await asyncio.sleep(0.1)

    try:
        shape = run(main())
    except KeyboardInterrupt:
        if proposed:
            click.echo(f"not watching any more. {_GOES_ON}", err=True)
        raise
    except InvalidInput as error:
        if not proposed:  # it was well formed: the cluster does not want it
            outcome.report(error, as_json=common.as_json)
            return outcome.FAILED
        raise
    except SpineError:
        if proposed and not common.as_json:
            click.echo(_GOES_ON, err=True)
        raise
    return _told_end(common, aim, shape, time.monotonic() - began, watched=not no_wait)


_GOES_ON: Final = (
    "The change goes on by itself: `spine cluster show` says how far it is, `spine cluster cancel` turns it back."
)


def _told_end(common: Common, aim: Aim, shape: Shape, seconds: float, *, watched: bool) -> int:
    """Say what came of it; the exit code."""
    change = shape.cluster["change"]
    finished = change is None and aim.is_reached(shape.cluster)
    failed = watched and not finished
    if common.as_json:
        document: dict[str, Any] = {
            "kind": aim.kind, "node": aim.comes.id if aim.comes else None, "goes": aim.goes or None,
            "finished": finished, "seconds": round(seconds, 3), **shape.cluster,
        }  # fmt: skip
        emit(document)
    elif failed:
        click.echo(f"error: {_aim_text(aim)} was turned back", err=True)
    elif finished:
        click.echo(f"{_aim_text(aim)} is done: {len(shape.cluster['members'])} nodes, epoch {shape.epoch}")
        for node in shape.cluster["dead"]:
            click.echo(_left(node), err=True)
    else:
        click.echo(f"{_aim_text(aim)} has begun. {_GOES_ON}")
    return outcome.FAILED if failed else outcome.DONE


def _aim_text(aim: Aim) -> str:
    match aim.kind:
        case "add":
            return f"the joining of {aim.comes.id if aim.comes else ''}"
        case "remove":
            return f"the leaving of {aim.goes}"
        case "replace":
            return f"the replacement of {aim.goes} by {aim.comes.id if aim.comes else ''}"
        case _:
            return "the turning back"


def _start_of(aim: Aim, common: Common) -> str:
    """The command that starts the newcomer."""
    id = "" if aim.comes is None else aim.comes.id
    server = "URL" if "@" in common.server else shlex.quote(common.server)  # no password on a screen
    return f"spine node --config cluster.yaml --id {id} --data {id}-data --server {server}"


def _id(value: str, place: str) -> str:
    from crdt_spine.config import NodeConfig, node_problems

    reason = node_problems(NodeConfig(id=value, host="localhost", port=HTTP_PORT)).get("id")
    if reason is not None:
        raise click.BadParameter(reason, click.get_current_context(), param_hint=place)
    return value
