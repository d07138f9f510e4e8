"""What an operator may ask for: that a node joins, leaves, or takes another one's place; or that this is turned back.

A change is put into the register with all its moves (rebalancing.py) and gives nobody a seat yet: membership_steps.py
does. docs/decisions/0022-several-partitions-at-once.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from crdt_spine.core.membership import Change, Kind, Member, Membership, described, one_host
from crdt_spine.core.membership_cancel import cancelled
from crdt_spine.core.rebalancing import plan
from crdt_spine.errors import InvalidInput

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # a node's id is part of subjects and of file names


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
        return cancelled(membership, goes, dead, by, now)
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
    after = replace(membership, epoch=membership.epoch + 1, members=members, change=change, gone=gone)
    return after.given_up(leaves) if dead and leaves is not None else after


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
    address = (one_host(member.host), member.port) if member is not None and member.host and member.port else None
    for other, there in membership.members.items():
        if (one_host(there.host), there.port) == address:
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


def _listed(nodes: Iterable[str]) -> str:
    return ", ".join(sorted(nodes))
