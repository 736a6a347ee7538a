"""The blind mean is the visible mean of the same fixed-point updates, whoever vanishes or lies."""

from __future__ import annotations

import pytest

from tests.merge.blind.cases import tried


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_the_blind_mean_is_the_visible_one_whoever_vanishes_or_lies(first: int) -> None:
    seen = {fault for seed in range(first, first + 20) for fault in tried(seed).split(", ")}
    assert len(seen) > 5


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 100))
def test_a_thousand_blind_means_are_the_visible_ones(first: int) -> None:
    for seed in range(first, first + 100):
        tried(seed)
