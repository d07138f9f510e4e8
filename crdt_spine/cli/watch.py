"""What happens to memories, as it happens: watch."""

from __future__ import annotations

import click

from crdt_spine.cli.options import Common, connected, selection_options
from crdt_spine.cli.output import emit_line, memory_document


@click.command(short_help="Print every change from now on, until Ctrl-C.")
@selection_options
@click.option("--token", help="Begin after this: the token of an update, or the text of a --session file.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many updates.")
@connected(identity=False)
def watch(
    common: Common, tags: tuple[str, ...], any_tags: tuple[str, ...], author: str | None, thread: str | None,
    token: str | None, count: int | None,
) -> None:  # fmt: skip
    """Print every store, update and deletion from now on, until Ctrl-C.

    With --json one line each: {"kind": …, "memory": …, "token": …}; --token goes on after a line's token.
    """
    from crdt_spine.cli.opening import opened, run

    if not common.as_json:
        from crdt_spine.cli.show import show_update

    async def main() -> None:
        left = count
        async with opened(common) as spine:
            updates = spine.subscribe(tags=tags, any_tags=any_tags, agent=author, thread=thread, token=token)
            async with updates:
                if not common.as_json:
                    click.echo("watching; Ctrl-C ends", err=True)
                async for update in updates:
                    if common.as_json:
                        memory = memory_document(update.memory)
                        emit_line({"kind": update.kind, "memory": memory, "token": update.token})
                    else:
                        show_update(update)
                    if left is not None:
                        left -= 1
                        if not left:
                            break

    run(main())
