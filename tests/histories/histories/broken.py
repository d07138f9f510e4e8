"""Strong operations with a rule less, so that a checker has something to find.

Nothing of this is in the product: a rule is taken away from outside, of an agent, or in a node's process (node.py). The
rules are those of core/strong.py, core/rounds.py and core/terms.py; each replaces a function of theirs by one that is
the same but for that rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from crdt_spine.core import strong
from crdt_spine.core.causality import within
from crdt_spine.core.messages import Get, Round, Rounded, Term
from crdt_spine.core.replica import Replica
from crdt_spine.core.rounds import answer, vouched
from crdt_spine.core.strong import Lead, Strong
from crdt_spine.core.strong_operation import Answer, Operation
from crdt_spine.core.terms import NEVER
from crdt_spine.node import acknowledgements
from crdt_spine.node import strong as shell


class Rule(NamedTuple):
    """`text` says what holds, and what is done here instead; `faults` are those under which that shows."""

    text: str
    faults: tuple[str, ...]
    take_away: Callable[[], None] | None  # in a node's process; None: it is an agent's


def _ask_nobody() -> None:
    strong.majority = lambda count: 1  # type: ignore[attr-defined]


def _answer_reads_alone() -> None:
    collect, is_confirmed = Strong._collect, Strong._is_confirmed

    def collect_for_writes(self: Strong, lead: Lead, operation: Operation, now: int, at: float) -> None:
        if not _reads(operation):
            collect(self, lead, operation, now, at)
            return
        record = self.replica.records.get(operation.ask.operation.id)
        operation.answer, operation.version = Answer(operation.ask, record=record), {}

    def confirm_writes(self: Strong, lead: Lead, operation: Operation) -> bool:
        return _reads(operation) or is_confirmed(self, lead, operation)

    _replace(Strong, _collect=collect_for_writes, _is_confirmed=confirm_writes)


def _confirm_alone() -> None:
    is_confirmed = Strong._is_confirmed

    def confirm_reads(self: Strong, lead: Lead, operation: Operation) -> bool:
        if not operation.wrote or operation.version is None:
            return is_confirmed(self, lead, operation)
        return within(operation.version, self.replica.durable[lead.number])

    _replace(Strong, _is_confirmed=confirm_reads)


def _decide_alone(applies: Callable[[Operation], bool]) -> None:
    collect = Strong._collect

    def collect_others(self: Strong, lead: Lead, operation: Operation, now: int, at: float) -> None:
        if not applies(operation):
            collect(self, lead, operation, now, at)
            return
        operation.bound = max(now, lead.floor + 1, self.replica.clock.highest >> 16) + strong.BOUND_MILLISECONDS
        record = self.replica.records.get(operation.ask.operation.id)
        self._begin_round(lead, operation, {} if record is None else record.version, at)
        lead.bound = max(lead.bound, operation.bound)
        self._decide(lead, operation, now, at)

    _replace(Strong, _collect=collect_others)


def _follow_anybody() -> None:
    def answered(replica: Replica, partitions: int, asked: Round, epoch: int, now: int) -> tuple[Rounded, bool]:
        terms = replica.promises.terms
        before = {number: terms[number] for number in asked.terms if number in terms}
        for number, term in before.items():
            terms[number] = min(term, (asked.terms[number][0], asked.node))
        said = answer(replica, partitions, asked, epoch, now)
        for number, term in before.items():
            terms[number] = max(term, terms[number])
        return said

    def vouched_for_anybody(replica: Replica, actor: str, reached: Iterable[int]) -> dict[int, Term]:
        return dict.fromkeys(vouched(replica, actor, reached), NEVER)

    _replace(shell, answer=answered)
    _replace(acknowledgements, vouched=vouched_for_anybody)


def _begin_anew() -> None:
    leads_now = Strong._leads_now

    def leads(self: Strong, lead: Lead, now: int, at: float) -> bool:
        lead.granted = dict.fromkeys(lead.granted, 0)
        return leads_now(self, lead, now, at)

    _replace(Strong, _leads_now=leads)


def _reads(operation: Operation) -> bool:
    return isinstance(operation.ask.operation, Get)


def _compares(operation: Operation) -> bool:
    return bool(getattr(operation.ask.operation, "if_version", None))


def _replace(owner: Any, **functions: Callable[..., Any]) -> None:
    for name, function in functions.items():
        assert hasattr(owner, name), f"{owner} has no {name} any more"
        setattr(owner, name, function)


APART: Final = ("apart",)

#: What can be taken away.
RULES: Final = {
    "primary-reads": Rule(
        "a strong read is the primary's, who asks a majority: here an agent takes any one replica's word",
        ("cut", "half-open"), None,
    ),
    "majority": Rule(
        "a primary has the promise of a majority, and its answers are on a majority: here it asks nobody",
        APART, _ask_nobody,
    ),
    "reads": Rule(
        "a primary asks a majority before it answers a read: here it takes it that it still is the primary",
        APART, _answer_reads_alone,
    ),
    "confirm": Rule(
        "a write is answered once a majority has it: here once the primary has it",
        APART, _confirm_alone,
    ),
    "collect": Rule(
        "a primary hears from a majority what it lacks of a memory: here it decides on what it has",
        APART, lambda: _decide_alone(lambda operation: True),
    ),
    "compare": Rule(
        "if_version is compared with what a majority has: here with the primary's copy",
        APART, lambda: _decide_alone(_compares),
    ),
    "terms": Rule(
        "who has promised a term answers no earlier primary any more: here it does",
        APART, _follow_anybody,
    ),
    "bound": Rule(
        "a new primary hears how far the stamps of earlier ones may go, and seals what it reads: here it begins anew",
        ("apart", "stop", "kill", "clock"), _begin_anew,
    ),
}  # fmt: skip
OF_AGENTS: Final = tuple(name for name, rule in RULES.items() if rule.take_away is None)


def take_away(name: str) -> None:
    """From now on this node does not keep the rule. Raises KeyError where there is no such rule."""
    rule = RULES.get(name)
    if rule is None or rule.take_away is None:
        raise KeyError(f"a node has no rule {name!r}; there are {', '.join(RULES)}")
    rule.take_away()
