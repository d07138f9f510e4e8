"""Strong operations with a rule less, so that a checker has something to find.

Nothing of this is in the product: a rule is taken away from outside, of an agent, or in a node's process (node.py).
"""

from __future__ import annotations

from crdt_spine.core import strong

#: What can be taken away.
RULES = {
    "primary-reads": "a strong read is the primary's, who asks a majority: here an agent takes any one replica's word",
    "majority": "a primary has the promise of a majority, and its answers are on a majority: here it asks nobody",
}
OF_AGENTS = ("primary-reads",)


def take_away(rule: str) -> None:
    """From now on this node does not keep the rule. Raises KeyError where there is no such rule."""
    if rule not in RULES or rule in OF_AGENTS:
        raise KeyError(f"a node has no rule {rule!r}; there are {', '.join(RULES)}")
    strong.majority = lambda count: 1  # type: ignore[attr-defined]
