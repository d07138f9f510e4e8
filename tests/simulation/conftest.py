"""The simulator is a package in this folder: importable from the tests here as from run.py."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in (Path(__file__).parent, Path(__file__).parents[1] / "histories"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
