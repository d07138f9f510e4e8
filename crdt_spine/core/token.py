"""Tokens and cursors as text: opaque, versioned, and refused with a reason when they are not ours.

A token is a vector per partition, as bytes: actors are listed once, the busiest first and without the token's own
region; a partition is a gap to the one before, a mask that says which actors it has, and their numbers, all as
variable-length integers (LEB128). So it is bounded by the partitions that a session touched and the actors that wrote
there: 64 partitions of three nodes after 100,000 changes each are a kilobyte.

A checksum tells a damaged token, which might otherwise ask for changes that never were. Where agents share a secret, a
signature (HMAC-SHA256, RFC 2104, truncated to 16 bytes) tells a forged one as well; an unsigned one is refused then.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections import Counter
from typing import Any, Final
from zlib import crc32

import msgspec

from crdt_spine.core.messages import Unreadable, Vectors, Whole
from crdt_spine.errors import InvalidInput, StaleToken

_VERSION: Final = 3
_TOKEN = f"st{_VERSION}"
_CURSOR = "sc1"
_PLAIN, _SIGNED = 0, 1
_SIGNATURE_BYTES = 16


class Cursor(msgspec.Struct, array_like=True):
    """Where a query goes on: behind (created, id), or by relevance past what was shown. `query` tells which query."""

    query: int
    after: tuple[Whole, str] | None
    shown: tuple[str, ...]


_decode_cursor = msgspec.msgpack.Decoder(Cursor).decode


def token_text(cluster: str, region: str, vectors: Vectors, secret: bytes = b"") -> str:
    """The token of these vectors; signed, where there is a secret. `cluster` is the cluster's identity (`name@id`)."""
    touched = sorted((number, vector) for number, vector in vectors.items() if vector)
    uses = Counter(actor for _, vector in touched for actor in vector)
    actors = {actor: index for index, (actor, _) in enumerate(sorted(uses.items(), key=lambda use: (-use[1], use[0])))}
    body = bytearray([_SIGNED if secret else _PLAIN])
    _put_text(body, cluster)
    _put_text(body, region)
    own = f"{region}/"
    _put(body, len(actors))
    for actor in actors:
        _put_text(body, actor.removeprefix(own), flag=actor.startswith(own))
    _put(body, len(touched))
    before = -1
    for number, vector in touched:
        _put(body, number - before - 1)
        before = number
        ordered = sorted((actors[actor], n) for actor, n in vector.items())
        _put(body, sum(1 << index for index, _ in ordered))
        for _, n in ordered:
            _put(body, n)
    end = _signature(secret, body) if secret else _checksum(_TOKEN, bytes(body))
    return _TOKEN + _encoded(bytes(body) + end)


def token_vectors(text: str, cluster: str, region: str, partitions: int, secret: bytes = b"") -> Vectors:
    """The vectors of a token. Raises StaleToken: another cluster's, which nobody here can ever reach. InvalidInput: no
    token, one of another version, a damaged, a forged one, or one that is signed where there is no secret or the other
    way round."""
    version = re.match(r"st([0-9]{1,9})", text) if isinstance(text, str) else None
    if version is not None and int(version[1]) != _VERSION:
        newer = int(version[1]) > _VERSION
        what = "newer than this program's: update it" if newer else "too old for this program: take a new token"
        raise InvalidInput(f"token {_shown(text)} is of version {int(version[1])}, {what} (it reads {_VERSION})")
    try:
        data = _decoded(_TOKEN, text)
        signed = {_PLAIN: False, _SIGNED: True}[data[0]]
        body, end = (data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]) if signed else (data[:-4], data[-4:])
        whole = not signed and end == _checksum(_TOKEN, body)
        reader = _Reader(body, 1)
        theirs = reader.text()[0], reader.text()[0]
    except (*Unreadable, ValueError, IndexError, KeyError) as error:
        raise _no_token(text) from error
    if not signed and not whole:
        raise _no_token(text)
    if theirs != (cluster, region):
        raise StaleToken(
            f"the token is of cluster {theirs[0]!r}, region {theirs[1]!r}; this is {cluster!r}, {region!r}"
            f"{_alike(theirs[0], cluster)}, where nobody can ever have what it has: connect to that one, or begin "
            "without a token"
        )
    if signed and not secret:
        raise InvalidInput("the token is signed: give the secret of this cluster's agents (SPINE_TOKEN_SECRET)")
    if secret and not signed:
        raise InvalidInput("the token is not signed, and only signed ones are taken here: who made it needs the secret")
    if signed and not hmac.compare_digest(end, _signature(secret, body)):
        raise InvalidInput(f"token {_shown(text)} was altered, or was signed with another secret: it is not believed")
    try:
        vectors = _vectors(reader, region)
    except (*Unreadable, ValueError, IndexError) as error:
        raise _no_token(text) from error
    if not all(number < partitions for number in vectors):
        raise StaleToken(f"the token names partitions that this cluster of {partitions} does not have")
    return vectors


def _alike(one: str, other: str) -> str:
    """What to say of two clusters that differ by their ids only."""
    same = one != other and one.partition("@")[0] == other.partition("@")[0]
    return " (another cluster of that name, as the id behind the @ tells)" if same else ""


def cursor_text(cursor: Cursor) -> str:
    """The cursor as text."""
    return _text(_CURSOR, cursor)


def cursor_of(text: str, query: int) -> Cursor:
    """The cursor of a text. Raises InvalidInput: no cursor, or another query's."""
    try:
        cursor = _decode_cursor(_bytes(_CURSOR, text))
    except (*Unreadable, ValueError) as error:
        raise InvalidInput(f"cursor {_shown(text)} is none of this version; take it from page.cursor") from error
    if cursor.query != query:
        raise InvalidInput("the cursor belongs to another query: pass the same conditions as for its first page")
    return cursor


def _vectors(reader: _Reader, region: str) -> Vectors:
    """What is behind the names of cluster and region. Raises ValueError, IndexError."""
    actors: list[str] = []
    for _ in range(reader.whole()):
        name, own = reader.text()
        actors.append(f"{region}/{name}" if own else name)
    vectors: Vectors = {}
    number = -1
    for _ in range(reader.whole()):
        number += 1 + reader.whole()
        mask = reader.whole(bits_max=len(actors))
        vectors[number] = {actor: reader.whole() for index, actor in enumerate(actors) if mask >> index & 1}
    if not reader.at_end:
        raise ValueError("there is more than there should be")
    return vectors


class _Reader:
    """Reads a token's bytes. Raises ValueError, IndexError."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def whole(self, bits_max: int = 63) -> int:
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= bits_max:
                raise ValueError("a number is too large")
        if value >> bits_max:
            raise ValueError("a number is too large")
        return value

    def text(self) -> tuple[str, bool]:
        length, flag = divmod(self.whole(), 2)
        if self._at + length > len(self._data):
            raise ValueError("it is cut off")
        self._at += length
        return self._data[self._at - length : self._at].decode(), bool(flag)


def _put(body: bytearray, value: int) -> None:
    while value >= 0x80:
        body.append(value & 0x7F | 0x80)
        value >>= 7
    body.append(value)


def _put_text(body: bytearray, text: str, *, flag: bool = False) -> None:
    encoded = text.encode()
    _put(body, 2 * len(encoded) + flag)
    body += encoded


def _signature(secret: bytes, body: bytes | bytearray) -> bytes:
    return hmac.digest(secret, _TOKEN.encode() + body, "sha256")[:_SIGNATURE_BYTES]


def _no_token(text: object) -> InvalidInput:
    return InvalidInput(f"token {_shown(text)} is none, or is damaged; take one from spine.token or update.token")


def _text(kind: str, value: Any) -> str:
    body = msgspec.msgpack.encode(value)
    return kind + _encoded(body + _checksum(kind, body))


def _bytes(kind: str, text: str) -> bytes:
    data = _decoded(kind, text)
    body = data[:-4]
    if data[-4:] != _checksum(kind, body):
        raise ValueError("damaged")
    return body


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(kind: str, text: str) -> bytes:
    if not isinstance(text, str) or not text.startswith(kind):
        raise ValueError("not of this kind")
    encoded = text[len(kind) :]
    data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    if _encoded(data) != encoded:  # bits behind the end mean nothing, and could be altered
        raise ValueError("not as it is written")
    return data


def _checksum(kind: str, body: bytes) -> bytes:
    return crc32(body, crc32(kind.encode())).to_bytes(4)


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else shown[:37] + "…"
