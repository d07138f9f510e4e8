"""Processes that serve until they are told to end: up (a whole cluster on this machine), node (one node)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click
import msgspec

from crdt_spine.cli.options import inherited, json_option
from crdt_spine.cli.output import representable
from crdt_spine.cli.values import Place
from crdt_spine.limits import EMBEDDED_NODES_MAX

if TYPE_CHECKING:
    from crdt_spine.supervisor import Event, Supervisor

T = TypeVar("T")

DATA: Final = Path("spine-data")
PORT_MAX: Final = 65_535


@click.command(short_help="Run a broker and nodes on this machine.")
@click.option("--nodes", type=click.IntRange(1, EMBEDDED_NODES_MAX), help="What the data folder has; 1 in a new one.")
@click.option(
    "--data",
    type=Place(file_okay=False, path_type=Path),
    default=DATA,
    show_default=True,
    help="The folder that keeps everything.",
)
@click.option("--nats-port", type=click.IntRange(0, PORT_MAX), default=4222, show_default=True, help="0 is a free one.")
@click.option(
    "--http-port",
    type=click.IntRange(0, PORT_MAX),
    help="Of the first node, the others' follow; 0 are free ones.  [default: what the folder has, else 8788]",
)
@click.option("--region", metavar="NAME", help="Of a new data folder.")
@json_option
def up(
    nodes: int | None, data: Path, nats_port: int, http_port: int | None, region: str | None, as_json: bool
) -> None:  # fmt: skip
    """Run a broker and nodes on this machine until SIGINT or SIGTERM.

    Prints `ready nats://HOST:PORT` on stdout once it serves, and what happens on stderr (with --json all of it on
    stdout, as JSON lines). A node that dies is started again; when this process ends, however that may be, its
    processes do.
    """
    from crdt_spine.supervisor import Supervisor, lock_service

    context = click.get_current_context()
    folder = str(data.absolute())
    if representable(folder) != folder:
        message = f"{representable(folder)} is no UTF-8; the broker's configuration can't name it"
        raise click.BadParameter(message, context, param_hint="'--data'")
    as_json = inherited(context, "as_json", as_json)
    listener = _tell_json if as_json else _tell
    supervisor = Supervisor(
        data, nodes=nodes, nats_port=nats_port, http_port=http_port, region=region, on_event=_undisturbed(listener),
        services=(lock_service(),),
    )  # fmt: skip
    if not as_json:
        _undisturbed(_say)(f"data in {supervisor.folder}")
    asyncio.run(_serve(supervisor))


@click.command(short_help="Run one node against a broker that runs already.")
@click.option("--config", required=True, type=Place(dir_okay=False, path_type=Path), help="The cluster.yaml.")
@click.option("--id", required=True, help="Which of its nodes this is.")
@click.option("--data", required=True, type=Place(path_type=Path), help="The folder that keeps its memories.")
@click.option(
    "--server",
    metavar="URL",
    envvar="SPINE_SERVER",
    show_envvar=True,
    help="The cluster's NATS broker.  [default: nats in the cluster.yaml, else nats://127.0.0.1:4222]",
)
def node(config: Path, id: str, data: Path, server: str | None) -> int:
    """Run one node of a cluster against a broker that runs already, until SIGINT or SIGTERM.

    Prints `ready ID` on stdout once it serves, and its log on stderr. Ends with 0 as well once it was removed from the
    cluster, and says so.
    """
    from crdt_spine.node.process import run_node

    return run_node(config, id, data, inherited(click.get_current_context(), "server", server))


async def _serve(supervisor: Supervisor) -> None:
    """Start, serve, and end in order on a signal. Raises ConfigError, ConnectionFailed: it could not be started."""
    from crdt_spine.errors import ConnectionFailed

    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in _endings():
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, ending.set)

    async def stop_when_told() -> None:
        await ending.wait()
        await supervisor.stop()

    stopping = asyncio.create_task(stop_when_told())
    try:
        await supervisor.start()
        await supervisor.wait()
    except ConnectionFailed:
        if not ending.is_set():  # else it was told to end before it served
            raise
    finally:
        if ending.is_set():
            await stopping
        else:
            stopping.cancel()
            await supervisor.stop()


def _endings() -> list[signal.Signals]:
    """What means that it shall end: also the end of its terminal, unless it was started to outlive that (nohup)."""
    endings = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        endings.append(signal.SIGHUP)
    return endings


def _tell(event: Event) -> None:
    """An event for people; the ready line on stdout, alone, where scripts wait for it."""
    from crdt_spine.supervisor import ChildDied, ChildFailed, ChildReady, ChildStarted, SpineReady

    match event:
        case ChildStarted():
            pass
        case ChildReady(name=name, pid=pid, restarts=restarts):
            _say(f"{name} serves{' again' if restarts else ''} (pid {pid})")
        case ChildDied(name=name, kind=kind, returncode=0, restart_seconds=None):
            _say(f"{name} has ended, and is not started again; {kind}.log in its folder says why")
        case ChildDied(name=name, restart_seconds=pause):
            _say(f"{name} died ({event.ending}){_again(pause)}")
        case ChildFailed(name=name, reason=reason, restart_seconds=pause):
            _say(f"{name} could not be started: {reason}{_again(pause)}")
        case SpineReady(url=url, http=http):
            for node_id, page in http.items():
                _say(f"{node_id} shows its state at {page}")
            click.echo(f"ready {url}")
            sys.stdout.flush()


def _tell_json(event: Event) -> None:
    """{"event": "ChildReady", …}, a line each."""
    document = {"event": type(event).__name__, **msgspec.structs.asdict(event)}
    click.echo(msgspec.json.encode(document))
    sys.stdout.flush()


def _undisturbed(listener: Callable[[T], None]) -> Callable[[T], None]:
    """A cluster serves on when nobody reads any more what it says."""

    def tell(event: T) -> None:
        with contextlib.suppress(OSError):
            listener(event)

    return tell


def _say(text: str) -> None:
    click.echo(f"{click.style(f'{datetime.now():%H:%M:%S}', dim=True)} {text}", err=True)


def _again(pause: float | None) -> str:
    return "" if pause is None else f"; once more in {pause:g} s"
