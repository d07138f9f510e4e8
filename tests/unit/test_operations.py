"""The operation ids that a node knows: what each became, those of a partition that somebody misses, the oldest gone."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.operations import Operations

MOST = 6
ids = st.sampled_from([f"s-{k}" for k in range(10)])
puts = st.tuples(ids, st.integers(0, 2), st.sampled_from(["r/a@1", "r/b@1"]), st.integers(1, 9))


@given(st.lists(puts, max_size=40), st.sets(st.integers(0, 2)))
def test_they_are_what_one_dictionary_of_all_would_have(given: list[tuple[str, int, str, int]], kept: set[int]) -> None:
    operations, naive = Operations(MOST), OrderedDict[str, tuple[int, str, int]]()
    for operation, number, actor, n in given:
        operations.put(operation, number, actor, n)
        naive[operation] = number, actor, n
        if len(naive) > MOST:
            naive.popitem(last=False)
    for step in range(2):
        assert len(operations) == len(naive)
        assert {f"s-{k}": operations.get(f"s-{k}") for k in range(10)} == {
            f"s-{k}": naive.get(f"s-{k}") for k in range(10)
        }
        for number in range(3):
            for have in ({}, {"r/a@1": 4}, {"r/a@1": 9, "r/b@1": 9}):
                missed = {op: (a, n) for op, (p, a, n) in naive.items() if p == number and have.get(a, 0) < n}
                assert operations.since(number, have) == missed
        if step == 0:
            operations.keep(kept)
            for operation in [op for op, (p, _, _) in naive.items() if p not in kept]:
                del naive[operation]


def test_a_partition_is_looked_through_alone() -> None:
    """Each of a node's partitions is asked for when another one comes back: all ids for each was two seconds."""
    operations = Operations()
    for n in range(1, 20_001):
        operations.put(f"s-{n}", n % 64, "r/a@1", n)
    assert sum(len(operations.since(number, {})) for number in range(64)) == 20_000
    assert max(len(dots) for dots in operations._dots.values()) <= 20_000 // 64 + 1
