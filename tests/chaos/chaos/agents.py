"""Agents at work, as a process of their own: `python -m chaos.agents …`. Each call and what came of it is recorded.

Kinds of memories, each with its own rules so that a checker knows what must be:

    register  r-<n>   stored before the run; agents store and update its content; never deleted
    tagged    t-<n>   stored before the run; agents add and remove tags only
    doomed    made by agents, updated and deleted by anybody; never stored again
    note      made by agents and left alone
    thread    threads' entries

An agent is one session until its token is lost (StaleToken: the only replica that had what it saw is gone), then it
begins a new one. Subscribers listen for the tag "news" until they have heard a last word in every partition.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from chaos.history import Do, Op, Outcome, Recorder, Told
from crdt_spine.errors import ConnectionFailed, NotFound, QuorumFailed, SpineError, StaleToken
from crdt_spine.memory import Memory
from crdt_spine.spine import Spine

REGISTERS = 24
OWN_REGISTERS = 2  # an agent's, where a rule is taken away: what comes late is shown to who has written on
TAGGED = 16
THREADS = 4
CALL_SECONDS = 4.0
PAUSE_SECONDS = 0.02  # at most, between two calls of an agent
PREFIX_LAST = "last-"
LEVELS = ("read-your-writes",) * 7 + ("causal",) * 2 + ("eventual",) * 2
LISTEN_SECONDS = 90.0  # after the load has ended

clock = time.monotonic

#: What can be taken away, so that checkers must speak: a rule less, as the simulator has it.
WITHOUT = {
    "deadlines": "a node takes a write however late it finds it (crdt_spine/lateness.py)",
}


class Agent:
    """One agent: steps at random, one call at a time."""

    def __init__(self, name: str, url: str, dice: random.Random, recorder: Recorder, without: str = "") -> None:
        self.name = name
        self._url = url
        self._dice = dice
        self._recorder = recorder
        self._without = without
        self._sessions = 0
        self._count = 0
        self._spine: Spine | None = None
        self._sent = 0
        self._tags: dict[str, set[str]] = {}  # what a tagged memory showed last
        self._doomed: deque[str] = deque(maxlen=12)
        self._steps: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (9, self._store_register), (9, self._update_register), (20, self._get_register),
            (8, self._add_tag), (6, self._remove_tag), (6, self._get_tagged),
            (7, self._store_doomed), (3, self._update_doomed), (5, self._delete_doomed), (4, self._get_doomed),
            (3, self._find_doomed), (6, self._store_note), (3, self._find_notes), (6, self._append), (3, self._read),
        ]  # fmt: skip
        self._own: list[str] = []
        if without:
            first = int(name[1:]) * OWN_REGISTERS % REGISTERS
            self._own = [f"r-{number}" for number in range(first, first + OWN_REGISTERS)]
            self._steps = self._steps[:3]

    async def work(self, until: float) -> None:
        """Until then."""
        weights = [weight for weight, _ in self._steps]
        try:
            while clock() < until:
                if self._spine is None and not await self._connect():
                    continue
                [(_, step)] = self._dice.choices(self._steps, weights)
                await step()
                await asyncio.sleep(self._dice.random() * PAUSE_SECONDS)
        finally:
            await self._leave()

    async def _connect(self) -> bool:
        spine = Spine.connect(self._url, agent=self.name, timeout=CALL_SECONDS)
        try:
            self._spine = await spine.__aenter__()
        except SpineError:
            await asyncio.sleep(0.1)
            return False
        self._sessions += 1
        self._tags.clear()
        session: Any = self._spine._live
        send = session.requests.send

        def counted(node: str, retry: bool, calls: list[Any], hedge: bool = False) -> Any:
            self._sent += len(calls)
            return send(node, retry, calls, hedge)

        session.requests.send = counted
        if self._without == "deadlines":
            session.lateness.by = lambda node, now: 0
        return True

    async def _leave(self) -> None:
        if self._spine is not None:
            with contextlib.suppress(SpineError):
                await self._spine.close()
            self._spine = None

    # -- one call, recorded -----------------------------------------------------------------------------------------

    async def _call(
        self, do: Do, kind: str, call: Callable[[Spine, str], Awaitable[Any]], show: Callable[[Any], dict[str, Any]],
        **fields: Any,
    ) -> Any:  # fmt: skip
        """Run it and write down what was asked, when, and what came of it; None where it failed."""
        assert self._spine is not None
        level, session = self._dice.choice(LEVELS), f"{self.name}/{self._sessions}"
        began, self._sent = clock(), 0
        answer: Any = None
        outcome: Outcome = "ok"
        error = ""
        try:
            answer = await call(self._spine, level)
            fields |= show(answer)
        except SpineError as failed:
            error = f"{type(failed).__name__}: {failed}"
            outcome = _outcome(failed) if do in ("store", "update", "delete", "append") else "failed"
            if isinstance(failed, StaleToken):
                await self._leave()
        except asyncio.CancelledError:
            outcome, error = "unknown", "cancelled"
            raise
        finally:
            self._recorder.add(
                Op(
                    session=session, do=do, kind=kind, level=level, call=began, back=clock(), outcome=outcome,
                    tries=max(1, self._sent), error=error, **fields,
                )
            )  # fmt: skip
        return answer

    def _value(self) -> str:
        self._count += 1
        return f"{self.name}.{self._count}"

    async def _store(self, kind: str, id: str | None, tags: tuple[str, ...]) -> Memory | None:
        value = self._value()
        memory: Memory | None = await self._call(
            "store", kind, lambda spine, level: spine.store(value, id=id, tags=tags, consistency=level),
            lambda memory: {"id": memory.id}, value=value, **({} if id is None else {"id": id}),
        )  # fmt: skip
        return memory

    async def _get(self, kind: str, id: str) -> Memory | None:
        memory: Memory | None = await self._call(
            "get", kind, lambda spine, level: spine.get(id, consistency=level), _shown, id=id
        )  # fmt: skip
        return memory

    async def _update(self, kind: str, id: str) -> None:
        value = self._value()
        await self._call(
            "update", kind, lambda spine, level: spine.update(id, content=value, consistency=level), _nothing, id=id,
            value=value,
        )  # fmt: skip

    # -- steps ------------------------------------------------------------------------------------------------------

    async def _store_register(self) -> None:
        await self._store("register", self._register(), ("register",))

    async def _update_register(self) -> None:
        await self._update("register", self._register())

    async def _get_register(self) -> None:
        await self._get("register", self._register())

    def _register(self) -> str:
        return self._dice.choice(self._own) if self._own else f"r-{self._dice.randrange(REGISTERS)}"

    async def _add_tag(self) -> None:
        id, tag = f"t-{self._dice.randrange(TAGGED)}", f"x-{self._value()}"
        await self._change_tags(id, (tag,), ())

    async def _remove_tag(self) -> None:
        id = f"t-{self._dice.randrange(TAGGED)}"
        there = sorted(tag for tag in self._tags.get(id, ()) if tag.startswith("x-"))
        if there:
            tag = self._dice.choice(there)
            again = (tag,) if self._dice.random() < 0.2 else ()  # it is taken away and put back: a new add
            await self._change_tags(id, (), (tag,))
            if again:
                await self._change_tags(id, again, ())

    async def _change_tags(self, id: str, add: tuple[str, ...], remove: tuple[str, ...]) -> None:
        def change(spine: Spine, level: str) -> Awaitable[Memory]:
            return spine.update(id, add_tags=add, remove_tags=remove, consistency=level)

        memory = await self._call("update", "tagged", change, _shown, id=id, add=add, remove=remove)
        if memory is not None:
            self._tags[id] = set(memory.tags)

    async def _get_tagged(self) -> None:
        memory = await self._get("tagged", f"t-{self._dice.randrange(TAGGED)}")
        if memory is not None:
            self._tags[memory.id] = set(memory.tags)

    async def _store_doomed(self) -> None:
        memory = await self._store("doomed", None, ("doomed", "news"))
        if memory is not None:
            self._doomed.append(memory.id)

    async def _update_doomed(self) -> None:
        if self._doomed:
            await self._update("doomed", self._dice.choice(self._doomed))

    async def _get_doomed(self) -> None:
        if self._doomed:
            await self._get("doomed", self._dice.choice(self._doomed))

    async def _delete_doomed(self) -> None:
        if self._doomed:
            id = self._dice.choice(self._doomed)
            await self._call(
                "delete", "doomed", lambda spine, level: spine.delete(id, consistency=level),
                lambda found: {"found": found}, id=id,
            )  # fmt: skip

    async def _find_doomed(self) -> None:
        page = await self._query("doomed", "doomed")
        self._doomed.extend(self._dice.sample(page, min(4, len(page))))

    async def _store_note(self) -> None:
        await self._store("note", None, (f"of-{self.name}", "news"))

    async def _find_notes(self) -> None:
        await self._query("note", f"of-{self.name}")

    async def _query(self, kind: str, tag: str) -> list[str]:
        found = await self._call(
            "query", kind, lambda spine, level: spine.query(tags=[tag], limit=1000, consistency=level),
            lambda page: {"shown": tuple(memory.id for memory in page.memories)}, id=tag,
        )  # fmt: skip
        return [memory.id for memory in found.memories] if found is not None else []

    async def _append(self) -> None:
        thread, value = f"thread-{self._dice.randrange(THREADS)}", self._value()
        await self._call(
            "append", "thread", lambda spine, level: spine.thread(thread).append(value, consistency=level), _nothing,
            id=thread, value=value,
        )  # fmt: skip

    async def _read(self) -> None:
        thread = f"thread-{self._dice.randrange(THREADS)}"
        await self._call(
            "read", "thread", lambda spine, level: spine.thread(thread).read(consistency=level),
            lambda entries: {"shown": tuple(entry.content for entry in entries)}, id=thread,
        )  # fmt: skip


def _shown(memory: Memory | None) -> dict[str, Any]:
    if memory is None:
        return {"found": False}
    return {"found": True, "seen": memory.content, "seen_tags": tuple(sorted(memory.tags))}


def _nothing(answer: object) -> dict[str, Any]:
    return {}


def _outcome(error: SpineError) -> Outcome:
    """What a failed write says of itself. A write that never left is none."""
    if isinstance(error, QuorumFailed):
        return error.outcome
    return "not applied" if isinstance(error, ConnectionFailed | NotFound | StaleToken) else "unknown"


async def listen(name: str, url: str, partitions: int, until: float, recorder: Recorder) -> None:
    """A subscriber to all news. Ends when it has heard the last word in every partition, or too late."""
    heard: set[str] = set()
    async with asyncio.timeout(max(0.0, until - clock()) + LISTEN_SECONDS):
        spine = await _connected(name, url)
        try:
            async with spine.subscribe(tags=["news"]) as updates:
                recorder.path.with_suffix(f".{name}").touch()
                async for update in updates:
                    memory = update.memory
                    recorder.add(
                        Told(
                            subscriber=name, at=clock(), kind=update.kind, id=memory.id, content=memory.content,
                            version=memory.version,
                        )
                    )  # fmt: skip
                    if memory.id.startswith(PREFIX_LAST):
                        heard.add(memory.id)
                        if len(heard) == partitions:
                            return
        finally:
            await spine.close()


async def _connected(name: str, url: str) -> Spine:
    while True:
        spine = Spine.connect(url, agent=name, timeout=CALL_SECONDS)
        try:
            await spine.__aenter__()
        except SpineError:
            await asyncio.sleep(0.1)
            continue
        return spine


async def main(arguments: argparse.Namespace) -> None:
    recorder = Recorder(arguments.out)
    tasks: list[Awaitable[None]] = []
    for number, (name, url) in enumerate(word.split("=", 1) for word in arguments.agents):
        if name.startswith("subscriber"):
            tasks.append(listen(name, url, arguments.partitions, arguments.until, recorder))
        else:
            dice = random.Random(f"{arguments.seed}/{name}/{number}")
            agent = Agent(name, url, dice, recorder, arguments.without)
            tasks.append(agent.work(arguments.until))
    try:
        await asyncio.gather(*tasks)
    finally:
        recorder.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="+", required=True, help="NAME=URL of each")
    parser.add_argument("--seed", required=True)
    parser.add_argument("--without", default="")
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--until", type=float, required=True, help="monotonic seconds")
    parser.add_argument("--out", type=Path, required=True)
    try:
        asyncio.run(main(parser.parse_args()))
    except TimeoutError:
        sys.exit("a subscriber was not told the last words")
