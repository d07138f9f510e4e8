"""`make locks`: many contenders for one lock, with kills and pauses of holders and of instances of the service."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from contender import TTL_SECONDS
from recorded import holders
from stress import problems, run


def main() -> int:
    """Prints what happened; 1 where something did that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--contenders", type=int, default=50)
    parser.add_argument("--acquisitions", type=int, default=1_000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1_800, help="at most")
    parser.add_argument("--history", type=Path, help="write what was seen to this file, as JSON lines")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        history = asyncio.run(
            run(Path(folder), seed=options.seed, contenders=options.contenders, acquisitions=options.acquisitions,
                nodes=options.nodes, seconds_max=options.seconds)
        )  # fmt: skip
    if options.history is not None:
        lines = [json.dumps(event) for event in history.ordered()]
        options.history.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [*problems(history), *holders(history.ordered(), TTL_SECONDS)]
    counts = Counter(event["event"] for event in history.events)
    said = ", ".join(f"{count:,} {event}" for event, count in sorted(counts.items()))
    seconds, disturbed = time.monotonic() - begun, len(history.disturbed)
    print(f"seed {options.seed}, {seconds:.0f} s, {disturbed} processes of holders killed or paused: {said}")
    for problem in found[:20]:
        print(problem)
    print(f"{len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
