"""Who is alive and well: every node keeps a table of heartbeats of all, and nodes compare their tables, two at a time.

Demers et al., "Epidemic algorithms for replicated database maintenance" (1987): push and pull with somebody at random
reaches all of n nodes in about log n rounds, whoever is gone and whatever is lost. Van Renesse et al., "Efficient
reconciliation and flow control for anti-entropy protocols" (Scuttlebutt, 2008): a message has a size that it may not
exceed, so what goes into it is chosen by order.

**A heartbeat** is one even number. It begins with the process, as its generation (the milliseconds of its start), and
grows by two with each tick, which is far less than one a millisecond. So a later process's are above all of an earlier
one's, and (generation, version) are compared as a whole, in fourteen digits. Who hears of itself what it has not said
yet (its clock was set back) begins a new generation above that.

**Suspicion** is φ of the times between news of a node (core/phi.py). Above PHI_SUSPECT it is a suspect, after
DOWN_SECONDS more it is down. Suspicion travels (SWIM does it alike: Das, Gupta, Motivala, 2002), as the odd number
above the heartbeat since which there was silence. So of two numbers the higher one is the news, always: who knows no
later heartbeat believes the suspicion, as the accuser has waited for at least as new a one; who knows a later one does
not, and says so. Any later heartbeat ends it.

**A message** has heartbeats by name, as far as they fit, and vitals (`messages.Vitals`) up to a bounded size: the last
ones heard, and some in turn, as nobody asks for them. Where not all heartbeats fit by name, all are sent as a table by
place (core/roster.py), which can be read by who has the same members, that is by nearly everybody nearly always. Who
can't, as the change of members has not reached one of the two yet, answers by name, and its own next question is by
name. That is half what the asker heard last, which is what others may not have yet, and half whom it has not heard of
for longest: whom it would suspect next is whom it asks about. The answer is first what is newer of the asked, then what
was heard last. The last suspicions are in both.

**Time** is counted in steps of at most TICK_SECONDS_MAX: a process that was stopped, or had no processor, has not heard
anybody for long, and that is not their fault.

**Members** are given. What is said of anybody else is ignored, so a removed node is not brought back by old gossip.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import compress, islice
from operator import gt
from typing import Final, Literal, Protocol

import msgspec

from crdt_spine.core.messages import Rumours, Vitals, encode
from crdt_spine.core.phi import DEVIATION_SECONDS_MIN, averaged, phi
from crdt_spine.core.roster import BEAT_BYTES, BEAT_CHARACTERS, digest_of, packed, unpacked
from crdt_spine.limits import BEAT_MAX, GOSSIP_BYTES_MAX, GOSSIP_SECONDS

State = Literal["joining", "up", "suspect", "down", "leaving"]

PHI_SUSPECT: Final = 8.0
DOWN_SECONDS: Final = 5.0  # from suspect to down
TICK_SECONDS_MAX: Final = 4 * GOSSIP_SECONDS  # more than passes between two ticks of a node that runs
SILENT_SECONDS_MIN: Final = 5 * DEVIATION_SECONDS_MIN  # φ of less is below 7, whatever mean and variance are
FIRST_SECONDS: Final = (2.0, 4.0)  # mean and variance of the time until somebody is heard of for the first time
VITALS_BYTES_MAX: Final = 3 * 1024  # of a message, and ...
REST_BYTES_MAX: Final = 1024  # ... of all that is neither vitals nor heartbeats of others
VITALS_IN_TURN: Final = 4  # one in so many bytes of them; at most ...
VITALS_AT_ONCE: Final = 8  # ... so many vitals
VITALS_NODES: Final = 100  # with so many nodes, load and latency are told each second; with more, less often
AHEAD_MILLISECONDS_MAX: Final = 100 * 365 * 86_400_000  # of others' heartbeats: no clock is that wrong. Could any
# number be one, there would be some that their node can't rise above
SUSPECTS_TOLD: Final = 64  # in every message, the last ones
FAREWELLS: Final = 32  # nodes that a node that stops tells itself
_BEAT_BYTES_MAX: Final = len('"":,') + len(str(BEAT_MAX))  # beside its node's name

_decode = msgspec.json.Decoder(Rumours).decode


class Chance(Protocol):
    """What is used of `random.Random`."""

    def random(self) -> float: ...

    def choice(self, options: list[str]) -> str: ...

    def shuffle(self, items: list[str]) -> None: ...


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a node. `silent` is for how many seconds there was no news of it, by the counted time."""

    state: State
    phi: float = 0.0
    silent: float = 0.0
    vitals: Vitals | None = None


class Peer:
    """What is known of another node, beside its heartbeat."""

    __slots__ = ("heard", "mean", "suspect", "variance", "vitals", "vitals_bytes")

    def __init__(self, now: float) -> None:
        self.heard = now  # of its newest heartbeat, in counted seconds
        self.mean, self.variance = FIRST_SECONDS
        self.suspect: float | None = None  # since when
        self.vitals: Vitals | None = None
        self.vitals_bytes = 0

    def state(self) -> State:
        if self.vitals is not None and self.vitals.state == "leaving":
            return "leaving"
        if self.suspect is not None:
            return "suspect"
        return "joining" if self.vitals is None else self.vitals.state


def read(payload: bytes) -> Rumours:
    """A message. Raises one of Unreadable."""
    if len(payload) > GOSSIP_BYTES_MAX:
        raise msgspec.ValidationError(f"gossip of {len(payload)} bytes")
    message = _decode(payload)
    if len(message.table) % BEAT_BYTES:
        raise msgspec.ValidationError(f"a table of {len(message.table)} bytes")
    return message


class Gossip:
    """The table of one node. `generation`: milliseconds, when its process began; `now`: monotonic seconds.

    `counts` says what was heard and not taken. `turns` are the changes of state since the owner last cleared them, as
    (node, from, to).
    """

    def __init__(self, node: str, zone: str | None, generation: int, now: float) -> None:
        self.node = node
        self.beats = {node: generation + generation % 2}  # of all members and this node, in the order of their names
        self.vitals = Vitals(node, self.beat, 0, "joining", zone or "")
        self.counts: Counter[str] = Counter()
        self.turns: list[tuple[str, State, State]] = []
        self._away: tuple[str, ...] | None = ()
        self._now = now
        self._time = 0.0  # counted seconds
        self._told = 0.0  # when the vitals were made
        self._living: dict[str, Peer] = {}  # in the order in which they were heard of, the longest silent first
        self._down: dict[str, Peer] = {}
        self._suspects: dict[str, None] = {}  # the last ones last
        self._news: dict[str, None] = {}  # whose vitals are known, the last heard ones last
        self._round: list[str] = []  # who is still to be asked before anybody is asked again
        self._in_turn: list[str] = []
        self._measure()

    # -- what the owner says ----------------------------------------------------------------------------------------

    def change_members(self, nodes: Iterable[str]) -> None:
        """These are the members from now on, this node among them or not. The others are forgotten."""
        others = set(nodes) - {self.node}
        for known in (self._living, self._down, self._suspects, self._news):
            for node in known.keys() - others:
                del known[node]
        for node in sorted(others - self.beats.keys()):
            self._living[node] = Peer(self._time)
        self.beats = {node: self.beats.get(node, 0) for node in sorted(others | {self.node})}
        self._round = []
        self._measure()
        self._away = None

    def tell(
        self,
        state: Literal["joining", "up", "leaving"],
        *,
        load: int = 0,
        waiting: int = 0,
        latency: int = 0,
        epoch: int = 0,
        digest: int = 0,
    ) -> None:
        """How this node fares. What decides about routing is told at once, figures now and then, or a large cluster
        would talk of nothing else."""
        own = self.vitals
        new = Vitals(
            self.node, own.generation, own.version + 1, state, own.zone, load, waiting, latency, epoch, digest
        )  # fmt: skip
        due = self._time - self._told >= max(1.0, (1 + len(self._living)) / VITALS_NODES)
        if (new.state, new.epoch) != (own.state, own.epoch) or (due and _figures(new) != _figures(own)):
            self.vitals = new
            self._told = self._time

    # -- time passes, messages come ---------------------------------------------------------------------------------

    def tick(self, now: float, chance: Chance) -> list[tuple[str, Rumours]]:
        """Every GOSSIP_SECONDS or so: who is silent for too long? Then what is to be said to whom."""
        self._count(now)
        self.beats[self.node] = min(self.beat + 2, BEAT_MAX - 1)
        self._judge()
        message = self._question()
        return [(node, message) for node in self._partners(chance)]

    def receive(self, message: Rumours, now: float) -> Rumours | None:
        """Take what is new in it; the answer, where one is wanted."""
        self._count(now)
        if message.node not in self._living and message.node not in self._down:
            self.counts["strangers"] += 1
            return None
        self._agreed = message.roster == self._roster
        table = unpacked(message.table) if self._agreed else ()
        told = (message.beats.values(), table, [vitals.generation for vitals in message.vitals])
        highest = max(max(numbers, default=0) for numbers in told)
        if highest > min(self.beat + AHEAD_MILLISECONDS_MAX, BEAT_MAX) or len(table) not in (0, len(self.beats)):
            self.counts["absurd"] += 1
            return None
        if message.table and not self._agreed:
            self.counts["other_rosters"] += 1
        self._hear(message.beats)
        if table:
            named = zip(self.beats, table, strict=True)
            self._hear(dict(compress(named, map(gt, table, self.beats.values()))))
        for vitals in message.vitals:
            self._learn(vitals)
        return self._answer(message) if message.asks else None

    def farewell(self, chance: Chance) -> list[tuple[str, Rumours]]:
        """This node stops: what it tells to some, who tell it to the others."""
        self.tell("leaving", epoch=self.vitals.epoch)
        others = list(self._living)
        chance.shuffle(others)
        message = Rumours(node=self.node, roster=self._roster, beats={self.node: self.beat}, vitals=(self.vitals,))
        return [(node, message) for node in others[:FAREWELLS]]

    # -- what the owner may know ------------------------------------------------------------------------------------

    @property
    def beat(self) -> int:
        """The own heartbeat."""
        return self.beats[self.node]

    @property
    def away(self) -> tuple[str, ...]:
        """The members that are not to be asked for anything: suspect, down or leaving."""
        if self._away is None:
            leaving = {node for node, peer in self._living.items() if peer.state() in ("suspect", "leaving")}
            self._away = tuple(sorted(leaving | self._down.keys()))
        return self._away

    def state_of(self, node: str) -> State:
        """The state of a member. Raises KeyError."""
        if node == self.node:
            return self.vitals.state
        return "down" if node in self._down else self._living[node].state()

    @property
    def load_elsewhere(self) -> int:
        """Operations a second that agents ask of the other nodes, by those nodes' last word."""
        return sum(peer.vitals.load for peer in self._living.values() if peer.vitals is not None)

    def view(self, now: float) -> dict[str, Health]:
        """All members and this node, by name."""
        self._count(now)
        found = {self.node: Health(state=self.vitals.state, vitals=self.vitals)}
        for node, peer in (*self._living.items(), *self._down.items()):
            silent = self._time - peer.heard
            found[node] = Health(state=self.state_of(node), phi=self._phi(peer), silent=silent, vitals=peer.vitals)
        return dict(sorted(found.items()))

    # -- hearing ----------------------------------------------------------------------------------------------------

    def _count(self, now: float) -> None:
        self._time += min(max(0.0, now - self._now), TICK_SECONDS_MAX)
        self._now = now

    def _hear(self, beats: dict[str, int]) -> None:
        known, living, time = self.beats, self._living, self._time
        for node, beat in beats.items():
            before = known.get(node)
            if before is None:
                self.counts["strangers"] += 1
                continue
            if beat <= before:
                continue
            peer = living.get(node)
            if peer is None:
                self._hear_of_down_or_self(node, beat)
                continue
            known[node] = beat
            if beat & 1:
                if peer.suspect is None:
                    self._turn(node, peer, time)
                continue
            if peer.suspect is not None:
                self._turn(node, peer, None)
            elif before:
                peer.mean, peer.variance = averaged(time - peer.heard, peer.mean, peer.variance)
            else:
                peer.mean, peer.variance = self._regular
            peer.heard = time
            del living[node]
            living[node] = peer

    def _hear_of_down_or_self(self, node: str, beat: int) -> None:
        if node == self.node:
            if beat > self.beat + 1:
                self._rise_above(beat)
            return
        self.beats[node] = beat
        if not beat & 1:
            peer = self._living[node] = self._down.pop(node)
            peer.heard, peer.suspect = self._time, None
            self.turns.append((node, "down", peer.state()))
            self._away = None

    def _rise_above(self, number: int) -> None:
        """Others know what this process has not said: of an earlier one, whose clock was ahead."""
        self.beats[self.node] = min((max(self.beat, number) | 1) + 1, BEAT_MAX - 1)
        self.vitals = msgspec.structs.replace(self.vitals, generation=self.beat)
        self.counts["outdone"] += 1

    def _learn(self, vitals: Vitals) -> None:
        node = vitals.node
        if node == self.node and vitals.age > self.vitals.age:
            self._rise_above(vitals.generation)
        peer = self._living.get(node) or self._down.get(node)
        if peer is None or (peer.vitals is not None and peer.vitals.age >= vitals.age):
            return
        before = peer.state()
        peer.vitals = vitals
        peer.vitals_bytes = len(encode(vitals)) + 1
        self._news.pop(node, None)
        self._news[node] = None
        if peer.state() != before and node in self._living:
            self.turns.append((node, before, peer.state()))
            self._away = None

    # -- judging ----------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        down = []
        for node, peer in self._living.items():
            silent = self._time - peer.heard
            if silent < SILENT_SECONDS_MIN:
                break  # so are all behind it
            if peer.suspect is not None:
                if self._time - peer.suspect >= DOWN_SECONDS:
                    down.append(node)
            elif self._phi(peer) >= PHI_SUSPECT:
                self.beats[node] |= self.beats[node] > 0
                self._turn(node, peer, self._time)
        for node in down:
            peer = self._living.pop(node)
            self._suspects.pop(node, None)
            self._down[node] = peer
            self.turns.append((node, peer.state(), "down"))
        if down:
            self._away = None

    def _phi(self, peer: Peer) -> float:
        """News that was regular by luck is not expected to stay so: with many nodes it takes many ways."""
        return phi(self._time - peer.heard, peer.mean, max(peer.variance, self._regular[1]))

    def _turn(self, node: str, peer: Peer, suspect: float | None) -> None:
        before = peer.state()
        peer.suspect = suspect
        self._suspects.pop(node, None)
        if suspect is not None:
            self._suspects[node] = None
        if peer.state() != before:
            self.turns.append((node, before, peer.state()))
            self._away = None

    # -- speaking ---------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """How much fits into a message beside everything else, and how regular news can be."""
        self._roster = digest_of(self.beats)
        self._agreed = True  # with who spoke last
        room = GOSSIP_BYTES_MAX - VITALS_BYTES_MAX - REST_BYTES_MAX
        self._beats_max = room // (max(len(name.encode()) for name in self.beats) + _BEAT_BYTES_MAX)
        self._tabled = self._beats_max < len(self.beats) <= room // BEAT_CHARACTERS
        self._regular = (1.0, max(DEVIATION_SECONDS_MIN, math.log2(len(self.beats)) / 12) ** 2)

    def _partners(self, chance: Chance) -> list[str]:
        """Whom to ask: the next of a round in random order; and, the more of them there are, one of those who are
        down, or two halves that were cut off from each other would never hear of it."""
        found: list[str] = []
        while self._living and not found:
            if not self._round:
                self._round = list(self._living)
                chance.shuffle(self._round)
            node = self._round.pop()
            if node in self._living:
                found.append(node)
        if self._down and chance.random() < len(self._down) / (len(self._living) + 1):
            found.append(chance.choice(list(self._down)))
        return found

    def _pressing(self) -> dict[str, int]:
        """What is in every message: the own heartbeat, and the last suspicions."""
        return {node: self.beats[node] for node in (self.node, *islice(reversed(self._suspects), SUSPECTS_TOLD))}

    def _question(self) -> Rumours:
        vitals = self._some_vitals({})
        if self._tabled and self._agreed:
            return self._whole(vitals, asks=True)
        if len(self.beats) <= self._beats_max:
            beats = self.beats.copy()
        else:
            beats = self._pressing()
            limit = self._beats_max - len(beats)
            for node in (*islice(reversed(self._living), limit // 2), *islice(self._living, limit - limit // 2)):
                beats[node] = self.beats[node]
        return Rumours(node=self.node, roster=self._roster, asks=True, beats=beats, vitals=vitals)

    def _answer(self, question: Rumours) -> Rumours:
        vitals = self._some_vitals({v.node: v for v in question.vitals})
        if self._tabled and self._agreed:
            return self._whole(vitals)
        asked, limit = question.beats, self._beats_max
        beats = self._pressing()
        for node, beat in asked.items():
            known = self.beats.get(node, 0)
            if known > beat and len(beats) < limit:
                beats[node] = known
        for node, peer in reversed(self._living.items()):
            if len(beats) >= limit:
                break
            if node not in asked and peer.suspect is None:
                beats[node] = self.beats[node]
        return Rumours(node=self.node, roster=self._roster, beats=beats, vitals=vitals)

    def _whole(self, vitals: tuple[Vitals, ...], asks: bool = False) -> Rumours:
        """All heartbeats, and the own one by name, too: for who can't read the others."""
        own, table = {self.node: self.beat}, packed(self.beats.values())
        return Rumours(node=self.node, roster=self._roster, asks=asks, beats=own, table=table, vitals=vitals)

    def _some_vitals(self, known: dict[str, Vitals]) -> tuple[Vitals, ...]:
        """The own, the last heard ones, and some in turn, but for what is `known` to who asks."""
        chosen = {self.node: self.vitals}
        in_turn = VITALS_BYTES_MAX // VITALS_IN_TURN
        self._choose(reversed(self._news), chosen, known, VITALS_BYTES_MAX - in_turn)
        if len(chosen) <= len(self._news):
            some, self._in_turn = self._in_turn[:VITALS_AT_ONCE], self._in_turn[VITALS_AT_ONCE:] or list(self._news)
            self._choose(some, chosen, known, in_turn)
        return tuple(chosen.values())

    def _choose(self, nodes: Iterable[str], chosen: dict[str, Vitals], known: dict[str, Vitals], room: int) -> None:
        for node in nodes:
            peer = self._living.get(node) or self._down.get(node)
            if peer is None or peer.vitals is None or node in chosen:
                continue
            if node in known and known[node].age >= peer.vitals.age:
                continue
            room -= peer.vitals_bytes
            if room < 0:
                break
            chosen[node] = peer.vitals


def _figures(vitals: Vitals) -> tuple[int, ...]:
    return vitals.load, vitals.waiting, vitals.latency, vitals.digest
