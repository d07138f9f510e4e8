"""`spine node`, whose disk can be full and whose clock can be wrong, which can be apart from the others, and which can
be made to break its promise.

python node.py [--without RULE] node --config … --id … --data … --server …

The clock is off by what the file "skew" in the data folder says, in milliseconds. Apart: apart.py. Rules: broken.py.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
LOOK_SECONDS = 0.05
_time, _time_ns = time.time, time.time_ns


class _Skew:
    """How far the clock is off, as the file has it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._nanoseconds = 0
        self._look()
        time.time_ns = lambda: _time_ns() + self._nanoseconds
        time.time = lambda: _time() + self._nanoseconds / 1e9
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        try:
            self._nanoseconds = int(float(self._file.read_text() or 0) * 1_000_000)
        except (OSError, ValueError):
            self._nanoseconds = 0


def main() -> int:
    """The node's exit code."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "chaos")]
    without = ""
    if sys.argv[1] == "--without":
        without = sys.argv[2]
        del sys.argv[1:3]
    folder = Path(sys.argv[sys.argv.index("--data") + 1])
    _Skew(folder / "skew")
    from chaos import limited_node

    from crdt_spine.cli.main import main as spine
    from crdt_spine.storage.sqlite import SqliteEngine
    from histories.apart import Apart

    Apart(folder / "apart").install()
    SqliteEngine.open = limited_node._opened  # type: ignore[method-assign]
    if without:
        from histories.broken import take_away

        take_away(without)
    return int(spine() or 0)


if __name__ == "__main__":
    sys.exit(main())
