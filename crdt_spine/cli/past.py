"""What was: history, conflicts."""

from __future__ import annotations

import click
import msgspec

from crdt_spine.cli.options import Common, connected
from crdt_spine.cli.output import emit, memory_document
from crdt_spine.errors import NotFound
from crdt_spine.limits import QUERY_LIMIT_MAX
from crdt_spine.memory import Conflict, Memory

LIMIT = 50  # conflicts


@click.command()
@click.argument("id")
@connected()
def history(common: Common, id: str) -> None:
    """List the versions of the memory ID.

    Those that are still known, newest first; also of a memory that was deleted.
    """
    from crdt_spine.cli.opening import opened, run

    async def main() -> list[Memory]:
        async with opened(common) as spine:
            return await spine.history(id)

    versions = run(main())
    if not versions:
        raise NotFound(f"nothing is known of a memory {id!r}")
    if common.as_json:
        emit([memory_document(memory) for memory in versions])
    else:
        from crdt_spine.cli.show import show, version_table

        show(version_table(versions))


@click.command()
@click.argument("id", required=False)
@click.option("--limit", type=int, default=LIMIT, show_default=True, help=f"Conflicts; at most {QUERY_LIMIT_MAX:,}.")
@connected()
def conflicts(common: Common, id: str | None, limit: int) -> None:
    """List what was lost to concurrent writes.

    The values that neither agent had seen of the other, newest first; of the memory ID, or of all.
    """
    from crdt_spine.cli.opening import opened, run

    async def main() -> list[Conflict]:
        async with opened(common) as spine:
            return await spine.conflicts(id, limit=limit)

    found = run(main())
    if common.as_json:
        emit([msgspec.structs.asdict(conflict) for conflict in found])
    elif found:
        from crdt_spine.cli.show import conflict_table, show

        show(conflict_table(found))
    else:
        click.echo("no value was lost to a concurrent write", err=True)
