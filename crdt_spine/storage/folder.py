"""Where an engine's files are, and the lock that lets one process at a time have them.

flock(2) belongs to the open file and the kernel drops it with the process, however that one ended: there is never a
stale lock to clear away. The lock's file names its holder, for the error message.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from crdt_spine.storage.engine import StorageUnusable

_DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3")


class Files(msgspec.Struct, frozen=True):
    """The paths of an engine."""

    tables: Path
    journal: Path
    lock: Path
    discarded: Path  # while this is there, tables and journal are to be removed before anybody looks at them

    def beside(self, name: str) -> Path:
        """Where a file of that name lies with them."""
        inside = self.tables.name == "tables.db"
        return self.tables.with_name(name if inside else f"{self.tables.name}.{name}")

    def discard(self) -> None:
        """From the next opening on there is nothing; this is on the disk when it returns. Raises OSError."""
        with self.discarded.open("wb") as file:
            os.fsync(file.fileno())
        _sync(self.discarded.parent)

    def remove_discarded(self) -> None:
        """Do what `discard` said; the caller has the lock. Raises OSError: it is to be tried again."""
        if not self.discarded.exists():
            return
        for path in (self.tables, self.journal):
            for suffix in ("", "-wal", "-shm", "-journal"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        _sync(self.discarded.parent)
        self.discarded.unlink()


def files_of(path: str | os.PathLike[str]) -> Files:
    """The files of a folder (`journal.db`, `tables.db`, `lock` in it), or of a database file `x.db` (the tables; beside
    it `x.db.journal` and `x.db.lock`). What doesn't exist yet is a file if it is named like one: .db, .sqlite,
    .sqlite3."""
    path = Path(path).absolute()
    if path.is_file() or (path.suffix in _DATABASE_SUFFIXES and not path.is_dir()):
        others = [path.with_name(f"{path.name}.{what}") for what in ("journal", "lock", "discarded")]
        return Files(path, *others)
    return Files(path / "tables.db", path / "journal.db", path / "lock", path / "discarded")


class Lock:
    """Held from its making until `release`. Raises StorageUnusable: who has it, or why there can't be one."""

    def __init__(self, files: Files) -> None:
        folder = files.lock.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageUnusable(f"{folder} can't be written to: {error.strerror}; choose another path") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "(unknown)"
            self.release()
            raise StorageUnusable(
                f"{files.tables} is in use by process {holder}: stop that one first, or choose another path"
            ) from error
        except OSError as error:
            self.release()
            raise StorageUnusable(f"{files.lock} can't be locked: {error.strerror}; choose another path") from error

    def release(self) -> None:
        """May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _sync(folder: Path) -> None:
    """What was made or removed in a folder stays so, also when the power fails."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
