"""Blind runs in virtual time: seeds that once broke a rule, and planted mistakes that the watch sees."""

from __future__ import annotations

from math import inf

import pytest

from sim.blind.plan import Ambush, Plan, draw
from sim.blind.world import run

ONCE_BROKEN = {
    1: "members that a deadline went by were on no roster any more, and one more was gone: the run stood still",
    149: "too few of an attempt were left to submit, and the ledger waited for them for ever",
    1079: "a submission that came after its round began again was taken for the sign of a restored disk",
    10353: "a round that closed while a member still masked its update took that node down",
    11258: "a member opened its mask while its report was on the way: others were struck, and two sums were known",
    12177: "the same, after crashes",
    41603: "a vector that was under way when its round began again was in the sum of the next attempt",
}


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_what_once_went_wrong(seed: int) -> None:
    assert not run(draw(seed)).failure


def test_a_disk_restored_right_after_its_submission_was_seen_masks_nothing_twice() -> None:
    """Its vector was in others' custody before the ledger named it, and then another one under the same masks."""
    for number in range(4):
        back = Ambush(1, "submit", number % 2 == 0, 0, 1.0, restored=True)
        plan = Plan(number, ambushes=(back,), skew_s=0.5, quick_s=8.0)
        assert not run(plan).failure


def test_keys_that_are_replaced_every_round_lose_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Plan(1, rounds=3, quick_s=8.0)
    before = run(quiet)
    monkeypatch.setattr("swarm.blind.KEY_ROUNDS_MAX", 0)
    often = run(quiet)
    assert not often.failure
    assert (before.counts["KeySet"], often.counts["KeySet"]) == (4, 16)
    assert often.counts["closed with a sum"] == before.counts["closed with a sum"] == often.counts["AttemptFrozen"]


@pytest.mark.parametrize("seed", range(6))
def test_keys_are_replaced_among_all_troubles(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.blind.KEY_ROUNDS_MAX", 0)
    assert not run(draw(seed)).failure


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("reused mask", "not in its log"),
        ("reveal before its log entry", "before it is in its log"),
        ("both kinds of share", "both secrets of"),
    ],
)
def test_a_members_mistake_is_seen(mistake: str, words: str) -> None:
    assert any(words in run(draw(seed, mistake=mistake)).failure for seed in range(30))


def test_a_vector_of_another_attempt_is_seen_in_a_sum() -> None:
    assert "vector of another attempt" in run(draw(611, mistake="a vector of another attempt")).failure


def test_a_contract_that_takes_both_kinds_of_share_is_seen() -> None:
    gone = (Ambush(3, "reveal", True, 0, inf), Ambush(5, "submit", True, 0, 9.0))
    failures = [
        run(Plan(seed, 7, liars={6: "other kind"}, ambushes=gone, mistake="contract takes both kinds")).failure
        for seed in range(3)
    ]
    assert any("both secrets of" in failure for failure in failures)


@pytest.mark.slow
def test_a_second_sum_of_a_round_is_seen() -> None:
    failures = [run(draw(seed, mistake="second sum")).failure for seed in range(30, 90)]
    assert any("are known of round" in failure for failure in failures)


@pytest.mark.slow
def test_hundreds_of_runs() -> None:
    assert not [(seed, failure) for seed in range(5000, 5400) if (failure := run(draw(seed)).failure)]
