"""The chaos runs are a package in this folder, and use the simulator's specification: importable from tests here."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in (Path(__file__).parent, Path(__file__).parents[1] / "simulation"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
