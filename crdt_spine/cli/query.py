"""Many memories: query, page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import click
import msgspec

from crdt_spine.cli.options import Common, connected, query_options
from crdt_spine.cli.output import emit, in_force, memory_document
from crdt_spine.memory import LevelInForce, Page

if TYPE_CHECKING:
    from crdt_spine.spine import Spine

PAGE: Final = 50  # memories
PAGE_OF_ALL: Final = 500  # where all pages follow anyway


@click.command()
@query_options
@click.option("--text", help="Words that the content has, by their stem.")
@click.option(
    "--order",
    type=click.Choice(["newest", "oldest", "relevance"]),
    default="newest",
    show_default=True,
    help="relevance needs --text.",
)
@click.option("--limit", type=int, help=f"Memories a page; {PAGE} unless given.")
@click.option("--cursor", help="The next page: what the one before it printed.")
@click.option("--all", "all_pages", is_flag=True, help="Every page.")
@connected(identity=False)
def query(
    common: Common, tags: tuple[str, ...], any_tags: tuple[str, ...], not_tags: tuple[str, ...], author: str | None,
    thread: str | None, since: datetime | None, until: datetime | None, metadata: Mapping[str, Any], text: str | None,
    order: Literal["newest", "oldest", "relevance"], limit: int | None, cursor: str | None, all_pages: bool,
) -> None:  # fmt: skip
    """List the memories that fulfil every condition, newest first."""
    from crdt_spine.cli.opening import opened, run

    wanted = limit if limit is not None else PAGE_OF_ALL if all_pages else PAGE
    conditions: dict[str, Any] = {
        "tags": tags, "any_tags": any_tags, "not_tags": not_tags, "agent": author, "thread": thread, "since": since,
        "until": until, "metadata": metadata, "text": text, "order": order, "limit": wanted,
    }  # fmt: skip

    levels: list[LevelInForce] = []

    async def page_of(spine: Spine, cursor: str | None) -> Page:
        with spine.levels() as noted:
            page = await spine.query(cursor=cursor, consistency=common.consistency, **conditions)
        levels.extend(noted)
        return page

    async def pages() -> AsyncGenerator[Page, None]:
        async with opened(common) as spine:
            page = await page_of(spine, cursor)
            yield page
            while all_pages and page.cursor is not None:
                page = await page_of(spine, page.cursor)
                yield page

    async def main() -> None:
        async with aclosing(pages()) as each:
            await (_emit(each, all_pages, levels) if common.as_json else _show(each))

    run(main())


async def _show(pages: AsyncIterator[Page]) -> None:
    from crdt_spine.cli.show import memory_list, show

    shown, last = 0, Page([])
    async for page in pages:
        last = page
        shown += len(page.memories)
        if page.memories:
            show(memory_list(page.memories))
    if last.cursor is not None:
        click.echo(f"there are more: --cursor {last.cursor}", err=True)
    elif not shown:
        click.echo("no memory fulfils this", err=True)


async def _emit(pages: AsyncIterator[Page], all_pages: bool, levels: list[LevelInForce]) -> None:
    """{"memories": […], "cursor": …, "consistency": …}; all pages as one document, written while they come."""
    if not all_pages:
        async for page in pages:
            found = [memory_document(memory) for memory in page.memories]
            emit({"memories": found, "cursor": page.cursor, **in_force(levels)})
        return
    separator = b""
    click.echo(b'{"memories":[', nl=False)
    async for page in pages:
        for memory in page.memories:
            click.echo(separator + msgspec.json.encode(memory_document(memory)), nl=False)
            separator = b",\n"
    ending = b"".join(b',"%s":%s' % (key.encode(), msgspec.json.encode(part)) for key, part in in_force(levels).items())
    click.echo(b'],"cursor":null%s}' % ending)
