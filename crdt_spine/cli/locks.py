"""Locks: locks (an instance of the service), lock ls, lock run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from crdt_spine.cli import fence, holding, outcome
from crdt_spine.cli.options import Common, connected, inherited
from crdt_spine.cli.output import emit
from crdt_spine.cli.values import duration_of

if TYPE_CHECKING:
    from crdt_spine.locks.client import Lease

GRACE_SECONDS: Final = 5.0  # for a command whose lock is lost, between SIGTERM and SIGKILL
TOKEN_VARIABLE: Final = "SPINE_LOCK_TOKEN"
NAME_VARIABLE: Final = "SPINE_LOCK_NAME"


@click.command(short_help="Run an instance of the lock service.")
@click.option("--server", metavar="URL", envvar="SPINE_SERVER", show_envvar=True,
              help="The cluster's NATS broker.  [default: nats://127.0.0.1:4222]")  # fmt: skip
@click.option("--cluster", metavar="NAME", help="Which one, where the broker carries several.")
@click.option("--replicas", type=click.IntRange(1, 5),
              help="Brokers that keep leases.  [default: cluster.yaml's, else 3 of a cluster, else 1]")  # fmt: skip
@click.option("--name", default="locks", show_default=True, help="What it calls itself in what it prints.")
def locks(server: str | None, cluster: str | None, replicas: int | None, name: str) -> int:
    """Run an instance of the lock service, until SIGINT or SIGTERM.

    Start two or more, on different machines: any of them may die. Prints `ready locks` on stdout once it serves, and
    its log on stderr.
    """
    from crdt_spine.locks.process import run_locks

    context = click.get_current_context()
    return run_locks(inherited(context, "server", server), inherited(context, "cluster", cluster), replicas, name)


@click.group()
def lock() -> None:
    """Locks that are held, and holding one around a command."""


@lock.command("ls", short_help="List the locks that are held or waited for.")
@connected()
def ls(common: Common) -> None:
    """List the locks that are held or waited for: holder, token, for how long, how many wait."""
    from crdt_spine.cli.opening import opened, run

    async def main() -> list[dict[str, Any]]:
        async with opened(common) as spine:
            return [msgspec.structs.asdict(one) for one in await spine.locks()]

    found = run(main())
    if common.as_json:
        emit(found)
    elif found:
        from crdt_spine.cli.show import show
        from crdt_spine.cli.status_view import lock_table

        show(lock_table(found))
    else:
        click.echo("no lock is held", err=True)


@lock.command("run", short_help="Hold a lock while a command runs.")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--ttl",
    metavar="SECONDS",
    callback=duration_of,
    help="After which another one gets it if this process is not heard of.  [default: the cluster's, 30]",
)
@click.option("--wait", metavar="SECONDS", callback=duration_of, help="In line.  [default: as long as it takes]")
@click.option("--no-wait", is_flag=True, help="Not at all: end with 4 where it is held.")
@connected()
def run_(
    common: Common, name: str, command: tuple[str, ...], ttl: float | None, wait: float | None, no_wait: bool
) -> int:  # fmt: skip
    """Hold the lock NAME while COMMAND runs: `spine lock run deploy -- make deploy`.

    The command finds the lock's name and fencing token in SPINE_LOCK_NAME and SPINE_LOCK_TOKEN, and in SPINE_FENCE what
    `spine store`, `update` and `delete` take by themselves: what it writes with them is refused once a later lease was
    given. Where the lock is lost meanwhile it gets SIGTERM, 5 s later SIGKILL; what ends this process (SIGINT, SIGTERM,
    SIGHUP, SIGQUIT) is passed on to it, and on Linux it does not outlive a SIGKILL either. Exit code: the command's
    (128 + n where signal n ended it, or the waiting; 127 where there is none of that name); 4 where the lock could not
    be had, and where it was lost.
    """
    from crdt_spine.cli.opening import opened, run

    async def main() -> int:
        with holding.Signals() as signals:
            try:
                async with opened(common) as spine, spine.lock(name, ttl=ttl, wait=0 if no_wait else wait) as lease:
                    return await _run(command, lease, signals)
            except asyncio.CancelledError:
                if signals.number is None:
                    raise
                return 128 + signals.number

    try:
        holding.check(command[0])
        return run(main())
    except holding.NotStarted as error:
        outcome.report(error, as_json=common.as_json)
        return error.code


async def _run(command: tuple[str, ...], lease: Lease, signals: holding.Signals) -> int:
    """The command's exit code; UNAVAILABLE where the lease was lost. Raises NotStarted, OSError."""
    environment = {
        **os.environ, TOKEN_VARIABLE: str(lease.token), NAME_VARIABLE: lease.name,
        fence.VARIABLE: fence.text_of(lease.cluster, lease.fence),
    }  # fmt: skip
    process = await holding.start(command, environment)
    signals.pass_on_to(process)
    ended = asyncio.create_task(process.wait())
    lost = asyncio.create_task(lease.lost.wait())
    try:
        await asyncio.wait((ended, lost), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return _code(process.returncode)
        click.echo(f"the lock {lease.name!r} is lost: {command[0]} is ended", err=True)
        holding.send(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), GRACE_SECONDS)
        return outcome.UNAVAILABLE
    finally:
        lost.cancel()
        if process.returncode is None:
            holding.send(process, signal.SIGKILL)
            await ended


def _code(returncode: int | None) -> int:
    return 128 - returncode if returncode is not None and returncode < 0 else returncode or 0
