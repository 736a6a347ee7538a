"""The Ethereum specification itself as oracle: it accepts our genesis and every block on it (see `eels/check.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ledger.specification import (
    accepted,
    blocks_of,
    random_programs,
    random_votes,
    real_rounds,
)


def test_the_specification_accepts_the_blocks_of_rounds_votes_and_random_programs(tmp_path: Path) -> None:
    chains = [real_rounds(tmp_path / "rounds", 2), random_votes(tmp_path / "votes", 1, 12)]
    chains += [random_programs(seed) for seed in range(5)]
    assert accepted(chains) == blocks_of(chains)


def test_the_specification_refuses_a_block_whose_state_differs_by_one(tmp_path: Path) -> None:
    tampered = real_rounds(tmp_path, 1)
    account = next(one for one in tampered["alloc"].values() if one["storage"])
    slot = next(iter(account["storage"]))
    account["storage"][slot] += 1
    with pytest.raises(AssertionError, match="the state of genesis differs"):
        accepted([tampered])


@pytest.mark.slow
def test_the_specification_accepts_more_than_a_thousand_random_blocks(tmp_path: Path) -> None:
    chains = [real_rounds(tmp_path / "rounds", 9)]
    chains += [random_votes(tmp_path / f"votes {seed}", seed, 40) for seed in range(10)]
    chains += [random_programs(seed) for seed in range(160)]
    count = blocks_of(chains)
    assert count > 1200
    assert accepted(chains) == count
