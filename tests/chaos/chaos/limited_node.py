"""`spine node`, but that its files can't grow as long as there is a file "full" in its data folder."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from crdt_spine.cli.main import main
from crdt_spine.storage.sqlite import SqliteEngine

ROOM_BYTES = 1 << 40
LOOK_SECONDS = 0.02

_open = SqliteEngine.open


def _watch(engine: SqliteEngine, folder: Path) -> None:
    full = False
    while True:
        if (folder / "full").exists() != full:
            full = not full
            room = 1 if full else ROOM_BYTES
            engine.limit_bytes(room, room)
        time.sleep(LOOK_SECONDS)


def _opened(*arguments: Any, **options: Any) -> SqliteEngine:
    engine = _open(*arguments, **options)
    folder = Path(sys.argv[sys.argv.index("--data") + 1])
    threading.Thread(target=_watch, args=(engine, folder), daemon=True).start()
    return engine


if __name__ == "__main__":
    SqliteEngine.open = _opened  # type: ignore[method-assign]
    sys.exit(main())
