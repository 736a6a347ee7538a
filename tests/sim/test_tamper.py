"""Every tampering of a leader is noticed and blamed on the leader; with a planted mistake some come through."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.tamper import KINDS, Result, draw, play


def played(seeds: range, mistake: str = "") -> list[Result]:
    return [play(replace(draw(seed, mistake), large=False)) for seed in seeds]


def test_no_tampering_comes_through_and_nobody_else_is_blamed() -> None:
    results = played(range(12))
    assert [result.failure for result in results if result.failure] == []
    assert {kind for result in results for kind in result.tampered} == set(KINDS)
    assert sum(result.proofs for result in results) > 20
    assert sum(result.false_accusations for result in results) > 0


def test_a_verifier_that_attests_without_merging_lets_it_through() -> None:
    failures = [result.failure for result in played(range(4), "credulous")]
    assert any("the round closed with" in failure for failure in failures)


@pytest.mark.slow
def test_no_tampering_comes_through_in_chunks_of_a_larger_model() -> None:
    results = [play(replace(draw(seed), large=True, parts=True)) for seed in range(6)]
    assert [result.failure for result in results if result.failure] == []
