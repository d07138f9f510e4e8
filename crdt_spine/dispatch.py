"""Operations leave in batches, answers come back, and what is not answered goes elsewhere; nothing is applied twice.

Operations issued in one loop turn for one node travel as one message. Each has an id (session, number) that stays the
same through every retry. They go to a partition's first replica, so that a session usually reads where it last wrote;
when that node is gone (the broker says so at once), silent or slow, its operations move on to another replica. Writes
are never sent twice while the first node may still take them: they are moved, with their id, when it has been silent
for a while. Strong ones move sooner, as soon as another node is known to be there: who does them remembers them
(core/strong.py), so that another attempt joins the first one, or is told what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import msgspec

from crdt_spine.call import Call, Moved, too_late
from crdt_spine.core.causality import join_into
from crdt_spine.core.messages import Response, Result, Status, Unreadable, Vectors
from crdt_spine.errors import ConnectionFailed
from crdt_spine.health import QUERY, WRITE, Health
from crdt_spine.hedging import Hedging
from crdt_spine.lateness import Lateness
from crdt_spine.limits import BATCH_OPERATIONS_MAX
from crdt_spine.pings import Pings
from crdt_spine.requests import Requests
from crdt_spine.transport.base import Message, Subscription, Transport
from crdt_spine.transport.pace import Pace
from crdt_spine.whereabouts import Whereabouts

SWEEP_SECONDS = 0.05
LATE_SWEEP_SECONDS = 0.25
PACE_SECONDS_MAX = 0.012  # between two batches, if the first ...
PACE_OPERATIONS = 25  # ... had this many operations; and ...
PACE_SHARE_MAX = 0.75  # ... never for more than this share of what answers take: who holds them up longer gains nothing
SMOOTHING = 1 / 16  # of a new measurement of that
SILENT_SECONDS = 1.0  # a node that owes answers and says nothing for that long is taken for stuck
SUSPECT_SILENT_SECONDS = 0.3  # if others say so, too, or have answered in its place
STRONG_QUESTION_SECONDS = 0.15  # of silence after a strong operation, and all nodes are asked whether they are there
STRONG_SILENT_SECONDS = 0.3  # ... and it goes to one that has said so
RESEND_SECONDS = 3.0  # an operation that a lively node has not answered for that long was lost on the way
BACK_OFF_SECONDS = 0.05  # before an operation that was turned away is tried again; doubling ...
HOPS_MAX = 3  # from one node to another one that it names, without a pause: they may not agree yet
BACK_OFF_SECONDS_MAX = 1.0  # ... up to here: thousands of them must not keep an overloaded node busy
PRIMARY_SECONDS_MAX = 0.2  # ... or here, while a node finds out whether the primary is there, which takes half a second

_decode = msgspec.json.Decoder(Response).decode
_ELSEWHERE = frozenset(("Behind", "Busy", "Late", "NotHere"))


class Dispatch:
    """Carries a session's `calls` to nodes, until each has its answer or its error. What answers reflect goes into the
    session's `vectors` and `strays`."""

    def __init__(
        self, transport: Transport, whereabouts: Whereabouts, requests: Requests, hedging: Hedging, pings: Pings,
        health: Health, lateness: Lateness, calls: dict[int, Call], vectors: Vectors, strays: Vectors,
        counts: Counter[str],
    ) -> None:  # fmt: skip
        self._transport = transport
        self._whereabouts = whereabouts
        self._requests = requests
        self._hedging = hedging
        self._pings = pings
        self._health = health
        self._lateness = lateness
        self._calls = calls
        self._vectors = vectors
        self._strays = strays
        self._counts = counts
        self._outbox: list[Call] = []
        self._later: list[Call] = []
        self._primaries: dict[int, str] = {}  # who does the strong operations of a partition, as far as was heard
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(self._flush, PACE_SECONDS_MAX, PACE_OPERATIONS)
        self._answer_seconds = 0.0  # how long answers take, smoothed

    async def start(self) -> None:
        """Listen for answers."""
        self._subscription = await self._transport.subscribe(f"{self._requests.inbox}.>", self._take)
        self._sweeper = self._loop.create_task(self._sweep())

    async def close(self) -> None:
        """Calls under way fail with ConnectionFailed."""
        self._hedging.end()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for call in list(self._calls.values()):
            if not call.future.done():
                call.future.set_exception(ConnectionFailed("the session was closed"))
        self._calls.clear()
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.cancel()

    def changed(self) -> None:
        """Others hold it now: what every replica had turned away may be taken."""
        for call in self._later:
            call.tried = ()
            if call.problem is not None and call.problem.error == "NotHere":
                call.ready_at = 0.0

    # -- out --------------------------------------------------------------------------------------------------------

    def post(self, call: Call) -> None:
        """Have this leave with the next batch."""
        if not self._outbox:
            self._pace.plan()
        self._outbox.append(call)

    def _flush(self) -> None:
        """Everything of this loop turn, one message a node."""
        outbox, self._outbox = self._outbox, []
        self._pace.sent(len(outbox), self._answer_seconds * PACE_SHARE_MAX)
        if not self._transport.connected:
            self._later += outbox
            return
        by_node: dict[tuple[str, bool, int], list[Call]] = {}
        where, hedging, well = self._whereabouts, self._hedging, self._health.all_well
        layout, routing = where.layout, where.routing
        self._pings.active_at = now = self._loop.time()
        if hedging.idle and len(where.hello.nodes) > 1:
            hedging.begin(now)
        reads = 0
        for call in outbox:
            if call.future.done():
                continue  # an answer to an earlier attempt has come: what it says is to stay true
            if call.kind <= QUERY:
                reads += 1
            if call.layout is not layout and not self._located(call):
                continue
            if call.strong:
                call.node = self._primary(call)
            elif well and not call.tried:
                call.node = call.candidates[0]
            else:
                call.node = routing.choose(call.candidates, call.tried, reads=call.kind <= QUERY)
            alone = 0 if call.token is None else call.operation.i
            by_node.setdefault((call.node, call.retry, alone), []).append(call)
        hedging.reads += reads
        for (node, retry, _), calls in by_node.items():
            for start in range(0, len(calls), BATCH_OPERATIONS_MAX):
                self._requests.send(node, retry, calls[start : start + BATCH_OPERATIONS_MAX])

    def _primary(self, call: Call) -> str:
        """Whom to ask for a strong operation: the partition's primary, as far as that is known and well."""
        (number,) = call.numbers
        known = self._primaries.get(number, "")
        if known in call.candidates and known not in call.tried and self._health.well(known, reads=False):
            return known
        return self._whereabouts.routing.choose(call.candidates, call.tried, reads=False)

    def _to_primary(self, call: Call, node: str, result: Result) -> None:
        """This node is not the primary. Whoever it names is, if that is well; else this one will be, once it has seen
        that nobody is there."""
        call.problem = result
        if result.outcome != "unknown":
            call.open_attempts -= 1
        if call.node != node:
            return  # an answer from where it was before
        (number,) = call.numbers
        named = result.primary
        goes = named != node and named in call.candidates and self._health.well(named, reads=False)
        if call.left:  # all were asked whether they are there: did this one say so?
            asked = max(call.left.values()) - STRONG_SILENT_SECONDS
            goes = goes and self._health.heard.get(named, 0.0) > call.left.get(named, asked)
        self._primaries[number] = named if goes else node
        call.retry, call.node, call.tried = call.open_attempts > 0, "", ()
        if goes and call.attempts < HOPS_MAX:
            self.post(call)
        else:
            self._wait(call, PRIMARY_SECONDS_MAX)

    def _located(self, call: Call) -> bool:
        """Where it goes by the layout of now. False: nowhere, as a whole; who has it planned hears of it."""
        if call.fixed:
            return True
        candidates = self._whereabouts.routing.holders(call.numbers)
        if not candidates:
            if not call.future.done():
                call.future.set_exception(Moved("these partitions lie on several nodes now"))
            return False
        call.candidates, call.layout = candidates, self._whereabouts.layout
        return True

    def _again(self, call: Call) -> None:
        """What was asked there is asked elsewhere, unless a hedge is."""
        if call.hedge:
            call.follow_hedge()
            return
        call.retry = True
        call.node = ""
        call.asked = ()
        if all(self._whereabouts.routing.avoided(node) for node in call.candidates):
            self._wait(call)
        else:
            self.post(call)

    def _left_silent(self, call: Call, now: float) -> bool:
        """Is nothing heard of the node that has this strong operation? Then another one is asked, if that is there."""
        heard, node = self._health.heard, call.node
        quiet = now - max(heard.get(node, 0.0), call.sent_at)
        if quiet <= STRONG_QUESTION_SECONDS or len(call.candidates) < 2:
            return False
        self._health.wonder(call.candidates, now)
        there = [other for other in call.candidates if other != node and heard.get(other, 0.0) > call.sent_at]
        if quiet <= STRONG_SILENT_SECONDS or not there or (call.kind == WRITE and now <= call.until):
            return False  # a write that the node may still take could be done twice: only so many are remembered
        self._health.doubt(node, now)
        call.left[node] = now
        (number,) = call.numbers
        self._primaries[number] = max(there, key=lambda other: (self._health.well(other, reads=False), heard[other]))
        call.retry, call.node, call.tried = True, "", ()
        self.post(call)
        return True

    def _wait(self, call: Call, seconds_max: float = BACK_OFF_SECONDS_MAX) -> None:
        """Not again at once: for longer the more often it was tried."""
        pause = min(BACK_OFF_SECONDS * 2 ** min(max(call.attempts - 1, 0), 16), seconds_max)
        call.ready_at = self._loop.time() + pause
        self._later.append(call)

    # -- in ---------------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        if message.nobody:
            _, lost_node, request = message.subject.rsplit(".", 2)
            self._lost(lost_node, int(request))
            return
        try:
            response = _decode(message.payload)
        except Unreadable:
            self._counts["refused"] += 1
            return
        node, now = response.node, self._loop.time()
        self._health.hear(node, now)
        if response.now:
            self._lateness.heard(node, response.now, now)
        if response.epoch > self._whereabouts.hello.epoch:
            self._whereabouts.ask_anew(response.epoch)
        if response.down:
            self._health.hint(response.down, now)
        for number, vector in response.seen.items():
            mine = self._vectors.get(number)
            if mine is None:
                self._vectors[number] = vector
            else:
                join_into(mine, vector)
        for number, vector in response.strays.items():
            join_into(self._strays.setdefault(number, {}), vector)
        calls, expected = self._calls, self._pings.expected
        measured = 0.0
        for result in response.results:
            call = calls.get(result.i)
            if call is None or call.future.done():
                if expected and result.i in expected:
                    self._pings.came(node, result, now)
                continue
            if result.error in _ELSEWHERE or (result.error == "StaleToken" and call.is_elsewhere_too(node)):
                self._elsewhere(call, node, result)
                continue
            if result.gone:
                self._told_gone(call, result.gone)
            if result.error == "Elsewhere" and call.strong:
                self._to_primary(call, node, result)
                continue
            if call.strong and call.node == node and result.error == "QuorumFailed":  # another one may reach more then
                (number,) = call.numbers
                others = [other for other in call.candidates if other != node and other not in result.missing]
                self._primaries[number] = others[0] if others else node
            said = result
            refused = result.error or (call.strong and result.existed is False)
            if call.kind == WRITE and refused:
                verdict = call.verdict(node, result)
                if verdict is None:
                    continue
                said = verdict
            elif call.strong and call.node != node and result.error:
                continue  # it is asked elsewhere by now
            if call.node == node:
                if call.sent_at != measured:  # once a request
                    measured = call.sent_at
                    self._answer_seconds += (now - measured - self._answer_seconds) * SMOOTHING
                    self._health.measured(node, call.kind, now - measured, now)
            elif call.hedge == node:
                self._pings.expect(call)
                for other in self._hedging.won(call, now):
                    self._again(other)
            if call.strong and not said.error:
                (number,) = call.numbers
                self._primaries[number] = node
            call.future.set_result(said)

    def _told_gone(self, call: Call, gone: Vectors) -> None:
        """Who waits for what no replica will ever have is told so, and the session goes on without it. What a call was
        given as its own token is not the session's."""
        if call.token is None:
            self.let_go(gone)

    def let_go(self, gone: Vectors) -> None:
        """No replica will ever have more than this of the session's token of these actors."""
        for vectors in (self._vectors, self._strays):
            for number, vector in gone.items():
                for actor, n in vector.items():
                    if vectors.get(number, {}).get(actor, 0) > n:
                        vectors[number] = {**vectors[number], actor: n}

    def _elsewhere(self, call: Call, node: str, result: Result) -> None:
        """This node can't, not now: the next one, after a breath if there is none or it has too much to do."""
        call.problem = result
        if result.error == "Late":
            self._lateness.refused(node, self._loop.time())
        if result.error == "NotHere":
            self._whereabouts.ask_who_holds_what()
            if call.fixed:
                call.future.set_exception(Moved(f"node {node} does not hold what was asked for"))
                return
        if node == call.hedge:
            call.drop_hedge()
            return
        if result.outcome != "unknown":
            call.open_attempts -= 1
        if call.node != node:
            return  # an answer from where it was before
        if call.hedge:
            call.follow_hedge()
            return
        call.tried = (*call.tried, node)
        left = [other for other in call.candidates if other not in call.tried]
        if not left:
            call.tried = (node,) if len(call.candidates) > 1 else ()
        call.retry = call.open_attempts > 0  # what was refused by all that had it was not applied before
        call.node = ""
        if result.error != "Busy" and any(self._health.well(other) for other in left):
            self.post(call)
        else:
            self._wait(call)

    def _lost(self, node: str, request: int) -> None:
        """The broker says that nobody listens at this node: this request never arrived, others may be unanswered."""
        now = self._loop.time()
        self._health.fail(node, "gone", now)
        self._pings.lost(node, now)
        for call in list(self._calls.values()):
            if call.future.done():
                continue
            if call.hedge == node:
                call.drop_hedge()
            if call.node == node:
                if call.request == request:
                    call.open_attempts -= 1
                if isinstance(call.operation, Status) and len(call.candidates) == 1:
                    call.future.set_exception(ConnectionFailed(f"node {node} is not there"))  # which was the question
                else:
                    self._again(call)

    # -- time -------------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Send what waited, move what hangs, fail what is too late."""
        connected = True
        before = self._loop.time()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._loop.time()
            late, before = now - before > SWEEP_SECONDS + LATE_SWEEP_SECONDS, now
            if late:  # this process was busy, or was not let run: what has arrived meanwhile comes first
                continue
            later, self._later = self._later, []
            reconnected = self._transport.connected and not connected
            connected = self._transport.connected
            waiting = set(map(id, later))
            self._health.judge(now)
            self._pings.sweep(now, connected)
            heard = self._health.heard
            limits = dict.fromkeys((*self._health.trouble, *self._health.doubted), SUSPECT_SILENT_SECONDS)
            for call in list(self._calls.values()):
                if call.future.done():
                    continue
                if now >= call.deadline:
                    address = getattr(self._transport, "url", "the cluster")
                    quorum = self._whereabouts.hello.write_quorum
                    error = too_late(call, connected=connected, address=address, write_quorum=quorum)
                    call.future.set_exception(error)
                elif not connected or id(call) in waiting or not call.node:
                    continue
                elif (call.strong and self._left_silent(call, now)) or (call.kind == WRITE and now <= call.until):
                    continue  # it has gone elsewhere; or the node may still take it
                elif reconnected or now - call.sent_at > RESEND_SECONDS:
                    call.drop_hedge()
                    self._again(call)
                elif now - max(heard.get(call.node, 0.0), call.sent_at) > limits.get(call.node, SILENT_SECONDS):
                    self._health.fail(call.node, "silent", now)
                    self._again(call)
            for call in later:
                if call.future.done():
                    continue
                if connected and call.ready_at <= now:
                    self.post(call)
                else:
                    self._later.append(call)
