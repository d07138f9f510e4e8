"""A thread that does one thing after another for the event loop.

As an executor with one thread, at a third of its price: that makes two futures of every call, with a lock each, which
under load was a good part of what a commit costs the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

Found = TypeVar("Found")
_Work = tuple[Callable[..., Any], tuple[Any, ...], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class Worker:
    """`do` from one event loop, then `close`. The thread starts with the first thing to do, and keeps no process from
    ending."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._closed = False

    async def do(self, work: Callable[..., Found], *arguments: Any) -> Found:
        """What `work` returns, or raises. It is done also where its caller is cancelled meanwhile. RuntimeError once
        this is closed."""
        if self._closed:
            raise RuntimeError("it does nothing any more")
        if not self._thread.is_alive():
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Found] = loop.create_future()
        self._queue.put((work, arguments, done, loop))
        return await done

    def close(self) -> None:
        """Return once everything is done that was begun."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            if self._thread.is_alive():
                self._thread.join()

    def _run(self) -> None:
        while (one := self._queue.get()) is not None:
            work, arguments, done, loop = one
            found, problem = None, None
            try:
                found = work(*arguments)
            except BaseException as error:
                problem = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_tell, done, found, problem)
            del one, work, arguments, done, found, problem  # or they would live until the next one comes


def _tell(done: asyncio.Future[Any], found: Any, problem: BaseException | None) -> None:
    if done.done():
        return  # its caller was cancelled
    if problem is not None:
        done.set_exception(problem)
    else:
        done.set_result(found)
