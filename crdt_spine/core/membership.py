"""Who belongs to the cluster and who holds which partition: a register that moves in steps, so that nodes come and go
while agents write.

The register is one value with an epoch, changed by compare-and-set where consensus is; nodes hear of it late, keep it
on their disks, and confirm its epoch after that. Whoever drives a change has no state of its own but goals that can be
set anew (`Goals`): the register says what is to be done, so anybody can go on with a change that was interrupted.

A change is a `Move` for each of some partitions. All partitions move at once; in each of them at most one seat is no
member at any time, and no step follows before everybody has confirmed the one before.

- Joining. *named*: the others send the newcomer their deltas and keep their tombstones for it. Then *pulling*: it asks
  for since(nothing), and counts for no quorum. Once it has what there was when all had confirmed that, *member*.
- Leaving. Once the one that came for it has what there was when all had confirmed that it is a member, *leaving*: it
  takes no more writes and counts for no quorum. Once all have confirmed that, and enough others have everything that
  was there then, it is dropped.
- A dead node's seat counts for nothing from the beginning, nobody waits for its word, and it is dropped as soon as
  somebody is a member in its place. What it sends is refused from then on, for ever (`refuses`).
- Turned back: whoever came and is no member yet is dropped; where it is, the old owner becomes a member again first,
  unless it dies meanwhile: then who came stays.

docs/decisions/0020-membership-steps.md says what goes wrong without each of the steps, 0022 how many move at once.
Ongaro, "Consensus: bridging theory and practice" (2014), chapter 4: one server at a time, learners first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from crdt_spine.core.causality import Vector, join_into, within
from crdt_spine.core.rebalancing import Move, plan
from crdt_spine.errors import InvalidInput

Stage = Literal["named", "pulling", "member", "leaving"]
Kind = Literal["add", "remove", "replace", "cancel"]

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # a node's id is part of subjects and of file names
_replace = msgspec.structs.replace


class Seat(msgspec.Struct, frozen=True, array_like=True):
    """A node's place in a partition; `since` is the epoch that named it. A node that knows an older seat of its own was
    dropped in between: what it has of the partition is of no use any more."""

    stage: Stage
    since: int


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node of the cluster; `host:port` is its HTTP listener. A replica coordinates nothing that a primary could."""

    host: str = ""
    port: int = 0
    zone: str | None = None
    role: Literal["primary", "replica"] = "primary"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for the whole cluster from its beginning: a config that says something else is not this cluster's."""

    cluster: str = ""
    region: str = ""
    partitions: int
    factor: int
    write_quorum: int = 1
    read_quorum: int = 1
    placement: str = "hash"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is being done: `comes` joins, `goes` leaves; of one that is turned back, `goes` is who had come, `comes` who
    was to go and gets its partitions back. `moves` has what is left to do, by partition, `done` what
    was done (a change that is turned back needs it no more); `total` is how many there were. `by` is the nonce of who
    proposed it, `begun` when, in milliseconds."""

    kind: Kind
    comes: str | None
    goes: str | None
    dead: bool = False
    moves: dict[int, Move]
    total: int
    by: str = ""
    begun: int = 0
    done: dict[int, Move] = {}


class Membership(msgspec.Struct, frozen=True):
    """The register. `seats`: partition -> node -> seat, `members`: who belongs to the cluster, `gone`: who does so no
    more, and since which epoch. `dead`: those of whom nothing is taken any more, ever; one of them that still has seats
    is a member until another node took them over."""

    epoch: int
    seats: dict[int, dict[str, Seat]]
    members: dict[str, Member]
    settings: Settings
    change: Change | None = None
    gone: dict[str, int] = {}
    dead: tuple[str, ...] = ()

    def peers_of(self, node: str) -> dict[int, tuple[str, ...]]:
        """The partitions that a node holds, each with the other nodes that have a seat in it."""
        return {
            number: tuple(sorted(seats.keys() - {node}))
            for number, seats in self.seats.items()
            if node in seats and seats[node].stage != "named"
        }

    def muted(self) -> dict[int, frozenset[str]]:
        """The nodes that count for no quorum, by partition."""
        return {
            number: frozenset(node for node, seat in seats.items() if not self._counts(node, seat))
            for number, seats in self.seats.items()
        }

    def replicas(self) -> dict[int, tuple[str, ...]]:
        """Who answers for each partition: its members; where all of them are dead, those."""
        return {number: self.answering(number) for number in self.seats}

    def answering(self, number: int) -> tuple[str, ...]:
        """Who answers for one partition."""
        seats = self.seats[number].items()
        counting = tuple(node for node, seat in seats if self._counts(node, seat))
        return counting or tuple(node for node, seat in seats if seat.stage == "member")

    def stage(self, number: int, node: str) -> Stage | None:
        """How far a node is with a partition; None: it has nothing to do with it."""
        seat = self.seats.get(number, {}).get(node)
        return None if seat is None else seat.stage

    @property
    def nodes(self) -> frozenset[str]:
        """Who belongs to the cluster, or has a seat in any partition."""
        return frozenset(self.members).union(*self.seats.values())

    @property
    def zones(self) -> dict[str, str | None]:
        """The zone of each member."""
        return {node: member.zone for node, member in self.members.items()}

    def refuses(self, node: str) -> bool:
        """Is it dead? Whatever it sends is refused, and it must not start."""
        return node in self.dead

    def counted(self, node: str, epoch: int, vectors: Mapping[int, Vector]) -> dict[int, Vector]:
        """Of an announcement's vectors those that are of the node's seat of now: who was dropped and is named again has
        forgotten what it said before it knew (`epoch` is the one that it had adopted)."""
        if node in self.dead:
            return {}
        return {
            number: vector
            for number, vector in vectors.items()
            if (seat := self.seats.get(number, {}).get(node)) is not None and seat.since <= epoch
        }

    def unconfirmed(self, confirmed: Mapping[str, int]) -> list[str]:
        """Who has not confirmed this epoch. While there is any, no step follows. Nobody waits for the dead."""
        return sorted(node for node in self.nodes - {*self.dead} if confirmed.get(node, 0) < self.epoch)

    def progress(self) -> tuple[int, int]:
        """How many of the change's moves are done, and how many there are."""
        return (0, 0) if self.change is None else (self.change.total - len(self.change.moves), self.change.total)

    def moving(self) -> dict[int, tuple[str, Stage]]:
        """The partitions that move, each with the node whose seat is no member, and how far that is."""
        return {
            number: (node, seat.stage)
            for number, seats in self.seats.items()
            for node, seat in seats.items()
            if seat.stage != "member"
        }

    def report(self, confirmed: Mapping[str, int]) -> dict[str, Any]:
        """For people: the cluster, and how far the change under way is."""
        change = self.change
        done, total = self.progress()
        held = Counter(node for seats in self.seats.values() for node, seat in seats.items() if seat.stage != "named")
        return {
            "epoch": self.epoch,
            "members": {
                node: {**msgspec.to_builtins(member), "partitions": held[node]} for node, member in self.members.items()
            },
            "dead": sorted(self.members.keys() & {*self.dead}),
            "change": None
            if change is None
            else {
                "kind": change.kind,
                "comes": None if change.kind == "cancel" else change.comes,
                "goes": None if change.kind == "cancel" else change.goes,
                "turned_away": change.goes if change.kind == "cancel" else None,
                "gets_back": change.comes if change.kind == "cancel" else None,
                "dead": change.dead,
                "done": done,
                "total": total,
                "by": change.by,
                "begun": change.begun,
                "what": _in_words(change),
                "moving": {str(number): f"{node} {stage}" for number, (node, stage) in self.moving().items()},
                "waits_for": self.unconfirmed(confirmed),
            },
        }

    def _counts(self, node: str, seat: Seat) -> bool:
        return seat.stage == "member" and node not in self.dead


_codec = msgspec.json.Decoder(Membership)


def to_json(membership: Membership) -> bytes:
    """As it stands in the register and in checkpoints."""
    return msgspec.json.encode(membership)


def from_json(raw: bytes) -> Membership:
    """Raises msgspec.ValidationError or msgspec.DecodeError: it is none."""
    return _codec.decode(raw)


def founded(
    replicas: Mapping[int, Iterable[str]],
    members: Mapping[str, Member] | None = None,
    settings: Settings | None = None,
) -> Membership:
    """The register of a cluster that begins with these replicas. Without `members`, they are who holds a partition;
    without `settings`, what can be seen from the replicas."""
    seats = {number: {node: Seat("member", 1) for node in nodes} for number, nodes in replicas.items()}
    if members is None:
        members = {node: Member() for node in sorted({node for nodes in seats.values() for node in nodes})}
    if settings is None:
        settings = Settings(partitions=len(seats), factor=max((len(nodes) for nodes in seats.values()), default=1))
    return Membership(1, seats, dict(members), settings)


# -- what an operator asks for ----------------------------------------------------------------------------------------


def proposed(
    membership: Membership,
    kind: Kind,
    node: str = "",
    member: Member | None = None,
    goes: str = "",
    dead: bool = False,
    by: str = "",
    now: int = 0,
) -> Membership:
    """The register with a change that is to begin: *add* `node`, *remove* `goes`, *replace* `goes` by `node`, or
    *cancel* what is under way. `dead`: `goes` (for a cancel: who came, unless `goes` names another) will not come back;
    whether it is down is for the caller to see. A cancel with `dead` is taken while a change is turned back as well: it
    goes on without that node. `by` and `now`, in milliseconds, are kept for who looks at it.

    Raises InvalidInput, with the reason and what to do."""
    if kind == "cancel":
        return _cancelled(membership, goes, dead, by, now)
    if kind not in ("add", "remove", "replace"):
        raise InvalidInput(f"{kind!r} is no change of the cluster: add, remove, replace or cancel")
    if membership.change is not None:
        raise InvalidInput(f"{described(membership)}: wait until that is done, or cancel it")
    comes = _comes(membership, node, member) if kind in ("add", "replace") else None
    leaves = _goes(membership, kind, goes) if kind in ("remove", "replace") else None
    if leaves is None and dead:
        raise InvalidInput("dead says that a node which goes will not come back: it belongs to remove, replace, cancel")
    members = dict(membership.members)
    if comes is not None:
        members[comes] = member or Member()
    zones = {name: there.zone for name, there in members.items() if name not in membership.dead}
    current = {number: tuple(seats) for number, seats in membership.seats.items()}
    moves = plan(current, zones, membership.settings.factor, comes=comes, goes=leaves)
    dead = dead or leaves in membership.dead
    change = Change(
        kind=kind, comes=comes, goes=leaves, dead=dead, moves=moves, total=len(moves), by=by, begun=now
    )  # fmt: skip
    gone = {name: epoch for name, epoch in membership.gone.items() if name != comes}
    after = _replace(membership, epoch=membership.epoch + 1, members=members, change=change, gone=gone)
    return _given_up(after, leaves) if dead and leaves is not None else after


def described(membership: Membership) -> str:
    """The change under way in words: "spine-4 is being added (12 of 48 partitions have moved; begun by a1b2)"."""
    change = membership.change
    if change is None:
        return "no change is under way"
    done, total = membership.progress()
    by = f"; begun by {change.by}" if change.by else ""
    return f"{_in_words(change)} ({done} of {total} partitions have moved{by})"


def _in_words(change: Change) -> str:
    goes = f"{change.goes} (dead)" if change.dead and change.kind != "cancel" else change.goes
    turned = [f"{change.goes} is turned away"] if change.goes is not None else []
    turned += [f"{change.comes} gets its partitions back"] if change.comes is not None else []
    return {
        "add": f"{change.comes} is being added",
        "remove": f"{goes} is being removed",
        "replace": f"{goes} is being replaced by {change.comes}",
        "cancel": " and ".join(turned) or "a change is turned back",
    }[change.kind]


def _comes(membership: Membership, node: str, member: Member | None) -> str:
    if not _ID.fullmatch(node):
        raise InvalidInput(
            f"{node!r} is no id for a node: letters, digits, - and _, at most 63, the first of them no - or _"
        )
    if node in membership.members:
        raise InvalidInput(f"{node} is in the cluster already, as one of {_listed(membership.members)}")
    if node in membership.dead:
        raise InvalidInput(
            f"{node} was given up as dead in epoch {membership.gone.get(node, 0)}, and what has that id is refused for "
            "ever: give the new node another id"
        )
    address = (member.host, member.port) if member is not None and member.host and member.port else None
    for other, there in membership.members.items():
        if (there.host, there.port) == address:
            raise InvalidInput(f"{there.host}:{there.port} is the address of {other} already: give {node} its own")
    return node


def _goes(membership: Membership, kind: Kind, goes: str) -> str:
    if goes not in membership.members:
        raise InvalidInput(f"{goes!r} is not in the cluster: name one of {_listed(membership.members)}")
    left = len(membership.members.keys() - {*membership.dead} - {goes})
    factor = membership.settings.factor
    if kind == "remove" and left < factor:
        raise InvalidInput(
            f"without {goes} there are {left} nodes, and every partition is kept on {factor}: add a node first, or "
            f"replace {goes} by a new one"
        )
    return goes


def _cancelled(membership: Membership, goes: str, dead: bool, by: str, now: int) -> Membership:
    """What has moved goes back, what has not begun stays. A dead node gets nothing back, and takes nothing away."""
    change = membership.change
    if change is None:
        raise InvalidInput("no change is under way: there is nothing to cancel")
    if change.kind == "cancel" and not dead:
        raise InvalidInput(
            f"{described(membership)}: that is a change turned back already, wait for its end; of a node that died "
            "meanwhile, say which, and that it is dead"
        )
    lost = goes or newcomer(change)
    if goes and not dead:
        raise InvalidInput(f"{goes} is named, which is for a node that died meanwhile: say dead too, or don't name it")
    if dead and lost not in membership.nodes:
        raise InvalidInput(f"{lost or 'nobody'} is not in the cluster: name the node that will not come back")
    if dead and lost in membership.dead:
        raise InvalidInput(f"{lost} is given up already: wait for the end of what is under way")
    membership = _replace(membership, seats=_recounted(membership, change, lost if dead else None))
    if dead and lost is not None:
        membership = _given_up(membership, lost)
    if change.kind == "cancel":
        left = {number: _without(membership, number, move) for number, move in change.moves.items()}
        turned = _replace(
            change, comes=_living(membership, change.comes), dead=True, by=by, begun=now,
            moves={number: move for number, move in left.items() if move is not None},
        )  # fmt: skip
        return _replace(membership, epoch=membership.epoch + 1, change=turned)
    moves: dict[int, Move] = {}
    for number, move in change.moves.items():
        back = _back(membership, number, move)
        if back is not None:
            moves[number] = back
    for number, move in change.done.items():
        if move.frm is None or move.frm not in membership.dead:
            moves[number] = Move(move.frm, move.to)
    turned = Change(
        kind="cancel", comes=_living(membership, change.goes), goes=change.comes, dead=dead,
        moves=dict(sorted(moves.items())), total=len(moves), by=by, begun=now,
    )  # fmt: skip
    return _replace(membership, epoch=membership.epoch + 1, change=turned)


def _back(membership: Membership, number: int, move: Move) -> Move | None:
    """What undoes a move that is not done; None: it has not begun."""
    came = None if move.to is None else membership.stage(number, move.to)
    went = None if move.frm is None else membership.stage(number, move.frm)
    if came in ("named", "pulling"):
        return Move(None, move.to)
    if came is None and went != "leaving":
        return None
    if move.frm in membership.dead:
        return Move(move.to if came == "leaving" else None, move.frm)
    return Move(move.frm, move.to)


def _recounted(membership: Membership, change: Change, lost: str | None) -> dict[int, dict[str, Seat]]:
    """The seats when a change is turned back, and `lost`, if anybody, counts no more.

    A newcomer that is a member and has not all that a majority had before it, or a leaver that has not handed over,
    makes two sets of which a majority may have had a write: with it, and without. Once a node of both is lost, any
    majority of those who count meets any such majority if they are an even number, and only then: so that seat counts,
    or doesn't. With nobody lost, a newcomer counts no more where the old owner is a member still."""
    seats, muted = dict(membership.seats), membership.muted()
    for number, move in change.moves.items():
        counting = seats[number].keys() - muted[number]
        node = _unsettled(seats[number], move)
        if node is None or node in membership.dead or node == lost:
            continue
        seat = seats[number][node]
        if lost in counting:
            counts = len(counting | {node}) % 2 == 1
        else:
            counts = seat.stage == "member" and (change.kind == "cancel" or move.frm in membership.dead)
        seats[number] = {**seats[number], node: Seat("member" if counts else "leaving", seat.since)}
    return seats


def _unsettled(seats: Mapping[str, Seat], move: Move) -> str | None:
    """The node of a move that counts, or does not, by its last step, while not all that this asks for has moved."""
    came, went = (seats.get(node or "") for node in (move.to, move.frm))
    if came is not None and went is not None and came.stage == went.stage == "member":
        return move.to
    return move.frm if went is not None and went.stage == "leaving" else None


def _without(membership: Membership, number: int, move: Move) -> Move | None:
    """What is left of a move of a change that is turned back: where the old owner died, who came stays."""
    to, frm = move.to, move.frm
    if to is None or to not in membership.dead:
        return move
    came = membership.stage(number, to)
    if came != "member":
        return None if came is None else Move(None, to)
    if frm is None or frm in membership.dead:
        return None if frm is None else Move(None, frm)
    return Move(None, to) if membership.stage(number, frm) == "member" else Move(frm, to)


def newcomer(change: Change) -> str | None:
    """Who joins by a change, or had come before it was turned back."""
    return change.goes if change.kind == "cancel" else change.comes


def _living(membership: Membership, node: str | None) -> str | None:
    return None if node in membership.dead else node


def _given_up(membership: Membership, node: str) -> Membership:
    dead = tuple(sorted({*membership.dead, node}))
    return _replace(membership, dead=dead, gone={**membership.gone, node: membership.epoch})


def _listed(nodes: Iterable[str]) -> str:
    return ", ".join(sorted(nodes))


# -- how it is done ---------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """What is next in a partition: the node's seat becomes that (None: it is dropped), once a goal is reached, if any:
    the node is `level` with the others, or they have what it had (`handed over`)."""

    node: str
    stage: Stage | None
    goal: Literal["level", "handed over"] | None = None
    who: str | None = None  # is to be level


def goals(membership: Membership, known: Mapping[str, Mapping[int, Vector]]) -> dict[int, Vector]:
    """What must have moved before the next step, as of now, for the partitions whose step needs that: to the newcomer
    what the others have, to who stays what the leaver and they have. `known` has the vectors of nodes, by partition, as
    they announced them at this epoch or a later one; a partition of which not all that is needed is known is left
    out. Whoever made a change before it heard of the epoch has it in what it announces at the epoch."""
    found: dict[int, Vector] = {}
    for number, step in _steps(membership).items():
        everything: Vector = {}
        sources = _sources(membership, number, step)
        if step.goal is not None and all(number in known.get(node, {}) for node in sources):
            for node in sources:
                join_into(everything, known[node][number])
            found[number] = everything
    return found


def advance(
    membership: Membership,
    confirmed: Mapping[str, int],
    wanted: Mapping[int, Vector],
    known: Mapping[str, Mapping[int, Vector]],
    enough: int,
) -> Membership | None:
    """The next epoch, with a step in every partition where one can be made; None: it is to be waited for. `confirmed`
    has each node's epoch, `wanted` the goals, `known` the vectors as for `goals`. A leaver's changes must be on
    `enough` others, and on a majority of them. The last step ends the change; who goes alive has confirmed before that
    that it dropped everything."""
    change = membership.change
    if change is None or membership.unconfirmed(confirmed):
        return None
    if not change.moves:
        return _closed(membership, membership.epoch + 1)
    epoch = membership.epoch + 1
    seats, moves, done = dict(membership.seats), dict(change.moves), dict(change.done)
    for number, step in _steps(membership).items():
        if _is_due(membership, number, step, wanted, known, enough):
            seats[number] = _seated(seats[number], step, epoch)
            if _next(seats[number], change.moves[number], membership.dead) is None:
                move = moves.pop(number)
                if change.kind != "cancel":
                    done[number] = move
    if seats == membership.seats:
        return None
    after = _replace(membership, epoch=epoch, seats=seats, change=_replace(change, moves=moves, done=done))
    last = not moves and (change.goes is None or change.goes in membership.dead)
    return _closed(after, epoch) if last else after


class Goals:
    """The goals of a change while somebody drives it. They can be forgotten at any time: then they are set anew."""

    def __init__(self) -> None:
        self._set: dict[tuple[int, str, Stage | None], Vector] = {}
        self._of: tuple[Kind, str, int] | None = None  # another change makes the same step again

    def step(
        self,
        membership: Membership,
        confirmed: Mapping[str, int],
        known: Mapping[str, Mapping[int, Vector]],
        enough: int,
    ) -> Membership | None:
        """`goals`, remembered for as long as the partition's next step is the same, then `advance`. One that has more
        than is left anywhere (a disk was lost) is set anew."""
        change = membership.change
        if change is None or membership.unconfirmed(confirmed):
            return None
        if self._of != (change.kind, change.by, change.begun):
            self._set, self._of = {}, (change.kind, change.by, change.begun)
        keys = {number: (number, step.node, step.stage) for number, step in _steps(membership).items()}
        new = goals(membership, known)
        for number, key in keys.items():
            if number in new and not (key in self._set and within(self._set[key], new[number])):
                self._set[key] = new[number]
        self._set = {key: self._set[key] for key in keys.values() if key in self._set}
        wanted = {number: self._set[key] for number, key in keys.items() if key in self._set}
        return advance(membership, confirmed, wanted, known, enough)


def _steps(membership: Membership) -> dict[int, _Step]:
    change = membership.change
    steps: dict[int, _Step] = {}
    for number, move in change.moves.items() if change is not None else ():
        step = _next(membership.seats[number], move, membership.dead)
        assert step is not None, f"the move {move} of partition {number} is done"
        steps[number] = step
    return steps


def _next(seats: Mapping[str, Seat], move: Move, dead: Iterable[str]) -> _Step | None:
    """The next step of a move, or None: it is done."""
    to, frm = move.to, move.frm
    if to is not None:
        match seats[to].stage if to in seats else None:
            case None:
                return _Step(to, "named")
            case "named" | "leaving":  # the latter: it comes back
                return _Step(to, "pulling")
            case "pulling":
                return _Step(to, "member", "level", to)
    if frm is None or frm not in seats:
        return None
    if frm in dead or seats[frm].stage in ("named", "pulling"):
        return _Step(frm, None)
    if seats[frm].stage == "leaving":
        return _Step(frm, None, "handed over")
    return _Step(frm, "leaving") if to is None else _Step(frm, "leaving", "level", to)


def _sources(membership: Membership, number: int, step: _Step) -> list[str]:
    """Whose changes must have moved before a step. For a handover, too, these are not the leaver's alone: what it said
    last may be older than a write of somebody who had not heard yet that it leaves, and counted it."""
    return [node for node in membership.seats[number] if node != step.who and node not in membership.dead]


def _is_due(
    membership: Membership,
    number: int,
    step: _Step,
    wanted: Mapping[int, Vector],
    known: Mapping[str, Mapping[int, Vector]],
    enough: int,
) -> bool:
    """Is the step's goal reached?"""
    if step.goal is None or number not in wanted:
        return step.goal is None
    goal = wanted[number]
    having = {node for node, vectors in known.items() if number in vectors and within(goal, vectors[number])}
    if step.goal == "level":
        return step.who in having
    others = set(membership.answering(number))
    return len(having & others) >= min(len(others), max(enough, len(others) // 2 + 1))


def _seated(seats: Mapping[str, Seat], step: _Step, epoch: int) -> dict[str, Seat]:
    if step.stage is None:
        return {node: seat for node, seat in seats.items() if node != step.node}
    since = seats[step.node].since if step.node in seats else epoch
    return {**seats, step.node: Seat(step.stage, since)}


def _closed(membership: Membership, epoch: int) -> Membership:
    """The change is over; who was to go, and has no seat any more, is gone."""
    assert membership.change is not None
    seated = {node for seats in membership.seats.values() for node in seats}
    leave = ({membership.change.goes, *membership.dead} & membership.members.keys()) - seated
    members = {node: member for node, member in membership.members.items() if node not in leave}
    gone = {**membership.gone, **{node: membership.gone.get(node, epoch) for node in leave if node is not None}}
    return _replace(membership, epoch=epoch, members=members, change=None, gone=gone)
