"""Memories from and to files of JSON lines: import, export. What a line may be: interchange.py."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import click

from crdt_spine.cli import outcome
from crdt_spine.cli.options import Common, connected, query_options
from crdt_spine.cli.output import emit, representable
from crdt_spine.cli.values import Place
from crdt_spine.limits import IMPORT_LINE_BYTES_MAX, QUERY_LIMIT_MAX


@click.command("import", short_help="Store every line of FILE (JSON lines) as a memory.")
@click.argument("file", type=Place(exists=True, dir_okay=False, allow_dash=True, readable=True))
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="TARGET=FIELD",
    help="Take this part of a memory (content, id, tags, agent, …) from that field. Repeatable.",
)
@click.option("--only-mapped", is_flag=True, help="Drop all other fields; else they become metadata.")
@connected()
def import_(common: Common, file: str, maps: tuple[str, ...], only_mapped: bool) -> int:  # fmt: skip
    """Store every line of FILE (JSON lines; - is stdin) as a memory.

    A line that can't be stored is reported with its number and the rest goes on; the exit code is 1 then. A line that
    names no agent is stored as --agent.
    """
    from crdt_spine.cli.intake import Intake
    from crdt_spine.cli.lines import Lines
    from crdt_spine.cli.opening import opened, run
    from crdt_spine.cli.progress import Progress
    from crdt_spine.errors import SpineError
    from crdt_spine.interchange import FieldMap

    fields = FieldMap.parse(maps, only_mapped=only_mapped)

    async def main() -> int:
        began = time.monotonic()
        with _reading(file) as descriptor, Progress("stored", _size(descriptor), quiet=common.as_json) as progress:

            def failed(number: int, error: SpineError) -> None:
                progress.say(outcome.error_line(error, as_json=common.as_json, line=number))

            async with opened(common, creates=True) as spine:
                lines = Lines(descriptor, IMPORT_LINE_BYTES_MAX)
                intake = Intake(spine, fields, failed)
                progress.follow(lambda: (intake.stored, lines.bytes_read))
                try:
                    await intake.run(lines)
                finally:  # also when it is interrupted: what is stored is stored
                    progress.end()
                    _summary(common, intake.stored, intake.failed, intake.expired, time.monotonic() - began)
        if intake.unavailable is not None:
            return outcome.report(intake.unavailable, as_json=common.as_json)
        return outcome.FAILED if intake.failed else outcome.DONE

    return run(main())


@click.command(short_help="Write the memories to FILE as JSON lines.")
@click.argument("file", type=Place(dir_okay=False, allow_dash=True), default="-")
@query_options
@connected(identity=False)
def export(
    common: Common, file: str, tags: tuple[str, ...], any_tags: tuple[str, ...], not_tags: tuple[str, ...],
    author: str | None, thread: str | None, since: datetime | None, until: datetime | None,
    metadata: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the memories, oldest first, to FILE (or stdout) as JSON lines that `spine import` reads.

    FILE is complete or, when the export fails, as it was before.
    """
    from crdt_spine.cli.opening import opened, run
    from crdt_spine.cli.progress import Progress
    from crdt_spine.interchange import export_line

    async def pages() -> AsyncGenerator[list[bytes], None]:
        conditions: dict[str, Any] = {
            "tags": tags, "any_tags": any_tags, "not_tags": not_tags, "agent": author, "thread": thread,
            "since": since, "until": until, "metadata": metadata,
        }  # fmt: skip
        async with opened(common) as spine:
            cursor = None
            while True:
                page = await spine.query(order="oldest", limit=QUERY_LIMIT_MAX, cursor=cursor, **conditions)
                yield [export_line(memory) + b"\n" for memory in page.memories]
                cursor = page.cursor
                if cursor is None:
                    return

    async def main() -> None:
        began, exported, size = time.monotonic(), 0, 0
        quiet = common.as_json or file == "-"
        with _writing(file) as write, Progress("exported", None, quiet=quiet) as progress:
            progress.follow(lambda: (exported, size))
            async with contextlib.aclosing(pages()) as each:
                async for lines in each:
                    data = b"".join(lines)
                    write(data)
                    exported, size = exported + len(lines), size + len(data)
        seconds = time.monotonic() - began
        if file == "-":
            return
        if common.as_json:
            emit({"exported": exported, "bytes": size, "seconds": round(seconds, 3), "file": representable(file)})
        else:
            click.echo(f"{exported:,} exported to {file} in {seconds:.1f} s")

    run(main())


def _summary(common: Common, stored: int, failed: int, expired: int, seconds: float) -> None:
    rate = stored / seconds if seconds else 0.0
    if common.as_json:
        emit(
            {"stored": stored, "failed": failed, "expired": expired, "seconds": round(seconds, 3), "rate": round(rate)}
        )
        return
    already = f", {expired:,} had expired" if expired else ""
    click.echo(f"{stored:,} stored, {failed:,} failed{already} in {seconds:.1f} s ({rate:,.0f}/s)")


@contextlib.contextmanager
def _reading(file: str) -> Iterator[int]:
    """A file descriptor to read from."""
    if file == "-":
        yield sys.stdin.fileno()
    else:
        with Path(file).open("rb") as opened_file:
            yield opened_file.fileno()


def _size(descriptor: int) -> int | None:
    """How many bytes there are to read, where that is known."""
    return os.fstat(descriptor).st_size or None


@contextlib.contextmanager
def _writing(file: str) -> Iterator[Callable[[bytes], None]]:
    """A way to write to the file: in full, or not at all. What is no plain file is written to as it comes."""
    path = Path(file)
    if file == "-":
        yield lambda data: click.echo(data, nl=False)
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield _into(device)
        return
    target = path.resolve()  # behind a link, so that the link stays
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        temporary = new.open("xb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, file) from None
    try:
        with temporary:
            yield _into(temporary)
            temporary.flush()
            os.fsync(temporary.fileno())
        new.replace(target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _into(file: BinaryIO) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        file.write(data)

    return write
