"""A change of the cluster is turned back: what has moved goes back, what has not begun stays.

Also the way out when a node dies meanwhile: it is given up, gets nothing back, and takes nothing away. Who counts in a
partition in which somebody has just come, or is about to go, is chosen so that no majority is without what a majority
may have had (`_recounted`; docs/decisions/0022-several-partitions-at-once.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from crdt_spine.core.membership import Change, Membership, Seat, described
from crdt_spine.core.rebalancing import Move
from crdt_spine.errors import InvalidInput


def cancelled(membership: Membership, goes: str, dead: bool, by: str, now: int) -> Membership:
    """The register with the change under way turned back, without the node that died meanwhile, if any: `goes`, or
    who came. A change that is turned back already goes on without it. Raises InvalidInput, with the reason."""
    change = membership.change
    if change is None:
        raise InvalidInput("no change is under way: there is nothing to cancel")
    if change.kind == "cancel" and not dead:
        raise InvalidInput(
            f"{described(membership)}: that is a change turned back already, wait for its end; of a node that died "
            "meanwhile, say which, and that it is dead"
        )
    lost = goes or change.newcomer
    if goes and not dead:
        raise InvalidInput(f"{goes} is named, which is for a node that died meanwhile: say dead too, or don't name it")
    if dead and lost not in membership.nodes:
        raise InvalidInput(f"{lost or 'nobody'} is not in the cluster: name the node that will not come back")
    if dead and lost in membership.dead:
        raise InvalidInput(f"{lost} is given up already: wait for the end of what is under way")
    membership = replace(membership, seats=_recounted(membership, change, lost if dead else None))
    if dead and lost is not None:
        membership = membership.given_up(lost)
    if change.kind == "cancel":
        left = {number: _without(membership, number, move) for number, move in change.moves.items()}
        turned = replace(
            change, comes=membership.living(change.comes), dead=True, by=by, begun=now,
            moves={number: move for number, move in left.items() if move is not None},
        )  # fmt: skip
        return replace(membership, epoch=membership.epoch + 1, change=turned)
    moves: dict[int, Move] = {}
    for number, move in change.moves.items():
        back = _back(membership, number, move)
        if back is not None:
            moves[number] = back
    for number, move in change.done.items():
        if move.frm is None or move.frm not in membership.dead:
            moves[number] = Move(move.frm, move.to)
    turned = Change(
        kind="cancel", comes=membership.living(change.goes), goes=change.comes, dead=dead,
        moves=dict(sorted(moves.items())), total=len(moves), by=by, begun=now,
    )  # fmt: skip
    return replace(membership, epoch=membership.epoch + 1, change=turned)


def _back(membership: Membership, number: int, move: Move) -> Move | None:
    """What undoes a move that is not done; None: it has not begun."""
    came = None if move.to is None else membership.stage(number, move.to)
    went = None if move.frm is None else membership.stage(number, move.frm)
    if came in ("named", "pulling"):
        return Move(None, move.to)
    if came is None and went != "leaving":
        return None
    if move.frm in membership.dead:
        return Move(membership.living(move.to), move.frm)
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
    if came is not None and came.stage == "member" and (went is None or went.stage == "member"):
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
