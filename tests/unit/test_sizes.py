"""How large a memory's metadata may be: what `python -m benchmarks.sizes` shows, held to its bounds."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.sizes import OFTEN_BYTES_MAX, ONCE_BYTES_MAX, metadata_bytes, often, once


def test_the_metadata_of_a_memory_that_was_written_once_is_at_most_120_bytes() -> None:
    assert ONCE_BYTES_MAX == 120
    for encoding, size in metadata_bytes(once(random.Random(1)).level()).items():
        assert size <= ONCE_BYTES_MAX, encoding


@pytest.mark.parametrize("seed", [1, 2])
def test_after_10_000_updates_by_three_and_1_000_tag_flips_it_is_at_most_400_bytes(seed: int) -> None:
    assert OFTEN_BYTES_MAX == 400
    record = often(seed=seed)
    assert len(record.version) == 3
    for encoding, size in metadata_bytes(record).items():
        assert size <= OFTEN_BYTES_MAX, encoding
