"""A process with several agents that want one lock, over and over: what they ask for, get and write, as lines of JSON.

Usage: contender.py URL LOCK NAME AGENTS. Times are the machine's monotonic clock, the same for all processes.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

from crdt_spine import FenceRejected, LockTimeout, QuorumFailed, Spine
from crdt_spine.core.fences import Fence
from crdt_spine.core.lock_messages import Acquire, LockAnswer, LockRequest
from crdt_spine.errors import ConnectionFailed, SpineError
from crdt_spine.locks.client import Lease, LockClient

TTL_SECONDS = 2.0
WAIT_SECONDS = 30.0
MEMORY = "guarded"


def say(agent: str, event: str, **more: Any) -> None:
    print(json.dumps({"at": time.monotonic(), "agent": agent, "event": event, **more}), flush=True)


class Client(LockClient):
    """Says when it was told that it is in line."""

    async def ask(self, request: LockRequest, seconds: float) -> LockAnswer:
        answer = await super().ask(request, seconds)
        if isinstance(request, Acquire) and answer.state == "waiting":
            say(self.agent, "waiting", nonce=request.nonce)
        return answer


async def contend(spine: Spine, lock: str, name: str) -> None:
    session = spine.session
    client = Client(session.transport, session.hello.cluster, name)
    writer = spine.for_agent(name)
    while True:
        say(name, "asked")
        try:
            lease = await client.acquire(lock, TTL_SECONDS, WAIT_SECONDS)
        except (LockTimeout, ConnectionFailed) as error:
            say(name, "gave up", why=type(error).__name__)
            continue
        say(name, "granted", token=lease.token)
        await hold(writer, name, lease)
        await lease.release()
        say(name, "released", token=lease.token)
        await asyncio.sleep(random.random() * 0.05)


async def hold(spine: Spine, name: str, lease: Lease) -> None:
    """Write under the lease, as one who does not look whether it still holds."""
    say(name, "writes", token=lease.token)
    try:
        await spine.store(str(lease.token), id=MEMORY, fence=Fence(lease.name, lease.token))  # type: ignore[arg-type]
    except FenceRejected:
        say(name, "rejected", token=lease.token)
    except (QuorumFailed, ConnectionFailed, SpineError) as error:
        say(name, "unknown", token=lease.token, why=repr(error))
    else:
        say(name, "wrote", token=lease.token)


async def main() -> None:
    url, lock, name, agents = sys.argv[1:]
    async with Spine.connect(url, agent=name) as spine:
        await asyncio.gather(*(contend(spine, lock, f"{name}.{number}") for number in range(int(agents))))


if __name__ == "__main__":
    asyncio.run(main())
