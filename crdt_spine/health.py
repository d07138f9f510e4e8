"""How well each node does, as one session sees it: how fast it answers, whether it answers, and whether to go there.

Three questions, and what answers them:

- *Which of two nodes?* A Peak-EWMA (Finagle, linkerd): a moving average that goes up to a bad moment at once and comes
  down slowly. Who is to be gone to is worth caution. Two are compared, not all (Mitzenmacher, "The power of two choices
  in randomized load balancing" (1996)), so that not every session runs to the same one.
- *When to leave a node?* A plain moving average, of which no single answer is more than a quarter. One bad moment is no
  reason to leave the node that has one's writes and whose batches are the larger for it. A node is slow if its average
  is far above that of another one for the same kind of operation, not above a number: a loaded cluster is slow as a
  whole. So does C3 rank replicas by what their clients measure (Suresh et al., NSDI 2015).
- *How long to wait before another one is asked as well?* Its 99th percentile (Dean, Barroso, "The tail at scale"
  (2013)), out of a histogram with logarithmic buckets that halves itself as it grows.

A node that is in trouble is left alone, but for a ping now and then. Good answers bring it back: one, or one more for
each time that it was in trouble again soon after it was back, so that a node which is well every other moment is not
believed every time.

Nothing here costs per operation: the session says what one request took, of which many operations may have been part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import frexp
from typing import Any, Final, Literal

#: What is measured apart. Of a QUERY only the percentile counts: what one costs depends on the query.
READ: Final = 0
QUERY: Final = 1
WRITE: Final = 2
PING: Final = 3
OTHER: Final = 4  # not measured

Why = Literal["gone", "silent", "hinted", "slow"]

AVERAGE_SECONDS = 0.5  # how far back the average looks ...
WEIGHT_MAX = 0.25  # ... and how much one answer counts at most, for a session that asks seldom
PEAK_SECONDS = 5.0  # how far back the peaks do
SLOW_SECONDS = 0.05  # what a node's average may be above ...
SLOW_FACTOR = 3.0  # ... that many times the best other node's
SAMPLES_MIN = 4  # before an average means anything
FRESH_SECONDS = 5.0  # after which it does not any more
BETTER_FACTOR = 2.0  # of two nodes, the first one stays so unless the second is that much better
BETTER_SECONDS = 0.005

PATIENCE_SECONDS_MIN = 0.02  # a process that is not scheduled for a moment is not slow
PATIENCE_SECONDS_MAX = 0.5
PATIENCE_UNKNOWN_SECONDS = {READ: 0.05, QUERY: 0.3}
SAMPLES_RANKED_MIN = 20  # before a percentile means anything
SAMPLES_RANKED_MAX = 1_024  # then all counts are halved

DOUBT_SECONDS = 0.3  # a node that another one has outrun, and that says nothing for that long, is silent
HINT_SECONDS = 1.0  # who was heard within that is not down, whatever others say
PING_SECONDS = 1.0  # for an answer
PING_PAUSE_SECONDS = 0.1  # between two pings; doubling ...
PING_PAUSE_SECONDS_MAX = 1.0  # ... up to here
RELAPSE_SECONDS = 10.0  # who is in trouble again so soon after it was back has to prove more
RELAPSES_MAX = 4
QUESTION_SECONDS = 1.0  # for how long all nodes are pinged after a slow answer: what is slow, this node or everything?

_BUCKETS = 80  # four to a doubling, from 0.1 ms to a minute


class Track:
    """How long answers of one kind take at one node."""

    __slots__ = ("_counts", "_p99", "_total", "at", "mean", "peak", "samples")

    def __init__(self) -> None:
        self.mean = 0.0
        self.peak = 0.0
        self.at = 0.0
        self.samples = 0
        self._counts = [0] * _BUCKETS
        self._total = 0
        self._p99 = 0.0

    def add(self, seconds: float, now: float) -> None:
        """One more answer."""
        apart = now - self.at
        self.at = now
        if self.samples:
            self.mean += min(apart / (apart + AVERAGE_SECONDS), WEIGHT_MAX) * (seconds - self.mean)
            if seconds > self.peak:
                self.peak = seconds
            else:
                self.peak += apart / (apart + PEAK_SECONDS) * (seconds - self.peak)
        else:
            self.mean = self.peak = seconds
        self.samples += 1
        fraction, exponent = frexp(seconds * 1e4)
        bucket = 4 * exponent + int(8 * fraction) - 4 if exponent > 0 else 0
        self._counts[bucket if bucket < _BUCKETS else _BUCKETS - 1] += 1
        self._total += 1
        if self._total >= SAMPLES_RANKED_MAX:
            self._counts = [count // 2 for count in self._counts]
            self._total = sum(self._counts)
        if self.samples & 31 == 0:
            self._p99 = self._rank(0.99)

    @property
    def p99(self) -> float | None:
        """Seconds within which 99 of 100 answers came, up to a quarter too high; None: too few to say."""
        if self._total < SAMPLES_RANKED_MIN:
            return None
        if not self._p99:
            self._p99 = self._rank(0.99)
        return self._p99

    def begin_anew(self) -> None:
        """The averages are those of other times; the percentile holds."""
        self.mean = self.peak = 0.0
        self.samples = 0

    def _rank(self, share: float) -> float:
        """The upper edge of the bucket that has the answer of this rank."""
        left = self._total * (1.0 - share)
        for bucket in range(_BUCKETS - 1, -1, -1):
            left -= self._counts[bucket]
            if left < 0:
                exponent, quarter = divmod(bucket, 4)
                return float((quarter + 5) / 8 * 2.0**exponent * 1e-4)
        return 0.0


class Trouble:
    """Why a node is left alone, and what it has to do about it."""

    __slots__ = ("good", "needed", "pause", "ping_at", "since", "why")

    def __init__(self, why: Why, since: float, needed: int) -> None:
        self.why: Why = why
        self.since = since
        self.needed = needed
        self.good = 0
        self.ping_at = since
        self.pause = PING_PAUSE_SECONDS


class Health:
    """What a session knows of its nodes. `clock` gives seconds; `counts` gets "moved_away".

    `trouble` has the nodes that are left alone, `doubted` those of which only reads stay away, since when; `heard` when
    each one said something last. `changes` goes up whenever a node is to be gone to again, or no more.
    """

    def __init__(self, clock: Callable[[], float], counts: Counter[str]) -> None:
        self.clock = clock
        self.counts = counts
        self.heard: dict[str, float] = {}
        self.trouble: dict[str, Trouble] = {}
        self.doubted: dict[str, float] = {}
        self.changes = 0
        self._names: set[str] = set()
        self._tracks: dict[str, tuple[Track, Track, Track, Track]] = {}
        self._relapses: dict[str, tuple[int, float]] = {}  # node -> how often, and when it was back last
        self._question_until = 0.0
        self._wondered: set[str] = set()  # nodes that are to be pinged as nothing was heard of them
        self._pinged: dict[str, float] = {}  # nodes with a ping under way, since when
        self._question_at = 0.0

    def keep(self, nodes: Iterable[str]) -> None:
        """These are the nodes now: nothing is known of others."""
        names = self._names = set(nodes)
        known: tuple[dict[str, Any], ...] = (
            self.heard, self.trouble, self.doubted, self._tracks, self._relapses, self._pinged,
        )  # fmt: skip
        for each in known:
            for gone in each.keys() - names:
                del each[gone]
        for name in names:
            self._track(name, READ)
        self.changes += 1

    # -- what happened ----------------------------------------------------------------------------------------------

    def measured(self, node: str, kind: int, seconds: float, now: float) -> None:
        """A node has answered a request after this time."""
        if kind == OTHER:
            return
        track = self._track(node, kind)
        track.add(seconds, now)
        if track.mean > SLOW_SECONDS and kind != QUERY:
            self._question(node, kind, track, now)
        if self.trouble and node in self.trouble:
            self._prove(node, seconds, now)

    def hear(self, node: str, now: float) -> None:
        """A node has said something."""
        self.heard[node] = now
        if self.doubted and node in self.doubted:
            del self.doubted[node]
            self.changes += 1

    def doubt(self, node: str, now: float) -> bool:
        """Another one has answered in this node's place, and it has said nothing: reads go elsewhere. Is that new?"""
        if node in self.doubted or node in self.trouble:
            return False
        self.doubted[node] = now
        self.changes += 1
        self.counts["moved_away"] += 1
        return True

    def fail(self, node: str, why: Why, now: float) -> None:
        """A node is of no use."""
        trouble = self.trouble.get(node)
        if trouble is not None:
            if why in ("gone", "silent"):
                trouble.why, trouble.since, trouble.good = why, now, 0
                self._pause(node, now)
            return
        times, back_at = self._relapses.get(node, (0, -RELAPSE_SECONDS))
        times = min(times + 1, RELAPSES_MAX) if now - back_at < RELAPSE_SECONDS else 0
        self._relapses[node] = times, back_at
        self.trouble[node] = Trouble(why, now, 1 + times)
        self.changes += 1
        if self.doubted.pop(node, None) is None:
            self.counts["moved_away"] += 1

    def hint(self, nodes: Iterable[str], now: float) -> None:
        """Others say that these are down. What was heard here counts for more."""
        for node in nodes:
            if node in self._names and node not in self.trouble and now - self.heard.get(node, 0.0) > HINT_SECONDS:
                self.fail(node, "hinted", now)

    def wonder(self, nodes: Iterable[str], now: float) -> None:
        """Are these nodes there? Those of which nothing was heard for a moment are pinged."""
        self._wondered.update(node for node in nodes if now - self.heard.get(node, 0.0) > PING_PAUSE_SECONDS)

    def judge(self, now: float) -> None:
        """Time has passed."""
        for node, since in list(self.doubted.items()):
            if now - since > DOUBT_SECONDS:
                self.fail(node, "silent", now)

    # -- pings ------------------------------------------------------------------------------------------------------

    def to_ping(self, now: float) -> list[str]:
        """The nodes of which it is to be known whether, and how fast, they answer. Each is said once: what comes of it
        is said by `ponged`."""
        for node, since in list(self._pinged.items()):
            if now - since > PING_SECONDS:
                self.ponged(node, None, now)
        for node in self.trouble.keys() - self._names:  # it was asked for something all the same
            if now - self.trouble[node].since > PING_SECONDS:
                del self.trouble[node]
        due = [
            node
            for node, trouble in self.trouble.items()
            if trouble.ping_at <= now and node not in self._pinged and node in self._names
        ]
        if now < self._question_until and now >= self._question_at:
            self._question_at = now + PING_PAUSE_SECONDS
            self._wondered.update(self._tracks)
        due += [node for node in self._wondered & self._names if node not in self._pinged and node not in self.trouble]
        self._wondered.clear()
        self._pinged.update(dict.fromkeys(due, now))
        return due

    def ponged(self, node: str, seconds: float | None, now: float) -> None:
        """What came of a ping: the time it took; None: no answer, or one that sends us elsewhere."""
        self._pinged.pop(node, None)
        if seconds is not None:
            self.measured(node, PING, seconds, now)
        elif node in self.trouble:
            self.trouble[node].good = 0
            self._pause(node, now)

    # -- what follows -----------------------------------------------------------------------------------------------

    @property
    def all_well(self) -> bool:
        return not self.trouble and not self.doubted

    def well(self, node: str, *, reads: bool = True) -> bool:
        """Is it to be gone to, with reads or with writes?"""
        return node not in self.trouble and not (reads and node in self.doubted)

    def gone(self, node: str, since: float) -> bool:
        """Has the broker said since then that nobody listens there?"""
        trouble = self.trouble.get(node)
        return trouble is not None and trouble.why == "gone" and trouble.since >= since

    def cost(self, node: str, kind: int = READ) -> float:
        """How long it may take there, seconds; 0 where nothing is known."""
        tracks = self._tracks.get(node)
        return max((tracks[kind].peak, tracks[PING].peak)) if tracks is not None else 0.0

    def badness(self, node: str) -> tuple[int, float]:
        """Of nodes that are in trouble, where to go if there are no others: least first."""
        trouble = self.trouble.get(node)
        if trouble is None:
            return (1 if node in self.doubted else 0), 0.0
        return 2 + ("slow", "hinted", "silent", "gone").index(trouble.why), trouble.since

    def patience(self, node: str, kind: int) -> float:
        """For how many seconds a read or query is waited for before another node is asked as well."""
        tracks = self._tracks.get(node)
        p99 = tracks[kind].p99 if tracks is not None else None
        if p99 is None:
            return PATIENCE_UNKNOWN_SECONDS[kind]
        return min(max(p99, PATIENCE_SECONDS_MIN), PATIENCE_SECONDS_MAX)

    # -- within -----------------------------------------------------------------------------------------------------

    def _track(self, node: str, kind: int) -> Track:
        tracks = self._tracks.get(node)
        if tracks is None:
            tracks = self._tracks[node] = (Track(), Track(), Track(), Track())
        return tracks[kind]

    def _best_other(self, node: str, kind: int, now: float) -> float | None:
        """The best average of the other nodes that are well, for the same kind of operation."""
        return min(
            (
                tracks[kind].mean
                for other, tracks in self._tracks.items()
                if other != node
                and other not in self.trouble
                and other not in self.doubted
                and tracks[kind].samples >= SAMPLES_MIN
                and now - tracks[kind].at < FRESH_SECONDS
            ),
            default=None,
        )

    def _question(self, node: str, kind: int, track: Track, now: float) -> None:
        """This node takes long. Does it alone?"""
        if node in self.trouble:
            return
        best = self._best_other(node, kind, now)
        if best is not None and track.samples >= SAMPLES_MIN and track.mean > SLOW_SECONDS + SLOW_FACTOR * best:
            self.fail(node, "slow", now)
        elif kind != PING:
            self._question_until = now + QUESTION_SECONDS

    def _prove(self, node: str, seconds: float, now: float) -> None:
        """A node that is in trouble has answered: is it well again?"""
        trouble = self.trouble[node]
        if now - seconds < trouble.since:
            return  # that was asked before
        best = min((self._best_other(node, kind, now) or 0.0 for kind in (READ, PING)), default=0.0)
        if seconds > SLOW_SECONDS + SLOW_FACTOR * best:
            trouble.good = 0
            self._pause(node, now)
            return
        trouble.good += 1
        trouble.pause = PING_PAUSE_SECONDS
        trouble.ping_at = now + trouble.pause
        if trouble.good >= trouble.needed:
            del self.trouble[node]
            self._relapses[node] = self._relapses[node][0], now
            for track in self._tracks[node]:
                track.begin_anew()
            self.changes += 1

    def _pause(self, node: str, now: float) -> None:
        trouble = self.trouble[node]
        trouble.ping_at = now + trouble.pause
        trouble.pause = min(2 * trouble.pause, PING_PAUSE_SECONDS_MAX)
