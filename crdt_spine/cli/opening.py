"""From a command's options to an open `Spine`, on the fastest event loop there is.

A command is a session of its own, so what an earlier command wrote may not be on the replica that this one asks.
`--session FILE` keeps the session's token between them, as a cookie jar does: read before, written after.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from crdt_spine import validation
from crdt_spine.cli.options import Common
from crdt_spine.errors import ConnectionFailed, InvalidInput, SpineError
from crdt_spine.limits import CONNECT_SECONDS_MAX
from crdt_spine.spine import Spine

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end. A Ctrl-C cancels it and raises KeyboardInterrupt."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@contextlib.asynccontextmanager
async def opened(common: Common, *, creates: bool = False) -> AsyncIterator[Spine]:
    """The spine that the options mean. `creates`: an embedded database that is not there yet is made.

    Raises ConnectionFailed, ConfigError, InvalidInput.
    """
    validation.seconds("timeout", common.timeout)
    session = None if common.session is None else Path(common.session)
    token = None if session is None else _read(session)
    if session is not None:
        _check_writable(session)
    spine = _spine(common, token, creates)
    # Connecting has a limit of its own; only a shorter one is to be kept here.
    limit = common.timeout if common.timeout < CONNECT_SECONDS_MAX and common.path is None else None
    try:
        async with asyncio.timeout(limit):
            await spine.__aenter__()
    except TimeoutError as error:
        raise ConnectionFailed(f"no cluster answered at {common.server} within {common.timeout:g} s") from error
    try:
        yield spine
    except SpineError:
        with contextlib.suppress(OSError):  # what was lost of a token is out of it now: else every command were told so
            _keep(session, spine)
        raise
    else:
        _keep(session, spine)
    finally:
        await spine.close()


def _keep(session: Path | None, spine: Spine) -> None:
    """Write the session's token to its file, if it has one. Raises OSError naming it."""
    if session is not None:
        write_whole(session, f"{spine.token}\n".encode())


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file's content, all of it or nothing. Raises OSError naming it."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _spine(common: Common, token: str | None, creates: bool) -> Spine:
    if common.path is None:
        return Spine.connect(
            common.server, agent=common.agent, consistency=common.consistency, token=token, cluster=common.cluster,
            timeout=common.timeout,
        )  # fmt: skip
    if not creates and common.path != ":memory:" and not Path(common.path).exists():
        raise InvalidInput(f"there is no database at {common.path}; `spine store` and `spine import` create one")
    return Spine.open(common.path, agent=common.agent, consistency=common.consistency, token=token)


def _check_writable(session: Path) -> None:
    """Before anything is done: afterwards a write would be made, and told as failed. Raises InvalidInput."""
    folder = session.parent
    if not folder.is_dir():
        raise InvalidInput(f"--session {session}: there is no folder {folder}; make it, or choose another file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidInput(f"--session {session}: the folder {folder} can't be written to; choose another file")


def _read(session: Path) -> str | None:
    try:
        return session.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None  # it begins with this command
    except UnicodeDecodeError:
        raise InvalidInput(f"{session} is no session file; choose another one") from None
