"""The checker of histories: against known ones, and against one that simply tries all orders."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from histories import history
from histories.history import Operation
from histories.linearizability import IMPOSSIBLE, Model, State, check, check_key
from histories.models import UNSEEN, Lock, Register
from histories.shortest import shortest
from hypothesis import given, settings
from hypothesis import strategies as st


def _op(text: str, invoke: int, returned: int | None = None, process: str = "") -> Operation:
    """An operation in short; no return: its outcome is unknown.

    w x · r x · r - · u x · u x!absent · d+ · d- · c x y (expects version vx) · c x y!version · c x y!absent
    """
    words, _, refused = text.partition("!")
    kind, *arguments = words.split()
    known = returned is not None
    output: dict[str, Any] = {"refused": refused} if refused else {}
    fields: dict[str, Any] = {}
    match kind:
        case "w":
            fields = {"operation": "write", "input": {"value": arguments[0]}}
        case "r":
            value = None if arguments[0] == "-" else arguments[0]
            fields = {"operation": "read"}
            output = {"value": value, "version": value and f"v{value}"}
        case "u":
            fields = {"operation": "update", "input": {"value": arguments[0]}}
        case "c":
            fields = {"operation": "cas", "input": {"expected": f"v{arguments[0]}", "value": arguments[1]}}
        case "d+" | "d-":
            fields = {"operation": "delete"}
            output = {"found": kind == "d+"}
    if kind in "wuc" and not refused:
        output = {"value": arguments[-1], "version": f"v{arguments[-1]}"}
    return Operation(
        process=process or f"p{invoke}", key="k", output=output if known else {}, invoke=invoke,
        returned=returned if known else 10**9, outcome="ok" if known else "unknown", **fields,
    )  # fmt: skip


def _holds(*operations: Operation, model: Model | None = None) -> bool | None:
    return check_key("k", operations, model or Register()).linearizable


ACCEPTED = {
    "one after the other": [_op("w a", 1, 2), _op("r a", 3, 4), _op("w b", 5, 6), _op("r b", 7, 8)],
    "nothing there at first": [_op("r -", 1, 2), _op("d-", 3, 4), _op("u a!absent", 5, 6)],
    "a read during a write shows the old value": [_op("w a", 1, 2), _op("w b", 3, 9), _op("r a", 4, 5)],
    "or the new one": [_op("w a", 1, 2), _op("w b", 3, 9), _op("r b", 4, 5)],
    "first the old, then the new": [_op("w a", 1, 2), _op("w b", 3, 9), _op("r a", 4, 5), _op("r b", 6, 7)],
    "an unknown write has happened": [_op("w a", 1, 2), _op("w b", 3), _op("r b", 5, 6)],
    "or not": [_op("w a", 1, 2), _op("w b", 3), _op("r a", 5, 6)],
    "it happens late": [_op("w a", 1, 2), _op("w b", 3), _op("r a", 5, 6), _op("w c", 7, 8), _op("r b", 9, 10)],
    "one compare-and-set wins": [
        _op("w a", 1, 2), _op("c a b", 3, 9), _op("c a c!version", 4, 8), _op("r b", 10, 11),
    ],
    "an unknown compare-and-set has won": [
        _op("w a", 1, 2), _op("c a b", 3), _op("c a c!version", 4, 8), _op("r b", 10, 11),
    ],
    "a deletion in between": [_op("w a", 1, 2), _op("d+", 3, 6), _op("c a b!absent", 4, 5), _op("r -", 7, 8)],
    "an update of what is there": [_op("w a", 1, 2), _op("u b", 3, 4), _op("d+", 5, 6), _op("u c!absent", 7, 8)],
    "touching times overlap": [_op("w a", 1, 5), _op("r -", 5, 6)],
    "of two unknown ones that did the same the one that is not needed later": [
        _op("w x", 1, 2), _op("r x", 3, 4), _op("w a", 5), _op("c x a", 6), _op("r a", 7, 8), _op("w y", 9, 10),
        _op("r a", 11, 12),
    ],
    "whichever of them came first": [
        _op("w x", 1, 2), _op("r x", 3, 4), _op("c x a", 5), _op("w a", 6), _op("r a", 7, 8), _op("w y", 9, 10),
        _op("r a", 11, 12),
    ],
    "a refusal without a reason": [_op("w a", 1, 2), _op("c a b!version", 3, 4), _op("r a", 5, 6)],
}  # fmt: skip

REJECTED = {
    "a stale read": [_op("w a", 1, 2), _op("w b", 3, 4), _op("r a", 5, 6)],
    "a lost write": [_op("w a", 1, 2), _op("r -", 3, 4)],
    "a value that nobody wrote": [_op("w a", 1, 2), _op("r z", 3, 4)],
    "the new, then the old": [_op("w a", 1, 2), _op("w b", 3, 9), _op("r b", 4, 5), _op("r a", 6, 7)],
    "two readers see two orders": [
        _op("w a", 1, 9), _op("w b", 2, 10), _op("r a", 11, 12), _op("r b", 13, 14),
    ],
    "two win": [_op("w a", 1, 2), _op("c a b", 3, 9), _op("c a c", 4, 8)],
    "a value comes back": [_op("w a", 1, 2), _op("w b", 3), _op("r b", 4, 5), _op("w c", 6, 7), _op("r b", 8, 9)],
    "one unknown write happens twice": [
        _op("w a", 1, 2), _op("w b", 3), _op("r b", 4, 5), _op("r a", 6, 7),
    ],
    "a deleted memory is changed": [_op("w a", 1, 2), _op("d+", 3, 4), _op("u b", 5, 6)],
    "it is deleted twice": [_op("w a", 1, 2), _op("d+", 3, 4), _op("d+", 5, 6)],
    "a version that nobody saw": [_op("w a", 1, 2), _op("c z b", 3, 4)],
    "absent, but it is there": [_op("w a", 1, 2), _op("c a b!absent", 3, 4)],
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_accepts(name: str) -> None:
    assert _holds(*ACCEPTED[name]) is True
    assert _naive(ACCEPTED[name], Register())


@pytest.mark.parametrize("name", REJECTED)
def test_it_rejects(name: str) -> None:
    assert _holds(*REJECTED[name]) is False
    assert not _naive(REJECTED[name], Register())


def test_a_refusal_without_a_reason_is_rejected_where_one_is_strict() -> None:
    assert _holds(*ACCEPTED["a refusal without a reason"], model=Register(strict=True)) is False
    for name in ACCEPTED.keys() - {"a refusal without a reason"}:
        assert _holds(*ACCEPTED[name], model=Register(strict=True)) is True, name


def test_one_version_has_one_value() -> None:
    read = _op("r b", 3, 4)
    same = Operation(
        process="q", operation="read", key="k", output={**read.output, "version": "va"}, invoke=5, returned=6
    )
    verdict = check_key("k", [_op("w a", 1, 2), _op("w b", 1), read, same], Register())
    assert verdict.linearizable is False
    assert verdict.stuck is same


def test_a_new_version_of_the_same_value_is_taken_and_so_is_the_old_one() -> None:
    reads = [
        Operation(
            process="q", operation="read", key="k", output={"value": "a", "version": version}, invoke=i, returned=i
        )
        for i, version in ((3, "va"), (4, "v2"))
    ]
    for expected in ("va", "v2"):
        swap = Operation(
            process="p", operation="cas", key="k", input={"expected": expected, "value": "b"},
            output={"value": "b", "version": "vb"}, invoke=5, returned=6,
        )  # fmt: skip
        assert _holds(_op("w a", 1, 2), *reads, swap, _op("r b", 7, 8), model=Register(strict=True)) is True


def test_failed_operations_never_happened() -> None:
    failed = Operation(
        process="p", operation="write", key="k", input={"value": "b"}, invoke=3, returned=4, outcome="fail"
    )
    assert _holds(_op("w a", 1, 2), failed, _op("r a", 5, 6)) is True
    assert _holds(_op("w a", 1, 2), failed, _op("r b", 5, 6)) is False


def test_keys_are_looked_at_alone() -> None:
    others = [
        Operation(
            process="q", operation="read", key="other", output={"value": None, "version": None}, invoke=5, returned=6
        )
    ]
    verdicts = check([*REJECTED["a stale read"], *others], Register())
    assert [(verdict.key, verdict.linearizable) for verdict in verdicts] == [("k", False), ("other", True)]
    assert verdicts[0].stuck == REJECTED["a stale read"][-1]
    assert verdicts[0].states == (UNSEEN,)


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    operations = [operation for name in ACCEPTED for operation in ACCEPTED[name]]
    history.write(tmp_path / "h" / "one.jsonl", operations)
    assert sorted(map(repr, history.read(tmp_path / "h" / "one.jsonl"))) == sorted(map(repr, operations))
    (tmp_path / "bad.jsonl").write_text('{"process": "p"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: .*operation"):
        history.read(tmp_path / "bad.jsonl")


# -- all orders ------------------------------------------------------------------------------------------------------


def _naive(operations: Sequence[Operation], model: Model) -> bool:
    """Wing and Gong's search without anything that makes it quick: every order that time allows."""
    history = [one for one in operations if one.outcome != "fail"]
    left = [(one, effect) for one, effect in zip(history, model.effects(history), strict=True) if effect is not None]

    def some_order(left: list[Any], state: State) -> bool:
        if all(one.outcome == "unknown" for one, _ in left):
            return True
        first = min((one.returned for one, _ in left if one.outcome == "ok"))
        for index, (one, effect) in enumerate(left):
            after = effect.apply(state) if one.invoke <= first else IMPOSSIBLE
            if after is not IMPOSSIBLE and some_order(left[:index] + left[index + 1 :], after):
                return True
        return False

    return some_order(left, model.initial)


_values = st.sampled_from("abc")
_words = st.one_of(
    st.builds("w {}".format, _values),
    st.builds("r {}".format, st.sampled_from("abc-")),
    st.builds("c {} {}".format, _values, _values),
    st.builds("c {} {}!version".format, _values, _values),
    st.builds("c {} {}!absent".format, _values, _values),
    st.builds("u {}".format, _values),
    st.builds("u {}!absent".format, _values),
    st.sampled_from(["d+", "d-"]),
)


@st.composite
def _histories(draw: st.DrawFn) -> list[Operation]:
    operations = []
    for _ in range(draw(st.integers(1, 7))):
        invoke = draw(st.integers(0, 12))
        returned = draw(st.one_of(st.none(), st.integers(invoke, invoke + 6), st.integers(invoke, invoke + 6)))
        operations.append(_op(draw(_words), invoke, returned))
    return sorted(operations, key=lambda one: one.invoke)


@settings(max_examples=300, deadline=None)
@given(_histories(), st.booleans())
def test_it_says_what_trying_all_orders_says_of_registers(operations: list[Operation], strict: bool) -> None:
    model = Register(strict=strict)
    assert _holds(*operations, model=model) is _naive(operations, model)


_leases = st.sampled_from(["l1", "l2", "l3"])


@st.composite
def _lock_histories(draw: st.DrawFn) -> list[Operation]:
    operations = []
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(
            st.sampled_from(["acquire", "acquire", "acquire", "release", "release", "renew", "expire", "write"])
        )
        invoke = draw(st.integers(0, 12))
        unknown = kind == "expire" or draw(st.integers(0, 3)) == 0
        output: dict[str, Any] = {}
        if not unknown:
            output = {
                "acquire": {"token": draw(st.integers(1, 4))}, "write": {"fenced": draw(st.booleans())},
            }.get(kind, {"held": draw(st.booleans())})  # fmt: skip
        operations.append(
            Operation(
                process="p", operation=kind, key="k", input={"lease": draw(_leases)}, output=output, invoke=invoke,
                returned=invoke + draw(st.integers(0, 6)), outcome="unknown" if unknown else "ok",
            )
        )  # fmt: skip
    return sorted(operations, key=lambda one: one.invoke)


@settings(max_examples=200, deadline=None)
@given(_lock_histories())
def test_it_says_what_trying_all_orders_says_of_locks(operations: list[Operation]) -> None:
    assert _holds(*operations, model=Lock()) is _naive(operations, Lock())


# -- locks -----------------------------------------------------------------------------------------------------------


def _lock(kind: str, lease: str, invoke: int, returned: int | None = None, **output: Any) -> Operation:
    return Operation(
        process=lease, operation=kind, key="k", input={"lease": lease}, output=output, invoke=invoke,
        returned=invoke if returned is None else returned, outcome="ok" if returned is not None else "unknown",
    )  # fmt: skip


def test_a_lock_is_held_by_one() -> None:
    first, second = _lock("acquire", "l1", 1, 2, token=1), _lock("acquire", "l2", 3, 4, token=2)
    assert _holds(first, second, model=Lock()) is False
    assert _holds(first, _lock("release", "l1", 2, 5, held=True), second, model=Lock()) is True
    assert _holds(first, _lock("expire", "l1", 3), second, model=Lock()) is True
    assert _holds(first, second, _lock("expire", "l1", 5), model=Lock()) is False, "it had not run out yet"


def test_tokens_rise() -> None:
    freed = [_lock("acquire", "l1", 1, 2, token=5), _lock("release", "l1", 3, 4, held=True)]
    assert _holds(*freed, _lock("acquire", "l2", 5, 6, token=5), model=Lock()) is False
    assert _holds(*freed, _lock("acquire", "l2", 5, 6, token=6), model=Lock()) is True


def test_who_lost_its_lease_is_fenced_off_once_another_one_has_it() -> None:
    lost = [_lock("acquire", "l1", 1, 2, token=1), _lock("expire", "l1", 3)]
    late = _lock("write", "l1", 7, 8, fenced=False)
    assert _holds(*lost, late, model=Lock()) is True
    other = _lock("acquire", "l2", 5, 6, token=2)
    assert _holds(*lost, other, late, model=Lock()) is False
    assert _holds(*lost, other, _lock("write", "l1", 7, 8, fenced=True), model=Lock()) is True
    assert _holds(*lost, other, _lock("renew", "l1", 7, 8, held=False), model=Lock()) is True
    assert _holds(*lost, other, _lock("renew", "l1", 7, 8, held=True), model=Lock()) is False


def test_an_acquisition_whose_answer_was_lost_may_hold_the_lock() -> None:
    unheard = _lock("acquire", "l1", 1)
    assert _holds(unheard, _lock("renew", "l2", 2, 3, held=False), model=Lock()) is True
    assert _holds(unheard, _lock("acquire", "l2", 5, 6, token=2), model=Lock()) is True, "it was not given"
    assert _holds(unheard, _lock("release", "l1", 2, 3, held=True), model=Lock()) is True, "it was"


# -- as large as they are recorded -----------------------------------------------------------------------------------


def _recorded(seed: int, operations: int, keys: int, processes: int, unknown: float) -> list[Operation]:
    """What processes are told by one true register a key, each operation taking effect at a time within it."""
    dice = random.Random(seed)
    pending: list[tuple[float, int, str, str, str | None, float, float]] = []
    free = dict.fromkeys(range(processes), 0.0)
    for number in range(operations):
        process = min(free, key=lambda one: free[one])
        begin = free[process] + dice.random()
        end = begin + dice.expovariate(1.0) + 0.01
        lost = dice.random() < unknown
        effect = dice.uniform(begin, end + (50 if lost else 0))
        free[process] = end
        kind = dice.choice(["read", "read", "write", "cas", "update", "delete"])
        pending.append((effect, number, kind, f"k{dice.randrange(keys)}", "lost" if lost else None, begin, end))
    states: dict[str, str | None] = {}
    seen: dict[str, list[str]] = {}
    done = []
    for _, number, kind, key, lost, begin, end in sorted(pending):
        state, value = states.get(key), f"x{number}"
        fields: dict[str, Any] = {"operation": kind, "input": {"value": value}}
        output: dict[str, Any] = {"value": value, "version": f"v{value}"}
        happens = lost is None or dice.random() < 0.5
        match kind:
            case "read":
                fields["input"], output = {}, {"value": state, "version": state and f"v{state}"}
                happens = False
            case "cas":
                expected = dice.choice(seen.get(key, ["never"])[-2:])
                fields["input"]["expected"] = f"v{expected}"
                if state != expected:
                    output, happens = {"refused": "absent" if state is None else "version"}, False
            case "update" if state is None:
                output, happens = {"refused": "absent"}, False
            case "delete":
                fields["input"], output = {}, {"found": state is not None}
        if happens:
            states[key] = None if kind == "delete" else value
        if lost is None and output.get("value"):
            seen.setdefault(key, []).append(output["value"])
        done.append(
            Operation(
                process=f"p{number % processes}", key=key, invoke=int(begin * 1e9), returned=int(end * 1e9),
                outcome="ok" if lost is None else "unknown", output=output if lost is None else {}, **fields,
            )
        )  # fmt: skip
    return done


def test_a_thousand_operations_take_a_second() -> None:
    began = time.process_time()
    rounds = 4
    for seed in range(rounds):
        operations = _recorded(seed, 1_000, keys=4, processes=10, unknown=0.03)
        assert [verdict for verdict in check(operations, Register(strict=True)) if not verdict.linearizable] == []
    assert (time.process_time() - began) / rounds < 3.0  # a tenth of it on an idle machine


def test_one_wrong_answer_among_a_thousand_is_found() -> None:
    for seed in range(4):
        operations = _recorded(seed, 1_000, keys=4, processes=10, unknown=0.03)
        reads = [n for n, one in enumerate(operations) if one.operation == "read" and one.output.get("value")]
        number = reads[len(reads) // 2]
        read = operations[number]
        later = [one for one in operations if one.key == read.key and one.operation == "write" and one.outcome == "ok"]
        future = max(later, key=lambda one: one.invoke).input["value"]
        output = {"value": future, "version": f"v{future}"}
        wrong = Operation(
            process=read.process, operation="read", key=read.key, output=output, invoke=read.invoke,
            returned=read.returned,
        )  # fmt: skip
        verdicts = check([*operations[:number], wrong, *operations[number + 1 :]], Register())
        assert [verdict.key for verdict in verdicts if verdict.linearizable is False] == [read.key]


# -- the shortest part -----------------------------------------------------------------------------------------------


def test_of_a_long_history_that_part_is_shown_which_contradicts_itself() -> None:
    operations = [one for one in _recorded(1, 1_000, keys=1, processes=10, unknown=0.03) if one.outcome == "ok"]
    assert shortest(operations, Register()) is None
    last = max(one.returned for one in operations)
    written = _op("w new", last + 1, last + 2)
    old = next(one.input["value"] for one in operations if one.operation == "write")
    stale = _op(f"r {old}", last + 3, last + 4)
    later = [_op("w newer", last + 5, last + 6), _op("r newer", last + 7, last + 8)]
    part = shortest([*operations, written, stale, *later], Register())
    assert part is not None
    assert part.operations == (written, stale)
    assert len(part.others) <= 10, "it begins shortly before"


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_shown_has_no_order_by_itself(name: str) -> None:
    part = shortest(REJECTED[name], Register())
    assert part is not None
    assert set(map(repr, part.operations)) <= set(map(repr, REJECTED[name]))
    assert part.operations


@settings(max_examples=200, deadline=None)
@given(_lock_histories())
def test_there_is_such_a_part_where_there_is_no_order(operations: list[Operation]) -> None:
    assert (shortest(operations, Lock()) is None) is _naive(operations, Lock())
