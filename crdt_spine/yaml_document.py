"""A YAML file read with every problem found, not only the first: file, line, key, what is there, what is allowed.

A `Document` parses the text and remembers each key's line; a `Section` is one mapping of it, asked for the values it
should have. A value that can't be used is noted as a `Problem` and a harmless one is returned instead, so that reading
goes on; whoever reads must look at `problems` before using what came out. A key that nobody knows is a problem too
(a misspelt key would otherwise be a setting silently not made), and so is one that is there twice.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from crdt_spine.errors import ConfigError
from crdt_spine.limits import CONFIG_BYTES_MAX

Keys = tuple[str | int, ...]  # the way to a value

DEPTH_MAX: Final = 200  # of brackets

_MISSING: Final = object()
_KINDS: Final = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong in a file. `line` counts from 1 (0: unknown), `key` is a path such as `cluster.nodes[0].port`
    (empty: the whole file), `found` the value as written (None: there is none)."""

    file: str
    line: int
    key: str
    found: str | None
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f" {self.key}:" if self.key else ""
        found = f" found {self.found};" if self.found is not None else ""
        return f"{place}:{key}{found} {self.reason}"


def config_error(problems: Sequence[Problem]) -> ConfigError:
    """All problems, one a line."""
    return ConfigError("\n".join(map(str, problems)))


def write_whole(path: Path, text: str) -> None:
    """Write a file, all of it or nothing, also when the power fails. Raises ConfigError."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error.strerror or error}") from error


class Document:
    """The text of one file, parsed. `data` is None where it can't be read as YAML; `problems` says why."""

    def __init__(self, file: str, text: str | bytes) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.lines: dict[Keys, int] = {}
        self.data: Any = None
        try:
            self._parse(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = "is no YAML: " + ", ".join(part for part in (error.context, error.problem) if part)
            self.problems.append(Problem(file, mark.line + 1 if mark else 0, "", None, reason))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            # ValueError: a date that does not exist, bytes that are no UTF-8.
            reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
            if "set_int_max_str_digits" in reason:
                reason = "a number has thousands of digits"
            self.problems.append(Problem(file, 0, "", None, f"is no YAML: {reason}"))

    def root(self, keys: Collection[str]) -> Section | None:
        """The whole file as a mapping with these keys; None, with a problem, where it is none."""
        if isinstance(self.data, dict):
            return Section(self, (), self.data, keys)
        if not self.problems:
            found = "an empty file" if self.data is None else shown(self.data)
            self.problem((), found, f"the file must be a mapping with {listed(keys, 'the key', 'the keys')}")
        return None

    def problem(self, path: Keys, found: str | None, reason: str) -> None:
        """Note a problem of a key."""
        line = next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), 0)
        self.problems.append(Problem(self.file, line, path_text(path), found, reason))

    def _parse(self, text: str | bytes) -> None:
        if len(text) > CONFIG_BYTES_MAX:
            raise ValueError(f"it is too long; at most {CONFIG_BYTES_MAX:,} are read")
        if _depth(text) > DEPTH_MAX:
            raise RecursionError  # the parser would come to it as well, but it takes the square of the depth
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                self._note_lines(node, (), set())
                self.data = loader.construct_document(node)
        finally:
            loader.dispose()

    def _note_lines(self, node: yaml.Node, path: Keys, seen: set[int]) -> None:
        """The line of each key, and keys that are there twice (YAML itself would quietly take the last)."""
        self.lines[path] = node.start_mark.line + 1
        if id(node) in seen:  # an alias: it has been looked at where it was written
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._note_lines(item, (*path, index), seen)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*path, str(key.value))
                if inner in self.lines:
                    line = key.start_mark.line + 1
                    reason = f"the key is there twice, first in line {self.lines[inner]}; keep one of them"
                    self.problems.append(Problem(self.file, line, path_text(inner), None, reason))
                    continue
                self._note_lines(value, inner, seen)
                self.lines[inner] = key.start_mark.line + 1


class Section:
    """One mapping of the document. Values are asked for by key; `broken` are the keys that had a problem."""

    def __init__(self, document: Document, path: Keys, data: dict[Any, Any], keys: Collection[str]) -> None:
        self.document = document
        self.path = path
        self.data = data
        self.broken: set[str] = set()
        for key in data:
            if key not in keys:
                self._unknown(key, keys)

    def problem(self, key: str, reason: str) -> None:
        """Note a problem of a key's value."""
        self.broken.add(key)
        found = shown(self.data[key]) if self.given(key) else None
        self.document.problem((*self.path, key), found, reason)

    def sound(self, *keys: str) -> bool:
        """Had none of these keys a problem? Checks between keys make sense only then."""
        return self.broken.isdisjoint(keys)

    def given(self, key: str) -> bool:
        """Is the key there, with a value?"""
        return self.data.get(key) is not None

    def text(self, key: str, default: str | None = None, *, check: Callable[[str], str | None] | None = None) -> str:
        """A text that is not empty. Without a default it must be there; `check` says what is wrong with it, or None."""
        return self._value(key, str, default, check) or ""

    def text_or_none(self, key: str, *, check: Callable[[str], str | None] | None = None) -> str | None:
        """A text that may be left out."""
        return self.text(key, check=check) or None if self.given(key) else None

    def one_of(self, key: str, allowed: Collection[str], default: str) -> str:
        """One of a few words."""

        def check(value: str) -> str | None:
            return None if value in allowed else f"must be {words}{_near(value, allowed)}"

        words = listed(allowed, joined="or")
        return self._value(key, str, default, check, words) or default

    def whole(self, key: str, low: int, high: int, default: int | None = None, *, high_is: str = "") -> int:
        """A whole number from `low` to `high`, both included; `high_is` says in a problem what `high` is."""
        value = self._value(key, int, default, *_within(int, low, high, high_is))
        return low if value is None else int(value)

    def number(self, key: str, low: float, high: float, default: float) -> float:
        """A number from `low` to `high`, both included."""
        value = self._value(key, float, default, *_within(float, low, high))
        return default if value is None else float(value)

    def texts(self, key: str, *, check: Callable[[str], str | None] | None = None) -> tuple[str, ...]:
        """A list of at least one text."""
        items = self._list(key, "texts")
        good: list[str] = []
        for index, item in enumerate(items):
            reason = _wrong(item, str, check)
            if reason is None:
                good.append(item)
            else:
                self.broken.add(key)
                self.document.problem((*self.path, key, index), shown(item), reason)
        return tuple(good)

    def section(self, key: str, keys: Collection[str]) -> Section:
        """A mapping inside; an empty one where the key is left out."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, dict):
            self.problem(key, f"must be a mapping with {listed(keys, 'the key', 'the keys')}")
        return Section(self.document, (*self.path, key), value if isinstance(value, dict) else {}, keys)

    def sections(self, key: str, keys: Collection[str], *, needed: bool = True) -> Iterator[Section]:
        """The mappings of a list; a list that is `needed` has at least one."""
        value = self.data.get(key)
        if not needed and (value is None or value == []):
            return
        if not needed and not isinstance(value, list):
            what = listed(keys, "the key", "the keys")
            self.problem(key, f"must be a list, each of it a mapping with {what}, not {_kind_of(value)}")
            return
        for index, item in enumerate(self._list(key, f"mappings with {listed(keys, 'the key', 'the keys')}")):
            if isinstance(item, dict):
                yield Section(self.document, (*self.path, key, index), item, keys)
            else:
                self.broken.add(key)
                reason = f"must be a mapping with {listed(keys, 'the key', 'the keys')}"
                self.document.problem((*self.path, key, index), shown(item), reason)

    def _value(
        self, key: str, kind: type, default: Any, check: Callable[[Any], str | None] | None, allowed: str = ""
    ) -> Any:
        """A value that `check` finds nothing wrong with; `allowed` says what it may be, where that is more than its
        kind: "hash, agent or tag"."""
        value = self.data.get(key)
        if value is None:
            if default is None:
                self.problem(key, f"is missing; it must be {allowed or _KINDS[kind]}")
            return default
        reason = _wrong(value, kind, check, allowed)
        if reason is not None:
            self.problem(key, reason)
            return default
        return value

    def _list(self, key: str, items: str) -> list[Any]:
        """A list that is not empty; `items` says what is in it."""
        value = self.data.get(key, _MISSING)
        if isinstance(value, list) and value:
            return value
        missing = "is missing; it must be" if value is _MISSING else "must be"
        self.problem(key, f"{missing} a list of {items}, at least one")
        return []

    def _unknown(self, key: Any, keys: Collection[str]) -> None:
        near = _near(str(key), keys)
        if not near and len(keys) > 1:
            near = f"; the nearest known one is {_nearest(str(key), keys, 0)}"
        reason = f"unknown key{near}; known are {', '.join(sorted(keys))}"
        self.document.problem((*self.path, str(key)), shown(self.data[key]), reason)


def _depth(text: str | bytes) -> int:
    """How deep brackets are nested, those in quotes included."""
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", text if isinstance(text, bytes) else text.encode(errors="replace")):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def path_text(path: Keys) -> str:
    """`cluster.nodes[0].port`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(part if part.isprintable() else ascii(part) for part in parts).lstrip(".")


def shown(value: object) -> str:
    """A value for a message, as YAML has it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return _short.repr(value)


def listed(words: Collection[str], one: str = "", several: str = "", joined: str = "and") -> str:
    """`the keys a, b and c`."""
    ordered = list(words)
    text = ordered[0] if len(ordered) == 1 else f"{', '.join(ordered[:-1])} {joined} {ordered[-1]}"
    return f"{one if len(ordered) == 1 else several} {text}".lstrip()


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxdict = _short.maxlist = 4
_short.maxlevel = 2


def _near(word: str, known: Collection[str]) -> str:
    close = _nearest(word, known, 0.6)
    return f"; did you mean {close}?" if close else ""


def _nearest(word: str, known: Collection[str], likeness: float) -> str:
    """The known word most like this one, whatever the case of its letters; empty where none is that much like it, from
    0 (always one) to 1."""
    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), lower, 1, likeness)
    return lower[close[0]] if close else ""


def _within(kind: type, low: float, high: float, high_is: str = "") -> tuple[Callable[[float], str | None], str]:
    """A check that a number is so, and the words for what is allowed."""
    allowed = f"from {low:,} to {high:,}" + (f", {high_is}" if high_is else "")
    return lambda value: None if low <= value <= high else f"must be {allowed}", f"{_KINDS[kind]} {allowed}"


def _wrong(value: object, kind: type, check: Callable[[Any], str | None] | None, allowed: str = "") -> str | None:
    """What is wrong with a value, or None. A whole number is a number, but true is no number."""
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        reason = f"must be {allowed or _KINDS[kind]}, not {_kind_of(value)}"
        return reason if kind is not str or allowed else f"{reason}{_way_to_text(value, check)}"
    if kind is str and not value:
        return "must not be empty"
    return check(value) if check is not None else None


def _way_to_text(value: object, check: Callable[[Any], str | None] | None) -> str:
    """How what is no text becomes one: in quotes, if it is right then; else what the text must be."""
    nested = isinstance(value, list | dict)
    reason = check("" if nested else str(value)) if check is not None else None
    if reason is not None:
        return f"; it {reason}"
    return "" if nested else "; put it in quotes"


def _kind_of(value: object) -> str:
    if value is None:
        return "nothing"
    names: dict[type, str] = {**_KINDS, list: "a list", dict: "a mapping", bytes: "binary data"}
    return names.get(type(value), f"a {type(value).__name__}")
