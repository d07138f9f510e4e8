"""The checkers of recorded histories speak when something does not hold: each is fed histories that were forged."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from chaos.checkers import CHECKERS, check
from chaos.history import End, Entry, Fault, Held, History, Op, Told

HOLDERS = dict.fromkeys(range(64), ("spine-1", "spine-2"))
NODES = ("spine-1", "spine-2")


def op(do: str, call: float, *, session: str = "a/1", back: float = 0.0, **fields: Any) -> Op:
    """A call that took a tenth of a second, at the default level, and was done, unless said otherwise."""
    given = {"level": "read-your-writes", "outcome": "ok", "kind": "register", "id": "r-1", **fields}
    return Op(do=do, session=session, call=call, back=back or call + 0.1, **given)  # type: ignore[arg-type]


def read(call: float, seen: str, **fields: Any) -> Op:
    return op("get", call, seen=seen, found=bool(seen), **fields)


def held(id: str, content: str, tags: tuple[str, ...] = (), nodes: tuple[str, ...] = NODES) -> list[Entry]:
    return [
        Held(node=node, partition=0, id=id, content=content, tags=tags, all=f"{id} {content} {tags}") for node in nodes
    ]


def told(id: str, content: str, kind: str = "stored", version: str = "v1", at: float = 5.0) -> Told:
    return Told(subscriber="s", at=at, kind=kind, id=id, content=content, version=version)


def problems(name: str, *entries: Entry | list[Entry]) -> list[str]:
    """What one checker says of a history, once it was written down and read again."""
    flat = [one for entry in entries for one in (entry if isinstance(entry, list) else [entry])]
    if not any(isinstance(entry, End) for entry in flat):
        flat.append(End(healed=50.0, converged=51.0, holders=HOLDERS))
    lines = [msgspec.json.encode(entry) for entry in flat]
    decoder = msgspec.json.Decoder(Entry)
    return list(CHECKERS[name](History(decoder.decode(line) for line in lines)))


ROLLED_BACK = Fault(what="rollback", target="spine-1", begin=1.0, end=2.0)
W1, W2 = op("store", 1.0, value="one"), op("update", 2.0, value="two")
D = {"kind": "doomed", "id": "d"}
T = {"kind": "tagged", "id": "t-1"}
BORN = op("store", 0.0, value="born", **T)
N = {"kind": "note", "id": "n"}
TH = {"kind": "thread", "id": "thread-1"}

WRONG: dict[str, tuple[str, list[Any]]] = {
    "an acknowledged write is lost": ("durability", [W1, W2, held("r-1", "one")]),
    "an acknowledged memory is gone": ("durability", [W1]),
    "an acknowledged entry of a thread is gone": ("durability", [op("append", 1.0, value="x", **TH)]),
    "an eventual write is lost though no disk is": ("durability", [op("store", 1.0, value="one", level="eventual")]),
    "what was deleted lives in the end": (
        "resurrection", [op("store", 1.0, value="x", **D), op("delete", 2.0, found=True, **D), held("d", "x")],
    ),
    "who deleted it is shown it": (
        "resurrection", [op("delete", 2.0, found=True, **D), read(3.0, "x", **D)],
    ),
    "who saw that it was gone finds it": (
        "resurrection",
        [read(1.0, "x", **D), read(2.0, "", **D), op("query", 3.0, kind="doomed", id="doomed", shown=("d",))],
    ),
    "who saw that it was gone updates it": (
        "resurrection", [op("delete", 2.0, found=True, **D), op("update", 3.0, value="y", **D)],
    ),
    "what was not applied is there": (
        "outcomes", [op("update", 1.0, value="no", outcome="not applied"), read(2.0, "no", session="b/1")],
    ),
    "a subscriber was told of what was not applied": (
        "outcomes", [op("store", 1.0, value="no", outcome="not applied", **N), told("n", "no")],
    ),
    "an unknown write is there twice": (
        "outcomes", [op("store", 1.0, value="x", outcome="unknown", **N), held("n", "x"), held("m", "x")],
    ),
    "something is there that nobody wrote": ("outcomes", [held("r-1", "what")]),
    "a tag that was not added": (
        "outcomes", [op("update", 1.0, add=("x-1",), outcome="not applied", **T), held("t-1", "", ("x-1",))],
    ),
    "a deletion that was not applied": (
        "outcomes", [op("store", 1.0, value="x", **D), op("delete", 2.0, outcome="not applied", **D)],
    ),
    "own writes are not read": ("sessions", [W1, W2, read(3.0, "one")]),
    "reads go back": ("sessions", [W1, W2, read(3.0, "two", session="b/1"), read(4.0, "one", session="b/1")]),
    "what was read is gone": ("sessions", [W1, read(2.0, "one", session="b/1"), read(3.0, "", session="b/1")]),
    "an effect without its cause": (
        "sessions",
        [
            W1, W2,  # a/1 overwrites r-1, then writes r-2, which lies in the same partition in a cluster of one
            op("store", 3.0, id="r-2", value="after"),
            read(4.0, "after", session="b/1", id="r-2"), read(5.0, "one", session="b/1"),
            End(healed=50.0, converged=51.0, holders={0: NODES}),
        ],
    ),
    "an own note is not found": (
        "sessions",
        [op("store", 1.0, value="x", **N), op("query", 2.0, kind="note", id="of-a", shown=())],
    ),
    "an entry of a thread that was shown is not shown again": (
        "monotonic",
        [
            op("append", 1.0, value="question", **TH), op("read", 2.0, session="b/1", shown=("question",), **TH),
            op("read", 3.0, session="b/1", shown=(), **TH),
        ],
    ),
    "an own entry of a thread is not shown": (
        "monotonic", [op("append", 1.0, value="question", **TH), op("read", 2.0, shown=(), **TH)],
    ),
    "what was found is not found again though nobody deletes it": (
        "monotonic",
        [
            op("query", 1.0, kind="doomed", id="doomed", shown=("d",)),
            op("query", 2.0, kind="doomed", id="doomed", shown=()),
        ],
    ),
    "what was shown is gone though nobody deletes it": (
        "monotonic", [read(1.0, "x", **D), read(2.0, "", **D)],
    ),
    "an added tag is not there": ("tags", [BORN, op("update", 1.0, add=("x-1",), **T), held("t-1", "born")]),
    "an own tag is not shown": (
        "tags", [BORN, op("update", 1.0, add=("x-1",), **T), read(2.0, "born", **T), held("t-1", "born", ("x-1",))],
    ),
    "a removed tag is there": (
        "tags",
        [
            BORN, op("update", 1.0, add=("x-1",), **T), op("update", 2.0, remove=("x-1",), **T),
            held("t-1", "born", ("x-1",)),
        ],
    ),
    "a remove took an add that came after it": (
        "tags",
        [
            BORN, op("update", 1.0, add=("x-1",), **T), op("update", 2.0, remove=("x-1",), **T),
            op("update", 3.0, add=("x-1",), session="b/1", **T), held("t-1", "born"),
        ],
    ),
    "an answer without its question": (
        "threads",
        [
            op("append", 1.0, value="question", **TH), op("read", 2.0, session="b/1", shown=("question",), **TH),
            op("append", 3.0, value="answer", session="b/1", **TH),
            op("read", 4.0, session="c/1", shown=("answer",), **TH),
        ],
    ),
    "an answer before its question": (
        "threads",
        [
            op("append", 1.0, value="question", **TH), op("append", 2.0, value="answer", **TH),
            op("read", 4.0, session="c/1", shown=("answer", "question"), **TH),
        ],
    ),
    "a subscriber was not told": (
        "subscriptions", [told("m", "y"), held("n", "x", ("news",)), held("m", "y", ("news",))],
    ),
    "a subscriber was told twice": (
        "subscriptions", [told("n", "x"), told("n", "x"), held("n", "x", ("news",))],
    ),
    "a subscriber was told twice of what was stored once": (
        "subscriptions",
        [
            op("store", 1.0, value="x", **N), told("n", "x"), told("n", "x", "updated", "v2"),
            held("n", "x", ("news",)),
        ],
    ),
    "a subscriber was told something old last": (
        "subscriptions", [told("n", "y"), told("n", "x", version="v0", at=6.0), held("n", "y", ("news",))],
    ),
    "a subscriber was not told of a deletion": (
        "subscriptions", [op("store", 1.0, value="x", **D), op("delete", 2.0, found=True, **D), told("d", "x")],
    ),
    "replicas differ": ("convergence", [held("r-1", "one", nodes=("spine-1",))]),
    "something never came right": (
        "convergence", [End(healed=1.0, converged=2.0, holders=HOLDERS, problems=("writes still fail",))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", WRONG)
def test_a_checker_notices(story: str) -> None:
    name, entries = WRONG[story]
    assert problems(name, *entries), f"{name} says nothing though {story}"


def test_a_run_without_an_end_is_none() -> None:
    assert check(History([W1])) != []


RIGHT: dict[str, tuple[str, list[Any]]] = {
    "what was written last is there": ("durability", [W1, W2, held("r-1", "two")]),
    "of writes at once either may win": (
        "durability", [W1, op("update", 1.05, value="two", session="b/1"), held("r-1", "one")],
    ),
    "an unknown write may be there or not": (
        "durability", [W1, op("update", 2.0, value="two", outcome="unknown"), held("r-1", "two")],
    ),
    "an eventual write may go with its disk": (
        "durability", [op("store", 1.0, value="one", level="eventual"), ROLLED_BACK],
    ),
    "a deletion of nothing deletes nothing": (
        "resurrection", [op("delete", 1.0, found=False, **D), op("store", 2.0, value="x", **D), held("d", "x")],
    ),
    "an eventual read may be old": ("sessions", [W1, W2, read(3.0, "one", level="eventual")]),
    "a new session knows nothing": ("sessions", [W1, W2, read(3.0, "one", session="a/2")]),
    "another session may not know yet": ("sessions", [W1, W2, read(3.0, "one", session="b/1")]),
    "what was shown may be deleted": (
        "monotonic",
        [read(1.0, "x", **D), op("delete", 1.5, session="b/1", outcome="unknown", **D), read(2.0, "", **D)],
    ),
    "another session may not be shown it yet": (
        "monotonic", [read(1.0, "x", **D), read(2.0, "", session="b/1", **D), read(3.0, "", level="eventual", **D)],
    ),
    "a remove that may not have seen the add": (
        "tags",
        [
            BORN, op("update", 1.0, add=("x-1",), **T), op("update", 1.05, remove=("x-1",), session="b/1", **T),
            held("t-1", "born", ("x-1",)),
        ],
    ),
    "a remove that may have seen the add": (
        "tags",
        [
            BORN, op("update", 1.0, add=("x-1",), **T), op("update", 1.05, remove=("x-1",), session="b/1", **T),
            held("t-1", "born"),
        ],
    ),
    "a deletion is told": (
        "subscriptions",
        [op("store", 1.0, value="x", **D), told("d", "x"), told("d", "", "deleted", "v2", at=6.0)],
    ),
    "equal replicas": ("convergence", [held("r-1", "one")]),
}  # fmt: skip


@pytest.mark.parametrize("story", RIGHT)
def test_a_checker_is_silent(story: str) -> None:
    name, entries = RIGHT[story]
    assert problems(name, *entries) == []
