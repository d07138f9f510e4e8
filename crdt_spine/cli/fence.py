"""`--fence`: a write of the command line under a lock that is held, by `spine lock run` or by whoever gave its token.

    CLUSTER@ID/TOKEN/LOCK    as `spine lock run` puts it into SPINE_FENCE, for the commands that it runs
    TOKEN                    as `spine lock ls` shows it

The nodes decide: a majority of them refuses what is older than the newest lease they know (core/fences.py). But a
token that was never given would be the newest for them, too, and shut out whoever holds the lock. So the lock service
is asked before which leases there are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from crdt_spine.core.fences import Fence
from crdt_spine.errors import InvalidInput, LeaseLost
from crdt_spine.limits import LOCK_NAME_BYTES_MAX, LOCKS_LISTED_MAX

if TYPE_CHECKING:
    from crdt_spine.spine import Spine

VARIABLE: Final = "SPINE_FENCE"
_FORM: Final = re.compile(r"(?:(?P<cluster>[A-Za-z0-9_@-]{1,80})/)?(?P<token>[0-9]{1,19})(?:/(?P<lock>.+))?", re.DOTALL)


class Named(NamedTuple):
    """What a text says: a token, and of which cluster (`name@id`) and lock, if it says that."""

    cluster: str | None
    token: int
    lock: str | None


def text_of(cluster: str, fence: Fence) -> str:
    """The text that names a lease."""
    return f"{cluster}/{fence.token}/{fence.lock}"


def named_by(context: click.Context, param: click.Parameter, text: str | None) -> Named | None:
    """A callback for the option. Raises BadParameter. An empty variable is none."""
    if not text:
        return None
    found = _FORM.fullmatch(text)
    whole = found is not None and (found["cluster"] is None) == (found["lock"] is None)
    if found is None or not whole or len((found["lock"] or "").encode(errors="replace")) > LOCK_NAME_BYTES_MAX:
        message = (
            f"{text!r:.80} is no fence; give a token, as `spine lock ls` shows it, or CLUSTER@ID/TOKEN/LOCK, as "
            f"`spine lock run` puts it into {VARIABLE}"
        )
        raise click.BadParameter(message, context, param)
    return Named(found["cluster"], int(found["token"]), found["lock"])


fence_option = click.option(
    "--fence", metavar="TOKEN", envvar=VARIABLE, show_envvar=True, callback=named_by,
    help="Only while no later lease of this lock was given: a held lock's token, of `spine lock ls`.",
)  # fmt: skip


async def under(named: Named | None, spine: Spine) -> dict[str, Any]:
    """The `fence` that a write is given. Raises InvalidInput: it is of another cluster, or none of the lock's;
    LeaseLost: nobody holds the lock any more; ConnectionFailed where no lock service says which leases there are."""
    if named is None:
        return {}
    here = spine.session.hello.identity
    if named.cluster not in (None, here, spine.session.hello.cluster):  # the last where somebody typed it
        raise InvalidInput(
            f"the fence {named.token} of the lock {named.lock!r} is from the cluster {named.cluster!r}, this is "
            f"{here!r}: acquire the lock of this one"
        )
    held = await spine.locks()
    for one in held:
        if one.token is None or (one.name != named.lock if named.lock is not None else one.token != named.token):
            continue
        if one.token < named.token:
            raise InvalidInput(
                f"{named.token} is no token of the lock {one.name!r}, whose newest is {one.token}: is it another "
                "lock's? `spine lock ls` shows them"
            )
        return {"fence": Fence(one.name, named.token)}
    if named.lock is not None and len(held) >= LOCKS_LISTED_MAX:  # there are more than can be listed
        return {"fence": Fence(named.lock, named.token)}
    raise LeaseLost(
        f"nobody holds {'a lock' if named.lock is None else f'the lock {named.lock!r}'} with the token {named.token} "
        "(any more); nothing was written. Acquire the lock again, and read again what you decided by"
    )
