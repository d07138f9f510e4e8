"""What a replica has promised to the primaries of its partitions: terms, and how far their stamps go.

A *term* (counter, node) of a partition is a ballot in the sense of Paxos: whoever has the promise of a majority for it
is the partition's primary, until a majority has promised a higher one. No clock decides anything here.

- A replica answers a primary whose term is at least the one that it has promised; a higher one is promised, durably,
  before it answers. So once a majority has promised a term, no lower one finds a majority any more.
- A primary says how far the stamps of its writes may go, its *bound*, and writes nothing above what a majority was
  told. Who promises a higher term says the highest bound that it was told until then. So the next primary knows a bound
  above all stamps of all earlier ones, whatever became of them, and what it writes is above them (core/whole.py: a
  seal).
- Bounds are not written down one by one. A node's *ceiling* is above all that it was told, and durable before it
  answers; after a restart it is what all partitions are taken to have been told.
- A replica that may have forgotten what it promised (a new disk, an old copy of one, a partition that was given to it)
  takes no part, is not *ready*, until it has inherited the promises of others (core/rounds.py).

Lamport, "The part-time parliament" (1998); Rystsov, "CASPaxos: replicated state machines without logs" (2018).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

import msgspec

from crdt_spine.core.messages import Promised, Term, encode

NEVER: Final[Term] = (0, "")
CEILING_MILLISECONDS: Final = 1_000  # how far the ceiling is raised above a bound: one journal entry a second

_decode = msgspec.json.Decoder(Promised).decode


class Promises:
    """A node's promises, by partition. What changes is durable once the entry that `unsaved` gave is (`saved_entry`);
    nothing that depends on it may leave the node before."""

    def __init__(self) -> None:
        self.terms: dict[int, Term] = {}
        self.durable: dict[int, Term] = {}  # of `terms`, what the disk has
        self.ready: set[int] = set()
        self.ceiling = 0  # milliseconds
        self._bounds: dict[int, int] = {}
        self._floor = 0  # what every partition may have been told before this process began
        self._new: set[int] = set()  # promised, or ready, and not in an entry yet
        self._raised = False

    def term(self, number: int) -> Term:
        """The highest term that was promised in a partition."""
        return self.terms.get(number, NEVER)

    def bound(self, number: int) -> int:
        """Above no stamp, in milliseconds, that any primary of the partition may have given by what this node was told;
        0: it was told of none."""
        return max(self._floor, self._bounds.get(number, 0))

    def promise(self, number: int, term: Term) -> None:
        """Promise a term that is higher than the one before."""
        assert term > self.term(number), (number, term)
        self.terms[number] = term
        self._new.add(number)

    def tell(self, number: int, bound: int) -> None:
        """Know how far the stamps of the partition's primary may go."""
        self._bounds[number] = max(self._bounds.get(number, 0), bound)
        if bound > self.ceiling:
            self.ceiling = bound + CEILING_MILLISECONDS
            self._raised = True

    def inherit(self, number: int, term: Term, bound: int) -> None:
        """Take part in a partition from now on, with what the others have promised there and were told."""
        if term > self.term(number):
            self.terms[number] = term
        if bound:
            self.tell(number, bound)
        self.ready.add(number)
        self._new.add(number)

    def forget(self, number: int) -> None:
        """The partition is not held any more."""
        self.terms.pop(number, None)
        self.durable.pop(number, None)
        self._bounds.pop(number, None)
        self.ready.discard(number)
        self._new.discard(number)

    def void(self) -> None:
        """This disk may be an old copy: nothing is known of what was promised since. The next checkpoint has it so."""
        self.ready.clear()

    # -- the disk ---------------------------------------------------------------------------------------------------

    def unsaved(self) -> Promised | None:
        """The entry that makes durable what has changed since the last one; None: nothing has."""
        if not self._new and not self._raised:
            return None
        terms = {number: self.terms[number] for number in sorted(self._new) if number in self.terms}
        entry = Promised(terms, tuple(sorted(self._new & self.ready)), self.ceiling)
        self._new.clear()
        self._raised = False
        return entry

    def saved_entry(self, entry: Promised) -> None:
        """This entry is durable now."""
        for number, term in entry.terms.items():
            if number in self.terms:
                self.durable[number] = max(self.durable.get(number, NEVER), term)

    @property
    def saved(self) -> dict[str, Any]:
        """For a checkpoint; `restore` takes it."""
        return {"promised": encode(Promised(self.terms, tuple(sorted(self.ready)), self.ceiling))}

    def restore(self, extra: Mapping[str, Any], held: Container[int]) -> None:
        """What a checkpoint had, of the partitions that are `held`."""
        if "promised" in extra:
            self.replay(_decode(extra["promised"]), held)

    def replay(self, entry: Promised, held: Container[int]) -> None:
        """An entry of the journal, or of a checkpoint, after a restart."""
        for number, term in entry.terms.items():
            if number in held:
                self.terms[number] = self.durable[number] = max(self.term(number), term)
        self.ready.update(number for number in entry.ready if number in held)
        self.ceiling = self._floor = max(self.ceiling, entry.ceiling)
