"""The LWW register: of two writes the one with the greater origin stays.

An origin says who wrote what when: its hybrid time and actor make the total order (an actor never gives one time
twice), its (actor, n) is the dot. All registers that one change writes share one origin.
Shapiro et al., "A comprehensive study of convergent and commutative replicated data types" (2011), 3.2.1.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Origin(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """Where a value comes from. Ordered by (time, actor); dot and agent never decide, since those two are unique."""

    time: int
    actor: str
    n: int
    agent: str


#: Before every write: the origin of what nobody wrote yet.
NEVER = Origin(0, "", 0, "")


class Register(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value and where it comes from."""

    origin: Origin
    value: Any


def later(one: Register | None, other: Register | None) -> Register | None:
    """The merge of two registers; None is a register that nobody wrote."""
    if one is None or other is None:
        return one or other
    return other if other.origin > one.origin else one


def above(register: Register | None, floor: Origin) -> Register | None:
    """The register, unless it was written before the floor (the last store or delete)."""
    return None if register is None or register.origin < floor else register
