"""The blind mean is the visible mean of the same fixed-point updates, whoever vanishes or lies."""

from __future__ import annotations

import pytest

from tests.merge.blind.cases import tried


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_the_blind_mean_is_the_visible_one_whoever_vanishes_or_lies(first: int) -> None:
    seen = {fault for seed in range(first, first + 20) for fault in tried(seed).split(", ")}
    assert len(seen) > 5
