"""What held: each fact is computed from the evidence, which is what the agents were promised and what the nodes have.

Pure: it asks nobody. A write is *lost* where a node does not show it and no later write accounts for that: a memory
that is missing, a tag that nobody took away, a value for which there is none of the writes that may have come last.
Which write came last is told from outside: one that was issued after the acknowledgement of another came after it;
writes that were under way at the same time may stand in either order, but in the same on every node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from crdt_spine.demo.deliveries import account
from crdt_spine.demo.inspection import digest
from crdt_spine.demo.ledger import Ledger, Write
from crdt_spine.demo.stage import Outage
from crdt_spine.memory import Memory

EXAMPLES_MAX: Final = 3  # of what went wrong, in a fact's words

Contents = dict[str, dict[str, Memory]]  # node -> id -> memory


class Evidence(msgspec.Struct):
    """Everything that the facts are computed from.

    `listed` is what each node alone answered to a query for everything, `found` what it answered when asked for every
    acknowledged memory by its id. `settled_seconds`: from the last acknowledgement until all nodes had the same; None
    where that did not come about. `started`, `left`: processes.
    """

    planned: int
    nodes: tuple[str, ...]
    ledger: Ledger
    outage: Outage | None
    listed: Contents
    found: Contents
    settled_seconds: float | None
    started: int = 0
    left: int = 0


class Fact(msgspec.Struct, frozen=True):
    """One fact: what it says, its number, and how it was counted."""

    name: str
    holds: bool
    count: str
    how: str


def judge(evidence: Evidence) -> list[Fact]:
    """All facts, in the order in which they are told."""
    return [
        _stored(evidence),
        _failed(evidence),
        _lost(evidence),
        _reads(evidence),
        _delivered(evidence),
        _outage(evidence),
        _converged(evidence),
        _identical(evidence),
        _ended(evidence),
    ]


def lost_writes(writes: Sequence[Write], memories: Mapping[str, Memory]) -> list[Write]:
    """The acknowledged writes that these memories do not show, and should."""
    by_memory: defaultdict[str, list[Write]] = defaultdict(list)
    for write in writes:
        by_memory[write.id].append(write)
    lost: list[Write] = []
    for id, written in by_memory.items():
        memory = memories.get(id)
        lost += [
            write
            for write in written
            if write.memory is not None and (memory is None or not _shows(memory, write, written))
        ]
    return lost


def _shows(memory: Memory, write: Write, written: Sequence[Write]) -> bool:
    born = write.memory
    assert born is not None
    if write.kind == "store":
        fixed = (memory.agent, memory.thread, memory.created_at) == (born.agent, born.thread, born.created_at)
        if not fixed:
            return False
    if not write.tags <= memory.tags:
        return False
    for register, value in write.values.items():
        here = _value(memory, register)
        if here == value:
            continue
        rivals = [other for other in written if other is not write and register in other.values]
        if any(here == other.values[register] and not _before(other, write) for other in rivals):
            continue  # what is here was written later, or at the same time
        return False
    return True


def _before(one: Write, other: Write) -> bool:
    """Was it acknowledged before the other was issued? One without an acknowledgement may be applied at any time."""
    return one.memory is not None and one.ended <= other.started


def _value(memory: Memory, register: str) -> Any:
    if register.startswith("metadata."):
        return memory.metadata.get(register.removeprefix("metadata."))
    return getattr(memory, register)


def concurrent_edits(writes: Sequence[Write]) -> int:
    """How many memories two agents or more were editing at the same time."""
    by_memory: defaultdict[str, list[Write]] = defaultdict(list)
    for write in writes:
        if write.kind == "update" and write.memory is not None:
            by_memory[write.id].append(write)
    return sum(
        any(
            one.agent != other.agent and not _before(one, other) and not _before(other, one)
            for index, one in enumerate(edits)
            for other in edits[:index]
        )
        for edits in by_memory.values()
    )


# -- the facts ---------------------------------------------------------------------------------------------------


def _stored(evidence: Evidence) -> Fact:
    stores = [write for write in evidence.ledger.writes if write.kind == "store"]
    stored = sum(write.memory is not None for write in stores)
    how = f"by {len({write.agent for write in stores})} agents"
    return Fact("memories stored", stored == evidence.planned, f"{stored} of {evidence.planned}", how)


def _failed(evidence: Evidence) -> Fact:
    ledger = evidence.ledger
    operations = len(ledger.writes) + ledger.reads
    slowest = max((write.ended - write.started for write in ledger.writes if write.memory is not None), default=0.0)
    how = f"of {operations}; slowest write {slowest:.2f} s"
    return Fact("operations failed", not ledger.failures, str(len(ledger.failures)), _examples(ledger.failures) or how)


def _lost(evidence: Evidence) -> Fact:
    writes = evidence.ledger.writes
    lost: dict[int, str] = {}
    for contents in (evidence.listed, evidence.found):
        for node, memories in contents.items():
            for write in lost_writes(writes, memories):
                lost.setdefault(id(write), f"the {write.kind} of {write.id} by {write.agent} on {node}")
    complete = set(evidence.nodes) == evidence.listed.keys() == evidence.found.keys()
    acknowledged = sum(write.memory is not None for write in writes)
    how = f"of {acknowledged} acknowledged; each looked for on each of {len(evidence.nodes)} nodes alone"
    if not complete:
        how = "not every node could be asked"
    return Fact("writes lost", complete and not lost, str(len(lost)), _examples(list(lost.values())) or how)


def _reads(evidence: Evidence) -> Fact:
    stale = evidence.ledger.stale
    return Fact(
        "reads behind own writes", not stale, str(len(stale)), _examples(stale) or f"of {evidence.ledger.reads}"
    )


def _delivered(evidence: Evidence) -> Fact:
    final = next(iter(evidence.listed.values()), {})
    accounts = [account(feed, evidence.ledger.writes, final) for feed in evidence.ledger.feeds]
    problems = [problem for one in accounts for problem in one.problems]
    stored, expected = sum(one.stored for one in accounts), sum(one.expected for one in accounts)
    slowest = max((one.slowest_seconds for one in accounts), default=0.0)
    how = (
        f"to {len(accounts)} subscriptions; {stored} of {expected} new memories, each once, "
        f"{slowest:.2f} s after their writes at most"
    )
    count = str(evidence.ledger.delivered)
    return Fact("updates delivered", bool(final) and not problems, count, _examples(problems) or how)


def _outage(evidence: Evidence) -> Fact:
    outage = evidence.outage
    if outage is None or not outage.ready:
        return Fact("node lost and back", False, "no", "no node was killed and came back")
    meanwhile = sum(
        write.memory is not None and outage.gone < write.ended < outage.ready for write in evidence.ledger.writes
    )
    holds = outage.ending == "SIGKILL" and outage.new_pid not in (0, outage.pid) and outage.gone < outage.started
    how = f"{outage.ending}, away for {outage.ready - outage.gone:.1f} s; {meanwhile} writes acknowledged meanwhile"
    return Fact("node lost and back", holds, outage.node, how)


def _converged(evidence: Evidence) -> Fact:
    outage, settled = evidence.outage, evidence.settled_seconds
    if outage is None or not outage.level or settled is None:
        return Fact("time to converge", False, "never", "the nodes did not get level in time")
    how = f"from {outage.node}'s new start until it was level; from the very last write {settled:.2f} s"
    return Fact("time to converge", True, f"{outage.level - outage.started:.2f} s", how)


def _identical(evidence: Evidence) -> Fact:
    digests = {node: digest(memories) for node, memories in evidence.listed.items()}
    if len(digests) == len(evidence.nodes) and len(set(digests.values())) == 1:
        size = len(next(iter(evidence.listed.values())))
        edited = concurrent_edits(evidence.ledger.writes)
        how = f"{size} memories, {edited} of them edited by several agents at once; sha256 {digests.popitem()[1][:12]}"
        return Fact("nodes identical", True, f"{len(evidence.nodes)} of {len(evidence.nodes)}", how)
    shown = [f"{node} has {len(evidence.listed[node])} memories, sha256 {text[:8]}" for node, text in digests.items()]
    contents = list(evidence.listed.values())
    ids = sorted(set[str]().union(*contents))
    different = [id for id in ids if any(one.get(id) != contents[0].get(id) for one in contents)]
    said = "; ".join([*shown, *([f"different: {_examples(different)}"] if different else [])])
    return Fact("nodes identical", False, "no", said or "no node could be asked")


def _ended(evidence: Evidence) -> Fact:
    return Fact(
        "processes left running", not evidence.left and evidence.started > 0, str(evidence.left),
        f"of {evidence.started} started",
    )  # fmt: skip


def _examples(problems: Sequence[str]) -> str:
    more = len(problems) - EXAMPLES_MAX
    return "; ".join(problems[:EXAMPLES_MAX]) + (f"; and {more} more" if more > 0 else "")
