"""Strong operations are linearizable: there is an order of them all, each between its call and its answer, in which one
copy of each memory would have said the same. What a majority had is lost where that many disks were: rolled back, or
retired, one after the other."""

from __future__ import annotations

from histories.history import Operation
from histories.linearizability import check
from histories.models import Register

from simulator.checkers import Checker


class Linearizable(Checker):
    """Keeps what claimants asked and were told; time is the number of events that have happened."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.gone: set[str] = set()  # nodes whose disk became an older or an empty one

    def claimed(self, agent, claim, outcome, output) -> None:  # type: ignore[no-untyped-def]
        asked = {"value": claim.value} if claim.kind in ("write", "cas", "update") else {}
        if claim.kind == "cas":
            asked["expected"] = claim.operation.if_version
        self.operations.append(
            Operation(
                process=f"{agent.name}/{agent.process}", operation=claim.kind, key=claim.operation.id, input=asked,
                output=output, invoke=claim.invoke, returned=self.cluster.world.events, outcome=outcome,
            )
        )  # fmt: skip

    def rolled_back(self, node) -> None:  # type: ignore[no-untyped-def]
        self.gone.add(node.name)

    def healed(self) -> None:
        if len(self.gone) >= self.cluster.write_quorum:
            return
        for verdict in check(self.operations, Register()):
            if verdict.linearizable is False:
                under_way = "".join(f"\n    under way: {_words(operation)}" for operation in verdict.pending)
                stuck = "" if verdict.stuck is None else _words(verdict.stuck)
                self.fail(f"{verdict.key}: {verdict.reason}: {stuck}; it may have been {verdict.states}{under_way}")
            if verdict.linearizable is None:
                self.cluster.counts["histories undecided"] += 1
        self.cluster.counts["histories checked"] += 1


def _words(operation: Operation) -> str:
    return f"{operation.process} {operation.operation} {operation.input} -> {operation.outcome} {operation.output}"
