"""Documents as an agent uses them: a memory's content as a Yjs text that many edit at the same time.

    async with spine.document("plan") as doc:
        doc.get("content", type=pycrdt.Text).insert(0, "1. measure\\n")

Entering a block makes a `pycrdt.Doc` of its own with the newest state; leaving it sends what the block changed as one
Yjs update, which every replica merges with everyone else's. Between blocks a spine remembers the last state it saw of a
few documents, so that the next block is sent only what is new, and Yjs client ids that may be used again.

A client id numbers what it inserts. Were it to number two things alike, replicas would differ for ever: so each is used
by one block at a time, goes on only in a state that has exactly what it had made (nodes check that, too), and is thrown
away when a write failed, is unknown, or was never sent.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from difflib import SequenceMatcher
from itertools import accumulate
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from crdt_spine import validation
from crdt_spine.core.causality import within
from crdt_spine.core.document import (
    CLIENT_BITS,
    TEXT,
    Document,
    Key,
    merged,
    merged_updates,
    opened,
    seed,
    state_vector,
    text_in,
    updates_of,
)
from crdt_spine.core.messages import DocumentPart, EditDocument, GetDocument
from crdt_spine.core.registers import Origin, Register
from crdt_spine.errors import InvalidInput, NotFound, SpineError, VersionConflict
from crdt_spine.levels import InForce, Levels, note
from crdt_spine.limits import (
    CLIENTS_REMEMBERED_MAX,
    CONTENT_BYTES_MAX,
    DOCUMENT_EDIT_BYTES_MAX,
    DOCUMENT_REBASES_MAX,
    DOCUMENTS_REMEMBERED_BYTES_MAX,
    DOCUMENTS_REMEMBERED_MAX,
)
from crdt_spine.memory import Consistency
from crdt_spine.session import Session

if TYPE_CHECKING:
    import pycrdt

STEPS_MERGED_MAX = 512  # of one block; merging takes quadratic time
PIECES_COMPARED_MAX = 2_000  # words or lines of a text; comparing may take quadratic time
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
Live = Any  # pycrdt.Doc, whose type parameter no user needs


class Known(msgspec.Struct, frozen=True):
    """A document as it was read last, of the content with the origin `key`. `clients` maps each Yjs client id that
    waits for its next block to how far its clock went."""

    key: Key
    content: str | None
    document: Document
    clients: dict[int, int]

    @property
    def register(self) -> Register:
        return Register(Origin(*self.key, 0, ""), self.content)

    @property
    def updates(self) -> list[bytes]:
        return updates_of(self.register, self.document)

    @property
    def size(self) -> int:
        return len(self.content or "") + self.document.size


class Documents:
    """What a spine remembers of documents between blocks."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._known)

    async def read(
        self, session: Session, id: str, levels: Levels, force: InForce, chosen: Consistency | None
    ) -> Known | None:
        """The document as it is now; None where there is no memory. Raises what a read raises."""
        known = self._known.get(id)
        for asked in (known, None):
            have = {} if asked is None else asked.document.reached
            operation = GetDocument(i=session.number(), id=id, base=None if asked is None else asked.key, have=have)
            found = (await levels.within(force, operation, chosen, use_token=True)).document
            if found is None:
                self.forget(id)
                return None
            joined = _joined(self._known.get(id), found)
            if joined is not None:
                self._keep(id, joined)
                return joined
        raise SpineError(f"the document of memory {id!r} came in part only")

    def lend(self, id: str, known: Known) -> tuple[int, Live]:
        """A client id for one block, and the live document under it."""
        clients = known.clients
        while clients:
            client, clock = clients.popitem()
            live = opened(known.updates, client)
            if state_vector(live.get_state()).get(client, 0) == clock:
                return client, live
        client = new_client()
        return client, opened(known.updates, client)

    def give_back(self, id: str, key: Key, client: int, live: Live) -> None:
        """The block is over, and what it made is in the document for sure."""
        known = self._known.get(id)
        if known is not None and known.key == key and len(known.clients) < CLIENTS_REMEMBERED_MAX:
            known.clients[client] = state_vector(live.get_state()).get(client, 0)

    def forget(self, id: str) -> None:
        """There is no such document any more."""
        known = self._known.pop(id, None)
        if known is not None:
            self._bytes -= known.size

    def _keep(self, id: str, known: Known) -> None:
        self.forget(id)
        self._known[id] = known
        self._bytes += known.size
        while self._known and (
            len(self._known) > DOCUMENTS_REMEMBERED_MAX or self._bytes > DOCUMENTS_REMEMBERED_BYTES_MAX
        ):
            self.forget(next(iter(self._known)))


class Editing:
    """One block: made by `Spine.document`, used as `async with`."""

    def __init__(
        self, session: Session, documents: Documents, id: str, levels: Levels, chosen: Consistency | None,
        agent: str | None,
    ) -> None:  # fmt: skip
        self._session = session
        self._documents = documents
        self._id = id
        self._levels = levels
        self._chosen = chosen
        self._force = levels.of_document(id, chosen)
        self._agent = agent
        self._known: Known | None = None
        self._client = 0
        self._clock = 0
        self._live: Live = None
        self._watching: Any = None
        self._start = b""  # the state vector when the block began
        self._updates: list[bytes] = []

    async def __aenter__(self) -> pycrdt.Doc[Any]:
        import pycrdt

        if self._live is not None:
            raise InvalidInput("this block is open already: call spine.document() for each")
        self._force = self._levels.of_document(self._id, self._chosen)
        try:
            known = self._known = await self._read()
        except BaseException:
            self._note()
            raise
        if known is None:
            self._client = new_client()
            live = opened((), self._client)
        else:
            self._client, live = self._documents.lend(self._id, known)
        live.get(TEXT, type=pycrdt.Text)  # so that it is there as doc["content"], too
        self._start = live.get_state()
        self._clock = state_vector(self._start).get(self._client, 0)
        self._updates = []
        self._watching = live.observe(lambda event: self._updates.append(event.update))
        self._live = live
        return live

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        live.unobserve(self._watching)
        try:
            await self._leave(live, kind)
        finally:
            self._note()

    async def _leave(self, live: Live, kind: type[BaseException] | None) -> None:
        updates, known = self._updates, self._known
        if kind is not None:
            return
        if updates:
            # The document's own word of what is new names everything that was ever deleted, and is fast; all steps one
            # by one name what was typed and deleted again: a few of them are smaller, many are larger.
            update = live.get_update(self._start)
            if len(updates) <= STEPS_MERGED_MAX:
                update = min(update, merged_updates(updates), key=len)
            await self._send(live, update)
        elif known is not None:
            self._documents.give_back(self._id, known.key, self._client, live)

    async def _read(self) -> Known | None:
        return await self._documents.read(self._session, self._id, self._levels, self._force, self._chosen)

    def _note(self) -> None:
        note("document", self._id, self._force.level, self._force.because)

    async def _send(self, live: Live, update: bytes) -> None:
        """Send the update; carry it over where the content was written anew meanwhile."""
        begun, made = self._known, live
        known, client, clock = begun, self._client, self._clock
        for _ in range(1 + DOCUMENT_REBASES_MAX):
            self._check(known, live, update)
            operation = EditDocument(
                i=self._session.number(), id=self._id, update=update, client=client, clock=clock,
                base=None if known is None else known.key, agent=self._agent,
            )  # fmt: skip
            try:
                await self._levels.within(self._force, operation, self._chosen, use_token=True)
            except VersionConflict:
                now = await self._read()
                if begun is not None:
                    if now is None:
                        raise NotFound(f"there is no memory {self._id!r} any more: it was deleted meanwhile") from None
                    client, clock = new_client(), 0
                    live = opened(now.updates, client)
                    start, present = live.get_state(), text_in(live)
                    replace(live, present, carried(text_in(opened(begun.updates)), text_in(made), present))
                    update = live.get_update(start)
                known = now  # what was begun from nothing builds on nothing: it fits as it is
                continue
            if known is not None:
                self._documents.give_back(self._id, known.key, client, live)
            return
        raise VersionConflict(
            f"the content of memory {self._id!r} was written anew {DOCUMENT_REBASES_MAX} times while an edit of it was "
            "on its way; nothing was changed"
        )

    def _check(self, known: Known | None, live: Live, update: bytes) -> None:
        """Raises InvalidInput. A text that is too long already may get shorter."""
        after = text_in(live)
        try:
            validation.text(f"the text of document {self._id!r}", after, CONTENT_BYTES_MAX, empty=True)
        except InvalidInput:
            before = "" if known is None else text_in(opened(known.updates))
            worse = after.count("\0") > before.count("\0") or len(after.encode()) > len(before.encode())
            if worse or len(after) == len(before):
                raise
        if len(update) > DOCUMENT_EDIT_BYTES_MAX:
            raise InvalidInput(
                f"what the block changed in document {self._id!r} is {len(update):,} bytes; at most "
                f"{DOCUMENT_EDIT_BYTES_MAX:,} are allowed: change less in one block"
            )


def new_client() -> int:
    """A Yjs client id that nobody has used."""
    return secrets.randbelow((1 << CLIENT_BITS) - 1) + 1


def carried(before: str, after: str, now: str) -> str:
    """What somebody made of a text, where another one has made something else of it: Yjs' merge of both."""
    base = seed(Register(Origin(0, "", 0, ""), before))
    mine, theirs = opened([base], 1), opened([base], 2)
    replace(mine, before, after)
    replace(theirs, before, now)
    mine.apply_update(theirs.get_update())
    return text_in(mine)


def replace(live: Live, before: str, after: str) -> None:
    """Make a document's text another one, by replacing only the words that differ."""
    import pycrdt

    text = live.get(TEXT, type=pycrdt.Text)
    with live.transaction():
        for start, end, words in reversed(_differences(before, after)):
            at, gone, new = (part.encode() for part in (before[:start], before[start:end], words))
            if new:
                text.insert(len(at), words)  # before it deletes: the old text still says where this belongs
            if gone:
                del text[len(at) + len(new) : len(at) + len(new) + len(gone)]


def _differences(before: str, after: str) -> list[tuple[int, int, str]]:
    """What to do to make one text another: (start, end, new text), ascending. Between the common beginning and end by
    words; by lines where that would be too much work, and at once where lines are, too."""
    start, common = 0, min(len(before), len(after))
    while start < common and before[start] == after[start]:
        start += 1
    end, common = 0, common - start
    while end < common and before[-1 - end] == after[-1 - end]:
        end += 1
    before, after = before[start : len(before) - end], after[start : len(after) - end]
    for pieces in (_WORDS.findall, lambda text: text.splitlines(keepends=True)):
        old, new = pieces(before), pieces(after)
        if max(len(old), len(new)) <= PIECES_COMPARED_MAX:
            places = list(accumulate(map(len, old), initial=start))
            steps = SequenceMatcher(None, old, new).get_opcodes()
            return [(places[a], places[b], "".join(new[c:d])) for what, a, b, c, d in steps if what != "equal"]
    return [(start, start + len(before), after)]


def _joined(known: Known | None, found: DocumentPart) -> Known | None:
    """What is known with what a node sent; None where that does not go together."""
    theirs = Document(found.seen, found.base, tuple(found.tail))
    if known is None or known.key != found.key:
        return None if theirs.base is None else Known(found.key, found.content, theirs, {})
    if theirs.base is None and not within(theirs.seen, known.document.reached):
        return None
    content = known.content if found.content is None else found.content
    joined = Known(known.key, content, known.document, known.clients)
    return msgspec.structs.replace(joined, document=merged(joined.register, known.document, theirs))
