"""The package in this folder is importable from tests here; it uses the chaos runs' cluster, links and faults."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in (Path(__file__).parent, Path(__file__).parents[1] / "chaos", Path(__file__).parents[1] / "simulation"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
