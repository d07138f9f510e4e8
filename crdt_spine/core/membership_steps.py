"""How a change of the cluster is done: in steps, so that nodes come and go while agents write.

Whoever drives a change has no state of its own but goals that can be set anew (`Goals`): the register says what is to
be done, so anybody can go on with a change that was interrupted.

A change is a `Move` for each of some partitions. All partitions move at once; in each of them at most one seat is no
member at any time, and no step follows before everybody has confirmed the one before.

- Joining. *named*: the others send the newcomer their deltas and keep their tombstones for it. Then *pulling*: it asks
  for since(nothing), and counts for no quorum. Once it has what there was when all had confirmed that, *member*. It is
  *settled*, and nothing else happens in the partition before, once it has what there was when all had confirmed that it
  is a member, and has heard what was promised there (core/rounds.py).
- Leaving. Once the one that came for it is settled, *leaving*: it takes no more writes and counts for no quorum. Where
  nobody came, enough others must have what there was. Once all have confirmed that, and enough others have everything
  that was there then, it is dropped.
- A dead node's seat counts for nothing from the beginning, nobody waits for its word, and it is dropped once who came
  in its place is settled; where nobody came, once enough others have what there was. What it sends is refused from
  then on, for ever (`refuses`).
- Turned back: whoever came and is no member yet is dropped; where it is, the old owner becomes a member again first,
  unless it dies meanwhile: then who came stays.

docs/decisions/0020-membership-steps.md says what goes wrong without each of the steps, 0022 how many move at once.
Ongaro, "Consensus: bridging theory and practice" (2014), chapter 4: one server at a time, learners first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

from msgspec.structs import replace

from crdt_spine.core.causality import Vector, join_into, within
from crdt_spine.core.membership import Kind, Membership, Seat, Stage
from crdt_spine.core.rebalancing import Move

Goal = Literal["level", "handed over"]


class _Step(NamedTuple):
    """What is next in a partition: the node's seat becomes that (None: it is dropped), once a goal is reached, if any:
    `who` is `level` with the others, or they have what the node had (`handed over`). With the `last` one a move is
    done."""

    node: str
    stage: Stage | None
    goal: Goal | None = None
    who: str | None = None
    last: bool = False


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
    unready: Collection[int] = (),
) -> Membership | None:
    """The next epoch, with a step in every partition where one can be made; None: it is to be waited for. `confirmed`
    has each node's epoch, `wanted` the goals, `known` the vectors as for `goals`. A leaver's changes must be on
    `enough` others, and on a majority of them. In the partitions `unready` the newcomer is a member, and has not heard
    yet what was promised there: were it settled and another one died, there might be nobody to tell it. The last step
    ends the change; who goes alive has confirmed before that that it dropped everything."""
    change = membership.change
    if change is None or membership.unconfirmed(confirmed):
        return None
    if not change.moves:
        return _closed(membership, membership.epoch + 1)
    epoch, comes = membership.epoch + 1, "" if change.kind == "cancel" else change.comes or ""
    seats, moves, done = dict(membership.seats), dict(change.moves), dict(change.done)
    for number, step in _steps(membership).items():
        if number in unready and step.who == comes and membership.stage(number, comes) == "member":
            continue
        if _is_due(membership, number, step, wanted, known, enough):
            seats[number] = _seated(seats[number], step, epoch)
            if step.last:
                move = moves.pop(number)
                if change.kind != "cancel":
                    done[number] = move
    if seats == membership.seats and moves == change.moves:
        return None
    after = replace(membership, epoch=epoch, seats=seats, change=replace(change, moves=moves, done=done))
    last = not moves and (change.goes is None or change.goes in membership.dead)
    return _closed(after, epoch) if last else after


class Goals:
    """The goals of a change while somebody drives it. They can be forgotten at any time: then they are set anew."""

    def __init__(self) -> None:
        self._set: dict[tuple[int, _Step], Vector] = {}
        self._of: tuple[Kind, str, int] | None = None  # another change makes the same step again

    def step(
        self,
        membership: Membership,
        confirmed: Mapping[str, int],
        known: Mapping[str, Mapping[int, Vector]],
        enough: int,
        unready: Collection[int] = (),
    ) -> Membership | None:
        """`goals`, remembered for as long as the partition's next step is the same, then `advance`. One that has more
        than is left anywhere (a disk was lost) is set anew."""
        change = membership.change
        if change is None or membership.unconfirmed(confirmed):
            return None
        if self._of != (change.kind, change.by, change.begun):
            self._set, self._of = {}, (change.kind, change.by, change.begun)
        keys = {number: (number, step) for number, step in _steps(membership).items()}
        new = goals(membership, known)
        for number, key in keys.items():
            if number in new and not (key in self._set and within(self._set[key], new[number])):
                self._set[key] = new[number]
        self._set = {key: self._set[key] for key in keys.values() if key in self._set}
        wanted = {number: self._set[key] for number, key in keys.items() if key in self._set}
        return advance(membership, confirmed, wanted, known, enough, unready)


def _steps(membership: Membership) -> dict[int, _Step]:
    moves = membership.change.moves if membership.change is not None else {}
    return {number: _next(membership.seats[number], move, membership.dead) for number, move in moves.items()}


def _next(seats: Mapping[str, Seat], move: Move, dead: Iterable[str]) -> _Step:
    """The next step of a move that is not done."""
    to, frm = move.to, move.frm
    if to is not None:
        match seats[to].stage if to in seats else None:
            case None:
                return _Step(to, "named")
            case "named" | "leaving":  # the latter: it comes back
                return _Step(to, "pulling")
            case "pulling":
                return _Step(to, "member", "level", to)
    settled: Goal = "handed over" if to is None else "level"
    if frm is None or frm not in seats:
        assert to is not None, f"nothing is left to do of {move}"
        return _Step(to, "member", "level", to, last=True)
    if frm in dead:
        if to is not None and seats[to].since < seats[frm].since:  # turned back: it was here before, and made up for
            return _Step(frm, None, "handed over", last=True)  # nothing that the dead one took along
        return _Step(frm, None, settled, to, last=True)
    match seats[frm].stage:
        case "named" | "pulling":
            return _Step(frm, None, last=True)
        case "leaving":
            return _Step(frm, None, "handed over", last=True)
    return _Step(frm, "leaving", settled, to)


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
    others = set(membership.answering(number)) - {step.node}
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
    return replace(membership, epoch=epoch, members=members, change=None, gone=gone)
