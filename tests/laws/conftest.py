"""The laws' own helpers, and the naive specification that they share with the simulator, are importable from here."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

for folder in (Path(__file__).parent, Path(__file__).parent.parent / "simulation"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

settings.register_profile("laws", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
settings.load_profile("laws")
