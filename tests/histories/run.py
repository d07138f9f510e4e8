"""Record histories of agents at work on a real cluster while things break, and check that they are linearizable.

python tests/histories/run.py --count 200 --operations 1000 --seed 7 --level strong      exit 1 if one is not

Each history is a file of JSON lines in the folder (tests/histories/histories/history.py says what is in a line);
`--check FOLDER` looks at recorded ones again. The seed chooses faults and operations; what they meet is up to the
machine, so it is the history that shows what was wrong, and not its seed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "chaos"), str(HERE.parent / "simulation")]

from histories import history  # noqa: E402
from histories.broken import RULES  # noqa: E402
from histories.cluster import FAULTS  # noqa: E402
from histories.history import Operation  # noqa: E402
from histories.linearizability import Verdict, check  # noqa: E402
from histories.models import Register  # noqa: E402
from histories.recording import record  # noqa: E402

LEVELS = ("strong", "causal", "read-your-writes", "eventual")
SHOWN_MAX = 12  # operations under way, of a history that is not linearizable


class Line(NamedTuple):
    """What the table says of one history."""

    name: str
    operations: int
    outcomes: Counter[str]
    seconds: float
    check_seconds: float
    verdicts: list[Verdict]  # those that are not well
    spurious: int  # memories on which a compare-and-set was refused though nobody wrote in between

    @property
    def word(self) -> str:
        """The verdict."""
        if not self.verdicts:
            return "linearizable"
        return "NOT linearizable" if any(one.linearizable is False for one in self.verdicts) else "undecided"


def looked_at(name: str, operations: list[Operation], seconds: float) -> Line:
    """Check one history."""
    began = time.perf_counter()
    verdicts = [verdict for verdict in check(operations, Register()) if not verdict.linearizable]
    strict = [] if verdicts else check(operations, Register(strict=True))
    outcomes = Counter(one.outcome if "refused" not in one.output else "refused" for one in operations)
    spurious = sum(verdict.linearizable is False for verdict in strict)
    return Line(name, len(operations), outcomes, seconds, time.perf_counter() - began, verdicts, spurious)


def show(lines: Iterable[Line]) -> None:
    """The summary."""
    lines = list(lines)
    total: Counter[str] = sum((line.outcomes for line in lines), Counter())
    words = Counter(line.word for line in lines)
    operations = sum(line.operations for line in lines)
    count = max(1, len(lines))
    print(f"{len(lines):,} histories, {operations:,} operations:", end=" ")
    print(", ".join(f"{times:,} {outcome}" for outcome, times in sorted(total.items())))
    print(
        f"a history took {sum(line.seconds for line in lines) / count:.1f} s to record and "
        f"{sum(line.check_seconds for line in lines) / count:.2f} s to check, "
        f"{max((line.check_seconds for line in lines), default=0):.2f} s at most"
    )
    if spurious := sum(line.spurious for line in lines):
        print(f"on {spurious:,} memories a compare-and-set was refused though nobody wrote in between (allowed)")
    print(", ".join(f"{times:,} {word}" for word, times in sorted(words.items())))


def explain(line: Line) -> None:
    """What is wrong with a history."""
    for verdict in line.verdicts:
        print(f"{line.name} {verdict.key}: {verdict.reason}")
        print(f"  {_words(verdict.stuck)}" if verdict.stuck else "")
        print(f"  it may have been: {', '.join(map(repr, verdict.states)) or 'nothing possible'}")
        for operation in verdict.pending[:SHOWN_MAX]:
            print(f"  under way: {_words(operation)}")


def _words(operation: Operation) -> str:
    return (
        f"{operation.process} {operation.operation} {operation.input} → {operation.outcome} {operation.output} "
        f"[{operation.invoke / 1e9:.6f} … {operation.returned / 1e9:.6f}]"
    )


async def recorded(arguments: argparse.Namespace, faults: tuple[str, ...], folder: Path) -> list[Line]:
    """Record and check."""
    lines = []
    print("history  operations    ok  refused  fail  unknown  seconds  faults", flush=True)
    made = record(
        folder, count=arguments.count, operations=arguments.operations, seed=arguments.seed, level=arguments.level,
        faults=faults, keys=arguments.keys, without=arguments.without,
    )  # fmt: skip
    async for one in made:
        history.write(arguments.folder / f"{one.name}.jsonl", one.operations)
        line = await asyncio.to_thread(looked_at, one.name, one.operations, one.seconds)
        lines.append(line)
        broken = ", ".join(f"{count} {name}" for name, count in sorted(one.faults.items())) or "none"
        print(
            f"{line.name:<7}  {line.operations:>10,} {line.outcomes['ok']:>5,} {line.outcomes['refused']:>8,} "
            f"{line.outcomes['fail']:>5,} {line.outcomes['unknown']:>8,} {line.seconds:>8.1f}  {broken}"
            + (f"  {line.word}" if line.verdicts else ""),
            flush=True,
        )
        explain(line)
    shutil.copy(folder / "faults.jsonl", arguments.folder / "faults.jsonl")
    return lines


def _clear(folder: Path) -> None:
    """Histories of an earlier run would be taken for this one's."""
    for path in folder.glob("h*.jsonl"):
        path.unlink()


def main() -> int:
    """0: all are linearizable; 1: some are not, or it could not be decided."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="histories (default %(default)s)")
    parser.add_argument("--operations", type=int, default=1000, help="of each (default %(default)s)")
    parser.add_argument("--keys", type=int, default=5, help="memories of each (default %(default)s)")
    parser.add_argument("--seed", default=None, help="chooses faults and operations (default: a new one)")
    parser.add_argument("--level", choices=LEVELS, default="strong", help="(default %(default)s)")
    parser.add_argument("--faults", default=None, help=f"some of {', '.join(FAULTS)}, by commas (default: all)")
    parser.add_argument("--without", choices=RULES, default="", help="; ".join(map(": ".join, RULES.items())))
    parser.add_argument("--folder", type=Path, default=Path("build/histories"), help="(default %(default)s)")
    parser.add_argument("--check", type=Path, help="a folder of histories: no run, only look at them again")
    arguments = parser.parse_args()
    if arguments.check is not None:
        paths = sorted(path for path in arguments.check.glob("*.jsonl") if path.name != "faults.jsonl")
        lines = [looked_at(path.stem, history.read(path), 0.0) for path in paths]
        for line in lines:
            explain(line)
        return _verdict(lines)
    faults = tuple(FAULTS) if arguments.faults is None else tuple(filter(None, arguments.faults.split(",")))
    if unknown := set(faults) - FAULTS.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    arguments.seed = arguments.seed or str(random.SystemRandom().randrange(1_000_000))
    print(f"seed {arguments.seed}, level {arguments.level}, faults: {', '.join(faults) or 'none'}; {arguments.folder}/")
    _clear(arguments.folder)
    folder = Path(tempfile.mkdtemp(prefix="spine-histories-"))
    try:
        lines = asyncio.run(recorded(arguments, faults, folder))
        if any(line.verdicts for line in lines):
            for log in (folder / "cluster").glob("*/*.log"):
                shutil.copy(log, arguments.folder / f"{log.parent.name}-{log.name}")
        return _verdict(lines)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _verdict(lines: list[Line]) -> int:
    show(lines)
    return 1 if any(line.verdicts for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
