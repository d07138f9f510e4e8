"""Record histories of agents at work on a real cluster while things break, and check that they are linearizable.

python tests/histories/run.py --count 200 --operations 1000 --seed 7 --level strong      exit 1 if one is not
python tests/histories/run.py --without reads              until one is not, as it must be; exit 1 if nothing shows

Each history is a file of JSON lines in the folder (tests/histories/histories/history.py says what is in a line);
`--check`, with a file or a folder, looks at recorded ones again. The seed chooses faults and operations; what they meet
is up to the machine, so it is the history that shows what was wrong, and not its seed. Of one that has no order, the
shortest part is printed that has none.
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
from histories.linearizability import Verdict  # noqa: E402
from histories.models import model_of, verdicts  # noqa: E402
from histories.recording import record  # noqa: E402
from histories.shortest import Part, shortest  # noqa: E402

LEVELS = ("strong", "causal", "read-your-writes", "eventual")


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
    wrong = [verdict for verdict in verdicts(operations) if not verdict.linearizable]
    strict = [] if wrong else verdicts(operations, strict=True)
    outcomes = Counter(one.outcome if "refused" not in one.output else "refused" for one in operations)
    spurious = sum(verdict.linearizable is False for verdict in strict)
    return Line(name, len(operations), outcomes, seconds, time.perf_counter() - began, wrong, spurious)


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


def explain(line: Line, operations: list[Operation]) -> None:
    """What is wrong with a history."""
    histories = history.by_key(operations)
    for verdict in line.verdicts:
        found = histories[verdict.key]
        part = None if verdict.linearizable is None else shortest(found, model_of(found))
        if part is None:
            print(f"{line.name} {verdict.key}: {verdict.reason}")
        else:
            print("\n".join(_told(f"{line.name} {verdict.key}", part, found)), flush=True)


def _told(name: str, part: Part, operations: list[Operation]) -> list[str]:
    """The part, as a person reads it: milliseconds from its beginning, and where values come from that are in it."""
    begin = min(one.invoke for one in part.operations)
    versions = {one.output["version"]: one.output["value"] for one in operations if one.output.get("version")}
    told = [f"{name}: there is no order of these {len(part.operations)}, of {len(operations)} on {operations[0].key}:"]
    named: dict[str, None] = {}
    for one in part.operations:
        expected = one.input.get("expected")
        compared = "" if expected is None else f" if it is {versions.get(expected, 'never shown')}"
        named.update(dict.fromkeys(filter(None, (versions.get(expected), one.output.get("value")))))
        called = f"{one.operation} {one.input.get('value') or one.input.get('lease', '')}".strip() + compared
        told.append(
            f"  {(one.invoke - begin) / 1e6:>8.1f} … {(one.returned - begin) / 1e6:>8.1f} ms  {one.process:<6}  "
            f"{called} → {_answer(one)}"
        )
    told += [
        f"  {one.input['value']} is from a {one.operation} of {one.process}, {(one.invoke - begin) / 1e6:.1f} … "
        f"{(one.returned - begin) / 1e6:.1f} ms, {one.outcome}"
        for one in operations
        if one.input.get("value") in named and one not in part.operations
    ]
    if part.others:
        told.append(f"  whatever it was before, and whenever others took effect, if at all ({len(part.others)})")
    return told


def _answer(one: Operation) -> str:
    if "refused" in one.output:
        return f"refused: {one.output['refused']}"
    if "found" in one.output:
        return "deleted" if one.output["found"] else "there is none"
    if "token" in one.output:
        return f"token {one.output['token']}"
    return f"{one.output.get('value') or 'there is none'}"


async def recorded(arguments: argparse.Namespace, faults: tuple[str, ...], folder: Path) -> list[Line]:
    """Record and check."""
    lines = []
    print("history  operations    ok  refused  fail  unknown  seconds  faults", flush=True)
    made = record(
        folder, count=arguments.count, operations=arguments.operations, seed=arguments.seed, level=arguments.level,
        faults=faults, keys=arguments.keys, without=arguments.without, aimed=arguments.aimed,
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
        explain(line, one.operations)
        if line.verdicts and arguments.without:
            break
    await made.aclose()
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
    parser.add_argument("--operations", type=int, help="of each (default 1000, with --without 300)")
    parser.add_argument("--keys", type=int, help="memories of each (default 5, with --without 2)")
    parser.add_argument("--seed", default=None, help="chooses faults and operations (default: a new one)")
    parser.add_argument("--level", choices=LEVELS, default="strong", help="(default %(default)s)")
    names = f"some of {', '.join(FAULTS)}, by commas (default: all, or the rule's)"
    parser.add_argument("--faults", default=None, help=names)
    rules = "; ".join(f"{name}: {rule.text}" for name, rule in RULES.items())
    parser.add_argument("--without", "--broken", choices=RULES, default="", help=rules)
    parser.add_argument("--aimed", action="store_true", help="one fault after the other, as with --without")
    parser.add_argument("--folder", type=Path, default=Path("build/histories"), help="(default %(default)s)")
    parser.add_argument("--check", type=Path, help="a history, or a folder of them: no run, only look again")
    arguments = parser.parse_args()
    if arguments.check is not None:
        return _looked_at_again(arguments.check)
    rule = RULES.get(arguments.without)
    arguments.operations = arguments.operations or (1000 if rule is None else 300)
    arguments.keys = arguments.keys or (5 if rule is None else 2)
    arguments.aimed = arguments.aimed or rule is not None
    faults = tuple(FAULTS) if rule is None else rule.faults
    if arguments.faults is not None:
        faults = tuple(filter(None, arguments.faults.split(",")))
    if unknown := set(faults) - FAULTS.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    arguments.seed = arguments.seed or str(random.SystemRandom().randrange(1_000_000))
    print(f"seed {arguments.seed}, level {arguments.level}, faults: {', '.join(faults) or 'none'}; {arguments.folder}/")
    if rule is not None:
        print(f"without {arguments.without}: {rule.text}")
    _clear(arguments.folder)
    folder = Path(tempfile.mkdtemp(prefix="spine-histories-"))
    try:
        lines = asyncio.run(recorded(arguments, faults, folder))
        if any(line.verdicts for line in lines):
            for log in (folder / "cluster").glob("*/*.log"):
                shutil.copy(log, arguments.folder / f"{log.parent.name}-{log.name}")
        verdict = _verdict(lines)
        if rule is None:
            return verdict
        seconds = sum(line.seconds for line in lines)
        print(f"the checker {'noticed' if verdict else 'noticed nothing'}: {len(lines)} histories, {seconds:.0f} s")
        return 1 - verdict
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _looked_at_again(path: Path) -> int:
    """Histories that were recorded before."""
    paths = [path] if path.is_file() else sorted(one for one in path.glob("*.jsonl") if one.name != "faults.jsonl")
    lines = []
    for one in paths:
        operations = history.read(one)
        lines.append(looked_at(one.stem, operations, 0.0))
        explain(lines[-1], operations)
    return _verdict(lines)


def _verdict(lines: list[Line]) -> int:
    show(lines)
    return 1 if any(line.verdicts for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
