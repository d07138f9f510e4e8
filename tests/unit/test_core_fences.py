"""Fencing tokens: who may write, what is forgotten, what comes back from a checkpoint or a journal."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core import fences as module
from crdt_spine.core.fences import Fence, Fences, epoch_of, refused, sequence_of, token_of
from crdt_spine.core.messages import encode

tokens = st.integers(1, 1 << 45)
locks = st.sampled_from(["a", "b", "c", "d", "e"])
fences = st.builds(Fence, locks, tokens)


@given(st.integers(0, module.EPOCH_MAX), st.integers(0, module.SEQUENCE_MAX))
def test_a_token_has_its_epoch_and_its_sequence(epoch: int, sequence: int) -> None:
    token = token_of(epoch, sequence)
    assert (epoch_of(token), sequence_of(token)) == (epoch, sequence)
    assert 0 <= token < 1 << 63


@given(st.integers(0, module.EPOCH_MAX - 1), st.integers(0, module.SEQUENCE_MAX), st.integers(0, module.SEQUENCE_MAX))
def test_any_token_of_a_later_epoch_is_higher(epoch: int, one: int, other: int) -> None:
    assert token_of(epoch + 1, other) > token_of(epoch, one)


@given(st.lists(fences))
def test_only_the_newest_lease_of_a_lock_is_admitted(heard: list[Fence]) -> None:
    known = Fences()
    for fence in heard:
        rises = fence.token > known.newest(fence.lock)
        assert known.learn(fence) == rises
    for lock in {fence.lock for fence in heard}:
        newest = max(fence.token for fence in heard if fence.lock == lock)
        assert known.newest(lock) == newest
        assert known.admits(Fence(lock, newest)) and known.admits(Fence(lock, newest + 1))
        assert not known.admits(Fence(lock, newest - 1))
    assert known.highest == max((fence.token for fence in heard), default=0)


@given(st.lists(fences), st.lists(fences))
def test_nothing_that_was_refused_is_admitted_later_however_much_is_forgotten(
    first: list[Fence], later: list[Fence]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FENCES_MAX", 2)
        known = Fences()
        for fence in first:
            known.learn(fence)
        outdated = [fence for fence in first if not known.admits(fence)]
        for fence in later:
            known.learn(fence)
        assert len(known.tokens) <= 2
        assert not [fence for fence in outdated if known.admits(fence)]


def test_what_is_forgotten_is_the_lock_that_was_not_heard_of_for_longest() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FENCES_MAX", 2)
        known = Fences()
        for fence in (Fence("old", 1), Fence("busy", 2), Fence("old", 1), Fence("new", 3)):  # "old" was renewed
            known.learn(fence)
        assert known.tokens == {"old": 1, "new": 3} and known.floor == 2
        assert known.admits(Fence("old", 1)) and known.admits(Fence("busy", 2)) and not known.admits(Fence("other", 1))


@given(st.lists(fences), st.integers(0, 100))
def test_a_checkpoint_brings_everything_back(heard: list[Fence], epoch: int) -> None:
    known, again = Fences(), Fences()
    for fence in heard:
        known.learn(fence)
    known.learn_epoch(epoch)
    again.restore(msgspec.json.decode(msgspec.json.encode(known.saved)))
    assert again.saved == known.saved
    empty = Fences()
    empty.restore({})
    assert empty.saved == Fences().saved


def test_a_journal_tells_of_a_lease_and_of_an_epoch_alone() -> None:
    known = Fences()
    known.recall(msgspec.json.decode(encode(Fence("a", token_of(3, 7))), type=Fence))
    known.recall(Fence("-", token_of(5, 0)))
    assert known.tokens == {"a": token_of(3, 7)} and known.epoch == 5


def test_what_was_only_told_is_journaled_once_something_is_written_under_it() -> None:
    known = Fences()
    known.learn(Fence("a", 5))
    assert known.keep(Fence("a", 5)) and not known.keep(Fence("a", 5))
    assert known.keep(Fence("a", 6)) and known.newest("a") == 6


def test_who_is_refused_is_told_what_is_newer() -> None:
    known = Fences()
    known.learn(Fence("a", 9))
    assert refused(known, [Fence("a", 8), Fence("a", 9), Fence("b", 1)]) == [Fence("a", 9)]


@pytest.mark.parametrize("wrong", [{"lock": ""}, {"token": -1}, {"token": 1 << 63}, {"more": 1}, {"type": "fence/2"}])
def test_what_is_no_fence_is_refused(wrong: dict[str, object]) -> None:
    right = {"type": "fence/1", "lock": "a", "token": 1}
    assert msgspec.json.decode(encode(right), type=Fence) == Fence("a", 1)
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(encode(right | wrong), type=Fence)
