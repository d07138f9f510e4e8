"""A failed quorum: that it is counted once, and what its error says."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from crdt_spine.call import Call, too_late
from crdt_spine.cli.outcome import error_line
from crdt_spine.core.messages import Result, Store
from crdt_spine.errors import QuorumFailed, SpineError
from crdt_spine.limits import QUORUM_FAILURES_REMEMBERED_MAX
from crdt_spine.node.load import Load

REFUSED = Result(
    i=1, error="Busy", message="quorum: node a reaches 1 of 2", outcome="not applied", acks_seen=1, acks_needed=2,
    missing=("b", "c"),
)  # fmt: skip


def failed(problem: Result | None, *, open_attempts: int = 0) -> QuorumFailed:
    """The error of a write whose time is over, of which this was heard last."""

    async def error() -> SpineError:
        loop = asyncio.get_running_loop()
        call = Call(Store(i=1, id="m", content="x"), ("a", "b", "c"), (0,), True, None, 3.0, loop, None)
        call.problem, call.open_attempts = problem, open_attempts
        return too_late(call, connected=True, address="nats://here", write_quorum=2)

    found = asyncio.run(error())
    assert isinstance(found, QuorumFailed)
    return found


def test_an_operation_that_is_tried_again_and_again_fails_once() -> None:
    load = Load(1)
    for _ in range(7):
        load.quorum_failed("inbox.1", 1)
    assert load.totals["quorum_failures"] == 1
    load.quorum_failed("inbox.1", 2)
    load.quorum_failed("inbox.2", 1)
    assert load.totals["quorum_failures"] == 3


def test_what_was_counted_is_remembered_while_it_is_tried_and_within_bounds() -> None:
    load = Load(1)
    for i in range(2 * QUORUM_FAILURES_REMEMBERED_MAX):
        load.quorum_failed("inbox", i)
        load.quorum_failed("other", 1)
    assert load.totals["quorum_failures"] == 2 * QUORUM_FAILURES_REMEMBERED_MAX + 1
    assert len(load._failed) == QUORUM_FAILURES_REMEMBERED_MAX


def test_a_write_that_was_not_applied_was_not_said_to_be_on_a_replica() -> None:
    error = failed(REFUSED)
    assert (error.outcome, error.acks, error.needed, error.missing) == ("not applied", 1, 2, ("b", "c"))
    assert str(error) == (
        "the write was not confirmed within 3 s (not applied): 1 of the 2 replicas needed were reached, b, c were not; "
        "the last answer: quorum: node a reaches 1 of 2"
    )


def test_who_was_reached_by_a_refusal_is_not_known_to_have_an_earlier_attempt() -> None:
    error = failed(REFUSED, open_attempts=1)
    assert (error.outcome, error.acks, error.missing) == ("unknown", 1, ("b", "c"))
    assert "(unknown): 1 of the 2 replicas needed were reached, b, c were not; the last" in str(error)


def test_a_write_that_nobody_answered_is_not_known_to_be_on_a_replica() -> None:
    error = failed(None, open_attempts=1)
    assert (error.outcome, error.acks, error.missing) == ("unknown", 0, ("a", "b", "c"))
    assert str(error).endswith("(unknown): 0 of the 2 replicas needed are known to have it, a, b, c are not")


def test_a_full_disk_is_no_replica_that_was_not_reached() -> None:
    error = failed(Result(i=1, error="Busy", message="the disk of node a is full", outcome="not applied"))
    assert str(error) == (
        "the write was not confirmed within 3 s (not applied); the last answer: the disk of node a is full"
    )


@pytest.mark.parametrize("missing", [(), ("b", "c")])
def test_the_json_of_a_failed_quorum_left_out_who_is_missing(missing: tuple[str, ...]) -> None:
    error = QuorumFailed("too few", outcome="not applied", acks=1, needed=2, missing=missing)
    assert msgspec.json.decode(error_line(error, as_json=True)) == {
        "error": "QuorumFailed", "message": "too few", "outcome": "not applied", "acks": 1, "needed": 2,
        "missing": list(missing),
    }  # fmt: skip
