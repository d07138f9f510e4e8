"""Tokens and cursors come back as they were; whatever else is given for one raises InvalidInput and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt_spine.core.token import Cursor, cursor_of, cursor_text, token_text, token_vectors
from crdt_spine.errors import InvalidInput, StaleToken

SECRETS = (b"", b"sixteen bytes or more")

actors = st.sampled_from(["eu/a@1", "eu/b@2", "us/é@3"])
vectors = st.dictionaries(st.integers(0, 63), st.dictionaries(actors, st.integers(1, 1 << 40), min_size=1), max_size=8)
cursors = st.builds(
    Cursor, st.integers(0, (1 << 32) - 1), st.none() | st.tuples(st.integers(0, 1 << 62), st.text(max_size=5)),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
)  # fmt: skip


@given(vectors, st.sampled_from(SECRETS))
def test_a_token_comes_back(given_vectors: dict[int, dict[str, int]], secret: bytes) -> None:
    text = token_text("c", "eu", given_vectors, secret)
    assert token_vectors(text, "c", "eu", 64, secret) == given_vectors
    assert text == token_text("c", "eu", dict(reversed(given_vectors.items())), secret), "equal vectors, equal tokens"


@given(cursors)
def test_a_cursor_comes_back(cursor: Cursor) -> None:
    assert cursor_of(cursor_text(cursor), cursor.query) == cursor


@given(cursors, st.data())
def test_damaged_ones_are_refused(cursor: Cursor, data: st.DataObject) -> None:
    for text, read in (
        (token_text("c", "r", {1: {"a": 5}, 2: {"a": 6}}), lambda text: token_vectors(text, "c", "r", 64)),
        (cursor_text(cursor), lambda text: cursor_of(text, cursor.query)),
    ):
        at = data.draw(st.integers(0, len(text) - 2))
        with pytest.raises(InvalidInput):
            read(text[:at])
        letter = data.draw(st.sampled_from("AZaz09-_é ").filter(lambda letter: letter != text[at]))  # noqa: B023
        with pytest.raises(InvalidInput):
            read(text[:at] + letter + text[at + 1 :])


@given(vectors.filter(bool), st.data())
def test_a_signed_token_that_was_altered_or_made_up_is_refused(
    made: dict[int, dict[str, int]], data: st.DataObject
) -> None:
    secret = SECRETS[1]
    text = token_text("c", "r", made, secret)
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_").filter(lambda letter: letter != text[at]))
    for forged in (text[:at] + letter + text[at + 1 :], text[:at]):
        with pytest.raises((InvalidInput, StaleToken)):
            token_vectors(forged, "c", "r", 64, secret)
    with pytest.raises(InvalidInput, match="was altered, or was signed with another secret"):
        token_vectors(token_text("c", "r", made, b"another secret, guessed"), "c", "r", 64, secret)
    with pytest.raises(InvalidInput, match="is not signed"):
        token_vectors(token_text("c", "r", made), "c", "r", 64, secret)
    with pytest.raises(InvalidInput, match="SPINE_TOKEN_SECRET"):
        token_vectors(text, "c", "r", 64)


def test_a_token_of_another_version_says_so() -> None:
    rest = token_text("c", "r", {1: {"a": 5}})[3:]
    with pytest.raises(InvalidInput, match="version 4, newer than this program's: update it"):
        token_vectors("st4" + rest, "c", "r", 64)
    with pytest.raises(InvalidInput, match="version 2, too old for this program: take a new token"):
        token_vectors("st2" + rest, "c", "r", 64)


@given(st.one_of(st.text(), st.binary(), st.integers(), st.none(), st.text().map(lambda text: "st3" + text)))
def test_garbage_is_refused(garbage: object) -> None:
    with pytest.raises(InvalidInput):
        token_vectors(garbage, "c", "r", 64)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        cursor_of(garbage, 0)  # type: ignore[arg-type]


def test_another_clusters_regions_or_querys_is_refused_and_says_so() -> None:
    text = token_text("c", "r", {63: {"a": 5}})
    for cluster, region, partitions, word in (("d", "r", 64, "'d'"), ("c", "s", 64, "'s'"), ("c", "r", 63, "63")):
        with pytest.raises(StaleToken, match=word):
            token_vectors(text, cluster, region, partitions)
    with pytest.raises(StaleToken, match=r"is of cluster 'c@1'.* is 'c@2', 'r' \(another cluster of that name"):
        token_vectors(token_text("c@1", "r", {}), "c@2", "r", 64)
    with pytest.raises(StaleToken, match="is of cluster 'c'"):
        token_vectors(token_text("c", "r", {}, SECRETS[1]), "d", "r", 64, b"the secret of cluster d")
    with pytest.raises(InvalidInput, match="another query"):
        cursor_of(cursor_text(Cursor(1, None, ())), 2)
    with pytest.raises(InvalidInput):
        cursor_of(text, 1)
    with pytest.raises(InvalidInput):
        token_vectors(cursor_text(Cursor(1, None, ())), "c", "r", 64)


def test_a_token_is_bounded_by_partitions_and_actors() -> None:
    """64 partitions of three nodes are a kilobyte; each further actor that wrote everywhere costs four bytes or so in
    each partition; a session that touched one partition has next to nothing."""

    def size(nodes: int, partitions: int) -> int:
        vector = {f"eu/spine-{node}@kx81a0z2": 100_000 + node for node in range(nodes)}
        return len(token_text("production-memory", "eu", dict.fromkeys(range(partitions), vector), SECRETS[1]))

    assert size(3, 64) <= 1_064
    assert size(30, 64) - size(29, 64) < 64 * 4.5
    assert size(1, 1) < 110
