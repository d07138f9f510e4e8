"""The short way to a lock that nobody else wants: an agent publishes the lease itself, and takes it back itself.

What makes it safe is the stream's condition, not who publishes under it: the service does no more for such a lock
(core/locks.py, `acquire`), and every instance of it may be a dead one's successor as well. So the agent runs the same
rule as far as its first step decides, and so it renews its lease. Whatever it does not decide, and everything about
waiting, is the service's, asked with the same nonce: it recognises what this attempt has published.

The epoch comes from a lease that the service gave: it has asked a majority of the nodes for it (locks/epochs.py). A
stream that is made anew later has other subjects; what is published on those of the old one reaches nothing, and the
service is asked again. So it is after each reconnection.

A tell has reached the broker before the lease is used: nodes hear of it before of anything that its holder does then.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from crdt_spine.core import locks
from crdt_spine.core.fences import epoch_of
from crdt_spine.core.lock_messages import Acquire, LockAnswer, Release, Renew
from crdt_spine.core.messages import encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.transport.base import Disconnected, Leases, LeasesGone, Transport

SECONDS_MAX: Final = 1.0  # for a step; then it is the service's
SHUT_SECONDS: Final = 30.0  # after one failed: without the right to publish there, each would wait for so long


class DirectWay:
    """Of one agent. Where leases are kept in this very process, or the service has given none yet, it is no way."""

    def __init__(self, transport: Transport, cluster: str) -> None:
        make = getattr(transport, "leases", None)
        self._leases: Leases | None = None if make is None else make(cluster)
        self._transport: Any = transport
        self._fence = Subjects(cluster).fence
        self._loop = asyncio.get_running_loop()
        self._epoch = 0
        self._since = 0.0  # which connection the epoch was learned on
        self._shut_until = 0.0

    def learn(self, token: int) -> None:
        """The service has given, or renewed, a lease with this token."""
        if self._leases is not None and epoch_of(token) >= self._epoch:
            self._epoch = epoch_of(token)
            self._since = self._transport.connected_at
            self._leases.use(self._epoch)

    async def acquire(self, ask: Acquire) -> LockAnswer | None:
        """The lease; None: the service is to be asked, for which this attempt is not its first one any more."""
        return await self._run(locks.acquire(ask, self._epoch), SECONDS_MAX)

    async def renew(self, ask: Renew, seconds: float) -> LockAnswer | None:
        """The lease, for its whole time from now on; None: the service is to be asked. `seconds` for each step."""
        if epoch_of(ask.token) != self._epoch:
            return None
        return await self._run(locks.renew(ask, self._epoch), min(seconds, SECONDS_MAX))

    async def release(self, ask: Release) -> bool:
        """Is it released, and was it this very lease? Else, or where that is not known, the service is to be asked."""
        return bool(ask.sequence) and bool(await self._done(locks.Drop(ask.sequence)))

    @property
    def is_open(self) -> bool:
        return bool(
            self._epoch
            and self._transport.connected
            and self._transport.connected_at == self._since
            and self._loop.time() >= self._shut_until
        )

    async def _run(self, rule: locks.Rule, seconds: float) -> LockAnswer | None:
        """Run a rule for as long as its steps decide; None: one did not."""
        result: Any = None
        while True:
            try:
                step = rule.send(result)
            except StopIteration as end:
                answer: LockAnswer = end.value
                return answer
            result = await self._done(step, seconds)
            if result is None:
                return None

    async def _done(self, step: locks.Step, seconds: float = SECONDS_MAX) -> Any:
        """What came of a step, where this is all that is to be done; else None."""
        assert self._leases is not None
        try:
            async with asyncio.timeout(seconds):
                match step:
                    case locks.Put(path, value, expected, seconds, whole):
                        return await self._leases.put(path, value, expected, seconds, whole)
                    case locks.Tell(fence):
                        await self._transport.say(self._fence, encode(fence))
                        return True
                    case locks.Drop(sequence):
                        return await self._leases.drop(sequence)
        except LeasesGone:
            self._epoch = 0
        except (Disconnected, TimeoutError):
            self._shut_until = self._loop.time() + SHUT_SECONDS
        return None
