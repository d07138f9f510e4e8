"""Agents that work on a few memories at once, and on a lock. Each call, with what came of it, is in the history."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable
from typing import Any

import msgspec

from crdt_spine.core.messages import Get
from crdt_spine.errors import (
    ConnectionFailed,
    InvalidInput,
    LockTimeout,
    NotFound,
    QuorumFailed,
    SpineError,
    StaleToken,
    VersionConflict,
)
from crdt_spine.memory import Memory
from crdt_spine.spine import Spine
from histories.history import Operation, Outcome

CALL_SECONDS = 2.0
WANDERS = 0.25  # of its calls: then it takes its node for the primary again, as an agent does that comes anew
VERSIONS_KEPT = 3  # of each memory, to name in a compare-and-set: an old one must be refused

LOCK_SECONDS = 2.0  # that a lease holds
LOCK_WAIT_SECONDS = 0.5
LOCK_HELD_SECONDS_MAX = 0.1

#: How often an agent does what; without compare-and-set and locks where the level is not strong.
HABITS = {"read": 35, "write": 15, "cas": 30, "update": 10, "delete": 6, "lock": 4}


class Work:
    """What agents of one history share: the memories, a lock (empty: none), how many operations are left, and what was
    recorded."""

    def __init__(self, keys: list[str], lock: str, operations: int, until: float) -> None:
        self.keys = keys
        self.lock = lock
        self.left = operations
        self.until = until  # monotonic seconds
        self.recorded: list[Operation] = []

    def take(self) -> bool:
        """One more operation?"""
        if self.left <= 0 or time.monotonic() > self.until:
            return False
        self.left -= 1
        return True


class Agent:
    """One agent with a session of its own. After an unknown outcome it goes on as another process.

    Where the level is strong, it takes `node` for every partition's primary at first, and now and then again: a cluster
    has to set that right.
    `loyal`: it does so each time, and only reads: who waits at a primary that has lost its place has to be told so.
    `pinned`: that node alone answers its reads, as it is: any replica may where the level is eventual.
    """

    def __init__(
        self, name: str, url: str, dice: random.Random, level: str, pause_seconds: float, node: str, *, pinned: bool,
        loyal: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self._url = url
        self._dice = dice
        self._level = level
        self._pause = pause_seconds  # at most, between two calls
        self._node = node
        self._pinned = pinned
        self._process = 1
        self._count = 0
        self._spine: Spine | None = None
        self._versions: dict[str, deque[str]] = {}
        self._wanders = 1.0 if loyal else WANDERS
        habits = {kind: HABITS[kind] for kind in HABITS if kind not in ("cas", "lock") or level == "strong"}
        habits = {"read": 1} if loyal else habits
        self._kinds, self._weights = list(habits), list(habits.values())

    async def work(self, work: Work) -> None:
        """Until nothing is left to do."""
        self._versions.clear()
        if self._spine is not None:
            self._believe(self._spine)
        while work.take():
            spine = await self._connected(work.until)
            if spine is None:
                return
            if self._dice.random() < self._wanders:
                self._believe(spine)
            await self._step(spine, work)
            await asyncio.sleep(self._dice.random() * self._pause)

    async def close(self) -> None:
        """End the session."""
        if self._spine is not None:
            spine, self._spine = self._spine, None
            with contextlib.suppress(SpineError):
                await spine.close()

    async def _connected(self, until: float) -> Spine | None:
        while self._spine is None and time.monotonic() < until:
            spine = Spine.connect(self._url, agent=self.name, timeout=CALL_SECONDS)
            try:
                self._spine = await spine.__aenter__()
            except SpineError:
                await asyncio.sleep(0.1)
            else:
                self._believe(self._spine)
        return self._spine

    def _believe(self, spine: Spine) -> None:
        session = spine._live
        session._dispatch._primaries = dict.fromkeys(range(session.hello.partitions), self._node)

    async def _step(self, spine: Spine, work: Work) -> None:
        key = self._dice.choice(work.keys)
        [kind] = self._dice.choices(self._kinds, self._weights)
        known = self._versions.get(key)
        if (kind == "cas" and not known) or (kind == "lock" and not work.lock):
            kind = "read"
        self._count += 1
        if kind == "lock":
            await self._lock(spine, work)
            return
        value, level = f"{self.name}.{self._count}", self._level
        match kind:
            case "read":
                call, asked = self._read(spine, key), {}
            case "write":
                call, asked = spine.store(value, id=key, consistency=level), {"value": value}
            case "cas":
                assert known is not None
                version = known[-1] if self._dice.random() < 0.8 else self._dice.choice(known)
                call = spine.update(key, content=value, if_version=version, consistency=level)
                asked = {"expected": version, "value": value}
            case "update":
                call, asked = spine.update(key, content=value, consistency=level), {"value": value}
            case _:
                call, asked = spine.delete(key, consistency=level), {}
        work.recorded.append(await self._told(call, kind, key, asked))

    async def _read(self, spine: Spine, key: str) -> Memory | None:
        if not self._pinned:
            return await spine.get(key, consistency=self._level)
        session = spine._live
        operation = Get(i=session.number(), id=key)
        result = await session.run(operation, (self._node,), use_token=False, timeout=CALL_SECONDS)
        return msgspec.json.decode(result.memory, type=Memory) if result.memory else None

    async def _lock(self, spine: Spine, work: Work) -> None:
        """Hold the history's lock for a moment. Whether and when a release is heard is unknown, and so is when a lease
        ends that is not released; not before its time is over, though."""
        lease, began = f"{self.name}.{self._count}", time.monotonic_ns()
        outcome: Outcome = "ok"
        locking = spine.lock(work.lock, ttl=LOCK_SECONDS, wait=LOCK_WAIT_SECONDS)
        token = 0
        try:
            token = (await locking.__aenter__()).token
            output: dict[str, Any] = {"token": token}
        except LockTimeout:
            output = {"refused": "held"}
        except ConnectionFailed as error:
            outcome, output = "unknown", {"error": str(error)}
        self._note(work, "acquire", lease, began, outcome, output)
        if "refused" in output:
            return
        self._note(work, "expire", lease, began + int(LOCK_SECONDS * 1e9), "unknown", {})
        if token:
            await asyncio.sleep(self._dice.random() * LOCK_HELD_SECONDS_MAX)
            self._note(work, "release", lease, time.monotonic_ns(), "unknown", {})
            await locking.__aexit__(None, None, None)
        self._process += 1

    def _note(
        self, work: Work, kind: str, lease: str, invoke: int, outcome: Outcome, output: dict[str, Any]
    ) -> None:  # fmt: skip
        process = f"{self.name}/{self._process}" + ("/lease" if kind == "expire" else "")
        work.recorded.append(
            Operation(
                process=process, operation=kind, key=work.lock, input={"lease": lease}, output=output, invoke=invoke,
                returned=max(invoke, time.monotonic_ns()), outcome=outcome,
            )
        )  # fmt: skip

    async def _told(self, call: Awaitable[Any], kind: str, key: str, asked: dict[str, Any]) -> Operation:
        """Make the call; the operation as it went."""
        process = f"{self.name}/{self._process}"
        outcome: Outcome = "ok"
        output: dict[str, Any] = {}
        invoke = time.monotonic_ns()
        try:
            answer = await call
            output = {"found": answer} if kind == "delete" else _shown(answer)
        except VersionConflict:
            output = {"refused": "version"}
        except NotFound:
            output = {"refused": "absent"}
        except InvalidInput:
            raise  # a mistake of this program
        except SpineError as error:
            outcome, output = _outcome(error), {"error": f"{type(error).__name__}: {error}"}
            if isinstance(error, StaleToken):
                await self.close()
        returned = time.monotonic_ns()
        if outcome == "unknown":
            self._process += 1
        elif output.get("version"):
            self._versions.setdefault(key, deque(maxlen=VERSIONS_KEPT)).append(output["version"])
        return Operation(
            process=process, operation=kind, key=key, input=asked, output=output, invoke=invoke, returned=returned,
            outcome=outcome,
        )  # fmt: skip


def _shown(memory: Memory | None) -> dict[str, Any]:
    return {"value": None, "version": None} if memory is None else {"value": memory.content, "version": memory.version}


def _outcome(error: SpineError) -> Outcome:
    """What a failure says of itself. What raises ConnectionFailed or StaleToken never left."""
    if isinstance(error, QuorumFailed):
        return "fail" if error.outcome == "not applied" else "unknown"
    return "fail" if isinstance(error, ConnectionFailed | StaleToken) else "unknown"
