"""The objects whose histories are checked: a memory, as a register with compare-and-set, and a lock.

**Register.** A version is an opaque name of what a memory was: it comes with a value, and a compare-and-set names one.
So before the search each version is translated into the value that came with it; one version with two values is a
contradiction already. A system may give a new version to a value that stays (crdt_spine does where another primary
takes a partition over), and the old version may then be refused or still be taken: taken, because the value is the
same. Hence two readings of a compare-and-set that was refused because "the version was another one":

    weak    (the default) says nothing of the value: what cannot be seen is not held against the system
    strict  the value must have been another one, so somebody wrote in between

In both, one that succeeded found exactly the value that it named, and one that is refused as "absent" found none. Every
write of a history must have a value of its own, or versions tell less than they could. Values that no answer and no
compare-and-set names are all one (`UNSEEN`): nobody could tell them apart.

**Lock.** Operations, input → output:

    acquire  {lease} → {token}                the lock was free; the token is higher than all before it
    acquire  {lease} → {refused}              it was held (said when one does not wait, or waited in vain): no claim
    renew    {lease} → {held: bool}           held: it is this lease's; not: it is not
    release  {lease} → {held: bool}           the same; it is free afterwards
    expire   {lease} → {}                     made by whoever records, outcome "unknown", from the moment on at which
                                              the lease may run out; frees the lock if it still is this lease's
    write    {lease} → {fenced: bool}         a write with the lease's fencing token: fenced off if and only if a later
                                              lease was given, wherever the lease itself is by now

`lease` is a name for one attempt to acquire, chosen by whoever records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from histories.history import Operation, by_key
from histories.linearizability import IMPOSSIBLE, Contradiction, Effect, Model, State, Verdict, check

LOCKS = frozenset({"acquire", "renew", "release", "expire"})  # operations of locks only
Value = str | None
UNSEEN = "(a value that nobody was shown)"


class Register:
    """A memory that begins as `initial` (None: there is none). `strict`: see above."""

    def __init__(self, initial: str | None = None, *, strict: bool = False) -> None:
        self.initial: State = initial
        self._strict = strict

    def effects(self, history: Sequence[Operation]) -> list[Effect | None]:
        """Raises Contradiction where one version came with two values, or an operation is none of a memory's."""
        values = _values(history)
        seen = {values.get(one.input["expected"]) for one in history if one.operation == "cas"}
        seen.update(one.output["value"] for one in history if one.operation == "read" and one.outcome == "ok")
        return [self._effect(operation, values, seen) for operation in history]

    def _effect(self, operation: Operation, values: dict[str, str], seen: set[str | None]) -> Effect | None:
        known = operation.outcome == "ok"
        refused = operation.output.get("refused")
        value: Value = operation.input.get("value")
        if value is not None and value not in seen:
            value = UNSEEN
        match operation.operation:
            case "read":
                return _found(operation.output["value"]) if known else None
            case "write":
                return _set(value)
            case "cas" | "update" if refused == "absent":
                return _found(None)
            case "cas" if refused == "version":
                return _found_another(values.get(operation.input["expected"])) if self._strict else None
            case "cas":
                return _swap(values.get(operation.input["expected"]), value)
            case "update":
                return _swap_any(value)
            case "delete" if not known:
                return _set(None)
            case "delete":
                return _swap_any(None) if operation.output["found"] else _found(None)
            case _:
                raise Contradiction(f"a memory knows no operation {operation.operation!r}", [operation])


def _values(history: Sequence[Operation]) -> dict[str, str]:
    """Value by version, as answers have them."""
    values: dict[str, str] = {}
    first: dict[str, Operation] = {}
    for operation in history:
        version, value = operation.output.get("version"), operation.output.get("value")
        if operation.outcome != "ok" or version is None or value is None:
            continue
        if values.setdefault(version, value) != value:
            raise Contradiction(
                f"version {version} came with {values[version]!r} and with {value!r}", [first[version], operation]
            )
        first.setdefault(version, operation)
    return values


def _found(value: Value) -> Effect:
    return Effect(lambda state: state if state == value else IMPOSSIBLE, keeps=True)


def _found_another(value: Value) -> Effect:
    return Effect(lambda state: IMPOSSIBLE if value is not None and state == value else state, keeps=True)


def _set(value: Value) -> Effect:
    return Effect(lambda state: value, kind=("set", value))


def _swap(expected: Value, value: Value) -> Effect:
    """`expected` None: a version that came with no answer, so it is not that of anything."""
    return Effect(
        lambda state: value if expected is not None and state == expected else IMPOSSIBLE,
        kind=("swap", expected, value),
    )


def _swap_any(value: Value) -> Effect:
    return Effect(lambda state: IMPOSSIBLE if state is None else value, kind=("swap any", value))


class Held(NamedTuple):
    """A lock: whose lease it is (None: free), the highest token given, and the lease that was given last."""

    lease: str | None
    token: int
    last: str | None


class Lock:
    """See above."""

    initial: State = Held(None, 0, None)

    def effects(self, history: Sequence[Operation]) -> list[Effect | None]:
        """Raises Contradiction where an operation is none of a lock's."""
        return [self._effect(operation) for operation in history]

    def _effect(self, operation: Operation) -> Effect | None:
        known, output = operation.outcome == "ok", operation.output
        lease: str = operation.input["lease"]
        match operation.operation:
            case "acquire" if "refused" in output:
                return None
            case "acquire":
                return _changes(lambda lock: _acquired(lock, lease, output.get("token")))
            case "renew" | "write" if not known:
                return None
            case "renew":
                return _says(lambda lock: (lock.lease == lease) == output["held"])
            case "write":
                return _says(lambda lock: (lock.last != lease) == output["fenced"])
            case "release" if known and output["held"]:
                return _changes(lambda lock: lock._replace(lease=None) if lock.lease == lease else IMPOSSIBLE)
            case "release" if known:
                return _says(lambda lock: lock.lease != lease)
            case "release" | "expire":
                return _changes(lambda lock: lock._replace(lease=None) if lock.lease == lease else lock)
            case _:
                raise Contradiction(f"a lock knows no operation {operation.operation!r}", [operation])


def _changes(apply: Callable[[Any], State]) -> Effect:
    return Effect(apply)


def _says(true: Callable[[Any], bool]) -> Effect:
    return Effect(lambda lock: lock if true(lock) else IMPOSSIBLE, keeps=True)


def _acquired(lock: Held, lease: str, token: int | None) -> State:
    """`token` None: it is not known which one was given."""
    if lock.lease is not None or (token is not None and token <= lock.token):
        return IMPOSSIBLE
    return Held(lease, lock.token if token is None else token, lease)


def model_of(operations: Sequence[Operation], *, strict: bool = False) -> Model:
    """Of the object whose history this is. `strict`: see above."""
    return Lock() if any(one.operation in LOCKS for one in operations) else Register(strict=strict)


def verdicts(operations: Sequence[Operation], *, strict: bool = False) -> list[Verdict]:
    """The verdict on each memory and lock that agents worked on, by key."""
    return [
        verdict
        for _, history in sorted(by_key(operations).items())
        for verdict in check(history, model_of(history, strict=strict))
    ]
