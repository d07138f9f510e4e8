"""Things are spread over nodes as evenly as they can be, and as few of them move as must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from crdt_spine.core.evenness import even_out


def evened(choices: list[str], where: list[str]) -> list[str]:
    """Things that may lie on some nodes (`choices`, a letter each), and lie there: where they lie then."""
    where = list(where)
    load = Counter(dict.fromkeys(sorted("".join(choices)), 0))
    load.update(where)

    def find(frm: str, to: str, used: Collection[int]) -> int | None:
        can = (thing for thing, there in enumerate(where) if there == frm and to in choices[thing])
        return next((thing for thing in can if thing not in used), None)

    def shift(thing: int, frm: str, to: str) -> None:
        assert where[thing] == frm and to in choices[thing]
        where[thing] = to
        load[frm] -= 1
        load[to] += 1

    even_out(load, find, shift)
    assert +load == Counter(where)
    return where


def shares(choices: list[str], where: list[str]) -> list[int]:
    return sorted((Counter(where)[node] for node in set("".join(choices))), reverse=True)


def test_where_nothing_can_go_directly_a_chain_goes() -> None:
    assert evened(["ab", "ab", "bc"], ["a", "a", "b"]) in (["b", "a", "c"], ["a", "b", "c"])
    assert Counter(evened(["ab", "ab", "bc", "cd"], ["a", "a", "b", "c"])) == Counter("abcd")


def test_what_is_even_stays() -> None:
    assert evened(["ab", "ab", "ab"], ["a", "a", "b"]) == ["a", "a", "b"]
    assert evened([], []) == []


@settings(deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcd"), min_size=1), max_size=6), st.randoms(use_true_random=False))
def test_no_other_choice_is_more_even(sets: list[set[str]], chance: object) -> None:
    choices = ["".join(sorted(some)) for some in sets]
    where = [chance.choice(some) for some in choices]  # type: ignore[attr-defined]
    best = min((shares(choices, list(there)) for there in product(*choices)), default=[])
    assert shares(choices, evened(choices, where)) == best
