"""One user at a time for a folder, for exactly as long as the processes that use it live.

nats-server takes no lock on its store, and two servers in one folder destroy it. flock(2) belongs to the open file, not
to a process: a child that inherits the descriptor holds the lock too, and the kernel drops it with the last holder,
however that one ended. So there is never a stale lock to clear away. The file names the holder, for the error message.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

from crdt_spine.errors import ConfigError
from crdt_spine.limits import FOLDER_LOCK_SECONDS_MAX, POLL_SECONDS


def prepare_folder(folder: str | os.PathLike[str]) -> Path:
    """Create the folder where it is missing; its absolute path. Raises ConfigError where it can't be written to."""
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(_unusable(path, error)) from error
    return path


def _unusable(folder: Path, error: OSError) -> str:
    return f"the folder {folder} can't be used: {error.strerror or error}; choose one that can be written to"


class FolderLock:
    """A held lock. `release` lets go of this process's share; children that inherited `fileno` keep theirs."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd: int | None = fd

    @classmethod
    async def acquire(cls, folder: Path, name: str) -> FolderLock:
        """Lock `folder` by its file `name`, and write this process's id into it.

        A holder that is just being killed with its parent is waited for, up to FOLDER_LOCK_SECONDS_MAX. Raises
        ConfigError: another process uses the folder (its id is in the message), or it can't be written to.
        """
        path = folder / name
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(_unusable(folder, error)) from error
        lock = cls(path, fd)
        try:
            await lock._wait(asyncio.get_running_loop().time() + FOLDER_LOCK_SECONDS_MAX)
            lock.name_holder(os.getpid())
        except BaseException:
            lock.release()
            raise
        return lock

    async def _wait(self, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(self.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise ConfigError(
                        f"the folder {self.path.parent} is in use by process {self._holder()}:"
                        " stop that one first, or choose another folder"
                    ) from None
                await asyncio.sleep(POLL_SECONDS)
            except OSError as error:  # a file system without locks
                raise ConfigError(_unusable(self.path.parent, error)) from error

    def fileno(self) -> int:
        """The descriptor to hand to children that shall hold the lock too."""
        assert self._fd is not None, "the lock was released"
        return self._fd

    def name_holder(self, pid: int) -> None:
        """Say in the file whose lock this is. Raises ConfigError where the disk takes nothing."""
        try:
            os.ftruncate(self.fileno(), 0)
            os.pwrite(self.fileno(), f"{pid}\n".encode(), 0)
        except OSError as error:
            raise ConfigError(_unusable(self.path.parent, error)) from error

    def release(self) -> None:
        """Let go; may be called again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _holder(self) -> str:
        return os.pread(self.fileno(), 32, 0).decode("ascii", "replace").strip() or "(unknown)"
