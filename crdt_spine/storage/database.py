"""One SQLite file of ours: how it is opened, recognised and written, and what its errors mean.

Every file is in WAL mode: a writer appends, readers see the last commit and never wait for it. A header says whose
file it is (`application_id`) and in which format (`user_version`), so that a foreign file is refused and not filled.
A connection belongs to one thread at a time; its lock sees to that.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import RLock
from typing import Any

import apsw

from crdt_spine.limits import DATABASE_BUSY_SECONDS_MAX
from crdt_spine.storage.engine import StorageFull, StorageUnusable

FORMAT = 1  # raised whenever older programs could not work with what this one writes
MEMORY = ":memory:"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE = (
    apsw.BusyError, apsw.CantOpenError, apsw.CorruptError, apsw.FormatError, apsw.IOError, apsw.LockedError,
    apsw.NotADBError, apsw.PermissionsError, apsw.ReadOnlyError,
)  # fmt: skip


class Database:
    """A connection with its lock and its errors: StorageFull, StorageUnusable, or what SQLite says of a bug of ours."""

    def __init__(
        self, path: str, *, application_id: int, cache_bytes: int, write: bool, page_bytes: int = 4096
    ) -> None:
        self.path = path
        self.application_id = application_id
        self.lock = RLock()
        self._rest: Callable[[], None] | None = None
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE if write else apsw.SQLITE_OPEN_READONLY
        try:
            self.connection = apsw.Connection(path, flags=flags)
        except apsw.Error as error:
            raise StorageUnusable(f"{path} can't be opened: {error}") from error
        try:
            # One plan for a statement, whatever values it gets: else it is prepared anew for each of them.
            self.connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            self.connection.set_busy_timeout(int(DATABASE_BUSY_SECONDS_MAX * 1000))
            self.run(f"PRAGMA cache_size = -{cache_bytes // 1024}")
            if write:
                self.run(f"PRAGMA page_size = {page_bytes}")
            self._check_header()
            if write and path != MEMORY:
                self.run("PRAGMA journal_mode = WAL")
                self.run("PRAGMA synchronous = FULL")
        except BaseException:
            self.connection.close()
            raise

    def _check_header(self) -> None:
        """Raises StorageUnusable for another program's file, or one of another format. A new file has no header."""
        application, version = self.number("PRAGMA application_id"), self.number("PRAGMA user_version")
        if not application and not version and not self.number("SELECT count(*) FROM sqlite_schema"):
            return
        if application != self.application_id:
            raise StorageUnusable(f"{self.path} is another program's file: choose another path")
        if version != FORMAT:
            raise StorageUnusable(
                f"{self.path} is of storage format {version} and this program knows format {FORMAT}:"
                " use the program that wrote it, or choose another path"
            )

    def create(self, schema: str) -> None:
        """Make a new file's tables, all or nothing; a file that has them is left alone."""
        if not self.number("PRAGMA user_version"):
            with self.transaction():
                self.run(schema)
                self.run(f"PRAGMA application_id = {self.application_id}")
                self.run(f"PRAGMA user_version = {FORMAT}")

    # -- statements -------------------------------------------------------------------------------------------------

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What the statement gives, all of it."""
        with self.lock:
            try:
                return self.connection.execute(sql, values).fetchall()
            except apsw.Error as error:
                raise self._told(error) from error

    def row(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row, if there is one."""
        rows = self.rows(sql, values)
        return rows[0] if rows else None

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The only column of the only row, or None."""
        with self.lock:
            try:
                return self.connection.execute(sql, values).get
            except apsw.Error as error:
                raise self._told(error) from error

    def number(self, sql: str, values: Sequence[Any] = ()) -> int:
        """The first column of the only row."""
        row = self.row(sql, values)
        return int(row[0]) if row is not None else 0

    def run(self, sql: str, values: Sequence[Any] = (), *, once: bool = False) -> None:
        """A statement that gives nothing; `once`: it is not worth remembering in its prepared form."""
        with self.lock:
            try:
                self.connection.execute(sql, values, can_cache=not once).close()
            except apsw.Error as error:
                raise self._told(error) from error

    def run_many(self, head: str, each: str, tail: str, values: Iterable[Any], at_once: int = 256) -> int:
        """`head` each, each, … `tail` over `values`, as many for an `each` as it has marks; how many rows it changed.

        A statement for many rows and not one for each: SQLite works through them without the interpreter's lock, so a
        busy event loop is not asked for it ten thousand times.
        """
        flat = values if isinstance(values, list) else list(values)
        width = each.count("?")
        step = at_once * width
        before = self.connection.total_changes()
        for start in range(0, len(flat), step):
            if self._rest is not None:
                self._rest()
            part = flat[start : start + step]
            self.run(_sql(head, each, tail, len(part) // width), part, once=len(part) < step)
        return self.connection.total_changes() - before

    @contextmanager
    def transaction(self, rest: Callable[[], None] | None = None) -> Iterator[None]:
        """All of the block is committed, or, when it raises, none of it. `rest` is called between the statements of its
        `run_many`."""
        with self.lock:
            self.run("BEGIN IMMEDIATE")
            self._rest = rest
            try:
                yield
                self.run("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.run("ROLLBACK")
                raise
            finally:
                self._rest = None

    @property
    def pages_read(self) -> int:
        """How many pages this connection has fetched because its cache did not have them; one twice counts twice."""
        return int(self.connection.status(apsw.SQLITE_DBSTATUS_CACHE_MISS)[0])

    # -- limits and the end -----------------------------------------------------------------------------------------

    def limit_bytes(self, bytes_max: int) -> None:
        """Let the file not grow above this size (but never below what it has): StorageFull from there on."""
        self.run(f"PRAGMA max_page_count = {max(1, bytes_max // self.number('PRAGMA page_size'))}")

    def limit_wal(self, bytes_target: int) -> None:
        """How large the WAL may grow before its pages go to their place; a large transaction exceeds it for a while."""
        self.run(f"PRAGMA wal_autocheckpoint = {bytes_target // self.number('PRAGMA page_size')}")
        self.run(f"PRAGMA journal_size_limit = {2 * bytes_target}")

    def close(self) -> None:
        """May be called again."""
        with self.lock:
            self.connection.close()

    def _told(self, error: apsw.Error) -> Exception:
        full = isinstance(error, apsw.FullError)
        if isinstance(error, apsw.IOError):
            # SHMSIZE: the WAL's index could not grow; SQLite keeps no errno for it.
            full = (
                getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE
                or self.connection.system_errno in _FULL
            )
        if full:
            return StorageFull(f"{self.path}: no space left ({error})")
        if isinstance(error, _UNUSABLE):
            return StorageUnusable(f"{self.path} can't be used: {error}")
        return error


@lru_cache(64)
def _sql(head: str, each: str, tail: str, count: int) -> str:
    return f"{head} {', '.join([each] * count)} {tail}"
