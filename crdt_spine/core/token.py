"""Tokens and cursors as text: opaque, versioned, and refused with a reason when they are not ours.

A token is a vector per partition. Actors are listed once; the rest is small numbers, so that a token of 64 partitions
stays near a kilobyte. A checksum tells a damaged one, which might otherwise ask for changes that never were.
"""

from __future__ import annotations

import base64
from typing import Any
from zlib import crc32

import msgspec

from crdt_spine.core.messages import Unreadable, Vectors, Whole
from crdt_spine.errors import InvalidInput

_TOKEN = "st1"
_CURSOR = "sc1"


class _Token(msgspec.Struct, array_like=True):
    cluster: str
    region: str
    actors: list[str]
    partitions: dict[int, dict[Whole, Whole]]  # partition -> actor's index -> n


class Cursor(msgspec.Struct, array_like=True):
    """Where a query goes on: behind (created, id), or by relevance past what was shown. `query` tells which query."""

    query: int
    after: tuple[Whole, str] | None
    shown: tuple[str, ...]


_decode_token = msgspec.msgpack.Decoder(_Token).decode
_decode_cursor = msgspec.msgpack.Decoder(Cursor).decode


def token_text(cluster: str, region: str, vectors: Vectors) -> str:
    """The token of these vectors."""
    actors: dict[str, int] = {}
    partitions = {
        number: {actors.setdefault(actor, len(actors)): n for actor, n in vector.items()}
        for number, vector in sorted(vectors.items())
        if vector
    }
    return _text(_TOKEN, _Token(cluster, region, list(actors), partitions))


def token_vectors(text: str, cluster: str, region: str, partitions: int) -> Vectors:
    """The vectors of a token. Raises InvalidInput: no token, or another cluster's."""
    try:
        token = _decode_token(_bytes(_TOKEN, text))
        vectors = {
            number: {token.actors[actor]: n for actor, n in vector.items()}
            for number, vector in token.partitions.items()
        }
    except (*Unreadable, ValueError, IndexError) as error:
        raise InvalidInput(
            f"token {_shown(text)} is none of this version; take one from spine.token or update.token"
        ) from error
    if (token.cluster, token.region) != (cluster, region):
        raise InvalidInput(
            f"the token is of cluster {token.cluster!r}, region {token.region!r}; this is {cluster!r}, {region!r}"
        )
    if not all(0 <= number < partitions for number in vectors):
        raise InvalidInput(f"the token names partitions that this cluster of {partitions} does not have")
    return vectors


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


def _text(kind: str, value: Any) -> str:
    body = msgspec.msgpack.encode(value)
    return kind + base64.urlsafe_b64encode(body + _checksum(kind, body)).decode().rstrip("=")


def _bytes(kind: str, text: str) -> bytes:
    if not isinstance(text, str) or not text.startswith(kind):
        raise ValueError("not of this kind")
    encoded = text[len(kind) :]
    data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    body = data[:-4]
    if data[-4:] != _checksum(kind, body):
        raise ValueError("damaged")
    return body


def _checksum(kind: str, body: bytes) -> bytes:
    return crc32(body, crc32(kind.encode())).to_bytes(4)


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else shown[:37] + "…"
