"""One memory: store, get, update, delete."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from crdt_spine.cli.fence import Named, fence_option, under
from crdt_spine.cli.options import Common, connected
from crdt_spine.cli.output import absent, emit, in_force, leveled, memory_document, printable
from crdt_spine.cli.values import Place, duration_of, metadata_of
from crdt_spine.errors import InvalidInput
from crdt_spine.limits import CONTENT_BYTES_MAX
from crdt_spine.memory import LevelInForce, Memory

_metadata_option = click.option(
    "--meta", "metadata", multiple=True, metavar="KEY=VALUE", callback=metadata_of,
    help="Metadata; the value is JSON if it parses, else text. Repeatable.",
)  # fmt: skip


@click.command()
@click.argument("text", required=False)
@click.option("--file", type=Place(dir_okay=False, path_type=Path), help="The content from a file; - is stdin.")
@click.option("--id", help="One of your own; a memory that has it is replaced. Else one is made.")
@click.option("--tag", "tags", multiple=True, help="Repeatable.")
@_metadata_option
@click.option("--thread", help="The conversation that it belongs to.")
@click.option("--importance", type=float, default=0.5, show_default=True, help="From 0 to 1.")
@click.option("--ttl", callback=duration_of, metavar="SECONDS", help="For how long: seconds, or 15m, 2h, 7d.")
@fence_option
@connected()
def store(
    common: Common, text: str | None, file: Path | None, id: str | None, tags: tuple[str, ...],
    metadata: Mapping[str, Any], thread: str | None, importance: float, ttl: float | None, fence: Named | None,
) -> None:  # fmt: skip
    """Store TEXT as a memory and print its id.

    TEXT "-" is read from stdin, without its last newline.
    """
    if (text is None) == (file is None):
        raise click.UsageError("give either TEXT (or - for stdin) or --file", click.get_current_context())
    content = _content("-", None) if file == Path("-") else _content(text, file)

    from crdt_spine.cli.opening import opened, run

    async def main() -> tuple[Memory, list[LevelInForce]]:
        async with opened(common, creates=True) as spine:
            with leveled(spine) as levels:
                memory = await spine.store(
                    content, id=id, tags=tags, metadata=metadata, thread=thread, importance=importance, ttl=ttl,
                    consistency=common.consistency, **await under(fence, spine),
                )  # fmt: skip
            return memory, levels

    _tell(*run(main()), common)


@click.command()
@click.argument("id")
@connected()
def get(common: Common, id: str) -> None:
    """Show the memory ID."""

    from crdt_spine.cli.opening import opened, run

    async def main() -> tuple[Memory | None, list[LevelInForce]]:
        async with opened(common) as spine:
            with leveled(spine) as levels:
                memory = await spine.get(id, consistency=common.consistency)
            return memory, levels

    memory, levels = run(main())
    if memory is None:
        raise absent(f"there is no memory {id!r}", levels)
    if common.as_json:
        emit({**memory_document(memory), **in_force(levels)})
    else:
        from crdt_spine.cli.show import memory_card, show

        show(memory_card(memory))


@click.command()
@click.argument("id")
@click.option("--content", help="The new content; - is stdin, without its last newline.")
@click.option("--importance", type=float, help="From 0 to 1.")
@click.option(
    "--ttl", callback=duration_of, metavar="SECONDS", help="For how long from now on: seconds, or 15m, 2h, 7d."
)
@click.option("--no-ttl", is_flag=True, help="From now on for ever.")
@click.option("--add-tag", "--tag", "add_tags", multiple=True, help="Repeatable.")
@click.option("--remove-tag", "remove_tags", multiple=True, help="Repeatable.")
@_metadata_option
@click.option("--unset", "unset", multiple=True, metavar="KEY", help="Remove this metadata. Repeatable.")
@click.option("--if-version", metavar="VERSION", help="Only if the memory still has this version.")
@fence_option
@connected()
def update(
    common: Common, id: str, content: str | None, importance: float | None, ttl: float | None, no_ttl: bool,
    add_tags: tuple[str, ...], remove_tags: tuple[str, ...], metadata: Mapping[str, Any], unset: tuple[str, ...],
    if_version: str | None, fence: Named | None,
) -> None:  # fmt: skip
    """Change parts of the memory ID; what is not named stays."""
    context = click.get_current_context()
    if both := sorted(set(unset) & set(metadata)):
        raise click.UsageError(f"the key {both[0]!r} is both in --meta and in --unset", context)
    changes: dict[str, Any] = {}
    if content is not None:
        changes["content"] = _content(content, None)
    if importance is not None:
        changes["importance"] = importance
    if ttl is not None and no_ttl:
        raise click.UsageError("--ttl and --no-ttl exclude each other", context)
    if ttl is not None or no_ttl:
        changes["ttl"] = ttl
    if metadata or unset:
        changes["metadata"] = {**metadata, **dict.fromkeys(unset)}
    if add_tags:
        changes["add_tags"] = add_tags
    if remove_tags:
        changes["remove_tags"] = remove_tags
    if not changes:
        raise click.UsageError("nothing is to be changed: name what", context)

    from crdt_spine.cli.opening import opened, run

    async def main() -> tuple[Memory, list[LevelInForce]]:
        async with opened(common) as spine:
            with leveled(spine) as levels:
                memory = await spine.update(
                    id, if_version=if_version, consistency=common.consistency, **changes, **await under(fence, spine)
                )
            return memory, levels

    _tell(*run(main()), common)


@click.command()
@click.argument("id")
@fence_option
@connected()
def delete(common: Common, id: str, fence: Named | None) -> None:
    """Delete the memory ID."""

    from crdt_spine.cli.opening import opened, run

    async def main() -> tuple[bool, list[LevelInForce]]:
        async with opened(common) as spine:
            with leveled(spine) as levels:
                existed = await spine.delete(id, consistency=common.consistency, **await under(fence, spine))
            return existed, levels

    existed, levels = run(main())
    if not existed:
        raise absent(f"there is no memory {id!r}", levels)
    if common.as_json:
        emit({"id": id, "deleted": True, **in_force(levels)})
    else:
        click.echo(printable(id))


def _tell(memory: Memory, levels: list[LevelInForce], common: Common) -> None:
    """The id alone, so that a shell can keep it: id=$(spine store …)."""
    if common.as_json:
        emit({**memory_document(memory), **in_force(levels)})
    else:
        click.echo(printable(memory.id))


def _content(text: str | None, file: Path | None) -> str:
    """The content as given, from stdin or from a file; of these no more is read than can be stored."""
    if file is not None:
        with file.open("rb") as opened_file:
            data = opened_file.read(CONTENT_BYTES_MAX + 1)
    elif text == "-":
        data = sys.stdin.buffer.read(CONTENT_BYTES_MAX + 2)
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    else:
        assert text is not None
        return text
    if len(data) > CONTENT_BYTES_MAX:
        raise InvalidInput(f"content is longer than the {CONTENT_BYTES_MAX:,} bytes that one memory may have; cut it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"content is no UTF-8 at byte {error.start:,}; encode it anew") from None
