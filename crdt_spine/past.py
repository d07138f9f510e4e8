"""What was: a memory's earlier versions, and the values that were lost to concurrent writes.

Both are kept by each replica for itself, of what it saw (core/conflicts.py, storage/history.py). So all replicas are
asked and their answers united: the same version, or the same lost write, counts once. That a replica was slow before is
no reason to go without it, for it may be the only one that has a receipt: who answers within PAST_SECONDS_MAX counts.

What is shown, a session has read: it goes into its token, like all that it reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import msgspec

from crdt_spine.call import Moved
from crdt_spine.core.causality import Vector, join_into
from crdt_spine.core.clock import moment
from crdt_spine.core.conflicts import Receipt, place_in
from crdt_spine.core.messages import Conflicts, History, Result, Vectors
from crdt_spine.core.version import version_vector
from crdt_spine.errors import ConnectionFailed, SpineError
from crdt_spine.limits import PAST_SECONDS_MAX
from crdt_spine.memory import Conflict, Memory
from crdt_spine.session import Session

T = TypeVar("T")
POLL_SECONDS = 0.05
PAGE_RECEIPTS = 200

_decode_memory = msgspec.json.Decoder(Memory).decode
_decode_receipt = msgspec.json.Decoder(Receipt).decode


async def history(session: Session, id: str) -> list[Memory]:
    """The memory's versions that this cluster still knows, newest first; the first one is how it is now, if it lives.
    Raises ConnectionFailed, StaleToken."""
    number = session.layout.partition_of(id)

    def replicas() -> Collection[str]:
        return session.layout.replicas[number]

    answers = await _everywhere(session, replicas, lambda node: _versions(session, node, id))
    found = {memory.version: memory for memories, _ in answers.values() for memory in memories}
    seen: Vector = {}
    for version in found:
        join_into(seen, version_vector(version))
    session.see({session.layout.partition_of(id): seen})
    living = {version for _, version in answers.values() if version in found}
    latest = max((found[version].updated_at for version in living), default=None)
    return sorted(
        found.values(),
        key=lambda memory: (
            memory.updated_at,
            memory.updated_at == latest and memory.version in living,
            memory.version,
        ),
        reverse=True,
    )


async def conflicts(session: Session, id: str | None, limit: int) -> list[Conflict]:
    """The values lost to concurrent writes of which this cluster still knows, newest first. Raises ConnectionFailed,
    StaleToken."""

    def nodes() -> Collection[str]:
        if id is not None:
            return session.layout.replicas[session.layout.partition_of(id)]
        return [node.id for node in session.hello.nodes]

    answers = await _everywhere(session, nodes, lambda node: _receipts(session, node, id, limit))
    for number, replicas in session.layout.replicas.items():
        if id is None and answers.keys().isdisjoint(replicas):
            raise ConnectionFailed(f"no replica of partition {number} answered: {', '.join(replicas)}")
    found: dict[tuple[str, tuple[str, str, int]], Receipt] = {}
    for receipt in (one for receipts in answers.values() for one in receipts):
        key = (receipt.id, receipt.key)
        if key not in found or found[key].winner < receipt.winner:  # what it lost to differs, where there were several
            found[key] = receipt
    newest = sorted(found.values(), key=place_in, reverse=True)[:limit]
    seen: Vectors = {}
    for receipt in newest:
        vector = seen.setdefault(session.layout.partition_of(receipt.id), {})
        for origin in (receipt.loser, receipt.winner):
            if origin.n:
                join_into(vector, {origin.actor: origin.n})
    session.see(seen)
    return [_conflict(receipt) for receipt in newest]


async def _versions(session: Session, node: str, id: str) -> tuple[list[Memory], str | None]:
    """All versions that a node knows, and which of them is the living memory."""
    memories: list[Memory] = []
    result: Result | None = None
    while result is None or (result.more and result.hits):
        after = (result.hits[-1].created, result.hits[-1].id) if result is not None and result.hits else None
        operation = History(i=session.number(), id=id, after=after)
        numbers = (session.layout.partition_of(id),)
        result = await session.run(operation, (node,), numbers, timeout=min(PAST_SECONDS_MAX, session.timeout))
        memories += [_decode_memory(hit.memory) for hit in result.hits or ()]
    return memories, result.version


async def _receipts(session: Session, node: str, id: str | None, limit: int) -> list[Receipt]:
    """A node's newest receipts, at most `limit`."""
    replicas = session.layout.replicas
    numbers = [number for number, nodes in replicas.items() if node in nodes]
    if id is not None:
        numbers = [session.layout.partition_of(id)]
    receipts: list[Receipt] = []
    more = True
    while more and len(receipts) < limit:
        operation = Conflicts(
            i=session.number(), id=id, limit=min(PAGE_RECEIPTS, limit - len(receipts)),
            after=place_in(receipts[-1]) if receipts else None,
        )  # fmt: skip
        result = await session.run(operation, (node,), numbers, timeout=min(PAST_SECONDS_MAX, session.timeout))
        receipts += [_decode_receipt(raw) for raw in result.receipts or ()]
        more = result.more and bool(result.receipts)
    return receipts


async def _everywhere(
    session: Session, nodes: Callable[[], Collection[str]], ask: Callable[[str], Awaitable[T]]
) -> dict[str, T]:  # fmt: skip
    """The answer of every node that `nodes` names, while that may change; one at which nobody listens is not waited for
    once another one has answered. Raises what the last one raised where none answers."""
    tasks: dict[asyncio.Future[T], str] = {}
    answers: dict[str, T] = {}
    error: SpineError | None = None
    pending: set[asyncio.Future[T]] = set()
    began = asyncio.get_running_loop().time()
    deadline = began + session.timeout
    try:
        while True:
            for node in nodes():
                if node not in tasks.values():
                    tasks[asyncio.ensure_future(ask(node))] = node
            pending = {task for task in tasks if not task.done()}
            if not pending:
                break
            done, pending = await asyncio.wait(pending, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            moved = False
            for task in done:
                try:
                    answers[tasks[task]] = task.result()
                except Moved as failed:
                    error, moved = failed, True
                except SpineError as failed:
                    error = failed
            if moved and not answers and asyncio.get_running_loop().time() < deadline:
                await session.renewed()
                tasks = {task: node for task, node in tasks.items() if not task.done()}
            present = nodes()
            if answers and all(session.health.gone(tasks[t], began) or tasks[t] not in present for t in pending):
                break
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    if not answers:
        raise error or ConnectionFailed("no node answered")
    return answers


def _conflict(receipt: Receipt) -> Conflict:
    return Conflict(
        memory_id=receipt.id,
        field=receipt.field,
        lost=receipt.lost,
        kept=receipt.kept,
        lost_agent=receipt.loser.agent,
        kept_agent=receipt.winner.agent,
        lost_at=moment(receipt.loser.time),
        kept_at=moment(receipt.winner.time),
    )
