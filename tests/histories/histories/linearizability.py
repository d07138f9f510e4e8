"""Is a history linearizable? Can its operations be put into one order, each somewhere between its call and its return,
in which a single copy that does one after the other would have given the same answers?

Wing and Gong, "Testing and verifying concurrent objects" (1993), searched for that order. Lowe, "Testing for
linearizability" (2017), gave the search used here: it goes through the calls and returns in time and keeps every
*configuration* that is possible so far: the object's state, and which of the operations under way have taken effect.
Just in time: an operation takes effect, after any others that it needs, when its return would be impossible without.
Equal configurations are one. Horn and Kroening, "Faster linearizability checking via P-compositionality" (2015): a
history is linearizable if that of each object is, so each key is looked at alone.

An operation whose outcome is unknown is under way for ever and never has to take effect. A configuration that spent
fewer of those can do all that another one of the same state can, so only the thriftiest are kept; of several that do
the same, the first is spent first. One that leaves the state as it is (a read) takes effect as soon as it can: that
forecloses nothing.

The problem is NP-complete, so the search has a bound, and a history beyond it is "undecided" rather than wrong.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from histories.history import Operation, by_key

CONFIGURATIONS_MAX = 400_000  # looked at for one return

State = Hashable
IMPOSSIBLE: Final = object()


class Effect(NamedTuple):
    """What an operation does: the state after it, IMPOSSIBLE where its answer could not have been given.

    `keeps`: it never changes the state. `kind`: effects of one kind do the same; None: like no other.
    """

    apply: Callable[[State], State]
    keeps: bool = False
    kind: Hashable = None


class Model(Protocol):
    """An object that does one thing at a time."""

    initial: State

    def effects(self, history: Sequence[Operation]) -> Sequence[Effect | None]:
        """Each operation's effect, in order; None for one that says nothing. Those that failed are not in `history`.
        Raises Contradiction where no order at all could explain it."""


class Contradiction(ValueError):
    """Answers that no order explains; `operations` are those that contradict each other."""

    def __init__(self, text: str, operations: Sequence[Operation]) -> None:
        super().__init__(text)
        self.operations = tuple(operations)


class Verdict(NamedTuple):
    """`linearizable` None: undecided. Else where it is not, `stuck` is the first operation whose answer is impossible,
    `pending` what was under way then, and `states` those that the object may have been in."""

    key: str
    linearizable: bool | None
    reason: str = ""
    stuck: Operation | None = None
    pending: tuple[Operation, ...] = ()
    states: tuple[State, ...] = ()


def check(operations: Iterable[Operation], model: Model) -> list[Verdict]:
    """The verdict on each key's history, by key. All have to be linearizable."""
    return [check_key(key, history, model) for key, history in sorted(by_key(operations).items())]


class Step(NamedTuple):
    """An operation and its effect. `answered`: it has taken effect by the time it returned; else it may do so whenever
    it likes from its call on, or never."""

    operation: Operation
    effect: Effect
    answered: bool


def check_key(key: str, operations: Iterable[Operation], model: Model) -> Verdict:
    """The verdict on one object's history."""
    try:
        found = steps(operations, model)
    except Contradiction as wrong:
        return Verdict(key, False, str(wrong), wrong.operations[-1], wrong.operations[:-1])
    return order(key, found, [model.initial])


def steps(operations: Iterable[Operation], model: Model) -> list[Step]:
    """What an object's operations do, of those that say something. Raises Contradiction."""
    history = [one for one in operations if one.outcome != "fail"]
    effects = model.effects(history)
    return [
        Step(one, effect, one.outcome == "ok")
        for one, effect in zip(history, effects, strict=True)
        if effect is not None
    ]


def order(
    key: str, found: Sequence[Step], initial: Iterable[State], configurations_max: int = CONFIGURATIONS_MAX
) -> Verdict:
    """Is there an order of these, beginning in one of those states?"""
    search = _Search([step.effect for step in found], initial, configurations_max)
    for _, returns, number in _events(found):
        operation = found[number].operation
        if not returns:
            search.call(number, open_end=not found[number].answered)
            continue
        states = tuple({state for state, _ in search.configurations})
        pending = tuple(found[other].operation for other in search.pending() if other != number)
        try:
            possible = search.returned(number)
        except _TooMany:
            return Verdict(key, None, f"more than {configurations_max:,} configurations", operation, pending)
        if not possible:
            return Verdict(key, False, "no order explains its answer", operation, pending, states)
    return Verdict(key, True)


def _events(found: Sequence[Step]) -> list[tuple[int, bool, int]]:
    """(time, is it a return, number), in time; at equal times calls come first, so that they overlap."""
    calls = [(step.operation.invoke, False, number) for number, step in enumerate(found)]
    returns = [(step.operation.returned, True, number) for number, step in enumerate(found) if step.answered]
    return sorted(calls + returns)


class _TooMany(Exception):
    """The search has reached its bound."""


Configuration = tuple[State, int]  # state; bit n: operation n, which is under way and will return, has taken effect


class _Search:
    """All configurations that explain what returned so far, each with the sets of unknown operations that it may have
    spent, none of which has another one within it."""

    def __init__(self, effects: Sequence[Effect], initial: Iterable[State], configurations_max: int) -> None:
        self._apply = [effect.apply for effect in effects]
        self._keeps = [effect.keeps for effect in effects]
        self._kinds = [number if effect.kind is None else effect.kind for number, effect in enumerate(effects)]
        self.required: dict[int, None] = {}  # under way, and will return
        self._unknown: dict[Hashable, list[int]] = {}  # by kind
        self._reads = 0  # bits of those required that keep the state
        self.configurations: dict[Configuration, list[int]] = {(state, 0): [0] for state in initial}
        self._configurations_max = configurations_max

    def pending(self) -> Iterator[int]:
        """What is under way."""
        yield from self.required
        for numbers in self._unknown.values():
            yield from numbers

    def call(self, number: int, *, open_end: bool) -> None:
        """An operation begins."""
        if open_end:
            if not self._keeps[number]:
                self._unknown.setdefault(self._kinds[number], []).append(number)
            return
        self.required[number] = None
        if self._keeps[number]:
            self._reads |= 1 << number
            after: dict[Configuration, list[int]] = {}
            for (state, done), spent in self.configurations.items():
                after[self._read(state, done)] = spent
            self.configurations = after

    def returned(self, number: int) -> bool:
        """An operation returns: is there any configuration left?"""
        bit = 1 << number
        after: dict[Configuration, list[int]] = {}
        without: list[tuple[int, int, Configuration]] = []  # how much is spent, what, configuration
        for (state, done), sets in self.configurations.items():
            if done & bit:
                for spent in sets:
                    _keep(after, (state, done & ~bit), spent)
            else:
                without += [(spent.bit_count(), spent, (state, done)) for spent in sets]
        self._expand(without, bit, after)
        del self.required[number]
        self._reads &= ~bit
        self.configurations = after
        return bool(after)

    def _expand(
        self, start: list[tuple[int, int, Configuration]], bit: int, after: dict[Configuration, list[int]]
    ) -> None:
        """Let operations take effect, in all orders, until that of `bit` has: those configurations go to `after`. The
        thriftiest come first, so what others have within them is known before those others are looked at."""
        seen: dict[Configuration, list[int]] = {}
        order = 0
        queue = []
        for size, spent, configuration in start:
            if _keep(seen, configuration, spent):
                queue.append((size, order, spent, configuration))
                order += 1
        heapq.heapify(queue)
        writes = [one for one in self.required if not self._keeps[one]]
        while queue:
            size, _, spent, (state, done) = heapq.heappop(queue)
            for number, costs in self._possible(writes, done, spent):
                changed = self._apply[number](state)
                if changed is IMPOSSIBLE or (costs and changed == state):
                    continue
                reached = self._read(changed, done if costs else done | 1 << number)
                used = spent | 1 << number if costs else spent
                if reached[1] & bit:
                    _keep(after, (reached[0], reached[1] & ~bit), used)
                elif _keep(seen, reached, used):
                    heapq.heappush(queue, (size + costs, order, used, reached))
                    order += 1
                    if order > self._configurations_max:
                        raise _TooMany

    def _possible(self, writes: Iterable[int], done: int, spent: int) -> Iterator[tuple[int, int]]:
        """What may take effect next: its number, and 1 where that spends an unknown one."""
        for number in writes:
            if not done >> number & 1:
                yield number, 0
        for numbers in self._unknown.values():
            for number in numbers:
                if not spent >> number & 1:
                    yield number, 1
                    break

    def _read(self, state: State, done: int) -> Configuration:
        """Whatever is under way and keeps the state takes effect where it can."""
        left = self._reads & ~done
        while left:
            low = left & -left
            if self._apply[low.bit_length() - 1](state) is not IMPOSSIBLE:
                done |= low
            left ^= low
        return state, done


def _keep(found: dict[Configuration, list[int]], configuration: Configuration, spent: int) -> bool:
    """Note this configuration, unless one that spent no more is known; forget those that spent more. Was it new?"""
    known = found.get(configuration)
    if known is None:
        found[configuration] = [spent]
        return True
    for other in known:
        if other & ~spent == 0:
            return False
    found[configuration] = [other for other in known if spent & ~other] + [spent]
    return True
