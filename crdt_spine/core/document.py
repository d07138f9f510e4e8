"""A memory's content as a text that several agents edit at once: a Yjs document on top of a content register.

A document is the set of edits made to one content register, known by its origin; whoever writes the whole content anew
begins another one. Its state is a function of that register and of the dots of its edits, nothing else:

- the *seed* inserts the register's value. Its client id is made from the register's origin, so that everybody who
  seeds from one register makes the same items, and a text is never there twice;
- `base` is the seed and the edits up to `seen`, folded into one Yjs update; `tail` has the later ones, in order.

A record has an actor's changes without a hole, so a vector says which edits a document has (`reached`), and two
documents of one register are equal when their vectors are. When each replica folds is its own affair.

The order of a tail is causal: edits are appended as they are applied (rules 1 and 2), and a merge appends what the
other replica had beyond. That matters: Yjs must be given one client's updates in their order, or maps get corrupted.
Nicolaescu et al., "Near real-time peer-to-peer shared editing on extensible data types" (2016), is Yjs' YATA.

pycrdt is imported by the first document: most processes never have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from crdt_spine.core.causality import Vector, join, join_into, within
from crdt_spine.core.registers import NEVER, Register
from crdt_spine.limits import DOCUMENT_TAIL_BYTES_MAX, DOCUMENT_TAIL_EDITS_MAX

if TYPE_CHECKING:
    import pycrdt

TEXT = "content"  # the root type of a document that is the memory's content
NOTHING = b"\0\0"  # the Yjs update that changes nothing
CLIENT_BITS = 53  # of a client id: what JavaScript's numbers hold
READER = 0  # the client id of a document that is only read

Edit = tuple[str, int, bytes]  # actor, n, Yjs update
Key = tuple[int, str]  # (time, actor) of a content register's origin: which document it is


class Document(msgspec.Struct, frozen=True, array_like=True, gc=False, eq=False):
    """The edits of one content register. `base` is empty while nothing was folded, so that the seed comes first; it is
    None in a part of a document, which says: you have everything up to `seen` (see `part`)."""

    seen: Vector
    base: bytes | None
    tail: tuple[Edit, ...]

    @property
    def reached(self) -> Vector:
        """Which edits are in it."""
        vector = dict(self.seen)
        for actor, n, _ in self.tail:
            if vector.get(actor, 0) < n:
                vector[actor] = n
        return vector

    @property
    def size(self) -> int:
        """Bytes, about as many as its state has."""
        return len(self.base or b"") + sum(len(update) for _, _, update in self.tail)

    def __eq__(self, other: object) -> bool:
        """Have both the same edits? To be asked of documents of one register only."""
        if not isinstance(other, Document):
            return NotImplemented
        return self is other or self.reached == other.reached

    __hash__ = None  # type: ignore[assignment]


def key_of(content: Register | None) -> Key:
    """Which document the edits of this content belong to."""
    origin = NEVER if content is None else content.origin
    return origin.time, origin.actor


# -- edits and merges -----------------------------------------------------------------------------------------------


def edited(content: Register | None, document: Document | None, actor: str, n: int, update: bytes) -> Document:
    """The document after one more edit, whose dot is new to it."""
    if document is None:
        return _bounded(content, Document({}, b"", ((actor, n, update),)))
    return _bounded(content, Document(document.seen, document.base, (*document.tail, (actor, n, update))))


def merged(content: Register | None, one: Document, other: Document) -> Document:
    """The join of two replicas' documents of one content; one of them may be a part that the other completes."""
    if one.base is None:
        one, other = other, one
    mine, theirs = one.reached, other.reached
    if within(theirs, mine):
        return one
    if other.base is not None and within(mine, theirs):
        return other
    if within(other.seen, mine):
        return _bounded(content, _appended(one, mine, other))
    if other.base is not None and within(one.seen, theirs):
        return _bounded(content, _appended(other, theirs, one))
    updates = [*updates_of(content, one), *updates_of(content, other)]
    return Document(join(mine, theirs), state_of(updates), ())


def part(document: Document, have: Mapping[str, int]) -> Document:
    """What somebody needs who has all changes within `have`: without what he has, if that covers the base.

    Safe for who asks since(have): he had applied everything within `have`, so he has these edits in his record, or has
    gone on to a later content, or has dropped the memory; `completes` (core/record.py) is asked before it is merged.
    """
    if not within(document.seen, have):
        return document
    news = tuple([edit for edit in document.tail if edit[1] > have.get(edit[0], 0)])
    if not document.base and len(news) == len(document.tail):
        return document
    seen = dict(document.seen)
    for actor, n, _ in document.tail:
        if n <= have.get(actor, 0):
            join_into(seen, {actor: n})
    return Document(seen, None, news)


def _appended(one: Document, reached: Vector, other: Document) -> Document:
    """A document and what the other one, whose base lies within it, has beyond it; in the other's order, which is
    causal: what these edits build on is before them, here or there."""
    news = [edit for edit in other.tail if edit[1] > reached.get(edit[0], 0)]
    return Document(one.seen, one.base, (*one.tail, *news))


def _bounded(content: Register | None, document: Document) -> Document:
    """The document with its oldest edits folded where the tail is too long. Only half of it goes, so that who missed a
    few edits need not be sent the base, and folding costs each edit little."""
    tail = document.tail
    size = sum([len(update) for _, _, update in tail])
    if (len(tail) <= DOCUMENT_TAIL_EDITS_MAX and size <= DOCUMENT_TAIL_BYTES_MAX) or document.base is None:
        return document
    cut = 0
    while len(tail) - cut > DOCUMENT_TAIL_EDITS_MAX // 2 or size > DOCUMENT_TAIL_BYTES_MAX // 2:
        size -= len(tail[cut][2])
        cut += 1
    return folded(content, document, cut)


def folded(content: Register | None, document: Document, count: int) -> Document:
    """The document with its `count` oldest edits in the base."""
    if not count:
        return document
    old = Document(document.seen, document.base, document.tail[:count])
    return Document(old.reached, state_of(updates_of(content, old)), document.tail[count:])


# -- Yjs ------------------------------------------------------------------------------------------------------------


def updates_of(content: Register | None, document: Document | None) -> list[bytes]:
    """The Yjs updates that make the document, in their order."""
    if document is None:
        return [seed(content)]
    assert document.base is not None, "a part of a document is no document"
    return [document.base or seed(content), *[update for _, _, update in document.tail]]


def seed(content: Register | None) -> bytes:
    """The Yjs update that everybody begins a register's document with."""
    if content is None or not content.value:
        return NOTHING
    import pycrdt

    time, actor = key_of(content)
    client = int.from_bytes(sha256(f"{time}:{actor}".encode()).digest()[:8]) >> (64 - CLIENT_BITS)
    document: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=client)
    document.get(TEXT, type=pycrdt.Text).insert(0, content.value)
    return document.get_update()


def opened(updates: Sequence[bytes], client: int = READER) -> pycrdt.Doc[pycrdt.Text]:
    """A live Yjs document of these updates. What is no update has no effect, at no replica."""
    import pycrdt

    document: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=client)
    for update in updates:
        advance(document, update)
    return document


def advance(document: pycrdt.Doc[pycrdt.Text], update: bytes) -> bool:
    """Apply an update; False: it is none, and the document is as it was."""
    try:
        document.apply_update(update)
    except ValueError:
        return False
    return True


def text_in(document: pycrdt.Doc[pycrdt.Text]) -> str:
    """What a live document reads as."""
    import pycrdt

    return str(document.get(TEXT, type=pycrdt.Text))


def text_of(content: Register | None, document: Document | None) -> str:
    """What the memory's content reads as."""
    if document is None:
        return (content.value or "") if content is not None else ""
    return text_in(opened(updates_of(content, document)))


def state_of(updates: Sequence[bytes]) -> bytes:
    """One update for many. Deleted text is gone from it; what can't be applied yet is kept."""
    document = opened(updates)
    state = document.get_state()
    if all(complete(update, state) for update in updates):
        return document.get_update()
    return merged_updates([update for update in updates if _readable(update)])


def merged_updates(updates: Sequence[bytes]) -> bytes:
    """One update with everything that these have, deleted text included."""
    import pycrdt

    return pycrdt.merge_updates(*updates)


def canonical(content: Register | None, document: Document | None) -> tuple[str, dict[int, int]]:
    """The text and the state vector: equal for documents that are the same to Yjs."""
    live = opened(updates_of(content, document))
    return text_in(live), state_vector(live.get_state())


# -- what an update says of itself -----------------------------------------------------------------------------------


def state_vector(encoded: bytes) -> dict[int, int]:
    """A Yjs state vector, decoded: client id -> how far its clock went."""
    numbers = _numbers(encoded, 0)
    return {numbers[at]: numbers[at + 1] for at in range(1, 2 * numbers[0], 2)}


def complete(update: bytes, state: bytes) -> bool:
    """Is all that the update brings or deletes within the state vector? Else Yjs would keep it aside, for later."""
    import pycrdt

    try:
        rest = pycrdt.get_update(update, state)
    except ValueError:
        return True  # no update: nothing will ever come of it
    if rest[0]:
        return False
    if rest == NOTHING:
        return True
    here, numbers, at = state_vector(state), _numbers(rest, 1), 1
    for _ in range(numbers[0]):  # the delete set: clients, each with ranges of (clock, length)
        client, ranges = numbers[at : at + 2]
        at += 2
        for _ in range(ranges):
            if sum(numbers[at : at + 2]) > here.get(client, 0):
                return False
            at += 2
    return True


def _readable(update: bytes) -> bool:
    import pycrdt

    try:
        pycrdt.get_state(update)
    except ValueError:
        return False
    return True


def _numbers(encoded: bytes, start: int) -> list[int]:
    """Variable-length integers, seven bits a byte, the lowest first."""
    numbers, value, shift = [], 0, 0
    for byte in encoded[start:]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return numbers
